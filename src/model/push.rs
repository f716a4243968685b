//! The values that a push becomes, one after the other.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{AppName, BuildNumber, CommitId, ProcessType};
use crate::oci::{Digest, Platform};

/// A commit whose objects are stored and complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The app it was pushed to.
    pub app: AppName,
    /// The build that it is for.
    pub build: BuildNumber,
    /// The commit.
    pub commit: CommitId,
    /// When the committer made it: the `SOURCE_DATE_EPOCH` of the build.
    pub committed_at: Timestamp,
}

/// How a source is built and run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What it is made from.
    pub source: Source,
    /// How it is built.
    pub method: Method,
    /// Why this method, for the pusher: `Dockerfile found`.
    pub reason: String,
    /// The process types of a `Procfile`, with their commands; empty without one.
    pub processes: BTreeMap<ProcessType, String>,
    /// Platforms that the app asks for; empty for those that the place of the build has.
    pub platforms: Vec<Platform>,
    /// How long a build may take, in seconds, where the app says.
    pub build_timeout_seconds: Option<u64>,
    /// How long a new version may take to become ready, in seconds, where the app says.
    pub ready_timeout_seconds: Option<u64>,
    /// Whether each platform is built on a machine of its own; else on any, if nothing of the platform is executed.
    // Not written where it is as it always was, so that an older server reads the record.
    #[serde(default = "natively", skip_serializing_if = "is_natively")]
    pub require_native_nodes: bool,
}

const fn natively() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_natively(required: &bool) -> bool {
    *required
}

/// A way to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// A Dockerfile.
    Dockerfile {
        /// Its path from the root of the source.
        path: String,
        /// The context's path from the root of the source, `.` for all of it.
        context: String,
        /// The stage to build, where it is not the last.
        target: Option<String>,
        /// Build arguments, in order.
        args: Vec<(String, String)>,
    },
}

/// A recipe for which everything that the build needs was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What is built.
    pub recipe: Recipe,
    /// For these, in canonical order, never empty.
    pub platforms: Vec<Platform>,
    /// The platforms of the machines that build, where they are not the images': nothing of those images is executed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub machines: BTreeMap<Platform, Platform>,
    /// Whether the cache is left aside.
    pub no_cache: bool,
}

/// An image for one platform, complete in the app's repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformImage {
    /// The platform it was built for.
    pub platform: Platform,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The sum of its compressed layers, in bytes.
    pub size_bytes: u64,
    /// How many layers it has.
    pub layers: u32,
    /// How many of them this build made, rather than found.
    pub new_layers: u32,
    /// The steps that it took.
    pub steps: Vec<Step>,
}

/// One step of a build, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// `COPY . /app`.
    pub text: String,
    /// Where the Dockerfile says so, from 1.
    pub line: u32,
    /// Found in the cache.
    pub cached: bool,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

/// An image index that can be pulled by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedIndex {
    /// The digest of the index.
    pub digest: Digest,
    /// The repository in the registry, without a host.
    pub repository: String,
    /// Its images, in the order of the index.
    pub images: Vec<PlatformImage>,
}

impl PublishedIndex {
    /// The sum of all compressed layers, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.images.iter().map(|image| image.size_bytes).sum()
    }

    /// How many layers the build made.
    #[must_use]
    pub fn new_layers(&self) -> u32 {
        self.images.iter().map(|image| image.new_layers).sum()
    }
}
