//! Cache mounts that outlive their machine: saved in the cache repository after a build, restored when a RUN first asks.
//!
//! A saved cache is one compressed tar, tagged with a hash of what names the mount (its scope, its id) and of the platform.
//! Nothing here fails a build: what cannot be restored begins empty, what cannot be saved is told.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::request::CacheRequest;
use crate::build::base::Inline;
use crate::build::engine::{Engine, EventSink, millis};
use crate::build::error::EngineError;
use crate::build::event::{BuildEvent, elapsed};
use crate::build::key::KeyBuilder;
use crate::build::process::WorkerProcess;
use crate::build::protocol::{Request, Response};
use crate::build::remote_cache::{FoundStep, RemoteCache};
use crate::layers::{Compression, LayerStore, compress_layer};
use crate::model::Chain;
use crate::oci::{Digest, Platform};

/// How saved caches are compressed: quickly, since nobody but hephy reads them.
const COMPRESSION: Compression = Compression::Zstd { level: 3 };

/// The cache mounts that the steps of a build wrote to: by name, what people call them. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(in crate::build) struct UsedCaches(Arc<Mutex<BTreeMap<Digest, String>>>);

impl UsedCaches {
    fn add(&self, name: Digest, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, id.to_owned());
    }

    fn take(&self) -> BTreeMap<Digest, String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The tag of a saved cache.
fn key(name: &Digest, platform: &Platform) -> Digest {
    KeyBuilder::new("saved cache mount").digest(*name).text(&platform.to_string()).finish()
}

impl Engine {
    /// Brings the content of a cache mount here, if it is not here and is saved.
    pub(super) async fn restore_cache(
        &self,
        cache: &CacheRequest,
        id: &str,
        read_only: bool,
    ) -> Result<(), EngineError> {
        let Some(remote) = self.capture.cache().filter(|cache| cache.wants(true)) else { return Ok(()) };
        if self.options.mounts.max_saved_bytes == 0 {
            return Ok(());
        }
        if !read_only {
            self.used_caches.add(cache.name, id);
        }
        if self.trees.bases.store.has_cache(&cache.name) {
            return Ok(());
        }
        let Some(found) = remote.find(&key(&cache.name, &self.options.platform)).await else { return Ok(()) };
        let clock = Instant::now();
        let text = match self.restored(remote, cache, found).await {
            Ok(Some(bytes)) => format!(
                "the cache mount `{id}` is restored: {} in {}",
                megabytes(bytes),
                elapsed(millis(clock))
            ),
            Ok(None) => return Ok(()),
            Err(error) => format!(
                "the cache mount `{id}` begins empty, since it could not be restored: {}",
                Chain(&error)
            ),
        };
        self.fetching.fetch_add(millis(clock), Ordering::Relaxed);
        (self.events)(BuildEvent::Note { text });
        Ok(())
    }

    async fn restored(
        &self,
        remote: &RemoteCache,
        cache: &CacheRequest,
        found: FoundStep,
    ) -> Result<Option<u64>, EngineError> {
        let Some((diff_id, blob)) = found.layer else { return Ok(None) };
        let max_bytes = self.options.mounts.max_saved_bytes;
        if blob.size > max_bytes {
            let limit = megabytes(max_bytes);
            return Err(EngineError::Wrong(format!(
                "it is larger than {limit} (`--cache-mount-save-limit`)"
            )));
        }
        // Never among the blobs of layers: it is gone when it is unpacked.
        let mut file = Inline(self.trees.bases.store.blob_writer()?);
        remote.pull(&blob, &mut file).await?;
        let reading = std::fs::File::open(file.0.path()).map_err(EngineError::io("read a saved cache"))?;
        let request = Request::RestoreCache { cache: cache.without_seed(), diff_id, max_bytes };
        self.trees.worker().await?.call(request, vec![reading.into()]).await?;
        Ok(Some(blob.size))
    }
}

/// What it takes to save the cache mounts that a successful build used.
pub(in crate::build) struct Saving {
    pub(in crate::build) used: UsedCaches,
    pub(in crate::build) remote: RemoteCache,
    pub(in crate::build) store: LayerStore,
    pub(in crate::build) events: EventSink,
    pub(in crate::build) max_bytes: u64,
}

impl Saving {
    /// Saves them, except those that are in use again: whoever uses them last saves them.
    pub(in crate::build) async fn save(&self, worker: &WorkerProcess) {
        for (name, id) in self.used.take() {
            if let Err(why) = self.save_one(worker, name).await {
                (self.events)(BuildEvent::Note {
                    text: format!("the cache mount `{id}` is not saved: {why}"),
                });
            }
        }
    }

    async fn save_one(&self, worker: &WorkerProcess, name: Digest) -> Result<(), String> {
        let mut writer = self.store.blob_writer().map_err(|error| Chain(&error).to_string())?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (left, told) = (self.max_bytes, Arc::clone(&is_over));
        let compress = move |tar: io::PipeReader| {
            let tar = AtMost { tar, left, is_over: told };
            let compressed = compress_layer(tar, &mut writer, COMPRESSION);
            Ok((compressed.map_err(EngineError::io("compress a cache mount"))?, writer))
        };
        let saved = worker.call_reading(Request::SaveCache { name }, compress).await;
        if is_over.load(Ordering::Relaxed) {
            return Err(format!(
                "it is larger than {} (`--cache-mount-save-limit`)",
                megabytes(self.max_bytes)
            ));
        }
        let (response, (compressed, file)) = saved.map_err(|error| Chain(&error).to_string())?;
        let key = key(&name, self.remote.platform());
        let kept = match response {
            Response::Diffed { entries: 0, .. } => self.remote.keep_nothing(&key).await,
            Response::Diffed { .. } => self.remote.keep_file(&key, file.path(), &compressed).await,
            _ => Ok(()),
        };
        kept.map_err(|error| Chain(&error).to_string())
    }
}

/// A tar that ends with an error when it is longer than it may be.
struct AtMost {
    tar: io::PipeReader,
    left: u64,
    is_over: Arc<AtomicBool>,
}

impl Read for AtMost {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.tar.read(buffer)?;
        let Some(left) = self.left.checked_sub(count as u64) else {
            self.is_over.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.left = left;
        Ok(count)
    }
}

fn megabytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let megabytes = bytes as f64 / 1e6;
    format!("{megabytes:.1} MB")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_tar_is_read_up_to_its_limit_and_not_a_byte_further() {
        for (limit, is_over) in [(6, false), (5, true), (0, true)] {
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(b"a tar.").unwrap();
            drop(writer);
            let flag = Arc::new(AtomicBool::new(false));
            let mut tar = AtMost { tar: reader, left: limit, is_over: Arc::clone(&flag) };
            let read = tar.read_to_end(&mut Vec::new());
            assert_eq!((read.is_err(), flag.load(Ordering::Relaxed)), (is_over, is_over), "{limit}");
        }
    }

    #[test]
    fn a_saved_cache_is_one_name_s_and_one_platform_s() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        let all = [
            key(&a, &platform("linux/amd64")),
            key(&a, &platform("linux/arm64")),
            key(&b, &platform("linux/amd64")),
        ];
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2]);
    }
}
