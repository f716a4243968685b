//! Waiting until an instance is ready, and finding out why it is not.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::directory::Found;
use super::instance::{ending, outcome};
use super::logs;
use crate::rollout::{EventSink, NotReady, Obstacle, RuntimeError, RuntimeEvent};
use crate::sandbox::app::{AppState, AppStatus};

/// How often an instance is looked at.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long an instance may listen only to itself before that is taken for its intention.
const LOOPBACK_PATIENCE: Duration = Duration::from_secs(3);
/// After which the one who waits is told what an instance listens on instead.
const TELL_AFTER: Duration = Duration::from_secs(5);
/// How many of its last lines explain a failure.
const LAST_LINES: usize = 20;

/// How long to wait, and for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// At most.
    pub(super) timeout: Duration,
    /// So long it must have been up, and have answered.
    pub(super) minimum: Duration,
}

/// Returns when the instance has been ready for a while. A `web` one is ready when it takes connections.
pub(super) async fn wait(
    found: &Found,
    port: u16,
    patience: Patience,
    events: &EventSink,
) -> Result<(), RuntimeError> {
    match watch(found, port, patience, events).await? {
        None => Ok(()),
        Some(obstacle) => {
            let (app, instance) = (found.id.app.clone(), found.id.instance.clone());
            let lines = logs::last_lines(found, LAST_LINES);
            Err(RuntimeError::NotReady(Box::new(NotReady { app, instance, obstacle, lines })))
        }
    }
}

/// What one look at an instance shows.
enum Seen {
    /// Its process is not running yet.
    Starting,
    /// It runs, and takes connections if it should.
    Ready,
    /// It runs, and does not take connections on its port.
    Unreachable(Obstacle),
    /// It will not become ready.
    Over(Obstacle),
}

/// The obstacle that the instance failed on, or `None` once it is ready.
async fn watch(
    found: &Found,
    port: u16,
    patience: Patience,
    events: &EventSink,
) -> Result<Option<Obstacle>, RuntimeError> {
    let began = Instant::now();
    let mut ready_since = None;
    let mut loopback_since = None;
    let mut last = Obstacle::NeverRan { within: patience.timeout };
    let mut told = false;
    loop {
        let seen = look(found, port, patience.timeout, began).await?;
        if !matches!(seen, Seen::Ready) {
            ready_since = None;
        }
        if !matches!(seen, Seen::Unreachable(Obstacle::LoopbackOnly { .. })) {
            loopback_since = None;
        }
        match seen {
            Seen::Over(obstacle) => return Ok(Some(obstacle)),
            Seen::Starting => {}
            Seen::Ready => {
                if ready_since.get_or_insert_with(Instant::now).elapsed() >= patience.minimum {
                    return Ok(None);
                }
            }
            Seen::Unreachable(obstacle) => {
                if matches!(obstacle, Obstacle::LoopbackOnly { .. })
                    && loopback_since.get_or_insert_with(Instant::now).elapsed() >= LOOPBACK_PATIENCE
                {
                    return Ok(Some(obstacle));
                }
                if !told && began.elapsed() >= TELL_AFTER {
                    told = true;
                    let (instance, text) = (found.id.instance.clone(), waiting(&obstacle, port));
                    drop(events.send(RuntimeEvent::Waiting { instance, text }));
                }
                last = obstacle;
            }
        }
        if ready_since.is_none() && began.elapsed() >= patience.timeout {
            return Ok(Some(last));
        }
        sleep(INTERVAL).await;
    }
}

async fn look(found: &Found, port: u16, timeout: Duration, began: Instant) -> Result<Seen, RuntimeError> {
    let Some(status) = found.status().await? else {
        return Ok(Seen::Over(Obstacle::Failed("its holder is gone".to_owned())));
    };
    match progress(status, began) {
        Progress::Over(obstacle) => return Ok(Seen::Over(obstacle)),
        Progress::Starting => return Ok(Seen::Starting),
        Progress::Running => {}
    }
    if !found.answers() || found.control().connect(port).await.is_ok() {
        return Ok(Seen::Ready);
    }
    match found.control().listening().await {
        Ok(listeners) => {
            let on: Vec<_> = listeners.into_iter().map(|l| SocketAddr::new(l.address, l.port)).collect();
            Ok(Seen::Unreachable(unreachable(on, port, timeout)))
        }
        // It may have ended just now; the next look will say so.
        Err(_) => Ok(Seen::Starting),
    }
}

enum Progress {
    Starting,
    Running,
    Over(Obstacle),
}

/// A new instance that ended once has failed, whether it is started again or not.
fn progress(status: AppStatus, began: Instant) -> Progress {
    let crashed = |how| Progress::Over(Obstacle::Crashed { how, after: began.elapsed() });
    match status.state {
        AppState::Starting if status.restarts == 0 => Progress::Starting,
        AppState::Running if status.restarts == 0 => Progress::Running,
        AppState::Starting | AppState::Running => crashed("an error".to_owned()),
        AppState::BackingOff { last: None, why, .. } => Progress::Over(Obstacle::Failed(ending(None, why))),
        AppState::BackingOff { last: Some(last), .. } | AppState::Ended { last } => crashed(outcome(last)),
        AppState::Failed { why } => Progress::Over(Obstacle::Failed(why)),
        AppState::Stopping => Progress::Over(Obstacle::Failed("it is being stopped".to_owned())),
    }
}

/// Why nothing can connect to `port` while the app listens `on` these.
fn unreachable(mut on: Vec<SocketAddr>, port: u16, within: Duration) -> Obstacle {
    on.sort();
    on.dedup();
    if let Some(address) = on.iter().find(|a| a.port() == port && a.ip().to_canonical().is_loopback()) {
        return Obstacle::LoopbackOnly { address: *address, port };
    }
    on.retain(|address| address.port() != port);
    if on.is_empty() { Obstacle::NeverListened { port, within } } else { Obstacle::Elsewhere { on, port } }
}

fn waiting(obstacle: &Obstacle, port: u16) -> String {
    match obstacle {
        Obstacle::NeverListened { .. } => format!("does not listen on port {port} yet"),
        other => format!("{other}, so far"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Outcome;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn what_an_app_listens_on_says_why_it_cannot_be_reached() {
        let why = |on: &[&str]| unreachable(addresses(on), 5000, Duration::from_mins(1)).to_string();
        assert_eq!(
            why(&["127.0.0.1:5000"]),
            "listens on 127.0.0.1:5000 only, which nothing outside the app can reach"
        );
        assert_eq!(
            why(&["[::1]:5000"]),
            "listens on [::1]:5000 only, which nothing outside the app can reach"
        );
        assert_eq!(why(&["0.0.0.0:8080", "0.0.0.0:8080"]), "listens on 0.0.0.0:8080, not on port 5000");
        assert_eq!(
            why(&["[::]:9000", "127.0.0.1:8080"]),
            "listens on 127.0.0.1:8080 and [::]:9000, not on port 5000"
        );
        assert_eq!(why(&[]), "did not listen on port 5000 within 60 seconds");
    }

    #[tokio::test]
    async fn an_instance_that_ended_once_has_failed_even_if_it_runs_again() {
        let of = |state, restarts| {
            progress(
                AppStatus { state, restarts, started_at: None, holder: 1, unlimited: None },
                Instant::now(),
            )
        };
        assert!(matches!(of(AppState::Running, 0), Progress::Running));
        assert!(matches!(of(AppState::Running, 1), Progress::Over(Obstacle::Crashed { .. })));
        let Progress::Over(Obstacle::Crashed { how, .. }) =
            of(AppState::Ended { last: Outcome::Exited(3) }, 0)
        else {
            panic!("it ended")
        };
        assert_eq!(how, "exit status 3");
    }
}
