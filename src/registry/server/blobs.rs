//! Blobs and their uploads (distribution-spec, "Pulling blobs", "Pushing blobs").

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::refusal::Refusal;
use super::route::UploadId;
use super::token::Action;
use super::uploads::{Partial, Upload};
use super::{Ask, Server, answer, not_allowed};
use crate::oci::{Digest, RepositoryName};

/// How much of a blob is read at once.
const READ_BYTES: usize = 256 * 1024;

impl Server {
    pub(super) async fn blob(
        &self,
        ask: &Ask,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Response<Body>, Refusal> {
        if !matches!(ask.method, Method::GET | Method::HEAD) {
            return Err(not_allowed(ask));
        }
        let (repository, wanted, looks) = (name.clone(), *digest, ask.method == Method::HEAD);
        let found = self.on_disk(move |storage| {
            let size = storage.blob_size(&repository, &wanted)?;
            // Who looks may be about to rely on it in a push.
            if looks && size.is_some() {
                storage.touch_blob(&repository, &wanted)?;
            }
            Ok(size.map(|size| (size, storage.blob(&wanted))))
        });
        let Some((size, path)) = found.await? else {
            return Err(Refusal::missing("BLOB_UNKNOWN", format!("no blob `{digest}` in `{name}`")));
        };
        let mut headers = vec![
            ("content-type", "application/octet-stream".to_owned()),
            ("docker-content-digest", digest.to_string()),
            ("accept-ranges", "bytes".to_owned()),
            ("etag", format!("\"{digest}\"")),
        ];
        let (status, start, length) = match range(ask.header("range"), size) {
            Range::Whole => (StatusCode::OK, 0, size),
            Range::Part { start, length } => {
                headers.push(("content-range", format!("bytes {start}-{}/{size}", start + length - 1)));
                (StatusCode::PARTIAL_CONTENT, start, length)
            }
            Range::Outside => {
                let refusal = Refusal::new(
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    "BLOB_UPLOAD_INVALID",
                    "the range is outside of the blob",
                );
                return Err(refusal.with("content-range", format!("bytes */{size}")));
            }
        };
        headers.push(("content-length", length.to_string()));
        if looks {
            return Ok(answer(status, &headers, Body::empty()));
        }
        let mut file = tokio::fs::File::open(path).await?;
        file.seek(std::io::SeekFrom::Start(start)).await?;
        let stream = ReaderStream::with_capacity(file.take(length), READ_BYTES);
        Ok(answer(status, &headers, Body::from_stream(stream)))
    }

    /// `POST …/uploads/`: mounts, or takes a whole blob, or opens an upload.
    pub(super) async fn start_upload(
        &self,
        ask: &Ask,
        name: &RepositoryName,
        body: Body,
    ) -> Result<Response<Body>, Refusal> {
        if ask.method != Method::POST {
            return Err(not_allowed(ask));
        }
        if let Some(digest) = ask.query("mount")
            && let Some(mounted) = self.mount(ask, name, &parse(digest)?).await?
        {
            return Ok(mounted);
        }
        let digest = ask.query("digest").map(parse).transpose()?;
        self.check_length(ask)?;
        let (server, repository) = (self.clone(), name.clone());
        let upload = self.on_disk(move |_| server.shared.uploads.start(&repository)).await?;
        match digest {
            None => Ok(accepted(StatusCode::ACCEPTED, name, &upload)),
            Some(digest) => {
                if let Err(refusal) = self.shared.uploads.append(&upload, body, Partial::Dropped).await {
                    self.cancel(upload).await?;
                    return Err(refusal);
                }
                self.finish(name, upload, digest).await
            }
        }
    }

    /// Takes a blob from another repository, if the caller may read it there and it is there.
    async fn mount(
        &self,
        ask: &Ask,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Response<Body>>, Refusal> {
        let from = ask.query("from").and_then(|from| from.parse::<RepositoryName>().ok());
        let Some(from) = from.filter(|from| ask.caller.may(from, Action::Pull)) else { return Ok(None) };
        let _stays = self.shared.collecting.read().await;
        let (repository, wanted) = (name.clone(), *digest);
        let linked = self.on_disk(move |storage| {
            let there = storage.blob_size(&from, &wanted)?.is_some();
            if there {
                storage.link_blob(&repository, &wanted)?;
            }
            Ok(there)
        });
        Ok(linked.await?.then(|| created(name, digest)))
    }

    pub(super) async fn upload(
        &self,
        ask: &Ask,
        name: &RepositoryName,
        id: &UploadId,
        body: Body,
    ) -> Result<Response<Body>, Refusal> {
        let (server, repository, wanted) = (self.clone(), name.clone(), id.clone());
        let upload = self.on_disk(move |_| server.shared.uploads.find(&repository, &wanted)).await?;
        match ask.method {
            Method::GET => Ok(accepted(StatusCode::NO_CONTENT, name, &upload)),
            Method::PATCH => {
                self.check_length(ask)?;
                check_position(ask, name, &upload)?;
                self.shared.uploads.append(&upload, body, Partial::Kept).await?;
                Ok(accepted(StatusCode::ACCEPTED, name, &upload))
            }
            Method::PUT => {
                let digest = ask
                    .query("digest")
                    .ok_or_else(|| Refusal::bad("DIGEST_INVALID", "the digest is missing"));
                let digest = parse(digest?)?;
                self.check_length(ask)?;
                check_position(ask, name, &upload)?;
                self.shared.uploads.append(&upload, body, Partial::Dropped).await?;
                self.finish(name, upload, digest).await
            }
            Method::DELETE => {
                self.cancel(upload).await?;
                Ok(answer(StatusCode::NO_CONTENT, &[], Body::empty()))
            }
            _ => Err(not_allowed(ask)),
        }
    }

    async fn finish(
        &self,
        name: &RepositoryName,
        upload: Arc<Upload>,
        digest: Digest,
    ) -> Result<Response<Body>, Refusal> {
        let _stays = self.shared.collecting.read().await;
        let server = self.clone();
        let size = self.on_disk(move |_| server.shared.uploads.commit(&upload, &digest)).await?;
        tracing::debug!(repository = %name, digest = %digest, bytes = size, "blob stored");
        Ok(created(name, &digest))
    }

    async fn cancel(&self, upload: Arc<Upload>) -> Result<(), Refusal> {
        let server = self.clone();
        self.on_disk(move |_| Ok(server.shared.uploads.remove(&upload)?)).await
    }

    /// Refuses what is said to be too large before it is sent.
    fn check_length(&self, ask: &Ask) -> Result<(), Refusal> {
        let length = ask.header("content-length").and_then(|length| length.parse::<u64>().ok());
        let max = self.shared.config.max_blob_bytes;
        if length.is_some_and(|length| length > max) {
            let message = format!("blobs may have {max} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message));
        }
        Ok(())
    }
}

/// A chunk must begin where the upload ends, if it says where it begins.
fn check_position(ask: &Ask, name: &RepositoryName, upload: &Upload) -> Result<(), Refusal> {
    let Some(text) = ask.header("content-range") else { return Ok(()) };
    let bounds = text.trim_start_matches("bytes ").split_once('-');
    let bounds = bounds.and_then(|(start, end)| {
        let end = end.split('/').next()?;
        Some((start.trim().parse::<u64>().ok()?, end.trim().parse::<u64>().ok()?))
    });
    let Some((start, end)) = bounds else {
        return Err(Refusal::bad("BLOB_UPLOAD_INVALID", "Content-Range is not `start-end`"));
    };
    let length = ask.header("content-length").and_then(|length| length.parse::<u64>().ok());
    if end < start || length.is_some_and(|length| length != end - start + 1) {
        return Err(Refusal::bad("SIZE_INVALID", "Content-Range and Content-Length differ"));
    }
    let size = upload.size();
    if start != size {
        let message = format!("the chunk begins at {start}, the upload has {size} bytes");
        return Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message)
            .with("range", received(size))
            .with("location", location(name, upload)));
    }
    Ok(())
}

fn parse(digest: &str) -> Result<Digest, Refusal> {
    digest.parse().map_err(|error: crate::oci::DigestError| Refusal::bad("DIGEST_INVALID", error.to_string()))
}

fn location(name: &RepositoryName, upload: &Upload) -> String {
    format!("/v2/{name}/blobs/uploads/{}", upload.id().as_str())
}

/// The spec has no way to say "nothing yet"; `0-0` is what others write.
fn received(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn accepted(status: StatusCode, name: &RepositoryName, upload: &Upload) -> Response<Body> {
    let headers = [
        ("location", location(name, upload)),
        ("range", received(upload.size())),
        ("docker-upload-uuid", upload.id().as_str().to_owned()),
    ];
    answer(status, &headers, Body::empty())
}

fn created(name: &RepositoryName, digest: &Digest) -> Response<Body> {
    let headers =
        [("location", format!("/v2/{name}/blobs/{digest}")), ("docker-content-digest", digest.to_string())];
    answer(StatusCode::CREATED, &headers, Body::empty())
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { start: u64, length: u64 },
    Outside,
}

/// One range; several, and what is none, are answered with the whole, as RFC 9110 §14.2 allows.
fn range(header: Option<&str>, size: u64) -> Range {
    let bounds =
        header.and_then(|text| text.trim().strip_prefix("bytes=")).and_then(|text| text.split_once('-'));
    let Some((start, end)) = bounds else { return Range::Whole };
    let (start, end) = match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => (start, end.saturating_add(1).min(size)),
        (Ok(start), Err(_)) if end.is_empty() => (start, size),
        (Err(_), Ok(last)) if start.is_empty() => (size.saturating_sub(last), size),
        _ => return Range::Whole,
    };
    if start < end { Range::Part { start, length: end - start } } else { Range::Outside }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_served_and_anything_odd_is_the_whole() {
        let part = |start, length| Range::Part { start, length };
        assert_eq!(range(Some("bytes=0-"), 10), part(0, 10));
        assert_eq!(range(Some("bytes=4-6"), 10), part(4, 3));
        assert_eq!(range(Some("bytes=4-18446744073709551615"), 10), part(4, 6));
        assert_eq!(range(Some("bytes=-3"), 10), part(7, 3));
        assert_eq!(range(Some("bytes=-30"), 10), part(0, 10));
        assert_eq!(range(Some("bytes=10-"), 10), Range::Outside);
        assert_eq!(range(Some("bytes=-0"), 10), Range::Outside);
        for text in ["bytes=6-4", "bytes=0-1,3-4", "lines=1-2", "bytes=", "bytes=x-1", ""] {
            assert_eq!(range(Some(text), 10), Range::Whole, "{text}");
        }
    }
}
