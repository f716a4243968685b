//! What a path asks for.

use axum::http::StatusCode;

use super::refusal::Refusal;
use crate::oci::{Digest, RepositoryName, Target};

/// One endpoint of the distribution-spec, its names parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`
    Base,
    /// `/token`
    Token,
    /// `/v2/<name>/blobs/<digest>`
    Blob(RepositoryName, Digest),
    /// `/v2/<name>/blobs/uploads/`
    Uploads(RepositoryName),
    /// `/v2/<name>/blobs/uploads/<id>`
    Upload(RepositoryName, UploadId),
    /// `/v2/<name>/manifests/<tag or digest>`
    Manifest(RepositoryName, Target),
    /// `/v2/<name>/tags/list`
    Tags(RepositoryName),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(RepositoryName, Digest),
}

/// The name of an upload: 32 hexadecimal digits, safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct UploadId(String);

impl UploadId {
    pub(super) fn random() -> Self {
        Self(hex::encode(rand::random::<[u8; 16]>()))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Route {
    /// Reads a path as it stands in the request line.
    pub(super) fn parse(path: &str) -> Result<Self, Refusal> {
        match path {
            "/v2" | "/v2/" => return Ok(Self::Base),
            "/token" => return Ok(Self::Token),
            _ => {}
        }
        let nowhere = || Refusal::missing("UNSUPPORTED", "no such endpoint in an OCI registry");
        let rest = path.strip_prefix("/v2/").ok_or_else(nowhere)?;
        let (head, last) = rest.rsplit_once('/').ok_or_else(nowhere)?;
        if let Some(repository) = head.strip_suffix("/blobs/uploads") {
            let repository = name(repository)?;
            if last.is_empty() {
                return Ok(Self::Uploads(repository));
            }
            let id = UploadId::parse(last)
                .ok_or_else(|| Refusal::missing("BLOB_UPLOAD_UNKNOWN", "no such upload"))?;
            return Ok(Self::Upload(repository, id));
        }
        let (repository, kind) = head.rsplit_once('/').ok_or_else(nowhere)?;
        // Some clients write the colon of a digest as %3A; nothing else in a path of ours can be escaped.
        let last = last.replace("%3A", ":").replace("%3a", ":");
        let digest =
            || last.parse::<Digest>().map_err(|error| Refusal::bad("DIGEST_INVALID", error.to_string()));
        match kind {
            "blobs" if last == "uploads" => Ok(Self::Uploads(name(repository)?)),
            "blobs" => Ok(Self::Blob(name(repository)?, digest()?)),
            "manifests" if last.contains(':') => {
                Ok(Self::Manifest(name(repository)?, Target::Digest(digest()?)))
            }
            "manifests" => {
                let target = last
                    .parse()
                    .map_err(|error: crate::oci::NameError| Refusal::bad("TAG_INVALID", error.to_string()))?;
                Ok(Self::Manifest(name(repository)?, target))
            }
            "tags" if last == "list" => Ok(Self::Tags(name(repository)?)),
            "referrers" => Ok(Self::Referrers(name(repository)?, digest()?)),
            _ => Err(nowhere()),
        }
    }

    pub(super) const fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Base | Self::Token => None,
            Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Manifest(name, _)
            | Self::Tags(name)
            | Self::Referrers(name, _) => Some(name),
        }
    }
}

fn name(text: &str) -> Result<RepositoryName, Refusal> {
    text.parse().map_err(|error: crate::oci::NameError| {
        Refusal::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_found_also_under_names_that_look_like_one() {
        let digest = Digest::of("");
        let n = |text: &str| text.parse::<RepositoryName>().unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        for (path, route) in [
            ("/v2/".to_owned(), Route::Base),
            (format!("/v2/a/blobs/{digest}"), Route::Blob(n("a"), digest)),
            (
                format!("/v2/a/b/blobs/{}", digest.to_string().replace(':', "%3A")),
                Route::Blob(n("a/b"), digest),
            ),
            ("/v2/a/blobs/uploads/".to_owned(), Route::Uploads(n("a"))),
            ("/v2/a/blobs/uploads".to_owned(), Route::Uploads(n("a"))),
            (
                format!("/v2/blobs/uploads/blobs/uploads/{id}"),
                Route::Upload(n("blobs/uploads"), UploadId(id.to_owned())),
            ),
            ("/v2/a/manifests/v4".to_owned(), Route::Manifest(n("a"), "v4".parse().unwrap())),
            (
                format!("/v2/manifests/manifests/{digest}"),
                Route::Manifest(n("manifests"), Target::Digest(digest)),
            ),
            ("/v2/a/tags/list".to_owned(), Route::Tags(n("a"))),
            (format!("/v2/a/referrers/{digest}"), Route::Referrers(n("a"), digest)),
        ] {
            assert_eq!(Route::parse(&path).unwrap(), route, "{path}");
        }
    }

    #[test]
    fn hostile_paths_are_refused() {
        let id = "0".repeat(32);
        for path in [
            "",
            "/",
            "/v1/",
            "/v2",
            "/v2/x",
            "/v2//blobs/uploads/",
            "/v2/../manifests/x",
            "/v2/a/../b/manifests/x",
            "/v2/%2e%2e/manifests/x",
            "/v2/a%2f..%2fb/manifests/x",
            "/v2/a/manifests/..",
            "/v2/a/manifests/%2e%2e",
            "/v2/a/manifests/sha256:x",
            "/v2/a/blobs/../../token.key",
            "/v2/a/blobs/uploads/..",
            "/v2/a/blobs/uploads/x",
            &format!("/v2/A/blobs/uploads/{id}"),
            "/v2/_catalog",
            "/v2/a/_blobs/tags/list",
            "/v2/a/manifests/a:b",
            &format!("/v2/{}/tags/list", "a".repeat(5000)),
        ] {
            let parsed = Route::parse(path);
            assert!(matches!(parsed, Err(_) | Ok(Route::Base)), "{path}: {parsed:?}");
        }
    }
}
