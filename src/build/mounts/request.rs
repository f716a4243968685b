//! A mount as the engine tells its worker.

use serde::{Deserialize, Serialize};

use crate::build::protocol::{CopyFrom, CopyRequest};
use crate::layers::CacheSharing;
use crate::model::Secret;
use crate::oci::Digest;

/// A mount of a RUN.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MountRequest {
    /// Absolute.
    pub(crate) target: String,
    /// Whether the step may not write to it.
    pub(crate) read_only: bool,
    /// What it is.
    pub(crate) what: MountWhat,
}

/// What is mounted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum MountWhat {
    /// Files; what is written to them is thrown away.
    Bind(Selection),
    /// An empty directory in memory.
    Tmpfs {
        /// Its largest size.
        max_bytes: Option<u64>,
    },
    /// A directory that lives from build to build.
    Cache(CacheRequest),
    /// A file in memory.
    Secret {
        /// What is in it.
        content: Secret<Vec<u8>>,
        /// Its permissions.
        mode: u32,
        /// Whose it is: user and group.
        owner: (u32, u32),
    },
    /// The socket that an earlier [`Request::Listen`](crate::build::protocol::Request::Listen) made.
    Agent(AgentSocket),
}

/// A cache mount.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CacheRequest {
    /// Everything that tells one cache from another, hashed.
    pub(crate) name: Digest,
    /// What its users do with each other.
    pub(crate) sharing: CacheSharing,
    /// Its first content.
    pub(crate) seed: Option<Selection>,
    /// The permissions of a new one.
    pub(crate) mode: Option<u32>,
    /// Whose a new one is: user and group.
    pub(crate) owner: Option<(u32, u32)>,
}

impl CacheRequest {
    /// The same without its first content: what is restored takes its place.
    pub(super) fn without_seed(&self) -> Self {
        Self { name: self.name, sharing: self.sharing, seed: None, mode: self.mode, owner: self.owner }
    }
}

/// Names a socket between the request that makes it and the step that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct AgentSocket(pub(crate) u32);

/// A file or directory of the context, a stage or an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Selection {
    /// Where.
    pub(crate) from: CopyFrom,
    /// Its path there.
    pub(crate) source: String,
}

impl Selection {
    /// The copy that would take these files to `destination`.
    pub(crate) fn copy_to(&self, destination: &str) -> CopyRequest {
        // A path, and no pattern.
        let mut source = String::new();
        for character in self.source.chars() {
            if matches!(character, '*' | '?' | '[' | '\\') {
                source.push('\\');
            }
            source.push(character);
        }
        CopyRequest {
            lowers: Vec::new(),
            from: self.from.clone(),
            sources: vec![source],
            fetched: Vec::new(),
            inline: Vec::new(),
            destination: destination.to_owned(),
            chown: None,
            chmod: None,
            exclude: Vec::new(),
            parents: false,
            extract: false,
            now: 0,
        }
    }
}
