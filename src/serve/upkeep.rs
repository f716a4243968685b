//! What is done now and then: content of the registry that no release needs is removed.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::model::store::{self, Store, StoreError};
use crate::model::{Build, BuildState, Release, ReleaseState};
use crate::registry::server::{Keep, Server};

/// How often. The first time is this long after the start, so that a server that is restarted often does it too.
const INTERVAL: Duration = Duration::from_secs(3600);

/// Longer than any push takes.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// How long an app's build cache is kept without use.
const CACHE_AGE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Keeps the registry small until `stop`.
pub(super) async fn keep_small(registry: Server, store: Arc<dyn Store>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let keep = match keep(&*store).await {
            Ok(keep) => keep,
            // Without knowing all releases nothing may be removed.
            Err(error) => {
                tracing::error!(%error, "the registry is not cleaned: the releases cannot be read");
                continue;
            }
        };
        match registry.collect_garbage(&keep).await {
            Ok(collected) => tracing::info!(?collected, "the registry is cleaned"),
            Err(error) => tracing::error!(%error, "the registry cannot be cleaned"),
        }
    }
}

async fn keep(store: &dyn Store) -> Result<Keep, StoreError> {
    let releases = store::list::<Release>(store, "").await?.into_iter();
    let runnable = releases.filter(|release| !matches!(release.state, ReleaseState::Failed { .. }));
    let published =
        store::list::<Build>(store, "").await?.into_iter().filter_map(|build| match build.state {
            BuildState::Published(_, index) if build.outcome.is_none() => Some(index.digest),
            _ => None,
        });
    let releases = runnable.map(|release| release.index.digest).chain(published).collect();
    Ok(Keep { releases, grace: GRACE, cache_age: CACHE_AGE })
}
