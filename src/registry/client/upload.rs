//! Blobs to a registry: not if it has them, by mounting if another repository has, else in one streaming PUT, else
//! in chunks.

use std::path::PathBuf;

use backon::BackoffBuilder as _;
use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::answer::status_error;
use super::call::{Access, Call, CallBody};
use super::manifests::header;
use super::transport::wait;
use super::{Client, ClientError};
use crate::oci::{Digest, Host, Repository, RepositoryName};

/// Chunks where nothing else is asked for: above the least that registries on object stores take.
const CHUNK_BYTES: u64 = 8 * 1024 * 1024;
/// ghcr.io refuses chunks of 4 MiB and more.
const GHCR_CHUNK_BYTES: u64 = 4 * 1024 * 1024 - 1024;
/// The most repositories that a mount is tried from.
const MOUNT_TRIES: usize = 4;
/// How often in a row a chunk may fail before the upload is given up.
const CHUNK_TRIES: usize = 4;

/// What is to be uploaded.
#[derive(Debug, Clone)]
pub enum BlobSource {
    /// A file, whose content has this digest.
    File {
        /// Where it is; it must not change while it is uploaded.
        path: PathBuf,
        /// The digest of its content.
        digest: Digest,
        /// Its length.
        size: u64,
    },
    /// A few bytes.
    Bytes(Bytes),
}

/// How a blob got into the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// It was there.
    Existed,
    /// The registry took it from another repository.
    Mounted,
    /// It was sent.
    Uploaded,
}

impl BlobSource {
    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::Bytes(bytes.into())
    }

    /// A file that holds the blob `digest` of `size` bytes.
    pub fn file(path: impl Into<PathBuf>, digest: Digest, size: u64) -> Self {
        Self::File { path: path.into(), digest, size }
    }

    /// The digest of the content.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match self {
            Self::File { digest, .. } => *digest,
            Self::Bytes(bytes) => Digest::of(bytes),
        }
    }

    /// The length of the content.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    fn part(&self, offset: u64, length: u64) -> CallBody {
        match self {
            Self::File { path, .. } => CallBody::File { path: path.clone(), offset, length },
            Self::Bytes(bytes) => {
                let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
                CallBody::Bytes(bytes.slice(at(offset)..at(offset + length)))
            }
        }
    }
}

/// One upload: what, where to, under which digest.
struct Upload<'a> {
    repository: &'a Repository,
    blob: &'a BlobSource,
    digest: Digest,
    size: u64,
}

/// What a registry makes of a mount.
enum Mount {
    Mounted,
    /// Not mounted, but here an upload may go on.
    Upload(Session),
    Refused,
}

/// An open upload.
struct Session {
    location: Url,
    least_chunk_bytes: Option<u64>,
}

/// How one try to send the whole ended.
enum Sent {
    Done,
    /// The registry, or a proxy before it, does not take that much at once.
    TooLarge,
}

impl Client {
    /// Brings a blob into the repository, sending it only if neither it nor one of `mount_from` has it.
    ///
    /// Sends anew after a failure that may pass. Cancel safe: what was sent is dropped by the registry.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        blob: BlobSource,
        mount_from: &[RepositoryName],
    ) -> Result<Transfer, ClientError> {
        let upload = Upload { repository, digest: blob.digest(), size: blob.size(), blob: &blob };
        if self.has_blob(repository, &upload.digest).await? {
            return Ok(Transfer::Existed);
        }
        let mut session = None;
        for from in candidates(repository, mount_from) {
            let mount = self.try_mount(repository, &upload.digest, from).await?;
            let (mounted, open) = match mount {
                Mount::Mounted => (true, None),
                Mount::Upload(open) => (false, Some(open)),
                Mount::Refused => continue,
            };
            if let Some(earlier) = std::mem::replace(&mut session, open) {
                self.abandon(repository, earlier).await;
            }
            if mounted {
                return Ok(Transfer::Mounted);
            }
        }
        let mut delays = self.backoff().build();
        loop {
            let error = match self.upload_once(&upload, session.take()).await {
                Ok(()) => return Ok(Transfer::Uploaded),
                Err(error) => error,
            };
            match delays.next() {
                Some(delay) if error.may_pass() => tokio::time::sleep(wait(&error, delay)).await,
                _ => return Err(error),
            }
            // The answer may have been lost, and not the blob.
            if self.has_blob(repository, &upload.digest).await? {
                return Ok(Transfer::Uploaded);
            }
        }
    }

    /// Has the registry take a blob from another repository. Whether it is there now.
    pub async fn mount_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: &[RepositoryName],
    ) -> Result<bool, ClientError> {
        for from in candidates(repository, from) {
            match self.try_mount(repository, digest, from).await? {
                Mount::Mounted => return Ok(true),
                Mount::Upload(session) => self.abandon(repository, session).await,
                Mount::Refused => {}
            }
        }
        self.has_blob(repository, digest).await
    }

    async fn try_mount(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: &RepositoryName,
    ) -> Result<Mount, ClientError> {
        let mut url = self.url(repository, "blobs/uploads/").await?;
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from.as_str());
        let mut call =
            Call::new(Method::POST, url, repository, format!("mounting blob `{digest}` from `{from}`"));
        call.access = Access::Mount(from);
        // Registries refuse a mount in many ways; each means no more than that the blob must be sent.
        match self.send(&call).await {
            Ok(response) if response.status() == StatusCode::CREATED => Ok(Mount::Mounted),
            Ok(response) if response.status() == StatusCode::ACCEPTED => {
                Ok(Mount::Upload(session(&call, &response)?))
            }
            Err(error) if error.is_unreachable() => Err(error),
            Ok(_) | Err(_) => Ok(Mount::Refused),
        }
    }

    async fn upload_once(&self, upload: &Upload<'_>, open: Option<Session>) -> Result<(), ClientError> {
        let session = match open {
            Some(session) => session,
            None => self.open(upload).await?,
        };
        match self.send_whole(upload, &session).await? {
            Sent::Done => Ok(()),
            Sent::TooLarge => {
                let session = self.open(upload).await?;
                self.send_chunks(upload, session).await
            }
        }
    }

    async fn open(&self, upload: &Upload<'_>) -> Result<Session, ClientError> {
        let url = self.url(upload.repository, "blobs/uploads/").await?;
        let call = upload.call(Method::POST, url);
        let response = self.send(&call).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(status_error(&call, response).await);
        }
        session(&call, &response)
    }

    async fn send_whole(&self, upload: &Upload<'_>, session: &Session) -> Result<Sent, ClientError> {
        let mut call = upload.call(Method::PUT, upload.closing(&session.location));
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        call.body = upload.blob.part(0, upload.size);
        let response = self.send_once(&call).await?;
        match response.status() {
            status if status.is_success() => Ok(Sent::Done),
            StatusCode::PAYLOAD_TOO_LARGE => Ok(Sent::TooLarge),
            _ => Err(status_error(&call, response).await),
        }
    }

    async fn send_chunks(&self, upload: &Upload<'_>, mut session: Session) -> Result<(), ClientError> {
        let chunk_bytes = chunk_bytes(&upload.repository.host, session.least_chunk_bytes);
        let (mut offset, mut failures) = (0, 0);
        while offset < upload.size {
            let length = chunk_bytes.min(upload.size - offset);
            match self.send_chunk(upload, &session, offset, length).await {
                Ok(next) => {
                    session.location = next;
                    offset += length;
                    failures = 0;
                }
                Err(error) if error.may_pass() && failures < CHUNK_TRIES => {
                    failures += 1;
                    offset = self.resume(upload, &mut session, offset).await?;
                }
                Err(error) => return Err(error),
            }
        }
        let call = upload.call(Method::PUT, upload.closing(&session.location));
        let response = self.send(&call).await?;
        if response.status().is_success() { Ok(()) } else { Err(status_error(&call, response).await) }
    }

    async fn send_chunk(
        &self,
        upload: &Upload<'_>,
        session: &Session,
        offset: u64,
        length: u64,
    ) -> Result<Url, ClientError> {
        let mut call = upload.call(Method::PATCH, session.location.clone());
        let range = HeaderValue::try_from(format!("{offset}-{}", offset + length - 1));
        call.headers.insert(CONTENT_RANGE, range.map_err(|_| call.protocol_error("no range"))?);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        call.body = upload.blob.part(offset, length);
        let response = self.send_once(&call).await?;
        if !response.status().is_success() {
            return Err(status_error(&call, response).await);
        }
        Ok(location(&call, &response)?.unwrap_or_else(|| session.location.clone()))
    }

    /// Asks how much has arrived. What does not lie after `offset` tells nothing: ECR's range stands still.
    async fn resume(
        &self,
        upload: &Upload<'_>,
        session: &mut Session,
        offset: u64,
    ) -> Result<u64, ClientError> {
        let call = upload.call(Method::GET, session.location.clone());
        let response = self.send(&call).await?;
        if !response.status().is_success() {
            return Err(status_error(&call, response).await);
        }
        if let Some(next) = location(&call, &response)? {
            session.location = next;
        }
        let range = header(&response, &RANGE).unwrap_or_default();
        let end =
            range.trim_start_matches("bytes=").split_once('-').and_then(|(_, end)| end.parse::<u64>().ok());
        // `0-0` is what registries write for nothing.
        Ok(end.filter(|end| *end > 0).map_or(offset, |end| (end + 1).clamp(offset, upload.size)))
    }

    async fn abandon(&self, repository: &Repository, session: Session) {
        let mut call = Call::new(Method::DELETE, session.location, repository, "cancelling an upload");
        call.access = Access::Push;
        if let Err(error) = self.send_once(&call).await {
            tracing::debug!(error = %error, "an upload was not cancelled; the registry will expire it");
        }
    }
}

impl<'a> Upload<'a> {
    fn call(&self, method: Method, url: Url) -> Call<'a> {
        let mut call = Call::new(method, url, self.repository, format!("uploading blob `{}`", self.digest));
        call.access = Access::Push;
        call
    }

    /// Where the last request of an upload goes: the location, which may have a query of its own, and the digest.
    fn closing(&self, location: &Url) -> Url {
        let mut url = location.clone();
        url.query_pairs_mut().append_pair("digest", &self.digest.to_string());
        url
    }
}

fn candidates<'a>(
    repository: &'a Repository,
    from: &'a [RepositoryName],
) -> impl Iterator<Item = &'a RepositoryName> {
    from.iter().filter(|name| **name != repository.name).take(MOUNT_TRIES)
}

fn chunk_bytes(host: &Host, least: Option<u64>) -> u64 {
    let usual = if host.as_str() == "ghcr.io" { GHCR_CHUNK_BYTES } else { CHUNK_BYTES };
    usual.max(least.unwrap_or(0))
}

fn session(call: &Call<'_>, response: &Response) -> Result<Session, ClientError> {
    let location =
        location(call, response)?.ok_or_else(|| call.protocol_error("an upload without a location"))?;
    let least =
        response.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(Session { location, least_chunk_bytes: least })
}

/// Where to go on. It may be relative, and on another host; never from https to http.
fn location(call: &Call<'_>, response: &Response) -> Result<Option<Url>, ClientError> {
    let Some(text) = header(response, &LOCATION) else { return Ok(None) };
    let url = call.url.join(&text).map_err(|_| call.protocol_error("the upload's location is not a URL"))?;
    if call.url.scheme() == "https" && url.scheme() != "https" {
        return Err(call.protocol_error("the upload's location is not https"));
    }
    Ok(Some(url))
}
