//! The finished image: its layers' blobs, its configuration and manifest, and the places where it goes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::build::base::{BaseSource, Bases};
use crate::build::error::EngineError;
use crate::build::layout;
use crate::layers::{Compressed, Compression};
use crate::oci::{
    Descriptor, Digest, ImageConfig, Manifest, MediaType, Platform, RawManifest, Reference, RepositoryName,
    Tag, Target,
};
use crate::registry::client::{BlobSource, Client};

/// How many blobs are on their way at once.
const TRANSFERS: usize = 4;

/// A layer of an image being built.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// The digest of its tar.
    pub(crate) diff_id: Digest,
    /// Its blob.
    pub(crate) blob: LayerBlob,
}

/// Where a layer's blob is.
#[derive(Debug, Clone)]
pub(crate) enum LayerBlob {
    /// Where the base image is; perhaps also in the store.
    Base {
        /// As the base's manifest says.
        descriptor: Descriptor,
        /// There.
        source: Arc<BaseSource>,
    },
    /// In the cache repository, by another machine; perhaps also in the store.
    Cached {
        /// As the cache says.
        descriptor: Descriptor,
        /// There.
        source: Arc<BaseSource>,
    },
    /// In the store, by an earlier build.
    Stored(Compressed),
    /// Being compressed by this build; its tree is in the store.
    Making,
    /// Nowhere: its tree is in the store, and no image of this build has it.
    Tree,
}

/// A layer whose blob is complete.
#[derive(Debug, Clone)]
pub(crate) struct FinishedLayer {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
    /// The registry or layout that has its blob, if it is the base's or the cache's.
    pub(crate) source: Option<Arc<BaseSource>>,
    /// Whether it is the base's.
    pub(crate) base: bool,
    /// Whether this build made it.
    pub(crate) new: bool,
}

impl FinishedLayer {
    pub(crate) fn stored(compressed: &Compressed, new: bool) -> Self {
        let media_type = MediaType::from(compressed.compression.media_type());
        let descriptor = Descriptor::new(media_type, compressed.digest, compressed.size);
        Self { descriptor, diff_id: compressed.diff_id, source: None, base: false, new }
    }

    pub(crate) fn of_base(diff_id: Digest, descriptor: &Descriptor, source: &Arc<BaseSource>) -> Self {
        let media_type = match descriptor.media_type {
            MediaType::DockerLayerGzip => MediaType::LayerTarGzip,
            MediaType::DockerLayerZstd => MediaType::LayerTarZstd,
            ref other => other.clone(),
        };
        let descriptor = Descriptor::new(media_type, descriptor.digest, descriptor.size);
        Self { descriptor, diff_id, source: Some(Arc::clone(source)), base: true, new: false }
    }

    pub(crate) fn cached(diff_id: Digest, descriptor: &Descriptor, source: &Arc<BaseSource>) -> Self {
        Self { base: false, ..Self::of_base(diff_id, descriptor, source) }
    }

    /// Its blob in the store, fetched if it is the base's and not there yet.
    async fn path(&self, bases: &Bases) -> Result<PathBuf, EngineError> {
        if let Some(source) = &self.source {
            return bases.blob(&self.descriptor, source).await;
        }
        let digest = self.descriptor.digest;
        bases.store.blob(&digest).ok_or(EngineError::LayerGone(digest))
    }
}

/// An image of which every byte is known.
pub(crate) struct Assembled {
    pub(crate) config: Bytes,
    pub(crate) manifest: RawManifest,
    pub(crate) layers: Vec<FinishedLayer>,
    platform: Option<Platform>,
}

/// The types of an image's documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ImageFormat {
    /// OCI's.
    #[default]
    Oci,
    /// Docker's, for registries and clients that know no others.
    Docker,
}

impl ImageFormat {
    fn of(self, media_type: MediaType) -> MediaType {
        match (self, media_type) {
            (Self::Docker, MediaType::ImageManifest) => MediaType::DockerManifest,
            (Self::Docker, MediaType::ImageConfig) => MediaType::DockerConfig,
            (Self::Docker, MediaType::LayerTar) => MediaType::DockerLayer,
            (Self::Docker, MediaType::LayerTarGzip) => MediaType::DockerLayerGzip,
            (Self::Docker, MediaType::LayerTarZstd) => MediaType::DockerLayerZstd,
            (_, other) => other,
        }
    }
}

impl Assembled {
    pub(crate) fn new(
        mut config: ImageConfig,
        mut layers: Vec<FinishedLayer>,
        format: ImageFormat,
        annotations: BTreeMap<String, String>,
    ) -> Self {
        for layer in &mut layers {
            layer.descriptor.media_type = format.of(layer.descriptor.media_type.clone());
        }
        let platform = config.platform().ok();
        config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        let config = config.to_bytes();
        let descriptor = Descriptor::of(format.of(MediaType::ImageConfig), &config);
        let descriptors = layers.iter().map(|layer| layer.descriptor.clone()).collect();
        let mut manifest = Manifest::image(descriptor, descriptors);
        manifest.media_type = Some(format.of(MediaType::ImageManifest));
        manifest.annotations = annotations;
        Self { config, manifest: RawManifest::image(&manifest), layers, platform }
    }

    pub(crate) fn config_digest(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// Pushes what the destinations lack, and the manifest last. Returns those whose tag cannot be moved, if that is no error.
    pub(crate) async fn push<'a>(
        &self,
        bases: &Bases,
        destinations: &'a [Reference],
        ignore_immutable: bool,
    ) -> Result<Vec<&'a Reference>, EngineError> {
        let mut immutable = Vec::new();
        for destination in destinations {
            futures::stream::iter(&self.layers)
                .map(|layer| push_layer(bases, destination, layer))
                .buffer_unordered(TRANSFERS)
                .try_collect::<()>()
                .await?;
            let repository = &destination.repository;
            bases.finder.client.push_blob(repository, BlobSource::bytes(self.config.clone()), &[]).await?;
            let target = match &destination.tag {
                Some(tag) => Target::Tag(tag.clone()),
                None => Target::Digest(self.manifest.digest()),
            };
            match bases.finder.client.push_manifest(repository, &target, &self.manifest).await {
                Err(error) if ignore_immutable && error.is_immutable_tag() => immutable.push(destination),
                pushed => pushed?,
            }
        }
        Ok(immutable)
    }

    /// The paths of all blobs, fetching those of the base that the store lacks.
    async fn blobs(&self, bases: &Bases) -> Result<Vec<(Digest, PathBuf)>, EngineError> {
        let mut blobs = Vec::new();
        for layer in &self.layers {
            let path = layer.path(bases).await?;
            blobs.push((layer.descriptor.digest, path));
        }
        Ok(blobs)
    }

    /// Adds the image to an OCI image layout directory, under the tags of `names`.
    pub(crate) async fn write_layout(
        &self,
        directory: &Path,
        bases: &Bases,
        names: &[Reference],
    ) -> Result<(), EngineError> {
        let blobs = self.blobs(bases).await?;
        layout::add(directory, &blobs, &[&self.config, self.manifest.bytes()], self.entries(names))
    }

    /// Writes the image as a tar that is an OCI layout and what `docker load` reads.
    pub(crate) async fn write_tar(
        &self,
        path: &Path,
        bases: &Bases,
        names: &[Reference],
    ) -> Result<(), EngineError> {
        let blobs = self.blobs(bases).await?;
        let error = || EngineError::io(format!("write `{}`", path.display()));
        let mut tar = tar::Builder::new(io::BufWriter::new(File::create(path).map_err(error())?));
        let mut layer_names = Vec::new();
        for (digest, blob) in blobs {
            let name = format!("blobs/sha256/{}", digest.hex());
            let mut file = File::open(&blob).map_err(error())?;
            let size = file.metadata().map_err(error())?.len();
            append(&mut tar, &name, size, &mut file).map_err(error())?;
            layer_names.push(name);
        }
        for bytes in [&self.config, self.manifest.bytes()] {
            let name = format!("blobs/sha256/{}", Digest::of(bytes).hex());
            append(&mut tar, &name, bytes.len() as u64, &mut &bytes[..]).map_err(error())?;
        }
        let tags: Vec<String> =
            names.iter().filter(|name| name.tag.is_some()).map(Reference::familiar).collect();
        let docker = serde_json::json!([{
            "Config": format!("blobs/sha256/{}", self.config_digest().hex()),
            "RepoTags": tags,
            "Layers": layer_names,
        }]);
        for (name, bytes) in [
            ("index.json", layout::index(self.entries(names))),
            ("oci-layout", layout::MARKER.as_bytes().to_vec()),
            ("manifest.json", docker.to_string().into_bytes()),
        ] {
            append(&mut tar, name, bytes.len() as u64, &mut &bytes[..]).map_err(error())?;
        }
        tar.into_inner().and_then(|mut file| file.flush()).map_err(error())
    }

    /// The entries of a layout's index: one for each name, or one without.
    fn entries(&self, names: &[Reference]) -> Vec<Descriptor> {
        // One name has an entry for each platform.
        let entry = Descriptor { platform: self.platform.clone(), ..self.manifest.descriptor() };
        if names.is_empty() {
            return vec![entry];
        }
        let under = |name: &Reference| {
            let mut entry = entry.clone();
            entry.annotations.insert(layout::REF_NAME.to_owned(), name.familiar());
            entry
        };
        names.iter().map(under).collect()
    }
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    content: &mut dyn io::Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(size);
    tar.append_data(&mut header, name, content)
}

async fn push_layer(
    bases: &Bases,
    destination: &Reference,
    layer: &FinishedLayer,
) -> Result<(), EngineError> {
    let repository = &destination.repository;
    let Descriptor { digest, size, .. } = layer.descriptor;
    let source = layer.source.as_deref().and_then(BaseSource::repository);
    let source = source.filter(|source| source.host == repository.host);
    let from: Vec<_> = source.map(|source| source.name.clone()).into_iter().collect();
    if layer.source.is_some() {
        let there = bases.finder.client.has_blob(repository, &digest).await?
            || (!from.is_empty() && bases.finder.client.mount_blob(repository, &digest, &from).await?);
        if there {
            return Ok(());
        }
    }
    let path = layer.path(bases).await?;
    push_file(&bases.finder.client, destination, path, (digest, size), &from).await
}

/// Pushes a blob of the store, unless it is there.
pub(crate) async fn push_file(
    client: &Client,
    destination: &Reference,
    path: PathBuf,
    (digest, size): (Digest, u64),
    mount_from: &[RepositoryName],
) -> Result<(), EngineError> {
    let blob = BlobSource::file(path, digest, size);
    client.push_blob(&destination.repository, blob, mount_from).await?;
    Ok(())
}

/// How layers are compressed, by the names of the command line.
#[must_use]
pub fn compression(kind: super::driver::Compression, level: Option<i32>) -> Compression {
    use super::driver::Compression as Kind;
    match (kind, level) {
        (Kind::Gzip, level) => {
            Compression::Gzip { level: level.and_then(|level| u32::try_from(level).ok()).unwrap_or(6) }
        }
        (Kind::Zstd, level) => Compression::Zstd { level: level.unwrap_or(3) },
    }
}

/// The tag `latest` if a reference names nothing: what people mean by `--destination host/app`.
#[must_use]
pub fn with_default_tag(reference: Reference) -> Reference {
    if reference.tag.is_some() || reference.digest.is_some() {
        return reference;
    }
    Reference { tag: "latest".parse::<Tag>().ok(), ..reference }
}
