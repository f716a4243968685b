//! Layer trees on demand: a layer is fetched and unpacked when someone needs its files, and not before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::OnceCell;

use crate::build::base::{Bases, Finder};
use crate::build::driver::{BuildFailure, BuildLimits, NetworkMode};
use crate::build::error::EngineError;
use crate::build::image::{Layer, LayerBlob};
use crate::build::mirror::Mirrors;
use crate::build::process::{ENDED, WorkerOptions, WorkerProcess, blocking, open_store};
use crate::build::protocol::{Request, Response};
use crate::build::user::ImageUser;
use crate::layers::Lease;
use crate::oci::{Digest, ImageConfig, Platform, Reference};
use crate::registry::client::Client;
use crate::sandbox::{IdMap, Isolation};

/// An image whose layers are trees in the store: ready to run.
#[derive(Debug)]
pub struct LocalImage {
    /// Its configuration.
    pub config: ImageConfig,
    /// Its trees, base first, relative to the layer store.
    pub trees: Vec<PathBuf>,
    /// Its USER.
    pub user: ImageUser,
    /// Keeps the trees while it lives; pin them before it is dropped.
    pub lease: Lease,
}

/// Fetches and unpacks what the layer store lacks of an image, and says where its trees are.
///
/// # Cancel safety
/// Dropping the future leaves complete trees and nothing else.
pub async fn local_image(
    layers: &Path,
    ids: &IdMap,
    client: Client,
    reference: &Reference,
    platform: &Platform,
) -> Result<LocalImage, BuildFailure> {
    local(layers, ids, client, reference, platform).await.map_err(|error| error.into_failure(None))
}

async fn local(
    layers: &Path,
    ids: &IdMap,
    client: Client,
    reference: &Reference,
    platform: &Platform,
) -> Result<LocalImage, EngineError> {
    let (store, map) = open_store(layers, ids)?;
    let finder = Finder { client, mirrors: Mirrors::default(), layouts: BTreeSet::new() };
    let bases = Bases { finder, warmed: None, store: store.clone() };
    let image = bases.finder.resolve(&reference.to_string(), platform).await?;
    let (network, limits) = (NetworkMode::None, BuildLimits::default());
    let (layers, isolation) = (layers.to_owned(), Isolation::Userns);
    let options = WorkerOptions { layers: layers.clone(), isolation, ids: ids.clone(), map, network, limits };
    let trees = Trees { bases, lease: store.lease()?, options, worker: OnceCell::new() };
    trees.ensure(&image.layers, &|_| {}).await?;
    let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
    let mut paths = Vec::new();
    for diff_id in &diff_ids {
        let path = trees.lease.tree(diff_id)?.ok_or(EngineError::LayerGone(*diff_id))?;
        paths.push(path.strip_prefix(&layers).map(Path::to_owned).unwrap_or(path));
    }
    let user = image.config.config.user.clone();
    let request = Request::User { layers: diff_ids, user };
    let worker = trees.worker().await?;
    let answer = worker.call(request, Vec::new()).await;
    worker.end(ENDED).await;
    let Response::User(user) = answer? else { return Err(EngineError::Protocol) };
    Ok(LocalImage { config: image.config, trees: paths, user, lease: trees.lease })
}

/// How many layers are fetched ahead of the one being unpacked.
const FETCHES: usize = 4;

/// What all stages of a build use. Clones are the same.
#[derive(Clone)]
pub(crate) struct AllTrees(Arc<Mutex<Vec<Arc<Trees>>>>);

impl AllTrees {
    pub(crate) fn new(first: &Arc<Trees>) -> Self {
        Self(Arc::new(Mutex::new(vec![Arc::clone(first)])))
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Trees>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, trees: &Arc<Trees>) {
        self.all().push(Arc::clone(trees));
    }

    fn workers(&self) -> Vec<WorkerProcess> {
        self.all().iter().filter_map(|trees| trees.worker.get().cloned()).collect()
    }

    /// One worker of those that were started.
    pub(crate) fn any_worker(&self) -> Option<WorkerProcess> {
        self.workers().into_iter().next()
    }

    /// Keeps cache mounts small; each worker knows which of them it used.
    pub(crate) async fn prune_caches(&self, max_bytes: u64) {
        for worker in self.workers() {
            // The image is built; what stays too large is seen to by the next build.
            drop(worker.call(Request::PruneCaches { max_bytes }, Vec::new()).await);
        }
    }

    /// Ends the workers with everything that they run.
    pub(crate) async fn end_workers(&self, grace: Duration) {
        let workers = self.workers();
        futures::future::join_all(workers.iter().map(|worker| worker.end(grace))).await;
        // One that did not end in time was killed. What cannot be removed here is removed by the next prune.
        if let Some(first) = self.all().first() {
            drop(first.bases.store.forget_the_dead());
        }
    }
}

/// What had to be done for the trees of some layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ensured {
    /// Nothing: they were there.
    Present,
    /// Their blobs were here.
    Unpacked,
    /// Blobs were fetched, and unpacked.
    Fetched,
}

/// The trees that a build uses, and the worker that makes them.
pub(crate) struct Trees {
    pub(crate) bases: Bases,
    pub(crate) lease: Lease,
    pub(crate) options: WorkerOptions,
    pub(crate) worker: OnceCell<WorkerProcess>,
}

impl Trees {
    /// The same store for another stage, with a lease and a worker of its own.
    pub(crate) fn another(&self) -> Result<Self, EngineError> {
        Ok(Self {
            bases: self.bases.clone(),
            lease: self.bases.store.lease()?,
            options: self.options.clone(),
            worker: OnceCell::new(),
        })
    }

    /// The worker, started by the first who asks.
    pub(crate) async fn worker(&self) -> Result<&WorkerProcess, EngineError> {
        self.worker.get_or_try_init(|| WorkerProcess::start(&self.options)).await
    }

    /// Whether a layer's tree is in the store.
    pub(crate) fn has(&self, diff_id: &Digest) -> Result<bool, EngineError> {
        Ok(self.lease.tree(diff_id)?.is_some())
    }

    /// Makes sure that the trees of `layers` (base first) are there. `fetching` is told of blobs that must be fetched.
    pub(crate) async fn ensure(
        &self,
        layers: &[Layer],
        fetching: &(dyn Fn(u64) + Sync),
    ) -> Result<Ensured, EngineError> {
        let mut missing = Vec::new();
        for (position, layer) in layers.iter().enumerate() {
            if !self.has(&layer.diff_id)? {
                missing.push((position, layer));
            }
        }
        if missing.is_empty() {
            return Ok(Ensured::Present);
        }
        let to_fetch: u64 = missing.iter().map(|(_, layer)| self.bytes_to_fetch(layer)).sum();
        if to_fetch > 0 {
            fetching(to_fetch);
        }
        let worker = self.worker().await?;
        let mut blobs = futures::stream::iter(missing)
            .map(|(position, layer)| async move {
                Ok::<_, EngineError>((position, layer, self.blob(layer).await?))
            })
            .buffered(FETCHES);
        while let Some((position, layer, path)) = blobs.try_next().await? {
            let lowers = layers[..position].iter().map(|layer| layer.diff_id).collect();
            let file =
                blocking(move || std::fs::File::open(path).map_err(EngineError::io("open a layer"))).await?;
            match worker.call(Request::Unpack { diff_id: layer.diff_id, lowers }, vec![file.into()]).await? {
                Response::Unpacked { .. } => {}
                _ => return Err(EngineError::Protocol),
            }
        }
        Ok(if to_fetch > 0 { Ensured::Fetched } else { Ensured::Unpacked })
    }

    fn bytes_to_fetch(&self, layer: &Layer) -> u64 {
        match &layer.blob {
            LayerBlob::Base { descriptor, source } | LayerBlob::Cached { descriptor, source }
                if source.repository().is_some() =>
            {
                if self.bases.store.blob(&descriptor.digest).is_some() {
                    0
                } else {
                    descriptor.size
                }
            }
            LayerBlob::Base { .. }
            | LayerBlob::Cached { .. }
            | LayerBlob::Stored(_)
            | LayerBlob::Making
            | LayerBlob::Tree => 0,
        }
    }

    async fn blob(&self, layer: &Layer) -> Result<PathBuf, EngineError> {
        match &layer.blob {
            LayerBlob::Base { descriptor, source } | LayerBlob::Cached { descriptor, source } => {
                self.bases.blob(descriptor, source).await
            }
            LayerBlob::Stored(compressed) => {
                self.bases.store.blob(&compressed.digest).ok_or(EngineError::LayerGone(layer.diff_id))
            }
            LayerBlob::Making | LayerBlob::Tree => Err(EngineError::LayerGone(layer.diff_id)),
        }
    }
}
