//! From a release to what serves: the last step of a push, over the seam [`Runtime`].
//!
//! A rollout has three parts, since the commit point lies between them: [`rollout`] starts the new version, waits
//! until it is ready and sends requests to it; then the caller writes the App in one compare-and-swap; then
//! [`Rollout::finish`] stops the old version, or [`Rollout::undo`] returns to it where the write was lost. Until
//! the end the old version runs, so every failure leaves it serving.

mod error;
mod runtime;

use std::time::Instant;

use tokio::sync::mpsc::{self, UnboundedSender};

use crate::model::PushEvent;

pub use error::{NotReady, Obstacle, RuntimeError};
pub use runtime::{
    Author, EventSink, InstanceLine, InstanceName, InstanceState, InstanceStatus, LogQuery, RunOutput,
    Runtime, RuntimeEvent, Version,
};

/// A version that serves, while the one before it still runs.
#[must_use = "the old version runs until the rollout is finished or undone"]
pub struct Rollout<'a> {
    runtime: &'a dyn Runtime,
    version: &'a Version,
    previous: Option<&'a Version>,
}

/// Starts `version`, waits until every instance is ready, and sends the app's requests to it.
///
/// On an error, and when the future is dropped, the new instances are stopped and `previous` serves as before. The
/// error's [`RuntimeError::events`] tell the pusher why; what it says of progress goes to `progress`.
pub async fn rollout<'a>(
    runtime: &'a dyn Runtime,
    previous: Option<&'a Version>,
    version: &'a Version,
    progress: &UnboundedSender<PushEvent>,
) -> Result<Rollout<'a>, RuntimeError> {
    let began = Instant::now();
    let (events, mut received) = mpsc::unbounded_channel();
    let start = async {
        let started = runtime.start(version, &events).await;
        drop(events);
        started
    };
    let report = async {
        while let Some(event) = received.recv().await {
            // The last of each type is in the summary; a pusher that is gone does not stop the rollout.
            if !matches!(&event, RuntimeEvent::Ready { ready, wanted, .. } if ready == wanted) {
                drop(progress.send(PushEvent::Line(event.to_string())));
            }
        }
    };
    let (started, ()) = tokio::join!(start, report);
    // What failed to start may have been begun by a server that died, so that this call found it there; and where a
    // version serves as soon as it is ready, it does so before the switch. A newer one is not to be touched.
    let switched = match started {
        Ok(()) => runtime.switch(version).await,
        Err(error) => Err(error),
    };
    if let Err(error) = switched {
        if !matches!(error, RuntimeError::Stale { .. } | RuntimeError::Left { .. })
            && let Err(undo) = runtime.undo(version, previous).await
        {
            let app = &version.release.app;
            tracing::error!(%app, error = &undo as &dyn std::error::Error, "a version cannot be taken back");
        }
        return Err(error);
    }
    let summary = summary(version, previous.is_some());
    let line = format!("{summary:<54} {:.1}s", began.elapsed().as_secs_f64());
    drop(progress.send(PushEvent::Line(line)));
    Ok(Rollout { runtime, version, previous })
}

impl Rollout<'_> {
    /// Drains and stops what ran before: the App says that this version is current.
    pub async fn finish(self) -> Result<(), RuntimeError> {
        self.runtime.retire(&self.version.release.app, self.version.release.number).await
    }

    /// Returns to what ran before: the App could not be written.
    pub async fn undo(self) -> Result<(), RuntimeError> {
        self.runtime.undo(self.version, self.previous).await
    }
}

/// `web 2/2 ready, the old version stops`.
fn summary(version: &Version, replaces: bool) -> String {
    let ready: Vec<String> = version
        .wanted()
        .filter(|(_, count)| *count > 0)
        .map(|(process_type, count)| format!("{process_type} {count}/{count}"))
        .collect();
    let ready =
        if ready.is_empty() { "nothing to start".to_owned() } else { format!("{} ready", ready.join(", ")) };
    if replaces { format!("{ready}, the old version stops") } else { ready }
}

#[cfg(test)]
mod tests;
