//! From a step's changes to a layer: tar → sha256 → compress → sha256, in the background of the steps after it.

use std::collections::HashMap;
use std::io::{self, Read, Seek as _, Write};
use std::path::PathBuf;
use std::sync::Arc;

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
use crate::layers::{Compressed, Compression, LayerStore, compress_layer};
use crate::oci::{Digest, Reference};
use crate::registry::client::Client;

/// A tar up to this size stays in memory until it is compressed; larger ones wait in a file.
const MAX_SPOOLED_BYTES: usize = 1024 * 1024;

/// How many layers are compressed at once; each uses several threads.
const COMPRESSIONS: usize = 2;

/// What the cache knows of a step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    /// The layer that it makes; none if it changes nothing.
    pub(crate) layer: Option<Compressed>,
}

/// Layers on their way from a tree to a blob, and to the destinations.
pub(crate) struct Capture {
    store: LayerStore,
    compression: Compression,
    destinations: Vec<Reference>,
    client: Client,
    /// Where large tars wait.
    spool: PathBuf,
    permits: Arc<Semaphore>,
    making: HashMap<Digest, JoinHandle<Result<Compressed, EngineError>>>,
    /// Ends uploads when the build has failed.
    stop: CancellationToken,
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
            making: HashMap::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Takes the changes of a step into the store; they are a tree there when this returns, and a blob later.
    ///
    /// The step's records are written once the blob is complete, so that a record never names what is not there.
    pub(crate) async fn layer(
        &mut self,
        worker: &WorkerProcess,
        made: Made,
        epoch: Option<i64>,
        keys: Vec<Digest>,
    ) -> Result<Option<Digest>, EngineError> {
        let directory = self.spool.clone();
        let (response, spooled) =
            worker.call_reading(Request::Diff { made, epoch }, move |tar| spool(tar, directory)).await?;
        let Response::Diffed { entries, bytes } = response else { return Err(EngineError::Protocol) };
        if entries == 0 {
            worker.call(Request::Discard { made }, Vec::new()).await?;
            record(&self.store, &keys, &StepRecord { layer: None })?;
            return Ok(None);
        }
        let (diff_id, tar) = spooled.map_err(EngineError::io("keep a layer"))?;
        worker.call(Request::Commit { made, diff_id, entries, bytes }, Vec::new()).await?;
        self.compress(diff_id, tar, keys);
        Ok(Some(diff_id))
    }

    fn compress(&mut self, diff_id: Digest, tar: SpooledTempFile, keys: Vec<Digest>) {
        let store = self.store.clone();
        let (compression, permits, stop) = (self.compression, Arc::clone(&self.permits), self.stop.clone());
        let (client, destinations) = (self.client.clone(), self.destinations.clone());
        let earlier = self.making.remove(&diff_id);
        let task = tokio::spawn(async move {
            if let Some(earlier) = earlier {
                joined(earlier).await?;
            }
            let permit = permits.acquire_owned().await;
            let compressed = blocking({
                let store = store.clone();
                move || compress(&store, diff_id, tar, compression)
            })
            .await?;
            drop(permit);
            record(&store, &keys, &StepRecord { layer: Some(compressed.clone()) })?;
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
        self.making.insert(diff_id, task);
    }

    /// The blob of a layer that this build made, complete and at the destinations.
    pub(crate) async fn finish(&mut self, diff_id: &Digest) -> Result<Compressed, EngineError> {
        match self.making.remove(diff_id) {
            Some(task) => joined(task).await,
            None => self.store.compressed(diff_id, self.compression).ok_or(EngineError::LayerGone(*diff_id)),
        }
    }

    /// Completes the blobs of a build that failed, so that its steps are known next time, without uploading them.
    pub(crate) async fn settle(&mut self) {
        self.stop.cancel();
        for (_, task) in self.making.drain() {
            drop(joined(task).await);
        }
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
fn spool(mut tar: io::PipeReader, directory: PathBuf) -> io::Result<(Digest, SpooledTempFile)> {
    let mut kept = tempfile::spooled_tempfile_in(MAX_SPOOLED_BYTES, directory);
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = tar.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        sum.update(&buffer[..count]);
        kept.write_all(&buffer[..count])?;
    }
    kept.rewind()?;
    Ok((Digest::from_sha256(sum.finalize().into()), kept))
}

fn compress(
    store: &LayerStore,
    diff_id: Digest,
    tar: SpooledTempFile,
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
