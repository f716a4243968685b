//! What is asked of a registry.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

use super::ClientError;
use super::advice::Given;
use crate::oci::{Repository, RepositoryName};

/// One request; it can be sent again.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) repository: &'a Repository,
    /// What this is, for an error: "pushing manifest `v4`".
    pub(super) doing: String,
    pub(super) access: Access<'a>,
    pub(super) headers: HeaderMap,
    pub(super) body: CallBody,
    /// Whether blobs go or come with it: those have connections of their own.
    pub(super) is_transfer: bool,
}

/// What a token must allow.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access<'a> {
    Pull,
    Push,
    /// Pushing, and pulling from another repository in the same request.
    Mount(&'a RepositoryName),
    Delete,
}

/// What is sent.
#[derive(Clone)]
pub(super) enum CallBody {
    Empty,
    Bytes(Bytes),
    File { path: PathBuf, offset: u64, length: u64 },
}

impl<'a> Call<'a> {
    pub(super) fn new(
        method: Method,
        url: Url,
        repository: &'a Repository,
        doing: impl Into<String>,
    ) -> Self {
        let (headers, body, doing) = (HeaderMap::new(), CallBody::Empty, doing.into());
        Self { method, url, repository, doing, access: Access::Pull, headers, body, is_transfer: false }
    }

    pub(super) fn protocol_error(&self, what: impl Into<String>) -> ClientError {
        let (repository, doing) = (self.repository.clone(), self.doing.clone());
        ClientError::Protocol { repository, doing, what: what.into() }
    }

    pub(super) fn denied(&self, message: String, given: Given) -> ClientError {
        let (repository, doing) = (self.repository.clone(), self.doing.clone());
        ClientError::Denied { repository, doing, message, given }
    }

    pub(super) fn broken(&self, source: reqwest::Error) -> ClientError {
        let (repository, doing) = (self.repository.clone(), self.doing.clone());
        ClientError::Broken { repository, doing, source: source.without_url() }
    }

    pub(super) fn stalled(&self, limit: Duration) -> ClientError {
        ClientError::Stalled { repository: self.repository.clone(), doing: self.doing.clone(), limit }
    }
}
