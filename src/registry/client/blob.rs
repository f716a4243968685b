//! What is uploaded, and how it got there.

use std::path::PathBuf;

use bytes::Bytes;

use super::call::CallBody;
use crate::oci::Digest;

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

    /// A part of it, to be sent.
    pub(super) fn part(&self, offset: u64, length: u64) -> CallBody {
        match self {
            Self::File { path, .. } => CallBody::File { path: path.clone(), offset, length },
            Self::Bytes(bytes) => {
                let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
                CallBody::Bytes(bytes.slice(at(offset)..at(offset + length)))
            }
        }
    }
}
