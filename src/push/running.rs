//! Drives builds to their end, in this process.
//!
//! The SSH session only makes the Build and follows its log. What drives it is a task here, so that a pusher who is
//! gone, or a server that was restarted, changes nothing in how a build goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::log::LogWriter;
use super::unwritten::Unwritten;
use super::{Ended, Stages, advance, claim, tell};
use crate::model::store::{self, StoreError};
use crate::model::{
    App, AppName, Build, BuildNumber, BuildState, CancelReason, Chain, Claim, Fault, Kind, Outcome,
    PushEvent, ReleaseState,
};

/// Longer than a change without a build takes: its rollout, and taking that back.
const LONGEST_CHANGE_SECONDS: i64 = 900;

/// Longer than a server takes from claiming an app to driving the build.
const LONGEST_CLAIM_SECONDS: i64 = 15;

/// The builds that this process drives.
#[derive(Debug, Clone)]
pub struct Pushes {
    stages: Arc<Stages>,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    running: Arc<Mutex<HashMap<(AppName, BuildNumber), Running>>>,
    unwritten: Unwritten,
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
        }
    }

    /// What the stages need.
    #[must_use]
    pub fn stages(&self) -> &Arc<Stages> {
        &self.stages
    }

    /// Drives `build` from the value it holds, unless another server does. The log can be read when this returns.
    pub async fn start(&self, build: Build) -> std::io::Result<bool> {
        let lease = match &self.stages.leases {
            Some(leases) => {
                let name = Build::object_name(&build.app, build.number);
                let held = leases.hold(name.as_str()).await.map_err(std::io::Error::other)?;
                let Some(held) = held else { return Ok(false) };
                Some(held)
            }
            None => None,
        };
        let log = self.stages.logs.write(&build.app, build.number).await?;
        let (ended, receiver) = watch::channel(false);
        let key = (build.app.clone(), build.number);
        self.table().insert(key.clone(), Running { ended: receiver, followers: 0 });
        let this = self.clone();
        self.tasks.spawn(async move {
            match lease {
                Some(lease) => {
                    let lost = lease.lost().clone();
                    tokio::select! {
                        () = this.drive(build, log) => lease.release().await,
                        // Another server goes on with it, from the value it holds.
                        () = lost.cancelled() => {
                            tracing::warn!(app = %key.0, build = %key.1, "a build is left to another server");
                        }
                    }
                }
                None => this.drive(build, log).await,
            }
            this.table().remove(&key);
            ended.send_replace(true);
        });
        Ok(true)
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
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let watching = tokio::spawn(watch_for_cancel(Arc::clone(stages), build.clone(), cancel.clone()));
        let running = stages.metrics.running();
        let ended = match self.permit(&mut log, &cancel).await {
            Some(_permit) => advance(stages, &build, &mut log, &cancel).await,
            None => Err(Ended::Cancelled(CancelReason::Requested)),
        };
        drop(guard);
        watching.abort();
        let outcome = self.outcome(&build, ended, started, &mut log).await;
        stages.metrics.push_ended(match &outcome {
            Outcome::Succeeded { .. } => "succeeded",
            Outcome::Failed { fault: Fault::App, .. } => "failed",
            Outcome::Failed { fault: Fault::Platform, .. } => "platform_failed",
            Outcome::Cancelled { .. } => "cancelled",
        });
        stages.logs.keep(&build).await;
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
        tokio::select! {
            // The semaphore is never closed.
            permit = permits.acquire_owned() => permit.ok(),
            () = cancel.cancelled() => None,
        }
    }

    /// Tells the end in the log, and gives it as the Build keeps it.
    async fn outcome(
        &self,
        build: &Build,
        ended: Result<crate::model::ReleaseNumber, Ended>,
        started: Instant,
        log: &mut LogWriter,
    ) -> Outcome {
        let stages = &self.stages;
        let at = Timestamp::now();
        let (what, outcome) = match ended {
            Ok(release) => return Outcome::Succeeded { at, release },
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
        outcome
    }

    /// Takes up what an earlier process left: claims of builds that are over or never were are freed, builds that
    /// are not over go on.
    pub async fn recover(&self) -> Result<usize, StoreError> {
        let mut adopted = 0;
        for app in store::list::<App>(&*self.stages.store, "").await? {
            adopted += self.recover_app(app).await?;
        }
        Ok(adopted)
    }

    async fn recover_app(&self, app: App) -> Result<usize, StoreError> {
        let store = &*self.stages.store;
        let held = app.holder.as_ref().map(|holder| holder.claim);
        for build in store::list::<Build>(store, &format!("{}--", app.name)).await? {
            if build.outcome.is_none() && held != Some(Claim::Build(build.number)) {
                conclude(&self.stages, &build, left_behind(&app, &build)).await?;
            }
        }
        match held {
            None => Ok(0),
            // Whoever makes a change holds it for as long as the rollout takes.
            Some(Claim::Change(_)) if self.may_be_anothers(&app, LONGEST_CHANGE_SECONDS) => Ok(0),
            Some(claim @ Claim::Change(_)) => {
                abandon_pending(&self.stages, &app).await?;
                claim::free(store, &app.name, claim).await?;
                Ok(0)
            }
            // Its server has yet to say that it drives it.
            Some(Claim::Build(_)) if self.may_be_anothers(&app, LONGEST_CLAIM_SECONDS) => Ok(0),
            Some(claim @ Claim::Build(number)) => {
                let build = store::load::<Build>(store, &Build::object_name(&app.name, number)).await?;
                if self.table().contains_key(&(app.name.clone(), number)) {
                    return Ok(0);
                }
                match build.map(|build| build.object).filter(|build| build.outcome.is_none()) {
                    None => claim::free(store, &app.name, claim).await.map(|()| 0),
                    Some(build) => Ok(self.adopt(build).await),
                }
            }
        }
    }

    /// Whether another server may be at work on the app: there are others, and it was claimed less than so long ago.
    fn may_be_anothers(&self, app: &App, seconds: i64) -> bool {
        let claimed = app.holder.as_ref().map(|holder| holder.since);
        let ago = claimed.map_or(i64::MAX, |since| Timestamp::now().as_second() - since.as_second());
        self.stages.leases.is_some() && ago < seconds
    }

    async fn adopt(&self, build: Build) -> usize {
        let (app, number) = (build.app.clone(), build.number);
        match self.start(build).await {
            Ok(true) => {
                tracing::info!(%app, build = %number, "a build goes on");
                1
            }
            Ok(false) => 0,
            Err(error) => {
                tracing::error!(%app, build = %number, error = %Chain(&error), "a build cannot go on: its log cannot be written");
                0
            }
        }
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

/// How a build ended that nobody holds: it was committed, or it was given up.
fn left_behind(app: &App, build: &Build) -> Outcome {
    let at = Timestamp::now();
    match &build.state {
        BuildState::Released { release, .. } if app.current.is_some_and(|current| current >= *release) => {
            Outcome::Succeeded { at, release: *release }
        }
        _ => Outcome::Failed { at, fault: Fault::Platform, reason: "the server was stopped".to_owned() },
    }
}

async fn abandon_pending(stages: &Stages, app: &App) -> Result<(), StoreError> {
    let releases = store::list::<crate::model::Release>(&*stages.store, &format!("{}--", app.name)).await?;
    for release in
        releases.iter().filter(|r| r.state == ReleaseState::Pending && Some(r.number) > app.current)
    {
        let state = ReleaseState::Failed { reason: "the server was stopped".to_owned() };
        crate::release::conclude(&*stages.store, &app.name, release.number, state).await?;
    }
    Ok(())
}
