//! Drives builds to their end, in this process.
//!
//! The SSH session only makes the Build and follows its log. What drives it is a task here, so that a pusher who is
//! gone, or a server that was restarted, changes nothing in how a build goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::Instrument as _;

use super::log::LogWriter;
use super::metrics::result_of;
use super::trace::{Trace, id_of};
use super::unwritten::Unwritten;
use super::{Ended, Hold, Stages, advance, claim, tell};
use crate::model::store::{self, StoreError};
use crate::model::{
    AppName, Build, BuildNumber, CancelReason, Chain, Claim, Fault, Kind, Outcome, PushEvent,
};

/// How long a build that is left to another server waits for its log to be there for that.
const LEAVING_PATIENCE: Duration = Duration::from_secs(5);

/// The builds that this process drives.
#[derive(Debug, Clone)]
pub struct Pushes {
    stages: Arc<Stages>,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    running: Arc<Mutex<HashMap<(AppName, BuildNumber), Running>>>,
    unwritten: Unwritten,
    /// Fires when this process drives nothing any more.
    leaving: CancellationToken,
}

#[derive(Debug, Clone)]
struct Running {
    ended: watch::Receiver<bool>,
    followers: usize,
}

/// A session that follows a build: while there is one, the build is not detached.
#[derive(Debug)]
pub struct Attached {
    pushes: Pushes,
    key: (AppName, BuildNumber),
}

impl Pushes {
    /// Drives at most `at_once` builds at a time; the others wait in order.
    #[must_use]
    pub fn new(stages: Arc<Stages>, at_once: usize) -> Self {
        Self {
            stages,
            permits: Arc::new(Semaphore::new(at_once)),
            tasks: TaskTracker::new(),
            running: Arc::default(),
            unwritten: Unwritten::default(),
            leaving: CancellationToken::new(),
        }
    }

    /// What the stages need.
    #[must_use]
    pub fn stages(&self) -> &Arc<Stages> {
        &self.stages
    }

    /// Drives `build` from the value it holds. The log can be read when this returns; where none can be written, the build
    /// has failed.
    pub async fn start(&self, build: Build, hold: Hold) -> std::io::Result<()> {
        let log = match self.stages.logs.write(&build).await {
            Ok(log) => log,
            Err(error) => {
                let reason = "hephy could not write the build's log".to_owned();
                let outcome = Outcome::Failed { at: Timestamp::now(), fault: Fault::Platform, reason };
                self.unwritten.conclude(&self.stages, build, outcome).await;
                hold.release().await;
                return Err(error);
            }
        };
        let (ended, receiver) = watch::channel(false);
        let key = (build.app.clone(), build.number);
        self.table().insert(key.clone(), Running { ended: receiver, followers: 0 });
        let this = self.clone();
        // An error's level, so that what is said within carries it whatever is left out of the log.
        let span = tracing::error_span!(
            "push", push_id = %id_of(&build), app = %build.app, build = %build.number, commit = %build.commit
        );
        let segments = log.segments();
        let work = async move {
            let is_ours = tokio::select! {
                () = this.drive(build, log) => true,
                is_ours = this.left(&key.0, &hold) => {
                    if let (true, Some(segments)) = (is_ours, segments) {
                        // Whoever goes on without its last lines is no worse off than after a crash.
                        drop(tokio::time::timeout(LEAVING_PATIENCE, segments.push()).await);
                    }
                    is_ours
                }
            };
            if is_ours {
                hold.release().await;
            } else {
                tracing::warn!(app = %key.0, build = %key.1, "a build is left to another server");
            }
            this.table().remove(&key);
            ended.send_replace(true);
        };
        self.tasks.spawn(work.instrument(span));
        Ok(())
    }

    /// Returns once the work on an app is to be left to whoever comes next, from the value that it has; whether the right to it is
    /// still ours then. The rollout is left as it is: whoever goes on with it would lose what is taken back.
    async fn left(&self, app: &AppName, hold: &Hold) -> bool {
        let is_ours = tokio::select! {
            () = hold.lost() => false,
            () = self.leaving.cancelled() => true,
        };
        self.stages.runtime.leave(app);
        is_ours
    }

    /// Leaves the builds that are at work to whoever comes next, at once: another server, or this one's next start.
    pub async fn leave(&self) {
        self.leaving.cancel();
        self.idle().await;
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<(AppName, BuildNumber), Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a session as a follower until the value is dropped.
    #[must_use]
    pub fn attach(&self, app: &AppName, build: BuildNumber) -> Attached {
        let key = (app.clone(), build);
        if let Some(running) = self.table().get_mut(&key) {
            running.followers += 1;
        }
        Attached { pushes: self.clone(), key }
    }

    /// Whether a session follows the build.
    #[must_use]
    pub fn is_attached(&self, app: &AppName, build: BuildNumber) -> bool {
        self.table().get(&(app.clone(), build)).is_some_and(|running| running.followers > 0)
    }

    /// Returns once this process no longer drives the build.
    pub async fn ended(&self, app: &AppName, build: BuildNumber) {
        let ended = self.table().get(&(app.clone(), build)).map(|running| running.ended.clone());
        if let Some(mut ended) = ended {
            // An error means that the task is gone: ended, too.
            drop(ended.wait_for(|ended| *ended).await);
        }
    }

    /// How many builds are being driven.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table().len()
    }

    /// Whether no build is being driven.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns once no build is driven any more.
    pub async fn idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }

    async fn drive(&self, build: Build, mut log: LogWriter) {
        let stages = &self.stages;
        let started = Instant::now();
        tracing::info!(by = %build.by, "a build is driven");
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let watching = watch_for_cancel(Arc::clone(stages), build.clone(), cancel.clone());
        let watching = AbortOnDropHandle::new(tokio::spawn(watching));
        let running = stages.metrics.running();
        let ended = match self.permit(&build, &mut log, &cancel).await {
            Some(_permit) => advance(stages, &build, &mut log, &cancel).await,
            None => Err(Ended::Cancelled(CancelReason::Requested)),
        };
        drop((guard, watching));
        let Some(outcome) = self.tell_end(&build, ended, started, &mut log).await else {
            tracing::warn!(app = %build.app, build = %build.number, "another server goes on with a build, or has ended it");
            return;
        };
        let result = result_of(&outcome);
        tracing::info!(result, "a build has ended");
        stages.metrics.push_ended(result);
        Trace::of(stages, &build).ended(&build, &outcome);
        stages.logs.keep(&build, &mut log).await;
        self.unwritten.conclude(stages, build, outcome).await;
        drop(running);
    }

    /// How a build ended, where that cannot be read yet because it cannot be written.
    #[must_use]
    pub fn unwritten(&self, app: &AppName, build: BuildNumber) -> Option<Outcome> {
        self.unwritten.outcome(app, build)
    }

    /// Writes what could not be written before, so that no app is busy with a build that has ended.
    pub async fn settle(&self) {
        self.unwritten.settle(&self.stages).await;
    }

    async fn permit(
        &self,
        build: &Build,
        log: &mut LogWriter,
        cancel: &CancellationToken,
    ) -> Option<tokio::sync::OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Some(permit);
        }
        let _waiting = self.stages.metrics.waiting();
        let text = "Waiting for another build to end (`hephy up --builds` says how many run at once)";
        tell(log, PushEvent::Heading(text.to_owned())).await;
        let trace = Trace::of(&self.stages, build).stage("queue");
        let permit = tokio::select! {
            // The semaphore is never closed.
            permit = permits.acquire_owned() => permit.ok(),
            () = cancel.cancelled() => None,
        };
        trace.end_wait(permit.is_some());
        permit
    }

    /// Tells the end in the log, and gives it as the Build keeps it; `None` where the end is not ours to tell.
    async fn tell_end(
        &self,
        build: &Build,
        ended: Result<crate::model::ReleaseNumber, Ended>,
        started: Instant,
        log: &mut LogWriter,
    ) -> Option<Outcome> {
        let stages = &self.stages;
        let at = Timestamp::now();
        let (what, outcome) = match ended {
            Ok(release) => return Some(Outcome::Succeeded { at, release }),
            Err(Ended::NotOurs) => return None,
            Err(Ended::Cancelled(reason)) => {
                let reason = cancel_of(stages, build).await.unwrap_or(reason);
                (format!("was cancelled: {}", reason.sentence()), Outcome::Cancelled { at, reason })
            }
            Err(Ended::Failed(failure)) => {
                for text in failure.details {
                    tell(log, PushEvent::Problem(text)).await;
                }
                let outcome = Outcome::Failed { at, fault: failure.fault, reason: failure.reason.clone() };
                (format!("failed: {}", failure.reason), outcome)
            }
        };
        let elapsed = super::seconds(started.elapsed());
        let (number, serves) = (build.number, serving(stages, &build.app).await);
        tell(log, PushEvent::Problem(format!("Build {number} {what} ({elapsed}). {serves}"))).await;
        tell(log, PushEvent::Problem(format!("Full log: {}", stages.addresses.follow(&build.app, number))))
            .await;
        Some(outcome)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(running) = self.pushes.table().get_mut(&self.key) {
            running.followers = running.followers.saturating_sub(1);
        }
    }
}

/// Cancels the token once the Build says so.
async fn watch_for_cancel(stages: Arc<Stages>, build: Build, cancel: CancellationToken) {
    let name = Build::object_name(&build.app, build.number);
    loop {
        let read = match store::require::<Build>(&*stages.store, &name).await {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "a build can no longer be watched");
                return;
            }
        };
        if read.object.cancel.is_some() {
            cancel.cancel();
            return;
        }
        if stages.store.changed(Kind::Build, &name, &read.version).await.is_err() {
            return;
        }
    }
}

async fn cancel_of(stages: &Stages, build: &Build) -> Option<CancelReason> {
    let name = Build::object_name(&build.app, build.number);
    let read = store::load::<Build>(&*stages.store, &name).await.ok()??;
    read.object.cancel.map(|cancel| cancel.reason)
}

async fn serving(stages: &Stages, app: &AppName) -> String {
    match super::current_release(stages, app).await {
        Ok(Some(release)) => format!("{} still serves {}.", release.number, stages.addresses.app_url(app)),
        _ => "Nothing serves yet.".to_owned(),
    }
}

/// Writes the outcome, then frees the app: a crash between the two is mended by [`Pushes::recover`].
pub(super) async fn conclude(stages: &Stages, build: &Build, outcome: Outcome) -> Result<(), StoreError> {
    let name = Build::object_name(&build.app, build.number);
    let written = store::modify(&*stages.store, &name, |build: &mut Build| {
        build.outcome.get_or_insert_with(|| outcome.clone());
        Ok::<_, StoreError>(())
    });
    match written.await {
        // The app was destroyed meanwhile.
        Ok(_) | Err(StoreError::Missing { .. }) => {}
        Err(error) => return Err(error),
    }
    claim::free(&*stages.store, &build.app, Claim::Build(build.number)).await
}
