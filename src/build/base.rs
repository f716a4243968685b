//! Base images: where they are, what they say, and their blobs when someone needs them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use crate::build::error::EngineError;
use crate::build::image::{Layer, LayerBlob};
use crate::layers::{BlobWriter, LayerStore};
use crate::oci::{Descriptor, Digest, ImageConfig, Manifest, Platform, RawManifest, Reference, Repository};
use crate::registry::client::Client;

/// The largest image configuration that is read.
const MAX_CONFIG_BYTES: u64 = 8 * 1024 * 1024;

/// A place to look for base images before their own registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mirror {
    /// A namespace of a registry: `127.0.0.1:5000/mirror`.
    Registry(String),
    /// An OCI image layout directory whose index names images by `org.opencontainers.image.ref.name`.
    Layout(PathBuf),
}

impl std::str::FromStr for Mirror {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix("oci:") {
            Some(directory) => Self::Layout(PathBuf::from(directory)),
            None => Self::Registry(text.trim_end_matches('/').to_owned()),
        })
    }
}

/// Where a base image was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BaseSource {
    /// A repository.
    Registry(Repository),
    /// A layout directory.
    Layout(PathBuf),
}

/// A base image of which manifest and configuration are known.
#[derive(Debug, Clone)]
pub(crate) struct ResolvedBase {
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<Layer>,
}

/// Finds base images and fetches their layers.
#[derive(Clone)]
pub(crate) struct Bases {
    pub(crate) client: Client,
    pub(crate) mirrors: Vec<Mirror>,
    pub(crate) store: LayerStore,
}

struct Found {
    manifest: RawManifest,
    source: BaseSource,
}

impl Bases {
    /// Looks a base image up, in the mirrors and then in its own registry.
    pub(crate) async fn resolve(&self, name: &str, platform: &Platform) -> Result<ResolvedBase, EngineError> {
        let reference: Reference =
            name.parse().map_err(|error| EngineError::Wrong(format!("`FROM {name}`: {error}")))?;
        let invalid = |problem: String| EngineError::BaseInvalid { reference: name.to_owned(), problem };
        let found = self.find(&reference, platform).await?;
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
        let mut places = Vec::new();
        let mut offline = false;
        for mirror in &self.mirrors {
            match mirror {
                Mirror::Layout(directory) => match layout_manifest(directory, reference, platform) {
                    Ok(Some(manifest)) => {
                        return Ok(Found { manifest, source: BaseSource::Layout(directory.clone()) });
                    }
                    Ok(None) => places.push((directory.display().to_string(), "not there".to_owned())),
                    Err(why) => places.push((directory.display().to_string(), why)),
                },
                Mirror::Registry(prefix) => {
                    let Some(mirrored) = mirrored(prefix, reference) else { continue };
                    match self.client.image(&mirrored, platform).await {
                        Ok(image) => {
                            let source = BaseSource::Registry(mirrored.repository);
                            return Ok(Found { manifest: image.manifest, source });
                        }
                        Err(error) if error.is_not_found() => {
                            places.push((prefix.clone(), "not there".to_owned()));
                        }
                        Err(error) => places.push((prefix.clone(), error.to_string())),
                    }
                }
            }
        }
        match self.client.image(reference, platform).await {
            Ok(image) => {
                let source = BaseSource::Registry(reference.repository.clone());
                return Ok(Found { manifest: image.manifest, source });
            }
            Err(error) => {
                offline |= error.is_unreachable();
                places.push((reference.repository.host.to_string(), sentence(&error)));
            }
        }
        let reference = reference.familiar();
        Err(EngineError::BaseNotFound { reference, platform: platform.clone(), places, offline })
    }

    async fn config(&self, source: &BaseSource, manifest: &Manifest) -> Result<bytes::Bytes, EngineError> {
        match source {
            BaseSource::Registry(repository) => {
                Ok(self.client.blob(repository, &manifest.config, MAX_CONFIG_BYTES).await?)
            }
            BaseSource::Layout(directory) => {
                let path = layout_blob(directory, &manifest.config.digest);
                let bytes = std::fs::read(&path).map_err(|source| EngineError::Read { path, source })?;
                Ok(bytes.into())
            }
        }
    }

    /// The blob of a base layer, in the store when this returns.
    pub(crate) async fn blob(
        &self,
        descriptor: &Descriptor,
        source: &BaseSource,
    ) -> Result<PathBuf, EngineError> {
        if let Some(path) = self.store.blob(&descriptor.digest) {
            return Ok(path);
        }
        let mut sink = Inline(self.store.blob_writer()?);
        match source {
            BaseSource::Registry(repository) => {
                self.client.pull_blob(repository, descriptor, &mut sink).await?;
            }
            BaseSource::Layout(directory) => {
                let path = layout_blob(directory, &descriptor.digest);
                let file = std::fs::File::open(&path).map_err(|source| EngineError::Read { path, source })?;
                let mut file = crate::layers::Verified::new(file, &descriptor.digest, descriptor.size);
                std::io::copy(&mut file, &mut sink.0).map_err(EngineError::io("copy a base layer"))?;
            }
        }
        Ok(self.store.commit_pulled_blob(sink.0, &descriptor.digest)?)
    }
}

/// The error and what caused it, on one line.
fn sentence(error: &dyn std::error::Error) -> String {
    crate::build::driver::chain(error).join(": ")
}

/// What a mirror calls an image of docker.io; it has no others.
fn mirrored(prefix: &str, reference: &Reference) -> Option<Reference> {
    if reference.repository.host.to_string() != "docker.io" {
        return None;
    }
    let repository = format!("{prefix}/{}", reference.repository.name).parse().ok()?;
    Some(Reference { repository, tag: reference.tag.clone(), digest: reference.digest })
}

fn layout_blob(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs/sha256").join(digest.hex())
}

/// The manifest of an image in a layout; an error is a sentence.
fn layout_manifest(
    directory: &Path,
    wanted: &Reference,
    platform: &Platform,
) -> Result<Option<RawManifest>, String> {
    let read = |path: PathBuf| std::fs::read(&path).map_err(|error| format!("`{}`: {error}", path.display()));
    let parse = |bytes: Vec<u8>| RawManifest::parse(bytes, None).map_err(|error| error.to_string());
    let top = parse(read(directory.join("index.json"))?)?;
    let entries = top.as_index().ok_or("index.json is not an index")?;
    let names = [wanted.to_string(), wanted.familiar()];
    let is_wanted = |entry: &&Descriptor| {
        let name = entry.annotations.get("org.opencontainers.image.ref.name");
        wanted
            .digest
            .map_or_else(|| name.is_some_and(|name| names.contains(name)), |digest| entry.digest == digest)
    };
    let Some(entry) = entries.manifests.iter().find(is_wanted) else { return Ok(None) };
    let mut manifest = parse(read(layout_blob(directory, &entry.digest))?)?;
    if let Some(index) = manifest.as_index() {
        let child = index.choose(platform).map_err(|error| error.to_string())?.digest;
        manifest = parse(read(layout_blob(directory, &child))?)?;
    }
    Ok(Some(manifest))
}

/// A blob being written, for asynchronous readers: each write is one `write(2)` into the page cache.
struct Inline(BlobWriter);

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
