//! Base images: where they are, what they say, and their blobs when someone needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use crate::build::error::EngineError;
use crate::build::image::{Layer, LayerBlob};
use crate::build::layout;
use crate::build::mirror::{Mirror, Mirrors};
use crate::build::named::NamedContext;
use crate::build::plan::ImageName;
use crate::layers::{BlobWriter, LayerStore};
use crate::oci::{Descriptor, Digest, ImageConfig, Manifest, Platform, RawManifest, Reference, Repository};
use crate::registry::client::{Client, ClientError, ResolvedImage};

/// The largest image configuration that is read.
const MAX_CONFIG_BYTES: u64 = 8 * 1024 * 1024;

/// Where a base image was found, and who else may have its blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseSource {
    at: Spot,
    /// Asked in this order for a blob that the first does not give: mirrors collect what nobody has asked for, and break.
    others: Vec<Spot>,
}

/// A place that has images.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Spot {
    /// A repository.
    Registry(Repository),
    /// A layout directory.
    Layout(PathBuf),
}

impl BaseSource {
    /// A repository, and nothing else.
    pub(crate) const fn registry(repository: Repository) -> Self {
        Self { at: Spot::Registry(repository), others: Vec::new() }
    }

    const fn layout(directory: PathBuf) -> Self {
        Self { at: Spot::Layout(directory), others: Vec::new() }
    }

    /// The repository that it was found in, if it is one.
    pub(crate) const fn repository(&self) -> Option<&Repository> {
        match &self.at {
            Spot::Registry(repository) => Some(repository),
            Spot::Layout(_) => None,
        }
    }

    fn spots(&self) -> impl Iterator<Item = &Spot> {
        std::iter::once(&self.at).chain(&self.others)
    }
}

impl std::fmt::Display for Spot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(repository) => repository.fmt(f),
            Self::Layout(directory) => directory.display().fmt(f),
        }
    }
}

/// A base image of which manifest and configuration are known.
#[derive(Debug, Clone)]
pub(crate) struct ResolvedBase {
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<Layer>,
}

/// Finds base images.
#[derive(Debug, Clone)]
pub(crate) struct Finder {
    pub(crate) client: Client,
    pub(crate) mirrors: Mirrors,
    /// Layouts of this machine that whoever builds has given. A Dockerfile may name no other: it is somebody else's.
    pub(crate) layouts: BTreeSet<String>,
}

/// What the name of an image in a layout begins with.
const LAYOUT: &str = "oci-layout://";

/// Those of some contexts that are images in layouts.
pub(crate) fn layouts(named: &BTreeMap<String, NamedContext>) -> BTreeSet<String> {
    let images = named.values().filter_map(|context| match context {
        NamedContext::Image(image) => Some(image),
        NamedContext::Directory(_) => None,
    });
    images.filter(|image| image.starts_with(LAYOUT)).cloned().collect()
}

/// Finds base images and fetches their layers.
#[derive(Clone)]
pub(crate) struct Bases {
    pub(crate) finder: Finder,
    /// A layout whose blobs need not be fetched.
    pub(crate) warmed: Option<PathBuf>,
    pub(crate) store: LayerStore,
}

struct Found {
    manifest: RawManifest,
    source: BaseSource,
}

impl Found {
    fn registry(image: ResolvedImage, at: Reference, others: Vec<Spot>) -> Self {
        let source = BaseSource { at: Spot::Registry(at.repository), others };
        Self { manifest: image.manifest, source }
    }
}

/// Where an image was looked for in vain, why, and what would help.
#[derive(Default)]
struct Tried {
    places: Vec<(String, String)>,
    advice: Vec<String>,
}

impl Tried {
    fn not_there(&mut self, place: String) {
        self.places.push((place, "not there".to_owned()));
    }

    fn failed(&mut self, place: String, error: &ClientError) {
        self.places.push((place, sentence(error)));
        self.advice.extend(error.advice().filter(|advice| !self.advice.contains(advice)));
    }
}

impl Finder {
    /// Looks up an image as a Dockerfile names it, in a build for `platform`.
    pub(crate) async fn named(
        &self,
        name: &ImageName,
        platform: &Platform,
    ) -> Result<ResolvedBase, EngineError> {
        let own = name.platform.as_deref().map(str::parse::<Platform>).transpose();
        let own = own.map_err(|error| EngineError::Wrong(error.to_string()))?;
        self.resolve(&name.reference, own.as_ref().unwrap_or(platform)).await
    }

    /// Looks a base image up, in the mirrors and then in its own registry.
    pub(crate) async fn resolve(&self, name: &str, platform: &Platform) -> Result<ResolvedBase, EngineError> {
        if let Some(place) = name.strip_prefix(LAYOUT) {
            if !self.layouts.contains(name) {
                return Err(EngineError::Wrong(format!(
                    "`{name}` is a place of this machine, which a Dockerfile cannot name: `hephy build` gives it a name with `--build-context NAME={name}`"
                )));
            }
            return self.of_layout(name, place, platform).await;
        }
        let reference: Reference =
            name.parse().map_err(|error| EngineError::Wrong(format!("`FROM {name}`: {error}")))?;
        let found = self.find(&reference, platform).await?;
        self.resolved(name, found, platform).await
    }

    /// An image of a layout: `DIRECTORY[:TAG][@DIGEST]`.
    async fn of_layout(
        &self,
        name: &str,
        place: &str,
        platform: &Platform,
    ) -> Result<ResolvedBase, EngineError> {
        let (rest, digest) = place.split_once('@').map_or((place, None), |(rest, text)| (rest, Some(text)));
        let wrong = |why: String| EngineError::Wrong(format!("the context `{name}`: {why}"));
        let digest =
            digest.map(str::parse::<Digest>).transpose().map_err(|error| wrong(error.to_string()))?;
        let (directory, tag) = match rest.rsplit_once(':') {
            Some((directory, tag)) if !tag.contains('/') => (directory, Some(tag)),
            _ => (rest, None),
        };
        let is_wanted = |entry: &Descriptor| {
            let found = entry.annotations.get("org.opencontainers.image.ref.name");
            let is_tag =
                |tag: &str| found.is_some_and(|found| found == tag || found.ends_with(&format!(":{tag}")));
            digest.map_or_else(|| tag.is_none_or(is_tag), |digest| entry.digest == digest)
        };
        let directory = PathBuf::from(directory);
        let manifest = layout::entry(&directory, is_wanted, platform).map_err(wrong)?;
        let manifest = manifest.ok_or_else(|| wrong("the layout has no such image".to_owned()))?;
        self.resolved(name, Found { manifest, source: BaseSource::layout(directory) }, platform).await
    }

    async fn resolved(
        &self,
        name: &str,
        found: Found,
        platform: &Platform,
    ) -> Result<ResolvedBase, EngineError> {
        let invalid = |problem: String| EngineError::BaseInvalid { reference: name.to_owned(), problem };
        let manifest = found.manifest.as_image().ok_or_else(|| invalid("no image manifest".to_owned()))?;
        let config = self.config(&found.source, manifest).await?;
        let config = ImageConfig::parse(&config).map_err(|error| invalid(error.to_string()))?;
        let own = config.platform().map_err(|error| invalid(error.to_string()))?;
        if own.os() != platform.os() || own.architecture() != platform.architecture() {
            let (reference, found) = (name.to_owned(), own.to_string());
            return Err(EngineError::BasePlatform { reference, found, wanted: platform.clone() });
        }
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let (layers, ids) = (manifest.layers.len(), diff_ids.len());
            return Err(invalid(format!("its manifest has {layers} layers and its configuration {ids}")));
        }
        let source = Arc::new(found.source);
        let layers = diff_ids.iter().zip(&manifest.layers).map(|(diff_id, descriptor)| Layer {
            diff_id: *diff_id,
            blob: LayerBlob::Base { descriptor: descriptor.clone(), source: Arc::clone(&source) },
        });
        Ok(ResolvedBase { layers: layers.collect(), config })
    }

    async fn find(&self, reference: &Reference, platform: &Platform) -> Result<Found, EngineError> {
        let mut tried = Tried::default();
        let host = &reference.repository.host;
        for (position, mirror) in self.mirrors.places.iter().enumerate() {
            let others = || self.spots_after(position, reference);
            match mirror {
                Mirror::Layout(directory) => match layout::manifest(directory, reference, platform) {
                    Ok(Some(manifest)) => {
                        let source = BaseSource { at: Spot::Layout(directory.clone()), others: others() };
                        return Ok(Found { manifest, source });
                    }
                    Ok(None) => tried.not_there(directory.display().to_string()),
                    Err(why) => tried.places.push((directory.display().to_string(), why)),
                },
                Mirror::Registry { of, at } if of == host => {
                    let Ok(mirrored) = at.image(reference) else { continue };
                    match self.client.image(&mirrored, platform).await {
                        Ok(image) => return Ok(Found::registry(image, mirrored, others())),
                        Err(error) if error.is_not_found() => tried.not_there(at.to_string()),
                        Err(error) => tried.failed(at.to_string(), &error),
                    }
                }
                Mirror::Registry { .. } => {}
            }
        }
        let mut offline = false;
        if self.mirrors.ask(host) {
            match self.client.image(reference, platform).await {
                Ok(image) => return Ok(Found::registry(image, reference.clone(), Vec::new())),
                Err(error) => {
                    offline = error.is_unreachable();
                    tried.failed(host.to_string(), &error);
                }
            }
        } else {
            tried
                .places
                .push((host.to_string(), "not asked (`--skip-default-registry-fallback`)".to_owned()));
        }
        let (reference, platform) = (reference.familiar(), platform.clone());
        let Tried { places, advice } = tried;
        Err(EngineError::BaseNotFound { reference, platform, places, offline, advice })
    }

    /// Who may have the blobs of an image that the mirror at `position` has: the mirrors after it, and the registry.
    fn spots_after(&self, position: usize, reference: &Reference) -> Vec<Spot> {
        let host = &reference.repository.host;
        let spot = |mirror: &Mirror| match mirror {
            Mirror::Layout(directory) => Some(Spot::Layout(directory.clone())),
            Mirror::Registry { of, at } if of == host => {
                Some(Spot::Registry(at.image(reference).ok()?.repository))
            }
            Mirror::Registry { .. } => None,
        };
        let mut spots: Vec<Spot> = self.mirrors.places.iter().skip(position + 1).filter_map(spot).collect();
        if self.mirrors.ask(host) {
            spots.push(Spot::Registry(reference.repository.clone()));
        }
        spots
    }

    async fn config(&self, source: &BaseSource, manifest: &Manifest) -> Result<bytes::Bytes, EngineError> {
        let descriptor = &manifest.config;
        let mut missed = Missed::default();
        for spot in source.spots() {
            match self.config_at(spot, descriptor).await {
                Ok(config) => return Ok(config),
                Err(error) => missed.note(source, spot, error)?,
            }
        }
        Err(missed.of(&descriptor.digest))
    }

    async fn config_at(&self, spot: &Spot, descriptor: &Descriptor) -> Result<bytes::Bytes, EngineError> {
        match spot {
            Spot::Registry(repository) => {
                Ok(self.client.blob(repository, descriptor, MAX_CONFIG_BYTES).await?)
            }
            Spot::Layout(directory) => {
                let bytes = layout::blob(directory, &descriptor.digest, MAX_CONFIG_BYTES);
                Ok(bytes.map_err(EngineError::Wrong)?.into())
            }
        }
    }
}

impl Bases {
    /// The blob of a base layer, in the store when this returns.
    pub(crate) async fn blob(
        &self,
        descriptor: &Descriptor,
        source: &BaseSource,
    ) -> Result<PathBuf, EngineError> {
        if let Some(path) = self.store.blob(&descriptor.digest) {
            return Ok(path);
        }
        // The registry has said which blob it is: whoever filled the directory cannot make it another.
        if let Some(directory) = &self.warmed
            && let Ok(writer) = self.copied(directory, descriptor)
        {
            return Ok(self.store.commit_pulled_blob(writer, &descriptor.digest)?);
        }
        let mut missed = Missed::default();
        for spot in source.spots() {
            match self.blob_at(spot, descriptor).await {
                // Whoever gives it, it was looked at whole.
                Ok(writer) => return Ok(self.store.commit_pulled_blob(writer, &descriptor.digest)?),
                Err(error) => missed.note(source, spot, error)?,
            }
        }
        Err(missed.of(&descriptor.digest))
    }

    async fn blob_at(&self, spot: &Spot, descriptor: &Descriptor) -> Result<BlobWriter, EngineError> {
        match spot {
            Spot::Registry(repository) => {
                let mut sink = Inline(self.store.blob_writer()?);
                self.finder.client.pull_blob(repository, descriptor, &mut sink).await?;
                Ok(sink.0)
            }
            Spot::Layout(directory) => self.copied(directory, descriptor),
        }
    }

    /// The blob of a layout, looked at whole.
    fn copied(&self, directory: &Path, descriptor: &Descriptor) -> Result<BlobWriter, EngineError> {
        let path = layout::blob_path(directory, &descriptor.digest);
        let file = std::fs::File::open(&path).map_err(|source| EngineError::Read { path, source })?;
        let mut file = crate::layers::Verified::new(file, &descriptor.digest, descriptor.size);
        let mut writer = self.store.blob_writer()?;
        std::io::copy(&mut file, &mut writer).map_err(EngineError::io("copy a base layer"))?;
        Ok(writer)
    }

    /// Everything of an image, for a layout: its manifest, its configuration, and its layers in the store.
    pub(crate) async fn whole(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<WholeImage, EngineError> {
        let found = self.finder.find(reference, platform).await?;
        let (manifest, source) = (found.manifest.clone(), found.source.clone());
        // What is no image for the platform is no base of a build for it.
        self.finder.resolved(&reference.familiar(), found, platform).await?;
        let image = manifest.as_image().ok_or(EngineError::Protocol)?;
        let config = self.finder.config(&source, image).await?;
        let mut layers = Vec::new();
        for descriptor in &image.layers {
            layers.push((descriptor.digest, self.blob(descriptor, &source).await?));
        }
        Ok(WholeImage { manifest, config, layers })
    }
}

/// The places that did not give a blob.
#[derive(Default)]
struct Missed {
    places: Vec<(String, String)>,
    advice: Vec<String>,
}

impl Missed {
    /// Notes why a place did not; an error is final if another place does not help: against a full disk, or where there is none.
    fn note(&mut self, source: &BaseSource, spot: &Spot, error: EngineError) -> Result<(), EngineError> {
        if source.others.is_empty() || error.is_our_own() {
            return Err(error);
        }
        tracing::debug!(place = %spot, error = sentence(&error), "a place does not give a blob of its image");
        self.advice.extend(error.hint().filter(|hint| !self.advice.contains(hint)));
        self.places.push((spot.to_string(), sentence(&error)));
        Ok(())
    }

    fn of(self, digest: &Digest) -> EngineError {
        EngineError::BlobNotFound { digest: *digest, places: self.places, advice: self.advice }
    }
}

/// An image of which every byte is here.
pub(crate) struct WholeImage {
    pub(crate) manifest: RawManifest,
    pub(crate) config: bytes::Bytes,
    pub(crate) layers: Vec<(Digest, PathBuf)>,
}

/// The error and what caused it, on one line.
fn sentence(error: &dyn std::error::Error) -> String {
    crate::build::driver::chain(error).join(": ")
}

/// A blob being written, for asynchronous readers: each write is one `write(2)` into the page cache.
pub(crate) struct Inline(pub(crate) BlobWriter);

impl AsyncWrite for Inline {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(self.0.write(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(self.0.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.poll_flush(cx)
    }
}
