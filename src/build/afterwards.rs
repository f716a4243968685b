//! What is left to do when the result of a build is known, and nobody waits for it any more.

use tokio_util::sync::CancellationToken;

use crate::build::mounts::Saving;
use crate::build::process::{CANCELLED, ENDED};
use crate::build::protocol::Request;
use crate::build::remote_cache::RemoteCache;
use crate::build::trees::AllTrees;

/// What is left to do when the result of a build is known.
pub struct Afterwards {
    pub(super) trees: Option<AllTrees>,
    pub(super) cache: Option<RemoteCache>,
    pub(super) saving: Option<Saving>,
    pub(super) is_built: bool,
    /// How large cache mounts may be.
    pub(super) max_cache_bytes: u64,
}

impl Afterwards {
    /// Waits until the trees that were made are on the disk, ends the workers, and waits for what goes to the cache repository.
    ///
    /// Without this, trees are made again after a crash of the machine, and what was begun waits to be pruned. The same of
    /// what is not done when `stop` is cancelled.
    pub async fn settle(self, stop: &CancellationToken) {
        let in_cache = async {
            if let Some(cache) = &self.cache {
                cache.settle().await;
            }
        };
        let all = async { tokio::join!(self.settle_trees(), in_cache) };
        if stop.run_until_cancelled(all).await.is_none()
            && let Some(trees) = &self.trees
        {
            trees.end_workers(CANCELLED).await;
        }
    }

    async fn settle_trees(&self) {
        let Some(trees) = &self.trees else { return };
        if self.is_built
            && let Some(worker) = trees.any_worker()
        {
            // The build has succeeded; what could not be settled is not trusted later, and that is all.
            drop(worker.call(Request::Settle, Vec::new()).await);
        }
        if let Some(saving) = &self.saving
            && let Some(worker) = trees.any_worker()
        {
            saving.save(&worker).await;
        }
        if self.is_built {
            trees.prune_caches(self.max_cache_bytes).await;
        }
        trees.end_workers(ENDED).await;
    }
}
