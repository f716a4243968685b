//! Logs of builds in the registry: for a server that has no file of its own, or goes on with another's.
//!
//! A log is some layers of a manifest in the app's repository with the tag `log-7`, each the gzip of whole lines that go on
//! from the layer before. While the build runs, who writes the log adds what is new; when it has ended, all is one layer.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzEncoder;
use tempfile::NamedTempFile;

use super::sources::digest_of_file;
use crate::model::Build;
use crate::oci::{Descriptor, Digest, Manifest, MediaType, RawManifest, Repository, Tag, Target};
use crate::publish::Place;
use crate::registry::client::{BlobSource, Client, ClientError};

mod reading;
mod segments;

pub(super) use segments::{Segments, Uploading};

/// What the manifest of a log is.
const ARTIFACT: &str = "application/vnd.hephy.build-log.v1";
const LOG: &str = "application/vnd.hephy.build-log.v1+gzip";

/// The annotation that says which build of this number it was.
const CREATED: &str = "dev.hephy.build.created";

/// The annotation of a manifest whose log is still written.
const RUNNING: &str = "dev.hephy.build.running";

/// The annotation of a layer that names its last line.
const LAST: &str = "dev.hephy.build-log.last";

/// The most layers of a log: where there are so many, all becomes one.
const MAX_SEGMENTS: usize = 64;

/// How often a log is tried to be put that could not be when its build ended: for about a day.
const MAX_LATE: usize = 30;

/// The longest pause between these.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// Where logs are kept for other servers.
#[derive(Debug, Clone)]
pub struct Archive {
    client: Client,
    place: Place,
    /// How long after the line before what is new is added, at the beginning of a build and at most.
    interval: Duration,
    longest: Duration,
    /// Whether the registry lets what was replaced be removed, as far as we know.
    removes: Arc<AtomicBool>,
}

/// How much of a log the archive has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// What was written some time ago.
    SoFar,
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
    /// What the registry has is not a log.
    #[error("the log in the registry is not one: {0}")]
    Malformed(&'static str),
}

impl Archive {
    /// Logs in the repositories of the apps in this registry.
    #[must_use]
    pub fn new(client: Client, place: Place) -> Self {
        let (interval, longest) = (Duration::from_secs(2), Duration::from_secs(15));
        Self { client, place, interval, longest, removes: Arc::new(AtomicBool::new(true)) }
    }

    /// The same, to which what is new of a running log is added so long after the line before, later in a long build.
    #[must_use]
    pub fn every(self, interval: Duration, longest: Duration) -> Self {
        Self { interval, longest, ..self }
    }

    /// How long is waited before each time that a log is tried to be put which could not be when its build ended.
    pub(super) fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        let longer = |pause: &Duration| Some((*pause * 2).min(LONGEST_PAUSE));
        std::iter::successors(Some(self.longest.min(LONGEST_PAUSE)), longer).take(MAX_LATE)
    }

    fn find(&self, build: &Build) -> io::Result<(Repository, Target)> {
        let repository = self.place.repository(&build.app).map_err(io::Error::other)?;
        let tag: Tag = format!("log-{}", build.number.0).parse().map_err(io::Error::other)?;
        Ok((repository, Target::Tag(tag)))
    }

    /// Puts a log into the registry whose build has ended. The same again changes nothing.
    pub async fn put(&self, build: &Build, log: &Path) -> Result<(), ArchiveError> {
        let bytes = tokio::fs::metadata(log).await?.len();
        let layer = self.push(build, log, (0, bytes)).await?;
        self.list(build, vec![layer], Extent::Whole).await
    }

    /// Puts a part of a log into the registry, as a blob that nothing lists yet.
    async fn push(
        &self,
        build: &Build,
        log: &Path,
        (from, to): (u64, u64),
    ) -> Result<Descriptor, ArchiveError> {
        let (repository, _) = self.find(build)?;
        let log = log.to_owned();
        // Its own file, also of one that is given up: that goes on packing for a moment.
        let (packed, digest, size) = blocking(move || pack(&log, (from, to))).await?;
        self.client.push_blob(&repository, BlobSource::file(packed.path(), digest, size), &[]).await?;
        Ok(Descriptor::new(MediaType::from(LOG), digest, size))
    }

    /// Says of which layers a log is, and removes what said so before where the registry lets us.
    async fn list(&self, build: &Build, layers: Vec<Descriptor>, extent: Extent) -> Result<(), ArchiveError> {
        let (repository, target) = self.find(build)?;
        let empty = Descriptor::of(MediaType::Empty, b"{}");
        self.client.push_blob(&repository, BlobSource::bytes("{}"), &[]).await?;
        let artifact_type = Some(MediaType::from(ARTIFACT));
        // An app of the same name may have been there before, with a build of the same number.
        let mut annotations: std::collections::BTreeMap<_, _> =
            [(CREATED.to_owned(), build.created_at.to_string())].into();
        if extent == Extent::SoFar {
            annotations.insert(RUNNING.to_owned(), "true".to_owned());
        }
        let manifest =
            RawManifest::image(&Manifest { artifact_type, annotations, ..Manifest::image(empty, layers) });
        let before = self.client.head_manifest(&repository, &target).await?.map(|before| before.digest);
        self.client.push_manifest(&repository, &target, &manifest).await?;
        if let Some(before) = before.filter(|before| *before != manifest.digest()) {
            self.remove(&repository, before).await;
        }
        Ok(())
    }

    /// Many registries let nobody do that; they have rules of their own for what has no tag.
    async fn remove(&self, repository: &Repository, manifest: Digest) {
        if !self.removes.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.client.delete_manifest(repository, &Target::Digest(manifest)).await {
            tracing::debug!(%repository, %manifest, %error, "what was replaced of a log stays");
            let is_refused = error.is_denied()
                || matches!(&error, ClientError::Status { status, .. } if status.is_client_error());
            self.removes.fetch_and(!is_refused, Ordering::Relaxed);
        }
    }
}

fn pack(from: &Path, (start, end): (u64, u64)) -> io::Result<(NamedTempFile, Digest, u64)> {
    let mut file = std::fs::File::open(from)?;
    file.seek(SeekFrom::Start(start))?;
    let mut packed = GzEncoder::new(file.take(end - start), Compression::default());
    let mut to = NamedTempFile::new_in(from.parent().unwrap_or(Path::new(".")))?;
    io::copy(&mut packed, &mut to)?;
    let (digest, size) = digest_of_file(to.path())?;
    Ok((to, digest, size))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
