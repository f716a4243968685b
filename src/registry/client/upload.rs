//! Blobs to a registry: not if it has them, by mounting if another repository has, else in one streaming PUT, else
//! in chunks.

use std::sync::atomic::Ordering;

use backon::BackoffBuilder as _;
use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};

use super::answer::status_error;
use super::blob::{BlobSource, Transfer};
use super::call::{Access, Call};
use super::chunks::{CHUNK_BYTES, takes_chunks};
use super::manifests::header;
use super::transport::wait;
use super::{Client, ClientError};
use crate::oci::{Digest, Repository, RepositoryName};

/// The most repositories that a mount is tried from.
const MOUNT_TRIES: usize = 4;

/// One upload: what, where to, under which digest.
pub(super) struct Upload<'a> {
    pub(super) repository: &'a Repository,
    pub(super) blob: &'a BlobSource,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// What a registry makes of a mount.
enum Mount {
    Mounted,
    /// Not mounted, but here an upload may go on.
    Upload(Session),
    Refused,
}

/// An open upload.
pub(super) struct Session {
    pub(super) location: Url,
    pub(super) least_chunk_bytes: Option<u64>,
}

/// In how many requests a blob is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Whole,
    Chunks,
}

/// How one try ended that did not fail.
pub(super) enum Sent {
    Done,
    /// The registry, or a proxy before it, does not take that much at once.
    TooLarge,
    /// The registry does not take chunks.
    NoChunks,
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
        let (mut session, mut tried) = (None, false);
        for from in candidates(repository, mount_from) {
            tried = true;
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
        self.send_blob(&upload, session, tried).await
    }

    /// Sends until it is there, in one request if that works, else in chunks.
    async fn send_blob(
        &self,
        upload: &Upload<'_>,
        mut session: Option<Session>,
        mut tried_mount: bool,
    ) -> Result<Transfer, ClientError> {
        let mut delays = self.backoff().build();
        let mut way = self.way(upload);
        let (mut refuses_whole, mut refuses_chunks) = (way == Way::Chunks, false);
        loop {
            let open = match session.take() {
                Some(open) => open,
                None => match self.open(upload, tried_mount).await? {
                    Some(open) => open,
                    None => return Ok(Transfer::Mounted),
                },
            };
            tried_mount = true;
            let sent = match way {
                Way::Whole => self.send_whole(upload, &open).await,
                Way::Chunks => self.send_chunks(upload, open).await,
            };
            let error = match sent {
                Ok(Sent::Done) => return Ok(Transfer::Uploaded),
                Ok(Sent::TooLarge) => {
                    (refuses_whole, way) = (true, Way::Chunks);
                    None
                }
                Ok(Sent::NoChunks) => {
                    (refuses_chunks, way) = (true, Way::Whole);
                    None
                }
                Err(error) => Some(error),
            };
            if refuses_whole && refuses_chunks {
                return Err(upload.untakable());
            }
            let Some(error) = error else { continue };
            match delays.next() {
                Some(delay) if error.may_pass() || is_lost(&error) => {
                    tokio::time::sleep(wait(&error, delay)).await;
                }
                _ => return Err(error),
            }
            // The answer may have been lost, and not the blob.
            if self.has_blob(upload.repository, &upload.digest).await? {
                return Ok(Transfer::Uploaded);
            }
            // What did not get through in one piece may in several, of which one is sent again and not all.
            let may_be_parted = upload.size > CHUNK_BYTES && takes_chunks(&upload.repository.host);
            if may_be_parted && !refuses_chunks {
                way = Way::Chunks;
            }
        }
    }

    /// How to begin: whole, but for what is known to be too large for this registry.
    fn way(&self, upload: &Upload<'_>) -> Way {
        let state = self.host_state(&upload.repository.host);
        if upload.size >= state.too_large_bytes.load(Ordering::Relaxed) { Way::Chunks } else { Way::Whole }
    }

    /// Remembers that the registry does not take this much at once.
    pub(super) fn is_too_large(&self, upload: &Upload<'_>, size: u64) {
        let state = self.host_state(&upload.repository.host);
        state.too_large_bytes.fetch_min(size, Ordering::Relaxed);
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

    /// Opens an upload; none if the registry has the blob somewhere and put it in place.
    async fn open(&self, upload: &Upload<'_>, tried_mount: bool) -> Result<Option<Session>, ClientError> {
        let url = self.url(upload.repository, "blobs/uploads/").await?;
        if !tried_mount {
            // A registry that finds blobs by itself mounts it, any other opens an upload: it costs no request.
            let mut url = url.clone();
            url.query_pairs_mut().append_pair("mount", &upload.digest.to_string());
            let call = upload.call(Method::POST, url);
            let response = self.send(&call).await?;
            match response.status() {
                StatusCode::CREATED => return Ok(None),
                StatusCode::ACCEPTED => return session(&call, &response).map(Some),
                _ => {}
            }
        }
        let call = upload.call(Method::POST, url);
        let response = self.send(&call).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(status_error(&call, response).await);
        }
        session(&call, &response).map(Some)
    }

    async fn send_whole(&self, upload: &Upload<'_>, session: &Session) -> Result<Sent, ClientError> {
        let mut call = upload.call(Method::PUT, upload.closing(&session.location));
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        call.body = upload.blob.part(0, upload.size);
        call.is_transfer = true;
        let response = self.send_once(&call).await?;
        match response.status() {
            status if status.is_success() => Ok(Sent::Done),
            StatusCode::PAYLOAD_TOO_LARGE => {
                self.is_too_large(upload, upload.size);
                Ok(Sent::TooLarge)
            }
            _ => Err(status_error(&call, response).await),
        }
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
    /// Neither whole nor in chunks.
    fn untakable(&self) -> ClientError {
        let (repository, doing) = (self.repository.clone(), format!("uploading blob `{}`", self.digest));
        let what = format!("it takes its {} bytes neither in one request nor in chunks", self.size);
        ClientError::Protocol { repository, doing, what }
    }

    pub(super) fn call(&self, method: Method, url: Url) -> Call<'a> {
        let mut call = Call::new(method, url, self.repository, format!("uploading blob `{}`", self.digest));
        call.access = Access::Push;
        call
    }

    /// Where the last request of an upload goes: the location, which may have a query of its own, and the digest.
    pub(super) fn closing(&self, location: &Url) -> Url {
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

/// Whether the registry has forgotten an upload that was open.
fn is_lost(error: &ClientError) -> bool {
    matches!(error, ClientError::Status { status, .. } if matches!(status.as_u16(), 404 | 410))
}

fn session(call: &Call<'_>, response: &Response) -> Result<Session, ClientError> {
    let location =
        location(call, response)?.ok_or_else(|| call.protocol_error("an upload without a location"))?;
    let least =
        response.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(Session { location, least_chunk_bytes: least })
}

/// Where to go on. It may be relative, and on another host; never from https to http.
pub(super) fn location(call: &Call<'_>, response: &Response) -> Result<Option<Url>, ClientError> {
    let Some(text) = header(response, &LOCATION) else { return Ok(None) };
    let url = call.url.join(&text).map_err(|_| call.protocol_error("the upload's location is not a URL"))?;
    if call.url.scheme() == "https" && url.scheme() != "https" {
        return Err(call.protocol_error("the upload's location is not https"));
    }
    Ok(Some(url))
}
