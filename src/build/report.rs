//! The result of a build as a manifest in a repository: what an engine that runs elsewhere leaves before it ends.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::build::{BuildEvent, BuildResult};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, RawManifest, Reference, Repository};
use crate::registry::client::{BlobSource, Client, ClientError};

/// What kind of artifact a result is.
const RESULT_TYPE: &str = "application/vnd.hephy.build.result.v1";
/// The layer with the [`BuildResult`].
const RESULT_JSON: &str = "application/vnd.hephy.build.result.v1+json";
/// The layer with the events, a JSON line each.
const LOG_TYPE: &str = "application/vnd.hephy.build.log.v1+jsonl";
/// The largest result that is read.
const MAX_RESULT_BYTES: u64 = 4 << 20;
/// The largest log whose events are replayed.
const MAX_LOG_BYTES: u64 = 64 << 20;

/// A result that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Of its manifest.
    pub digest: Digest,
    /// The result.
    pub result: BuildResult,
    /// The whole log.
    pub log: Option<Descriptor>,
    /// Where it is.
    repository: Repository,
}

/// Why there is no result to be had.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The registry.
    #[error(transparent)]
    Registry(Box<ClientError>),
    /// A file of ours.
    #[error("failed to {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Something else is there.
    #[error("`{reference}` is not the result of a build: {why}")]
    Wrong {
        /// Where.
        reference: Reference,
        /// Why not.
        why: String,
    },
}

impl From<ClientError> for ReportError {
    fn from(error: ClientError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// Leaves a result, with the log in the file `log`, at `reference`.
pub async fn push_report(
    client: &Client,
    reference: &Reference,
    result: &BuildResult,
    log: Option<&Path>,
) -> Result<Digest, ReportError> {
    let repository = &reference.repository;
    let text = serde_json::to_vec(result)
        .map_err(|error| ReportError::Io { what: "write the result", source: error.into() })?;
    let mut layers = vec![Descriptor::of(MediaType::from(RESULT_JSON), &text)];
    client.push_blob(repository, BlobSource::bytes(text), &[]).await?;
    if let Some(path) = log {
        let (digest, size) = summed(path.to_owned()).await?;
        client.push_blob(repository, BlobSource::file(path, digest, size), &[]).await?;
        layers.push(Descriptor::new(MediaType::from(LOG_TYPE), digest, size));
    }
    client.push_blob(repository, BlobSource::bytes("{}"), &[]).await?;
    let config = Descriptor::of(MediaType::Empty, b"{}");
    let manifest =
        Manifest { artifact_type: Some(MediaType::from(RESULT_TYPE)), ..Manifest::image(config, layers) };
    let manifest = RawManifest::image(&manifest);
    client.push_manifest(repository, &reference.target(), &manifest).await?;
    Ok(manifest.digest())
}

async fn summed(path: PathBuf) -> Result<(Digest, u64), ReportError> {
    let summed = tokio::task::spawn_blocking(move || {
        let mut sum = Sha256::new();
        let (mut file, mut buffer, mut size) = (File::open(path)?, vec![0; 1 << 16], 0);
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            sum.update(&buffer[..count]);
            size += count as u64;
        }
        Ok((Digest::from_sha256(sum.finalize().into()), size))
    });
    let failed = |source| ReportError::Io { what: "read the log", source };
    summed.await.map_err(|error| failed(error.into()))?.map_err(failed)
}

/// The result at `reference`, if there is one yet.
pub async fn find_report(client: &Client, reference: &Reference) -> Result<Option<Report>, ReportError> {
    let repository = &reference.repository;
    let Some(manifest) = client.find_manifest(repository, &reference.target()).await? else {
        return Ok(None);
    };
    let wrong = |why: String| ReportError::Wrong { reference: reference.clone(), why };
    let image = manifest.as_image().ok_or_else(|| wrong("it is an index".to_owned()))?;
    let layer = |media_type: &str| image.layers.iter().find(|layer| layer.media_type.as_str() == media_type);
    let result = layer(RESULT_JSON).ok_or_else(|| wrong("it is another kind of artifact".to_owned()))?;
    let bytes = client.blob(repository, result, MAX_RESULT_BYTES).await?;
    let result = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let digest = manifest.digest();
    Ok(Some(Report { digest, result, log: layer(LOG_TYPE).cloned(), repository: repository.clone() }))
}

impl Report {
    /// All events of the build, in order; none where its log is too large to be read into memory.
    pub async fn events(&self, client: &Client) -> Result<Vec<BuildEvent>, ReportError> {
        let Some(log) = self.log.as_ref().filter(|log| log.size <= MAX_LOG_BYTES) else {
            return Ok(Vec::new());
        };
        let bytes = client.blob(&self.repository, log, MAX_LOG_BYTES).await?;
        let lines = bytes.split(|byte| *byte == b'\n');
        // Of a line that an engine was killed in, there is only a half.
        Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}
