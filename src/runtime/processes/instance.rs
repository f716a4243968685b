//! One instance: its state, its connections, its end.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join_all, try_join_all};
use tokio::time::timeout;

use super::Shared;
use super::directory::{Directory, Found};
use crate::model::ProcessType;
use crate::rollout::{InstanceState, InstanceStatus, RuntimeError};
use crate::router::{Backend, Connection};
use crate::sandbox::Outcome;
use crate::sandbox::app::{AppState, AppStatus, Control, ControlError};

/// How long a holder may take to say how its instance is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

impl Found {
    pub(super) fn control(&self) -> Control {
        Control::at(&self.path)
    }

    /// An error of the instance's holder or its place while `action`, an infinitive.
    pub(super) fn error(
        &self,
        action: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> RuntimeError {
        let (app, instance) = (self.id.app.clone(), self.id.instance.clone());
        RuntimeError::Instance { action, app, instance, source: source.into() }
    }

    /// Whether requests are sent to it.
    pub(super) fn answers(&self) -> bool {
        !self.id.once && self.id.instance.process_type == ProcessType::web()
    }

    /// How it is; `None` where no holder answers.
    pub(super) async fn status(&self) -> Result<Option<AppStatus>, RuntimeError> {
        match timeout(STATUS_TIMEOUT, self.control().status()).await {
            Ok(Ok(status)) => Ok(Some(status)),
            Ok(Err(ControlError::Gone { .. })) => Ok(None),
            Ok(Err(error)) => Err(self.error("ask", error)),
            Err(late) => Err(self.error("ask", late)),
        }
    }

    /// Whether its holder is there and still means to run it.
    pub(super) async fn is_alive(&self) -> bool {
        matches!(
            self.status().await,
            Ok(Some(AppStatus {
                state: AppState::Starting | AppState::Running | AppState::BackingOff { .. },
                ..
            }))
        )
    }

    /// What the router connects to.
    pub(super) fn backend(&self) -> Result<HolderBackend, RuntimeError> {
        Ok(HolderBackend { id: self.id.text(), control: self.control(), port: self.record()?.port })
    }

    /// Ends it, at the latest after `grace`, and keeps its log.
    pub(super) async fn end(&self, directory: &Directory, grace: Duration) -> Result<(), RuntimeError> {
        match self.control().stop(grace).await {
            Ok(()) | Err(ControlError::Gone { .. }) => {}
            Err(error) => return Err(self.error("stop", error)),
        }
        if self.id.once { self.remove() } else { directory.archive(self) }
    }
}

/// Ends all of `found` side by side, and lets go of the layers that nothing runs on any more.
pub(super) async fn end_all(shared: &Shared, found: &[Found]) -> Result<(), RuntimeError> {
    let grace = shared.config.policy.stop_grace;
    try_join_all(found.iter().map(|found| found.end(&shared.directory, grace))).await?;
    let releases: BTreeSet<_> = found.iter().map(|found| (&found.id.app, found.id.release)).collect();
    for (app, release) in releases {
        if !shared.directory.of(app)?.iter().any(|left| left.id.release == release) {
            shared.unpin(app, release)?;
        }
    }
    Ok(())
}

/// How each of `found` is.
pub(super) async fn statuses(found: &[Found]) -> Result<Vec<InstanceStatus>, RuntimeError> {
    let scaled: Vec<&Found> = found.iter().filter(|found| !found.id.once).collect();
    let statuses = join_all(scaled.iter().map(|found| found.status())).await;
    Ok(scaled
        .into_iter()
        .zip(statuses)
        .map(|(found, status)| {
            let (state, since, restarts) = match status {
                Ok(Some(status)) => (state(status.state), status.started_at, status.restarts),
                Ok(None) => (InstanceState::Down { why: "nothing holds it".to_owned() }, None, 0),
                Err(error) => (InstanceState::Down { why: error.to_string() }, None, 0),
            };
            InstanceStatus {
                name: found.id.instance.clone(),
                release: found.id.release,
                state,
                since,
                restarts,
            }
        })
        .collect())
}

fn state(state: AppState) -> InstanceState {
    match state {
        AppState::Starting => InstanceState::Starting,
        AppState::Running => InstanceState::Up,
        AppState::BackingOff { last, why, .. } => InstanceState::Crashed { how: ending(last, why) },
        AppState::Ended { last } => InstanceState::Down { why: outcome(last) },
        AppState::Failed { why } => InstanceState::Down { why },
        AppState::Stopping => InstanceState::Stopping,
    }
}

/// `exit status 1`, `signal 9`.
pub(super) fn outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::Exited(status) => format!("exit status {status}"),
        Outcome::Signalled(signal) => format!("signal {signal}"),
        Outcome::TimedOut => "its time limit".to_owned(),
        Outcome::Cancelled => "its end by hephy".to_owned(),
    }
}

/// How it ended, or why it could not be started.
pub(super) fn ending(last: Option<Outcome>, why: Option<String>) -> String {
    last.map(outcome).or(why).unwrap_or_else(|| "an error".to_owned())
}

/// An instance as the router sees it: connections are made by its holder, inside its network.
pub(super) struct HolderBackend {
    id: String,
    control: Control,
    port: u16,
}

#[async_trait]
impl Backend for HolderBackend {
    fn id(&self) -> &str {
        &self.id
    }

    async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        let stream = self.control.connect(self.port).await.map_err(|error| match error {
            ControlError::Gone { .. } | ControlError::Refused { .. } => {
                io::Error::new(io::ErrorKind::ConnectionRefused, error)
            }
            other => io::Error::other(other),
        })?;
        Ok(Box::new(stream))
    }
}
