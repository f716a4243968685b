//! Looking after the apps of a cluster: what runs is what the records say, whoever changed it and whoever was to.
//!
//! One server does it at a time, the one that has the lease for it. It acts on an app only under a claim, as everybody does,
//! and reads it again then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::claim::{self, ClaimError};
use super::recovery::put_right;
use super::{Pushes, rolling};
use crate::kubernetes::{LeaseError, Leases};
use crate::model::store::{self, StoreError};
use crate::model::{App, AppName, Chain, ObjectName, UserName};
use crate::rollout::{RuntimeError, Version};

/// The lease of whoever looks after the apps.
const LEASE: &str = "upkeep";

/// What the leases of apps begin with: see [`super::Stages::hold`].
const APP_LEASES: &str = "app-";
/// And those of who consolidates what is kept of their pushes: see [`super::Stages::hold_packs`].
const PACKS_LEASES: &str = "packs-";

/// How long the records of all apps may take to be read: what is older says nothing of what runs.
const FRESH: Duration = Duration::from_secs(20);

/// How many apps are put right at once.
const AT_ONCE: usize = 4;

/// The longest pause before an app that cannot be put right is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Why the apps cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What runs.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The leases.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Reading the records took too long.
    #[error("the records of all apps took longer to read than they are good for")]
    Slow,
}

/// Looks after the apps of a cluster.
#[derive(Debug)]
pub struct Keeper {
    pushes: Pushes,
    by: UserName,
    interval: Duration,
    /// What could not be put right: how often, and when to try again.
    failing: HashMap<AppName, (u32, Instant)>,
}

impl Keeper {
    /// Looks every `interval`, in the name of `by`.
    #[must_use]
    pub fn new(pushes: Pushes, by: UserName, interval: Duration) -> Self {
        Self { pushes, by, interval, failing: HashMap::new() }
    }

    /// Goes on until `stop`, whenever it is this server's turn.
    pub async fn run(mut self, stop: CancellationToken) {
        let Some(leases) = self.pushes.stages().leases.clone() else { return };
        // At the start whoever's turn it is: the server that had it may have died just now. What is seen of its leases
        // now is over the sooner.
        let at_the_start = async {
            self.look().await;
            self.sweep().await;
        };
        stop.run_until_cancelled(at_the_start).await;
        loop {
            match leases.hold(LEASE).await {
                Ok(Some(held)) => {
                    tokio::select! {
                        () = self.keep() => {}
                        () = held.lost().cancelled() => {}
                        () = stop.cancelled() => {}
                    }
                    held.release().await;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "it cannot be known who looks after the apps");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.interval) => {}
            }
        }
    }

    async fn keep(&mut self) {
        loop {
            self.look().await;
            self.sweep().await;
            tokio::time::sleep(self.interval).await;
        }
    }

    async fn look(&mut self) {
        if let Err(error) = self.once().await {
            tracing::error!(error = %Chain(&error), "the apps cannot be looked after");
        }
    }

    async fn sweep(&self) {
        if let Err(error) = self.sweep_leases().await {
            tracing::error!(error = %Chain(&error), "the leases of dead servers cannot be swept");
        }
    }

    /// Looks once at all apps, and puts right those that are not what the records say.
    pub async fn once(&mut self) -> Result<(), KeepError> {
        let stages = self.pushes.stages();
        let versions = tokio::time::timeout(FRESH, versions(&*stages.store)).await;
        // What is not named here is stopped, so one that cannot be read spoils all.
        let versions = versions.map_err(|_| KeepError::Slow)??;
        let lacking = stages.runtime.adopt(&versions).await?;
        self.failing.retain(|app, _| lacking.contains(app));
        let is_due = |app: &AppName| self.failing.get(app).is_none_or(|(_, again)| *again <= Instant::now());
        let due: Vec<AppName> = lacking.into_iter().filter(is_due).collect();
        let this = &*self;
        let done: Vec<(AppName, bool)> = futures::stream::iter(due)
            .map(|app| async move {
                let is_right = this.put_right(&app).await;
                (app, is_right)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (app, is_right) in done {
            if is_right {
                self.failing.remove(&app);
            } else {
                let (times, again) = self.failing.entry(app).or_insert((0, Instant::now()));
                let pause = self.interval.saturating_mul(2_u32.saturating_pow(*times)).min(LONGEST_PAUSE);
                (*times, *again) = (times.saturating_add(1), Instant::now() + pause);
            }
        }
        Ok(())
    }

    /// Whether there is nothing more to do, as far as it is ours.
    async fn put_right(&self, app: &AppName) -> bool {
        let stages = self.pushes.stages();
        match claim::claim_change(stages, app, &self.by).await {
            Ok((claim, hold)) => {
                tracing::warn!(%app, "an app is not what its records say, and is put right");
                // In a task of its own: it goes on when somebody else looks after the apps.
                let work = tokio::spawn(put_right(Arc::clone(stages), app.clone(), claim, hold));
                work.await.unwrap_or(false)
            }
            // Whoever has it does what is to be done, and what was destroyed meanwhile needs nothing.
            Err(
                ClaimError::Busy(_)
                | ClaimError::Stopping
                | ClaimError::Elsewhere
                | ClaimError::Store(StoreError::Missing { .. }),
            ) => true,
            Err(error) => {
                tracing::error!(%app, error = %Chain(&error), "an app cannot be put right");
                false
            }
        }
    }

    /// Removes the leases of apps that nobody works on: those of servers that died after their work was done.
    ///
    /// One that is over is only known to be when it was looked at before, so it takes two calls.
    pub async fn sweep_leases(&self) -> Result<(), LeaseError> {
        let stages = self.pushes.stages();
        let Some(leases) = &stages.leases else { return Ok(()) };
        for name in leases.names(APP_LEASES).await? {
            let app = name.strip_prefix(APP_LEASES).and_then(|app| app.parse::<AppName>().ok());
            let Some(app) = app else { continue };
            // What is claimed is taken up with its build or change, by whoever is first.
            let read = store::load::<App>(&*stages.store, &ObjectName::of(&app)).await;
            if !read.is_ok_and(|app| app.is_none_or(|app| app.object.holder.is_none())) {
                continue;
            }
            release_left(leases, &name).await?;
        }
        for name in leases.names(PACKS_LEASES).await? {
            release_left(leases, &name).await?;
        }
        Ok(())
    }
}

/// Removes a lease that nobody renews.
async fn release_left(leases: &Leases, name: &str) -> Result<(), LeaseError> {
    if let Some(held) = leases.hold_left(name).await? {
        tracing::info!(lease = name, "the lease of a dead server is removed");
        held.release().await;
    }
    Ok(())
}

/// What runs of all apps, by the records.
async fn versions(store: &dyn store::Store) -> Result<Vec<Version>, StoreError> {
    let mut versions = Vec::new();
    for app in store::list::<App>(store, "").await? {
        versions.extend(rolling::current_version(store, &app).await?);
    }
    Ok(versions)
}
