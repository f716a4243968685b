//! One build at a time: an app is claimed by writing who holds it into the App, and freed the same way.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Hold, Stages};
use crate::kubernetes::{LeaseError, Leases};
use crate::model::store::{self, Store, StoreError};
use crate::model::{
    App, AppName, Build, BuildNumber, BuildState, Claim, CommitId, FORMAT, Holder, ObjectName, PushOptions,
    RefMove, ReleaseNumber, Source, UserName,
};

/// Why an app could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else works on it.
    #[error("the app is busy")]
    Busy(Box<Holder>),
    /// This server is being stopped, and begins nothing.
    #[error("the server is being stopped: try again in a moment")]
    Stopping,
    /// Another server works on the app and does not say at what.
    #[error("another server has the app and does not let go of it: try again in a minute")]
    Elsewhere,
    /// The right to work on the app cannot be asked for.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How long another server may take from the right to work on an app to saying at what, or from freeing it to giving the
/// right up. A server that died between the two has the right for as long as its lease lasts.
const HANDOVER: Duration = Duration::from_secs(10);

/// What a build is to be made of.
#[derive(Debug, Clone)]
pub struct BuildOrder {
    /// For which app.
    pub app: AppName,
    /// The commit.
    pub commit: CommitId,
    /// When the committer made it.
    pub committed_at: Timestamp,
    /// The refs that move when the rollout succeeds.
    pub moves: Vec<RefMove>,
    /// Who pushed.
    pub by: UserName,
    /// What the pusher asked for.
    pub options: PushOptions,
}

/// Claims the app for a new build, and makes the build.
///
/// A crash between the two writes leaves a claim for a build that is not there, which [`super::Pushes::recover`] frees.
pub async fn claim_build(stages: &Stages, order: BuildOrder) -> Result<(Build, Hold), ClaimError> {
    let hold = right(stages, &order.app).await?;
    match make_build(&*stages.store, order).await {
        Ok(build) => Ok((build, hold)),
        Err(error) => {
            hold.release().await;
            Err(error)
        }
    }
}

async fn make_build(store: &dyn Store, order: BuildOrder) -> Result<Build, ClaimError> {
    let number = claim(store, &order.app, &order.by, |app| {
        let number = app.next_build();
        (Claim::Build(number), number)
    })
    .await?;
    let source = Source {
        app: order.app.clone(),
        build: number,
        commit: order.commit,
        committed_at: order.committed_at,
    };
    let build = Build {
        format: FORMAT,
        app: order.app,
        number,
        commit: order.commit,
        moves: order.moves,
        by: order.by,
        created_at: Timestamp::now(),
        options: order.options,
        state: BuildState::Received(source),
        cancel: None,
        outcome: None,
    };
    Ok(store::create(store, build).await?.object)
}

/// Claims the app for a change without a build.
pub async fn claim_change(
    stages: &Stages,
    app: &AppName,
    by: &UserName,
) -> Result<(Claim, Hold), ClaimError> {
    if stages.stopping.is_cancelled() {
        return Err(ClaimError::Stopping);
    }
    let hold = right(stages, app).await?;
    let claimed = claim(&*stages.store, app, by, |app| {
        let claim = Claim::Change(ReleaseNumber(app.last_release + 1));
        (claim, claim)
    });
    match claimed.await {
        Ok(claim) => Ok((claim, hold)),
        Err(error) => {
            hold.release().await;
            Err(error)
        }
    }
}

/// Gets the right to work on an app. Whoever has it says soon at what, or lets go, or is dead.
async fn right(stages: &Stages, app: &AppName) -> Result<Hold, ClaimError> {
    let begun = Instant::now();
    let patience = HANDOVER + stages.leases.as_ref().map_or(Duration::ZERO, Leases::duration);
    loop {
        if let Some(hold) = stages.hold(app).await? {
            return Ok(hold);
        }
        let holder = store::load::<App>(&*stages.store, &ObjectName::of(app)).await?;
        if let Some(holder) = holder.and_then(|read| read.object.holder) {
            return Err(ClaimError::Busy(Box::new(holder)));
        }
        if begun.elapsed() > patience {
            return Err(ClaimError::Elsewhere);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn claim<T: Send>(
    store: &dyn Store,
    app: &AppName,
    by: &UserName,
    mut what: impl FnMut(&mut App) -> (Claim, T) + Send,
) -> Result<T, ClaimError> {
    let (_, made) = store::modify(store, &ObjectName::of(app), |app: &mut App| {
        if let Some(holder) = &app.holder {
            return Err(ClaimError::Busy(Box::new(holder.clone())));
        }
        let (claim, made) = what(app);
        app.holder = Some(Holder { claim, by: by.clone(), since: Timestamp::now() });
        Ok(made)
    })
    .await?;
    Ok(made)
}

/// Frees the app, if it is still held for `claim`.
pub async fn free(store: &dyn Store, app: &AppName, claim: Claim) -> Result<(), StoreError> {
    let name = ObjectName::of(app);
    let freed = store::modify(store, &name, |app: &mut App| {
        if app.holder.as_ref().is_some_and(|holder| holder.claim == claim) {
            app.holder = None;
        }
        Ok::<_, StoreError>(())
    });
    match freed.await {
        // The app was destroyed meanwhile.
        Ok(_) | Err(StoreError::Missing { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns once nobody holds the app, or it is gone.
pub async fn wait_until_free(store: &dyn Store, app: &AppName) -> Result<(), StoreError> {
    let name = ObjectName::of(app);
    loop {
        match store::load::<App>(store, &name).await? {
            Some(read) if read.object.holder.is_some() => {
                store.changed(crate::model::Kind::App, &name, &read.version).await?;
            }
            _ => return Ok(()),
        }
    }
}

/// Asks for a running build to be stopped; whoever drives it obeys.
pub async fn cancel(
    store: &dyn Store,
    app: &AppName,
    build: BuildNumber,
    cancel: crate::model::Cancel,
) -> Result<(), StoreError> {
    store::modify(store, &Build::object_name(app, build), |build: &mut Build| {
        if build.outcome.is_none() && build.cancel.is_none() {
            build.cancel = Some(cancel.clone());
        }
        Ok::<_, StoreError>(())
    })
    .await?;
    Ok(())
}
