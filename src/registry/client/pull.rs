//! Blobs from a registry: verified, resumed where a connection broke.

use backon::BackoffBuilder as _;
use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::answer::status_error;
use super::call::Call;
use super::manifests::{found, header};
use super::transport::{ANSWER_LIMIT, wait};
use super::{Client, ClientError};
use crate::oci::{Descriptor, Digest, Repository};

/// How far a pull has come.
struct Progress<'a, W> {
    descriptor: &'a Descriptor,
    sink: &'a mut W,
    received: u64,
    sum: Sha256,
}

impl Client {
    /// Whether the repository has the blob.
    pub async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, ClientError> {
        let url = self.url(repository, &format!("blobs/{digest}")).await?;
        let call = Call::new(Method::HEAD, url, repository, format!("looking for blob `{digest}`"));
        let response = self.send(&call).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(status_error(&call, response).await),
        }
    }

    /// A small blob, verified.
    pub async fn blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        max_bytes: u64,
    ) -> Result<Bytes, ClientError> {
        if descriptor.size > max_bytes {
            let what = format!("blob `{}`", descriptor.digest);
            return Err(ClientError::TooLarge { repository: repository.clone(), what, max_bytes });
        }
        let mut bytes = Vec::new();
        self.pull_blob(repository, descriptor, &mut bytes).await?;
        Ok(bytes.into())
    }

    /// Writes a blob to `sink`, going on where a broken connection left off.
    ///
    /// Guarantees: on `Ok` exactly the bytes of the digest were written and flushed. On an error, and when it is dropped, the sink has
    /// got a part that is not to be trusted.
    pub async fn pull_blob<W: AsyncWrite + Unpin + Send>(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        sink: &mut W,
    ) -> Result<(), ClientError> {
        let mut progress = Progress { descriptor, sink, received: 0, sum: Sha256::new() };
        let mut delays = self.backoff().build();
        loop {
            let before = progress.received;
            let error = match self.pull_once(repository, &mut progress).await {
                Ok(()) => return progress.finish(repository).await,
                Err(error) => error,
            };
            if progress.received > before {
                delays = self.backoff().build();
            }
            match delays.next() {
                Some(delay) if error.may_pass() => tokio::time::sleep(wait(&error, delay)).await,
                _ => return Err(error),
            }
        }
    }

    async fn pull_once<W: AsyncWrite + Unpin + Send>(
        &self,
        repository: &Repository,
        progress: &mut Progress<'_, W>,
    ) -> Result<(), ClientError> {
        let digest = progress.descriptor.digest;
        let url = self.url(repository, &format!("blobs/{digest}")).await?;
        let mut call = Call::new(Method::GET, url, repository, format!("pulling blob `{digest}`"));
        call.is_transfer = true;
        if progress.received > 0 {
            let range = HeaderValue::try_from(format!("bytes={}-", progress.received));
            call.headers.insert(RANGE, range.map_err(|_| call.protocol_error("no range"))?);
        }
        let response = self.send_once(&call).await?;
        let mut response = found(&call, response, &format!("blob `{digest}`")).await?;
        let mut skip = skipped(&call, &response, progress.received)?;
        loop {
            let part = tokio::time::timeout(ANSWER_LIMIT, response.chunk()).await;
            let part = part.map_err(|_| call.stalled(ANSWER_LIMIT))?.map_err(|source| call.broken(source))?;
            let Some(mut part) = part else { break };
            let over = usize::try_from(skip).unwrap_or(usize::MAX).min(part.len());
            skip -= over as u64;
            progress.take(repository, part.split_off(over)).await?;
        }
        Ok(())
    }
}

/// How much of the answer we have already: nothing if the registry honours the range, else all of it so far.
fn skipped(call: &Call<'_>, response: &Response, received: u64) -> Result<u64, ClientError> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(received);
    }
    let range = header(response, &CONTENT_RANGE).unwrap_or_default();
    let start = range.strip_prefix("bytes ").and_then(|rest| rest.split_once('-')).map(|(start, _)| start);
    if start.and_then(|start| start.trim().parse().ok()) == Some(received) {
        Ok(0)
    } else {
        Err(call.protocol_error(format!("asked for bytes from {received}, got range `{range}`")))
    }
}

impl<W: AsyncWrite + Unpin + Send> Progress<'_, W> {
    fn what(&self) -> String {
        format!("blob `{}`", self.descriptor.digest)
    }

    async fn take(&mut self, repository: &Repository, part: Bytes) -> Result<(), ClientError> {
        if self.received + part.len() as u64 > self.descriptor.size {
            let (what, expected) = (self.what(), self.descriptor.size);
            return Err(ClientError::Size { repository: repository.clone(), what, expected });
        }
        self.sum.update(&part);
        self.sink.write_all(&part).await.map_err(|source| self.sink_error(repository, source))?;
        self.received += part.len() as u64;
        Ok(())
    }

    fn sink_error(&self, repository: &Repository, source: std::io::Error) -> ClientError {
        ClientError::Sink { repository: repository.clone(), what: self.what(), source }
    }

    async fn finish(self, repository: &Repository) -> Result<(), ClientError> {
        let (what, expected) = (self.what(), self.descriptor.digest);
        if self.received != self.descriptor.size {
            let expected = self.descriptor.size;
            return Err(ClientError::Size { repository: repository.clone(), what, expected });
        }
        let actual = Digest::from_sha256(self.sum.clone().finalize().into());
        if actual != expected {
            let (expected, actual) = (expected.into(), actual.into());
            return Err(ClientError::Digest { repository: repository.clone(), what, expected, actual });
        }
        self.sink.flush().await.map_err(|source| ClientError::Sink {
            repository: repository.clone(),
            what,
            source,
        })
    }
}
