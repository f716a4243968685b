//! From a step's changes to a layer: tar → sha256 → compress → sha256, in the background of the steps after it.

use std::collections::HashMap;
use std::io::{self, Read, Seek as _, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::SpooledTempFile;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::build::error::EngineError;
use crate::build::image::push_file;
use crate::build::process::{WorkerProcess, blocking};
use crate::build::protocol::{Made, Request, Response};
use crate::build::remote_cache::{RemoteCache, remote_key};
use crate::layers::{Compressed, Compression, LayerStore, compress_layer};
use crate::oci::{Digest, Reference};
use crate::registry::client::Client;

/// A tar up to this size stays in memory until it is compressed; larger ones wait in a file.
const MAX_SPOOLED_BYTES: usize = 1024 * 1024;

type Making = HashMap<Digest, JoinHandle<Result<Compressed, EngineError>>>;

/// How many layers are compressed at once; each uses several threads.
const COMPRESSIONS: usize = 2;

/// What the cache knows of a step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    /// The layer that it makes; none if it changes nothing. Whether there is a tree or a blob of it is another question.
    pub(crate) layer: Option<Digest>,
    /// When it was run, here or elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<Timestamp>,
}

/// Layers on their way from a tree to a blob, and to the destinations. Clones are the same.
#[derive(Clone)]
pub(crate) struct Capture {
    store: LayerStore,
    compression: Compression,
    destinations: Vec<Reference>,
    client: Client,
    /// Where large tars wait.
    spool: PathBuf,
    permits: Arc<Semaphore>,
    making: Arc<Mutex<Making>>,
    /// Ends uploads when the build has failed.
    stop: CancellationToken,
    cache: Option<RemoteCache>,
}

impl Capture {
    pub(crate) fn new(
        store: LayerStore,
        compression: Compression,
        destinations: Vec<Reference>,
        client: Client,
        spool: PathBuf,
    ) -> Self {
        Self {
            store,
            compression,
            destinations,
            client,
            spool,
            permits: Arc::new(Semaphore::new(COMPRESSIONS)),
            making: Arc::default(),
            stop: CancellationToken::new(),
            cache: None,
        }
    }

    /// With a cache repository, where steps are left too.
    pub(crate) fn with_cache(mut self, cache: Option<RemoteCache>) -> Self {
        self.cache = cache;
        self
    }

    /// The cache repository.
    pub(crate) const fn cache(&self) -> Option<&RemoteCache> {
        self.cache.as_ref()
    }

    /// Takes the changes of a step into the store. They are a tree there when this returns; if they are `in_image`, they
    /// become a blob meanwhile. What only other stages see is never compressed.
    pub(crate) async fn layer(
        &self,
        worker: &WorkerProcess,
        made: Made,
        epoch: Option<i64>,
        keys: &[Digest],
        (in_image, is_run): (bool, bool),
    ) -> Result<Option<Digest>, EngineError> {
        let cache = self.cache.clone().filter(|cache| cache.wants(is_run));
        let directory = (in_image || cache.is_some()).then(|| self.spool.clone());
        let (response, (diff_id, tar)) =
            worker.call_reading(Request::Diff { made, epoch }, move |tar| spool(tar, directory)).await?;
        let Response::Diffed { entries, bytes } = response else { return Err(EngineError::Protocol) };
        let at = Timestamp::now();
        if entries == 0 {
            worker.call(Request::Discard { made }, Vec::new()).await?;
            record(&self.store, keys, &StepRecord { layer: None, at: Some(at) })?;
            if let Some(cache) = cache {
                cache.keep(&self.store, &self.remote_keys(keys), None, at);
            }
            return Ok(None);
        }
        worker.call(Request::Commit { made, diff_id, entries, bytes }, Vec::new()).await?;
        record(&self.store, keys, &StepRecord { layer: Some(diff_id), at: Some(at) })?;
        if let Some(tar) = tar {
            self.compress(diff_id, tar, in_image, cache.map(|cache| (cache, self.remote_keys(keys), at)));
        }
        Ok(Some(diff_id))
    }

    /// Begins to make the blob of a layer of which there is a tree alone. False if the tree does not give the same layer again.
    pub(crate) async fn pack(
        &self,
        worker: &WorkerProcess,
        diff_id: Digest,
        lowers: Vec<Digest>,
        (key, is_run, at): (&Digest, bool, Option<Timestamp>),
    ) -> Result<bool, EngineError> {
        let directory = Some(self.spool.clone());
        let request = Request::Pack { diff_id, lowers };
        let (_, spooled) = worker.call_reading(request, move |tar| spool(tar, directory)).await?;
        match spooled {
            (found, Some(tar)) if found == diff_id => {
                let cache = self.cache.clone().filter(|cache| cache.wants(is_run));
                let cache = cache.and_then(|cache| {
                    let at = cache.birthday(at)?;
                    Some((cache, self.remote_keys(&[*key]), at))
                });
                self.compress(diff_id, tar, true, cache);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn making(&self) -> MutexGuard<'_, Making> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys as the cache repository has them.
    pub(crate) fn remote_keys(&self, keys: &[Digest]) -> Vec<Digest> {
        let compression = self.compression.to_string();
        keys.iter().map(|key| remote_key(key, &compression)).collect()
    }

    fn compress(
        &self,
        diff_id: Digest,
        tar: SpooledTempFile,
        in_image: bool,
        cache: Option<(RemoteCache, Vec<Digest>, Timestamp)>,
    ) {
        let store = self.store.clone();
        let (compression, permits, stop) = (self.compression, Arc::clone(&self.permits), self.stop.clone());
        let client = self.client.clone();
        let destinations = if in_image { self.destinations.clone() } else { Vec::new() };
        let mut making = self.making();
        let earlier = making.remove(&diff_id);
        let task = tokio::spawn(async move {
            if let Some(earlier) = earlier {
                joined(earlier).await?;
            }
            let permit = permits.acquire_owned().await;
            let compressed = blocking({
                let (store, tar) = (store.clone(), Wanted { tar, stop: stop.clone() });
                move || compress(&store, diff_id, tar, compression)
            })
            .await?;
            drop(permit);
            if let Some((cache, keys, at)) = cache {
                cache.keep(&store, &keys, Some(compressed.clone()), at);
            }
            let upload = async {
                for destination in &destinations {
                    let path = store.blob(&compressed.digest).ok_or(EngineError::LayerGone(diff_id))?;
                    push_file(&client, destination, path, (compressed.digest, compressed.size), &[]).await?;
                }
                Ok(())
            };
            tokio::select! {
                uploaded = upload => uploaded.map(|()| compressed),
                () = stop.cancelled() => Err(EngineError::Cancelled),
            }
        });
        making.insert(diff_id, task);
    }

    /// The blob of a layer that this build made, complete and at the destinations.
    pub(crate) async fn finish(&self, diff_id: &Digest) -> Result<Compressed, EngineError> {
        let making = self.making().remove(diff_id);
        match making {
            Some(task) => joined(task).await,
            None => self.store.compressed(diff_id, self.compression).ok_or(EngineError::LayerGone(*diff_id)),
        }
    }

    /// Ends the work for a build that failed. Its steps are known next time by their trees.
    pub(crate) async fn give_up(&self) {
        self.stop.cancel();
        let making = std::mem::take(&mut *self.making());
        for task in making.into_values() {
            drop(joined(task).await);
        }
    }
}

/// A tar that ends with an error once nobody wants its blob any more.
struct Wanted {
    tar: SpooledTempFile,
    stop: CancellationToken,
}

impl Read for Wanted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the build has ended"));
        }
        self.tar.read(buffer)
    }
}

async fn joined(task: JoinHandle<Result<Compressed, EngineError>>) -> Result<Compressed, EngineError> {
    task.await
        .map_err(|error| EngineError::Io { what: "compress a layer".to_owned(), source: error.into() })?
}

/// Writes what is known of a step under all its keys.
pub(crate) fn record(store: &LayerStore, keys: &[Digest], record: &StepRecord) -> Result<(), EngineError> {
    let bytes = serde_json::to_vec(record).map_err(|error| EngineError::Io {
        what: "write a step's record".to_owned(),
        source: error.into(),
    })?;
    for key in keys {
        store.put_step(key, &bytes)?;
    }
    Ok(())
}

/// Hashes a tar while it is kept for the compressor, which is slower than the steps that wait for the hash.
///
/// Without a directory it is only hashed.
fn spool(
    tar: impl Read,
    directory: Option<PathBuf>,
) -> Result<(Digest, Option<SpooledTempFile>), EngineError> {
    spooled(tar, directory).map_err(EngineError::io("keep a layer"))
}

fn spooled(mut tar: impl Read, directory: Option<PathBuf>) -> io::Result<(Digest, Option<SpooledTempFile>)> {
    let mut kept = directory.map(|directory| tempfile::spooled_tempfile_in(MAX_SPOOLED_BYTES, directory));
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = tar.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        sum.update(&buffer[..count]);
        if let Some(kept) = &mut kept {
            kept.write_all(&buffer[..count])?;
        }
    }
    if let Some(kept) = &mut kept {
        kept.rewind()?;
    }
    Ok((Digest::from_sha256(sum.finalize().into()), kept))
}

fn compress(
    store: &LayerStore,
    diff_id: Digest,
    tar: impl Read,
    compression: Compression,
) -> Result<Compressed, EngineError> {
    if let Some(compressed) = store.compressed(&diff_id, compression) {
        return Ok(compressed);
    }
    let mut writer = store.blob_writer()?;
    let compressed =
        compress_layer(tar, &mut writer, compression).map_err(EngineError::io("compress a layer"))?;
    store.commit_blob(writer, &compressed)?;
    Ok(compressed)
}
