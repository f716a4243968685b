//! Which calls a rollout makes of its runtime, and what it tells the pusher.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use super::*;
use crate::model::{AppName, BuildNumber, Fault, PublishedIndex, Release, ReleaseNumber, ReleaseState};
use crate::oci::Digest;

/// Notes what it is asked, and starts nothing.
#[derive(Default)]
struct Noting {
    calls: Mutex<Vec<String>>,
    obstacle: Option<Obstacle>,
}

impl Noting {
    fn note(&self, call: String) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

#[async_trait]
impl Runtime for Noting {
    async fn start(&self, version: &Version, events: &EventSink) -> Result<(), RuntimeError> {
        self.note(format!("start {}", version.release.number));
        let (app, instance) = (version.release.app.clone(), "web.1".parse().unwrap());
        if let Some(obstacle) = self.obstacle.clone() {
            let lines = vec!["Traceback".to_owned()];
            return Err(RuntimeError::NotReady(Box::new(NotReady { app, instance, obstacle, lines })));
        }
        for (process_type, wanted) in version.wanted().filter(|(_, wanted)| *wanted > 0) {
            for ready in 1..=wanted {
                let process_type = process_type.clone();
                events.send(RuntimeEvent::Ready { process_type, ready, wanted }).unwrap();
            }
        }
        Ok(())
    }

    async fn switch(&self, version: &Version) -> Result<(), RuntimeError> {
        self.note(format!("switch {}", version.release.number));
        Ok(())
    }

    async fn retire(&self, _: &AppName, keep: ReleaseNumber) -> Result<(), RuntimeError> {
        self.note(format!("retire all but {keep}"));
        Ok(())
    }

    async fn undo(&self, failed: &Version, previous: Option<&Version>) -> Result<(), RuntimeError> {
        let previous = previous.map_or_else(|| "nothing".to_owned(), |v| v.release.number.to_string());
        self.note(format!("undo {} to {previous}", failed.release.number));
        Ok(())
    }

    async fn scale(&self, _: &Version, _: &EventSink) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn stop(&self, _: &AppName) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn run(&self, _: &Version, _: &[String]) -> Result<RunOutput, RuntimeError> {
        Ok(RunOutput { status: 0, lines: Vec::new() })
    }

    async fn status(&self, _: &AppName) -> Result<Vec<InstanceStatus>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn logs(&self, _: &AppName, _: LogQuery) -> Result<BoxStream<'static, InstanceLine>, RuntimeError> {
        Ok(Box::pin(futures::stream::empty()))
    }

    async fn adopt(&self, _: &[Version]) -> Result<Vec<AppName>, RuntimeError> {
        Ok(Vec::new())
    }
}

fn version(number: u64, scale: &[(&str, u32)]) -> Version {
    let release = Release {
        format: 1,
        app: "hello".parse().unwrap(),
        number: ReleaseNumber(number),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        by: "ada".parse().unwrap(),
        summary: String::new(),
        build: BuildNumber(number),
        commit: "3f2a1c9000000000000000000000000000000000".parse().unwrap(),
        index: PublishedIndex { digest: Digest::of(b""), repository: "hello".to_owned(), images: Vec::new() },
        processes: scale.iter().map(|(name, _)| (name.parse().unwrap(), None)).collect(),
        ready_timeout_seconds: None,
        state: ReleaseState::Pending,
    };
    let scale = scale.iter().map(|(name, count)| (name.parse().unwrap(), *count)).collect();
    Version { release, variables: BTreeMap::new(), scale, ready_timeout: None }
}

fn told(mut received: mpsc::UnboundedReceiver<PushEvent>) -> Vec<String> {
    let mut lines = Vec::new();
    while let Ok(event) = received.try_recv() {
        lines.extend(event.render());
    }
    lines
}

#[tokio::test]
async fn a_ready_version_is_switched_to_and_the_old_one_stops_only_when_it_is_finished() {
    let (runtime, old, new) =
        (Noting::default(), version(3, &[("web", 1)]), version(4, &[("web", 2), ("worker", 0)]));
    let (progress, received) = mpsc::unbounded_channel();
    let rollout = rollout(&runtime, Some(&old), &new, &progress).await.unwrap();
    assert_eq!(runtime.calls(), ["start v4", "switch v4"]);
    rollout.finish().await.unwrap();
    assert_eq!(runtime.calls(), ["start v4", "switch v4", "retire all but v4"]);
    let lines = told(received);
    assert_eq!(lines[0], "       web 1/2 ready");
    assert!(lines[1].starts_with("       web 2/2 ready, the old version stops"), "{lines:?}");
    assert_eq!(lines.len(), 2);
}

#[tokio::test]
async fn a_version_that_is_not_ready_is_never_switched_to_and_the_pusher_reads_why() {
    let on = vec!["0.0.0.0:8080".parse().unwrap()];
    let runtime = Noting { obstacle: Some(Obstacle::Elsewhere { on, port: 5000 }), ..Noting::default() };
    let (progress, _received) = mpsc::unbounded_channel();
    let (old, new) = (version(3, &[("web", 1)]), version(4, &[("web", 1)]));
    let error = rollout(&runtime, Some(&old), &new, &progress).await.err().unwrap();
    // Taken back even so: a server that died may have begun it.
    assert_eq!(runtime.calls(), ["start v4", "undo v4 to v3"]);
    assert_eq!(error.fault(), Fault::App);
    let lines: Vec<String> = error.events().iter().flat_map(PushEvent::render).collect();
    assert_eq!(
        lines,
        [
            "         Traceback",
            " !     web.1 listens on 0.0.0.0:8080, not on port 5000",
            " !     Either listen on 0.0.0.0:$PORT, which is 5000 here,",
            " !     or name the port: `EXPOSE 8080` in the Dockerfile, or `hephy config set PORT=8080 -a hello`.",
        ]
    );
}

#[tokio::test]
async fn a_rollout_whose_commit_is_lost_returns_to_what_served() {
    let (progress, _received) = mpsc::unbounded_channel();
    let (old, new) = (version(3, &[("web", 1)]), version(4, &[("web", 1)]));
    let runtime = Noting::default();
    rollout(&runtime, Some(&old), &new, &progress).await.unwrap().undo().await.unwrap();
    rollout(&runtime, None, &new, &progress).await.unwrap().undo().await.unwrap();
    let undone: Vec<_> = runtime.calls().into_iter().filter(|call| call.starts_with("undo")).collect();
    assert_eq!(undone, ["undo v4 to v3", "undo v4 to nothing"]);
}
