//! Makes a layer store smaller. A worker does it: what a RUN made belongs to ids that only the sandbox's root may touch.

use std::path::Path;

use crate::build::driver::{BuildFailure, BuildLimits, NetworkMode};
use crate::build::error::EngineError;
use crate::build::process::{ENDED, WorkerOptions, WorkerProcess, open_store};
use crate::build::protocol::{Request, Response};
use crate::layers::{PrunePolicy, Pruned};
use crate::sandbox::IdMap;

/// Removes what `policy` does not let stay. What builds and apps use stays, whatever it says.
///
/// # Cancel safety
/// Dropping the future leaves the store whole; what was being removed is removed by the next call.
pub async fn prune(layers: &Path, ids: &IdMap, policy: PrunePolicy) -> Result<Pruned, BuildFailure> {
    prune_in_worker(layers, ids, policy).await.map_err(|error| error.into_failure(None))
}

async fn prune_in_worker(layers: &Path, ids: &IdMap, policy: PrunePolicy) -> Result<Pruned, EngineError> {
    let (_, map) = open_store(layers, ids)?;
    let worker = WorkerProcess::start(&WorkerOptions {
        isolation: crate::sandbox::Isolation::Userns,
        layers: layers.to_owned(),
        ids: ids.clone(),
        map,
        network: NetworkMode::None,
        limits: BuildLimits::default(),
    })
    .await?;
    let answer = worker.call(Request::Prune { policy }, Vec::new()).await;
    worker.end(ENDED).await;
    match answer? {
        Response::Pruned(pruned) => Ok(pruned),
        _ => Err(EngineError::Protocol),
    }
}
