//! Parts of blobs, for who knows what is where in one.

use std::ops::Range;

use backon::BackoffBuilder as _;
use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};

use super::call::Call;
use super::manifests::{found, header};
use super::transport::{ANSWER_LIMIT, wait};
use super::{Client, ClientError};
use crate::oci::{Descriptor, Repository};

impl Client {
    /// A part of a blob, which is held in memory; `None` where the registry gives whole blobs only.
    ///
    /// Guarantees: on `Ok(Some)` as many bytes as were asked for. A digest is one of a whole blob: whether these are the
    /// right bytes is for the caller to find out.
    pub async fn blob_part(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        part: Range<u64>,
    ) -> Result<Option<Bytes>, ClientError> {
        let mut delays = self.backoff().build();
        loop {
            let error = match self.part_once(repository, descriptor, &part).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            match delays.next() {
                Some(delay) if error.may_pass() => tokio::time::sleep(wait(&error, delay)).await,
                _ => return Err(error),
            }
        }
    }

    async fn part_once(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        part: &Range<u64>,
    ) -> Result<Option<Bytes>, ClientError> {
        let digest = descriptor.digest;
        let url = self.url(repository, &format!("blobs/{digest}")).await?;
        let mut call = Call::new(Method::GET, url, repository, format!("pulling a part of blob `{digest}`"));
        call.is_transfer = true;
        let last = part.end.saturating_sub(1);
        let range = HeaderValue::try_from(format!("bytes={}-{last}", part.start));
        call.headers.insert(RANGE, range.map_err(|_| call.protocol_error("no range"))?);
        let response = self.send_once(&call).await?;
        let mut response = found(&call, response, &format!("blob `{digest}`")).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(None);
        }
        let range = header(&response, &CONTENT_RANGE).unwrap_or_default();
        let wrong =
            || call.protocol_error(format!("asked for bytes {}-{last}, got range `{range}`", part.start));
        if !range.starts_with(&format!("bytes {}-{last}/", part.start)) {
            return Err(wrong());
        }
        let length = usize::try_from(part.end.saturating_sub(part.start)).map_err(|_| wrong())?;
        let mut bytes = BytesMut::with_capacity(length);
        loop {
            let more = tokio::time::timeout(ANSWER_LIMIT, response.chunk()).await;
            let more = more.map_err(|_| call.stalled(ANSWER_LIMIT))?.map_err(|source| call.broken(source))?;
            match more {
                Some(more) if bytes.len() + more.len() > length => return Err(wrong()),
                Some(more) => bytes.extend_from_slice(&more),
                None if bytes.len() == length => return Ok(Some(bytes.freeze())),
                None => return Err(wrong()),
            }
        }
    }
}
