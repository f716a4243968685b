//! Uploads in chunks: for blobs that do not get through in one request.
//!
//! No size fits all: ghcr.io takes less than 4 MiB, registries on object stores more than 5, and a proxy may take 1.

use std::sync::atomic::Ordering;

use backon::BackoffBuilder as _;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use reqwest::{Method, Url};

use super::answer::status_error;
use super::manifests::header;
use super::transport::wait;
use super::upload::{Sent, Session, Upload, location};
use super::{Client, ClientError};
use crate::oci::Host;

/// Chunks where nothing else is asked for: above the least that registries on object stores take.
pub(super) const CHUNK_BYTES: u64 = 8 * 1024 * 1024;
/// ghcr.io refuses chunks of 4 MiB and more.
const GHCR_CHUNK_BYTES: u64 = 4 * 1024 * 1024 - 1024;
/// The smallest chunks that are tried: proxies that take less (nginx takes 1 MiB unless told otherwise) take no layers at all.
const LEAST_CHUNK_BYTES: u64 = 256 * 1024;

/// What a registry makes of a chunk.
enum Chunk {
    /// It is there; the next goes here.
    Taken(Url),
    /// It does not take it as it is.
    NotTaken(ClientError),
}

impl Client {
    /// Sends an open upload chunk by chunk, and goes on where one broke.
    pub(super) async fn send_chunks(
        &self,
        upload: &Upload<'_>,
        mut session: Session,
    ) -> Result<Sent, ClientError> {
        let least = session.least_chunk_bytes.unwrap_or(0);
        let too_large = self.host_state(&upload.repository.host).too_large_bytes.load(Ordering::Relaxed);
        let mut chunk_bytes = chunk_bytes(&upload.repository.host, least, too_large);
        let mut offset = 0;
        let mut delays = self.backoff().build();
        while offset < upload.size {
            let length = chunk_bytes.min(upload.size - offset);
            let error = match self.send_chunk(upload, &session, offset, length).await {
                Ok(Chunk::Taken(next)) => {
                    session.location = next;
                    offset += length;
                    delays = self.backoff().build();
                    continue;
                }
                Ok(Chunk::NotTaken(error)) if offset == 0 && !is_size(&error) => {
                    tracing::debug!(error = %error, "the registry does not take chunks");
                    return Ok(Sent::NoChunks);
                }
                // Either we are not where the registry is, or it says so of a body that is too large for it.
                Ok(Chunk::NotTaken(error)) => {
                    let there = self.received(upload, &mut session).await?;
                    if there.is_some_and(|there| there < offset) {
                        offset = there.unwrap_or(offset);
                        let Some(delay) = delays.next() else { return Err(error) };
                        tokio::time::sleep(delay).await;
                        continue;
                    }
                    if length <= LEAST_CHUNK_BYTES.max(least) {
                        return Err(error);
                    }
                    self.is_too_large(upload, length);
                    chunk_bytes = (length / 4).max(LEAST_CHUNK_BYTES).max(least);
                    continue;
                }
                Err(error) => error,
            };
            match delays.next() {
                Some(delay) if error.may_pass() => tokio::time::sleep(wait(&error, delay)).await,
                _ => return Err(error),
            }
            // What does not lie after `offset` tells nothing: ECR's range stands still.
            let there = self.received(upload, &mut session).await?;
            offset = there.map_or(offset, |there| there.clamp(offset, upload.size));
        }
        let call = upload.call(Method::PUT, upload.closing(&session.location));
        let response = self.send(&call).await?;
        match response.status() {
            status if status.is_success() => Ok(Sent::Done),
            _ => Err(status_error(&call, response).await),
        }
    }

    async fn send_chunk(
        &self,
        upload: &Upload<'_>,
        session: &Session,
        offset: u64,
        length: u64,
    ) -> Result<Chunk, ClientError> {
        let mut call = upload.call(Method::PATCH, session.location.clone());
        let range = HeaderValue::try_from(format!("{offset}-{}", offset + length - 1));
        call.headers.insert(CONTENT_RANGE, range.map_err(|_| call.protocol_error("no range"))?);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        call.body = upload.blob.part(offset, length);
        call.is_transfer = true;
        let response = self.send_once(&call).await?;
        match response.status().as_u16() {
            200..=299 => {
                let next = location(&call, &response)?;
                Ok(Chunk::Taken(next.unwrap_or_else(|| session.location.clone())))
            }
            400 | 405 | 413 | 415 | 416 | 501 => Ok(Chunk::NotTaken(status_error(&call, response).await)),
            _ => Err(status_error(&call, response).await),
        }
    }

    /// Asks how much has arrived, as far as the registry says.
    async fn received(&self, upload: &Upload<'_>, session: &mut Session) -> Result<Option<u64>, ClientError> {
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
        Ok(end.filter(|end| *end > 0).map(|end| end + 1))
    }
}

/// The size of chunks for a registry that takes none below `least`, and did not take `too_large`.
fn chunk_bytes(host: &Host, least: u64, too_large: u64) -> u64 {
    let usual = if host.as_str() == "ghcr.io" { GHCR_CHUNK_BYTES } else { CHUNK_BYTES };
    let taken = if usual < too_large { usual } else { (too_large / 4).max(LEAST_CHUNK_BYTES) };
    taken.max(least)
}

/// Google's registries take blobs whole.
pub(super) fn takes_chunks(host: &Host) -> bool {
    let name = host.without_port();
    !(name.ends_with(".pkg.dev") || name == "gcr.io" || name.ends_with(".gcr.io"))
}

/// Whether a chunk was refused for its size, or for where it begins.
fn is_size(error: &ClientError) -> bool {
    matches!(error, ClientError::Status { status, .. } if matches!(status.as_u16(), 413 | 416))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_as_large_as_the_registry_takes_and_wants() {
        let size = |host: &str, least, too_large| chunk_bytes(&host.parse().unwrap(), least, too_large);
        assert_eq!(size("a.test", 0, u64::MAX), CHUNK_BYTES);
        assert_eq!(size("ghcr.io", 0, u64::MAX), GHCR_CHUNK_BYTES);
        assert_eq!(size("a.test", 16 << 20, u64::MAX), 16 << 20);
        assert_eq!(size("a.test", 0, 4 << 20), 1 << 20);
        assert_eq!(size("a.test", 0, 1000), LEAST_CHUNK_BYTES);
        assert!(takes_chunks(&"ghcr.io".parse().unwrap()));
        assert!(!takes_chunks(&"europe-west1-docker.pkg.dev".parse().unwrap()));
        assert!(!takes_chunks(&"eu.gcr.io".parse().unwrap()));
    }
}
