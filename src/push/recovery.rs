//! What a server finds that was left behind: builds go on, changes are put right, claims of nobody are freed.
//!
//! Whoever has an App's [`Hold`] works on it. Only where that can be had is anything looked at, and it is read again then.

use std::sync::Arc;

use futures::StreamExt as _;

use super::running::conclude;
use super::trace::Trace;
use super::{Hold, Pushes, Stages, claim, rolling};
use crate::kubernetes::LeaseError;
use crate::model::store::{self, StoreError};
use crate::model::{
    App, AppName, Build, BuildState, Chain, Claim, Fault, Object, ObjectName, Outcome, Release, ReleaseState,
};

/// How many apps are taken up at once.
const AT_ONCE: usize = 8;

/// Why an app could not be put right.
#[derive(Debug, thiserror::Error)]
enum RecoveryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error("the build's log cannot be written")]
    Log(#[from] std::io::Error),
}

impl Pushes {
    /// Takes up what an earlier process left, at the start: claims of builds that are over or never were are freed, builds
    /// that are not over go on. Returns how many do.
    pub async fn recover(&self) -> Result<usize, StoreError> {
        for build in readable::<Build>(self.stages()).await? {
            if build.outcome.is_none()
                && let Err(error) = self.end_if_unheld(&build).await
            {
                tracing::error!(app = %build.app, build = %build.number, error = %Chain(&error), "a build that was left cannot be ended");
            }
        }
        self.take_up().await
    }

    /// Goes on with what servers left that are gone. Cheap, so that it can be done every few seconds.
    pub async fn take_up(&self) -> Result<usize, StoreError> {
        let claimed = readable::<App>(self.stages()).await?.into_iter().filter(|app| app.holder.is_some());
        // One whose log comes slowly is in no other's way.
        let taken_up = futures::stream::iter(claimed).map(async |app| {
            self.take_up_app(&app.name).await.unwrap_or_else(|error| {
                tracing::error!(app = %app.name, error = %Chain(&error), "what another server left cannot be taken up");
                false
            })
        });
        Ok(taken_up.buffer_unordered(AT_ONCE).filter(|goes_on| std::future::ready(*goes_on)).count().await)
    }

    /// A build that no App knows of is over.
    async fn end_if_unheld(&self, build: &Build) -> Result<(), RecoveryError> {
        let stages = self.stages();
        let app = store::load::<App>(&*stages.store, &ObjectName::of(&build.app)).await?;
        if app.is_none_or(|app| has(&app.object, build)) {
            return Ok(());
        }
        let Some(hold) = stages.hold(&build.app).await? else { return Ok(()) };
        let ended = end_unheld(stages, build).await;
        hold.release().await;
        Ok(ended?)
    }

    async fn take_up_app(&self, name: &AppName) -> Result<bool, RecoveryError> {
        let stages = self.stages();
        let Some(hold) = stages.hold(name).await? else { return Ok(false) };
        match left(stages, name).await {
            Ok(Left::Build(build)) => {
                tracing::info!(app = %build.app, build = %build.number, "a build goes on");
                stages.logs.take_up(&build).await;
                self.start(*build, hold).await?;
                Ok(true)
            }
            Ok(Left::Change(claim)) => {
                let (stages, name) = (Arc::clone(stages), name.clone());
                tokio::spawn(async move { put_right(stages, name, claim, hold).await });
                Ok(false)
            }
            Ok(Left::Nothing) => {
                hold.release().await;
                Ok(false)
            }
            Err(error) => {
                hold.release().await;
                Err(error.into())
            }
        }
    }
}

/// All objects of a kind that can be read; of the others the operator is told.
async fn readable<T: Object>(stages: &Stages) -> Result<Vec<T>, StoreError> {
    let read = store::list_each::<T>(&*stages.store, "").await?;
    let told = read.into_iter().filter_map(|read| {
        read.inspect_err(|error| tracing::error!(error = %Chain(error), "an object cannot be read")).ok()
    });
    Ok(told.collect())
}

/// Whether an App is claimed for a build.
fn has(app: &App, build: &Build) -> bool {
    app.holder.as_ref().is_some_and(|holder| holder.claim == Claim::Build(build.number))
}

async fn end_unheld(stages: &Stages, build: &Build) -> Result<(), StoreError> {
    let name = Build::object_name(&build.app, build.number);
    let Some(build) = store::load::<Build>(&*stages.store, &name).await? else { return Ok(()) };
    let build = build.object;
    let Some(app) = store::load::<App>(&*stages.store, &ObjectName::of(&build.app)).await? else {
        return Ok(());
    };
    if build.outcome.is_some() || has(&app.object, &build) {
        return Ok(());
    }
    let outcome = left_behind(&app.object, &build);
    Trace::of(stages, &build).ended(&build, &outcome);
    conclude(stages, &build, outcome).await
}

/// What somebody left who had the App.
enum Left {
    /// A build that is not over.
    Build(Box<Build>),
    /// A change in the middle of it.
    Change(Claim),
    /// Nothing: the App is free now.
    Nothing,
}

async fn left(stages: &Stages, name: &AppName) -> Result<Left, StoreError> {
    let store = &*stages.store;
    let app = store::load::<App>(store, &ObjectName::of(name)).await?;
    let Some(claim) = app.and_then(|app| app.object.holder).map(|holder| holder.claim) else {
        return Ok(Left::Nothing);
    };
    let Claim::Build(number) = claim else { return Ok(Left::Change(claim)) };
    let build = store::load::<Build>(store, &Build::object_name(name, number)).await?;
    match build.map(|build| build.object).filter(|build| build.outcome.is_none()) {
        Some(build) => Ok(Left::Build(Box::new(build))),
        None => {
            claim::free(store, name, claim).await?;
            Ok(Left::Nothing)
        }
    }
}

/// Makes what serves what the records say that serves, after a change that nobody goes on with, and frees the app. Whether it
/// could be done here.
pub(super) async fn put_right(stages: Arc<Stages>, name: AppName, claim: Claim, hold: Hold) -> bool {
    let work = async {
        let mut is_right = true;
        conclude_pending(&stages, &name).await?;
        let app = store::require::<App>(&*stages.store, &ObjectName::of(&name)).await?.object;
        if let Some(version) = rolling::current_version(&*stages.store, &app).await? {
            let (events, _) = tokio::sync::mpsc::unbounded_channel();
            if let Err(error) = stages.runtime.scale(&version, &events).await {
                is_right = false;
                tracing::error!(app = %name, error = %Chain(&error), "an app cannot be made what its records say");
            }
        }
        claim::free(&*stages.store, &name, claim).await?;
        Ok::<_, StoreError>(is_right)
    };
    let lost = async {
        hold.lost().await;
        stages.runtime.leave(&name);
    };
    let done = tokio::select! {
        done = work => done,
        () = lost => return true,
    };
    let is_right = done.unwrap_or_else(|error| {
        tracing::error!(app = %name, error = %Chain(&error), "a change that was left cannot be ended");
        false
    });
    hold.release().await;
    is_right
}

/// How a build ended that nobody holds: it was committed, or it was given up.
fn left_behind(app: &App, build: &Build) -> Outcome {
    let at = jiff::Timestamp::now();
    match &build.state {
        BuildState::Released { release, .. } if app.current.is_some_and(|current| current >= *release) => {
            Outcome::Succeeded { at, release: *release }
        }
        _ => Outcome::Failed { at, fault: Fault::Platform, reason: "the server was stopped".to_owned() },
    }
}

/// Releases of a change that nobody goes on with: the committed one is live, a later one has failed.
async fn conclude_pending(stages: &Stages, name: &AppName) -> Result<(), StoreError> {
    let releases = store::list::<Release>(&*stages.store, &format!("{name}--")).await?;
    let current = store::require::<App>(&*stages.store, &ObjectName::of(name)).await?.object.current;
    for release in releases.iter().filter(|release| release.state == ReleaseState::Pending) {
        let state = match current {
            Some(current) if release.number == current => ReleaseState::Live { at: jiff::Timestamp::now() },
            Some(current) if release.number < current => continue,
            _ => ReleaseState::Failed { reason: "the server was stopped".to_owned() },
        };
        crate::release::conclude(&*stages.store, name, release.number, state).await?;
    }
    Ok(())
}
