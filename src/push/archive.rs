//! Logs of builds that have ended, in the registry: for a server that has no file of its own.
//!
//! A log is a blob of the app's repository, named by a manifest with the tag `log-7`.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};

use super::sources::digest_of_file;
use crate::model::Build;
use crate::oci::{Descriptor, Digest, Manifest, MediaType, RawManifest, Repository, Tag, Target};
use crate::publish::Place;
use crate::registry::client::{BlobSource, Client, ClientError};

/// What the manifest of a log is.
const ARTIFACT: &str = "application/vnd.hephy.build-log.v1";
const LOG: &str = "application/vnd.hephy.build-log.v1+gzip";

/// The annotation that says which build of this number it was.
const CREATED: &str = "dev.hephy.build.created";

/// The largest log that is read back, in bytes, once unpacked: more than any that is written.
const MAX_LOG_BYTES: u64 = 80 * 1024 * 1024;

/// Where logs are kept that have ended.
#[derive(Debug, Clone)]
pub struct Archive {
    client: Client,
    place: Place,
}

/// Why a log is not in the registry, or not read back from there.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file.
    #[error("cannot read or write the log's file")]
    File(#[from] io::Error),
    /// The registry.
    #[error("cannot keep the log in the registry, or find it there")]
    Registry(#[from] ClientError),
}

impl Archive {
    /// Logs in the repositories of the apps in this registry.
    #[must_use]
    pub const fn new(client: Client, place: Place) -> Self {
        Self { client, place }
    }

    fn find(&self, build: &Build) -> io::Result<(Repository, Target)> {
        let repository = self.place.repository(&build.app).map_err(io::Error::other)?;
        let tag: Tag = format!("log-{}", build.number.0).parse().map_err(io::Error::other)?;
        Ok((repository, Target::Tag(tag)))
    }

    /// Puts a log into the registry. The same again changes nothing.
    pub async fn put(&self, build: &Build, log: &Path) -> Result<(), ArchiveError> {
        let (repository, target) = self.find(build)?;
        let packed = log.with_extension("gz");
        let (digest, size) = blocking(pack, log.to_owned(), packed.clone()).await?;
        let pushed = self.client.push_blob(&repository, BlobSource::file(&packed, digest, size), &[]).await;
        // It is of no use any more, whether it is there now or not.
        drop(tokio::fs::remove_file(&packed).await);
        pushed?;
        let empty = Descriptor::of(MediaType::Empty, b"{}");
        self.client.push_blob(&repository, BlobSource::bytes("{}"), &[]).await?;
        let layers = vec![Descriptor::new(MediaType::from(LOG), digest, size)];
        let artifact_type = Some(MediaType::from(ARTIFACT));
        // An app of the same name may have been there before, with a build of the same number.
        let annotations = [(CREATED.to_owned(), build.created_at.to_string())].into();
        let manifest = Manifest { artifact_type, annotations, ..Manifest::image(empty, layers) };
        self.client.push_manifest(&repository, &target, &RawManifest::image(&manifest)).await?;
        Ok(())
    }

    /// Writes a log that the registry has to a file, whole or not at all; says whether it has it.
    pub async fn get(&self, build: &Build, log: &Path) -> Result<bool, ArchiveError> {
        let (repository, target) = self.find(build)?;
        let Some(manifest) = self.client.find_manifest(&repository, &target).await? else { return Ok(false) };
        let created = build.created_at.to_string();
        let image = manifest.as_image().filter(|image| image.annotations.get(CREATED) == Some(&created));
        let layers = image.map(|image| image.layers.as_slice()).unwrap_or_default();
        let Some(layer) = layers.iter().find(|layer| layer.media_type.as_str() == LOG) else {
            return Ok(false);
        };
        let directory = log.parent().unwrap_or(Path::new("."));
        tokio::fs::create_dir_all(directory).await?;
        let arriving = tempfile::Builder::new().prefix("log-").tempdir_in(directory)?;
        let packed = arriving.path().join("packed");
        let mut file = tokio::fs::File::create(&packed).await?;
        self.client.pull_blob(&repository, layer, &mut file).await?;
        let unpacked = arriving.path().join("log");
        blocking(unpack, packed, unpacked.clone()).await?;
        tokio::fs::rename(&unpacked, log).await?;
        Ok(true)
    }
}

fn pack(from: &Path, to: &Path) -> io::Result<(Digest, u64)> {
    let mut packed = GzEncoder::new(std::fs::File::open(from)?, Compression::default());
    io::copy(&mut packed, &mut std::fs::File::create(to)?)?;
    digest_of_file(to)
}

fn unpack(from: &Path, to: &Path) -> io::Result<()> {
    let unpacked = GzDecoder::new(std::fs::File::open(from)?);
    let written = io::copy(&mut unpacked.take(MAX_LOG_BYTES + 1), &mut std::fs::File::create(to)?)?;
    if written > MAX_LOG_BYTES {
        Err(io::Error::other("the log in the registry is too large"))
    } else {
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: fn(&Path, &Path) -> io::Result<T>,
    from: PathBuf,
    to: PathBuf,
) -> io::Result<T> {
    tokio::task::spawn_blocking(move || work(&from, &to)).await.map_err(io::Error::other)?
}
