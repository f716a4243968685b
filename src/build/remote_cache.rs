//! Steps that other machines have run: each is a small image in a cache repository, tagged with the step's key.
//!
//! A cache never fails a build: where it cannot be read or written, that is told once, and the step is run.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;

use crate::build::base::{BaseSource, Inline};
use crate::build::engine::EventSink;
use crate::build::event::BuildEvent;
use crate::build::key::KeyBuilder;
use crate::layers::{Compressed, LayerStore};
use crate::model::Chain;
use crate::oci::{
    Descriptor, Digest, ImageConfig, Manifest, MediaType, Platform, RawManifest, Repository, Tag, Target,
};
use crate::registry::client::{BlobSource, Client, ClientError};

/// The diff id of a step's layer; without it the step makes none.
const DIFF_ID: &str = "dev.hephy.step.diff-id";
/// When the step was run (OCI image-spec, `annotations.md`).
const CREATED: &str = "org.opencontainers.image.created";

/// How long it is believed that a step is still in the repository.
const MARK_AGE: Duration = Duration::from_secs(24 * 3600);

/// Where a build looks for steps, and leaves those that it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRepository {
    /// The repository.
    pub repository: Repository,
    /// How old what is found may be.
    pub max_age: Duration,
    /// Whether layers of COPY and ADD are kept there.
    pub copies: bool,
    /// Whether layers of RUN are kept there.
    pub runs: bool,
    /// Whether nothing is left there.
    pub is_read_only: bool,
}

/// What the cache has for a step.
#[derive(Debug, Clone)]
pub(crate) struct FoundStep {
    /// The layer that it makes, if it makes one.
    pub(crate) layer: Option<(Digest, Descriptor)>,
    /// When it was run.
    pub(crate) at: Timestamp,
}

/// The cache repository of one build. Clones are the same.
#[derive(Clone)]
pub(crate) struct RemoteCache {
    client: Client,
    place: CacheRepository,
    source: Arc<BaseSource>,
    platform: Platform,
    events: EventSink,
    /// Whether it has been told that the cache cannot be used.
    told: Arc<AtomicBool>,
    pushes: Arc<Mutex<JoinSet<()>>>,
}

impl RemoteCache {
    pub(crate) fn new(client: Client, place: CacheRepository, platform: Platform, events: EventSink) -> Self {
        let source = Arc::new(BaseSource::registry(place.repository.clone()));
        Self { client, place, source, platform, events, told: Arc::default(), pushes: Arc::default() }
    }

    /// Where the layers that are found can be fetched.
    pub(crate) fn source(&self) -> Arc<BaseSource> {
        Arc::clone(&self.source)
    }

    /// Whether a step of this kind (as in its key) is kept there.
    pub(crate) const fn wants(&self, is_run: bool) -> bool {
        if is_run { self.place.runs } else { self.place.copies }
    }

    /// For what platform its steps are.
    pub(crate) const fn platform(&self) -> &Platform {
        &self.platform
    }

    /// Whether nothing is left there.
    pub(crate) const fn is_read_only(&self) -> bool {
        self.place.is_read_only
    }

    /// Fetches what was found.
    pub(crate) async fn pull(&self, blob: &Descriptor, sink: &mut Inline) -> Result<(), ClientError> {
        self.client.pull_blob(&self.place.repository, blob, sink).await
    }

    /// Leaves a file there that is no layer of the store, and waits until it is there.
    pub(crate) async fn keep_file(
        &self,
        key: &Digest,
        path: &Path,
        compressed: &Compressed,
    ) -> Result<(), ClientError> {
        let blob = BlobSource::file(path, compressed.digest, compressed.size);
        self.push_image(&[*key], Some((compressed, blob)), Timestamp::now()).await
    }

    /// Says there that nothing is kept under a key, if something is.
    pub(crate) async fn keep_nothing(&self, key: &Digest) -> Result<(), ClientError> {
        match self.find(key).await {
            Some(FoundStep { layer: Some(_), .. }) => self.push_image(&[*key], None, Timestamp::now()).await,
            _ => Ok(()),
        }
    }

    /// When a step was run, if it may be left there: one that is too old to be found is not, nor one of unknown age.
    pub(crate) fn birthday(&self, at: Option<Timestamp>) -> Option<Timestamp> {
        at.filter(|at| !is_too_old(*at, self.place.max_age, Timestamp::now()))
    }

    /// Looks a step up.
    pub(crate) async fn find(&self, key: &Digest) -> Option<FoundStep> {
        if self.told.load(Ordering::Relaxed) {
            return None;
        }
        match self.client.find_manifest(&self.place.repository, &target(key)?).await {
            Ok(manifest) => read(&manifest?, self.place.max_age, Timestamp::now()),
            Err(error) => {
                self.tell("read", &error);
                None
            }
        }
    }

    /// Leaves a step that was run `at` a time there, in the background.
    pub(crate) fn keep(&self, store: &LayerStore, keys: &[Digest], layer: Option<Compressed>, at: Timestamp) {
        let (this, store, keys) = (self.clone(), store.clone(), keys.to_vec());
        self.pushes.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
            if let Err(error) = this.push(&store, &keys, layer.as_ref(), at).await {
                this.tell("written", &error);
            }
        });
    }

    /// Leaves a step there, in the background, that was run `at` a time, is known here and may not be known there.
    pub(crate) fn share(&self, store: &LayerStore, key: &Digest, layer: Option<Compressed>, at: Timestamp) {
        if self.place.is_read_only || self.is_marked(store, key, Timestamp::now()) {
            return;
        }
        let (this, store, key) = (self.clone(), store.clone(), *key);
        self.pushes.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
            if this.find(&key).await.is_some() {
                this.mark(&store, &[key]);
            } else if !this.told.load(Ordering::Relaxed)
                && let Err(error) = this.push(&store, &[key], layer.as_ref(), at).await
            {
                this.tell("written", &error);
            }
        });
    }

    /// Where it is noted here that a step is there.
    fn mark_of(&self, key: &Digest) -> Digest {
        KeyBuilder::new("in the cache repository")
            .text(&self.place.repository.to_string())
            .digest(*key)
            .finish()
    }

    /// Whether a step is known to be there. That is looked up anew from time to time: registries are tidied, too.
    fn is_marked(&self, store: &LayerStore, key: &Digest, now: Timestamp) -> bool {
        let mark = store.step(&self.mark_of(key)).ok().flatten();
        let at = mark.and_then(|mark| std::str::from_utf8(&mark).ok()?.parse::<Timestamp>().ok());
        at.is_some_and(|at| now.duration_since(at).unsigned_abs() < MARK_AGE.min(self.place.max_age / 2))
    }

    fn mark(&self, store: &LayerStore, keys: &[Digest]) {
        let now = Timestamp::now().to_string();
        for key in keys {
            // Without the mark it is looked up again, and that is all.
            drop(store.put_step(&self.mark_of(key), now.as_bytes()));
        }
    }

    async fn push(
        &self,
        store: &LayerStore,
        keys: &[Digest],
        layer: Option<&Compressed>,
        at: Timestamp,
    ) -> Result<(), ClientError> {
        let layer = match layer {
            Some(layer) => {
                // One that was pruned meanwhile is not kept.
                let Some(path) = store.blob(&layer.digest) else { return Ok(()) };
                Some((layer, BlobSource::file(path, layer.digest, layer.size)))
            }
            None => None,
        };
        self.push_image(keys, layer, at).await?;
        self.mark(store, keys);
        Ok(())
    }

    async fn push_image(
        &self,
        keys: &[Digest],
        layer: Option<(&Compressed, BlobSource)>,
        at: Timestamp,
    ) -> Result<(), ClientError> {
        if self.place.is_read_only {
            return Ok(());
        }
        let repository = &self.place.repository;
        let (layer, blob) = layer.unzip();
        if let Some(blob) = blob {
            self.client.push_blob(repository, blob, &[]).await?;
        }
        let (config, manifest) = written(&self.platform, layer, at);
        self.client.push_blob(repository, BlobSource::bytes(config), &[]).await?;
        for key in keys {
            if let Some(target) = target(key) {
                self.client.push_manifest(repository, &target, &manifest).await?;
            }
        }
        Ok(())
    }

    fn tell(&self, what: &str, error: &ClientError) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let text = format!("the cache `{}` cannot be {what}: {}", self.place.repository, Chain(error));
            (self.events)(BuildEvent::Note { text });
        }
    }

    /// Waits for everything that [`Self::keep`] began.
    pub(crate) async fn settle(&self) {
        let mut pushes = std::mem::take(&mut *self.pushes.lock().unwrap_or_else(PoisonError::into_inner));
        while pushes.join_next().await.is_some() {}
    }
}

/// The key of a step where also the form of its layer's blob matters.
pub(crate) fn remote_key(key: &Digest, compression: &str) -> Digest {
    KeyBuilder::new("remote").digest(*key).text(compression).finish()
}

fn target(key: &Digest) -> Option<Target> {
    key.hex().parse::<Tag>().ok().map(Target::Tag)
}

/// The image of a step: one that every registry takes and every client reads.
fn written(platform: &Platform, layer: Option<&Compressed>, at: Timestamp) -> (bytes::Bytes, RawManifest) {
    let mut config = ImageConfig::new(platform);
    config.rootfs.diff_ids = layer.map(|layer| layer.diff_id).into_iter().collect();
    let config = config.to_bytes();
    let layers = layer.map(|layer| {
        let media_type = MediaType::from(layer.compression.media_type());
        Descriptor::new(media_type, layer.digest, layer.size)
    });
    let mut manifest =
        Manifest::image(Descriptor::of(MediaType::ImageConfig, &config), layers.into_iter().collect());
    if let Some(layer) = layer {
        manifest.annotations.insert(DIFF_ID.to_owned(), layer.diff_id.to_string());
    }
    manifest.annotations.insert(CREATED.to_owned(), at.to_string());
    (config, RawManifest::image(&manifest))
}

fn is_too_old(at: Timestamp, max_age: Duration, now: Timestamp) -> bool {
    now.duration_since(at).unsigned_abs() > max_age
}

/// What a manifest in the cache says; nothing if it is too old, or says nothing that we write.
fn read(manifest: &RawManifest, max_age: Duration, now: Timestamp) -> Option<FoundStep> {
    let manifest = manifest.as_image()?;
    let at: Timestamp = manifest.annotations.get(CREATED)?.parse().ok()?;
    if is_too_old(at, max_age, now) {
        return None;
    }
    match (manifest.annotations.get(DIFF_ID), manifest.layers.as_slice()) {
        (None, []) => Some(FoundStep { layer: None, at }),
        (Some(diff_id), [layer]) => {
            Some(FoundStep { layer: Some((diff_id.parse().ok()?, layer.clone())), at })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Compression;

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    fn layer() -> Compressed {
        Compressed {
            diff_id: Digest::of(b"tar"),
            digest: Digest::of(b"gzip"),
            size: 4,
            uncompressed_size: 3,
            compression: Compression::Gzip { level: 6 },
        }
    }

    fn again(manifest: &RawManifest) -> RawManifest {
        RawManifest::parse(manifest.bytes().clone(), None).unwrap()
    }

    #[test]
    fn what_was_written_is_read_until_it_is_too_old() {
        let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        let (config, manifest) = written(&Platform::native(), Some(&layer()), now);
        assert!(ImageConfig::parse(&config).is_ok());
        let (diff_id, descriptor) = read(&again(&manifest), WEEK, now).unwrap().layer.unwrap();
        assert_eq!((diff_id, descriptor.digest, descriptor.size), (layer().diff_id, layer().digest, 4));
        assert_eq!(descriptor.media_type, MediaType::LayerTarGzip);
        let later: Timestamp = "2026-01-18T00:00:00Z".parse().unwrap();
        assert!(read(&again(&manifest), WEEK, later).is_none());
        let (_, nothing) = written(&Platform::native(), None, now);
        assert!(read(&again(&nothing), WEEK, now).unwrap().layer.is_none());
    }

    #[test]
    fn a_step_keeps_its_birthday_and_one_that_is_too_old_is_not_left() {
        let place = CacheRepository {
            repository: "r.test/cache".parse().unwrap(),
            max_age: WEEK,
            copies: true,
            runs: true,
            is_read_only: false,
        };
        let client = Client::new(crate::registry::client::ClientConfig::default());
        let cache = RemoteCache::new(client, place, Platform::native(), Arc::new(|_| {}));
        let ago = |days: i64| Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
        let young = ago(6);
        assert_eq!(cache.birthday(Some(young)), Some(young));
        assert_eq!((cache.birthday(Some(ago(8))), cache.birthday(None)), (None, None));
        let (_, manifest) = written(&Platform::native(), None, young);
        assert_eq!(read(&again(&manifest), WEEK, Timestamp::now()).unwrap().at, young);
    }

    #[test]
    fn an_image_of_somebody_else_is_no_step() {
        let now = Timestamp::now();
        let descriptor = Descriptor::of(MediaType::LayerTarGzip, b"layer");
        let mut manifest = Manifest::image(Descriptor::of(MediaType::ImageConfig, b"{}"), vec![descriptor]);
        assert!(read(&RawManifest::image(&manifest), WEEK, now).is_none());
        manifest.annotations.insert(CREATED.to_owned(), now.to_string());
        assert!(read(&RawManifest::image(&manifest), WEEK, now).is_none(), "a layer without its diff id");
        manifest.annotations.insert(DIFF_ID.to_owned(), "sha256:no".to_owned());
        assert!(read(&RawManifest::image(&manifest), WEEK, now).is_none());
    }

    #[test]
    fn the_same_step_in_another_compression_is_another() {
        let key = Digest::of(b"key");
        assert_ne!(remote_key(&key, "gzip"), remote_key(&key, "zstd"));
    }
}
