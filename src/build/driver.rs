//! The seam between a push and whatever builds one platform for it: a child process, a Job, a CI step.
//!
//! A driver knows no app, no release and no user. What it is told is a [`BuildRequest`]; what it answers is a
//! [`PlatformImage`] or a [`BuildFailure`], and everything between is a stream of [`BuildEvent`]s.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::build::event::BuildEvent;
use crate::model::PlatformImage;
use crate::oci::{Descriptor, Digest, Platform, Reference};

/// What is to be built, for one platform.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// What the build is called, for all its platforms: `app--17`. A driver of a cluster names its Jobs by it.
    pub name: String,
    /// The build's own directory: its lock, its events and its result, where the engine is a process of this machine.
    pub directory: PathBuf,
    /// A directory with the files of the source.
    pub context: PathBuf,
    /// The Dockerfile, relative to the context or absolute.
    pub dockerfile: PathBuf,
    /// The platform of the image.
    pub platform: Platform,
    /// The stage to build; the last one if absent.
    pub target: Option<String>,
    /// `--build-arg`s; without a value the engine's environment gives it.
    pub build_args: Vec<(String, Option<String>)>,
    /// Labels over those of the Dockerfile.
    pub labels: Vec<(String, String)>,
    /// Where the image is pushed; without a tag by digest only.
    pub destinations: Vec<Reference>,
    /// Namespaces (`host:port/prefix`) where a base is looked for before its own registry.
    pub mirrors: Vec<String>,
    /// Registries (`host:port`) that speak plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Credentials as the JSON text of a Docker configuration. Reaches the engine by its standard input only.
    pub docker_config: Option<String>,
    /// Seconds since 1970: no time in the image is later.
    pub source_date_epoch: Option<i64>,
    /// Whether steps may come from the cache.
    pub cache: CacheUse,
    /// What network RUN has.
    pub network: NetworkMode,
    /// When the build is ended.
    pub limits: BuildLimits,
    /// How layers are compressed.
    pub compression: Compression,
    /// The platform of the machine that builds, where it is not the image's: nothing of the image is executed then.
    pub machine: Option<Platform>,
    /// Further flags of the engine, which no driver looks at. Nothing in them is secret.
    pub flags: Vec<String>,
}

/// Whether steps may come from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheUse {
    /// A step whose key is known is not run again.
    #[default]
    Read,
    /// Every step runs; what it makes is recorded.
    Ignore,
}

/// What network RUN has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// The caller's.
    #[default]
    Host,
    /// Its own, outward only, without the host's loopback and the metadata addresses.
    Isolated,
    /// Loopback alone.
    None,
}

impl From<NetworkMode> for crate::sandbox::NetworkMode {
    fn from(mode: NetworkMode) -> Self {
        match mode {
            NetworkMode::Host => Self::Host,
            NetworkMode::Isolated => Self::Isolated,
            NetworkMode::None => Self::None,
        }
    }
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// gzip, which everything reads.
    #[default]
    Gzip,
    /// zstd: faster, and needs readers of the last years.
    Zstd,
}

/// When a build is ended, and what its RUN steps may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BuildLimits {
    /// Wall-clock time of the whole build.
    pub time: Duration,
    /// Memory of all processes of a RUN step.
    pub memory_bytes: Option<u64>,
    /// Processors for all processes of a RUN step.
    pub cpus: Option<f64>,
}

impl Default for BuildLimits {
    fn default() -> Self {
        Self { time: Duration::from_hours(1), memory_bytes: None, cpus: None }
    }
}

/// One layer of a built image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltLayer {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar, which names the unpacked tree.
    pub diff_id: Digest,
    /// Where it came from.
    pub origin: LayerOrigin,
}

/// Where a layer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerOrigin {
    /// The base image.
    Base,
    /// The step cache.
    Cached,
    /// This build.
    Built,
}

/// A line of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The file, as the user named it.
    pub file: String,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// How a build ended without an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum BuildFailure {
    /// The pusher can fix it: the Dockerfile, the context, a command of theirs.
    #[error("{}", .0.heading)]
    App(StepFailure),
    /// The pusher cannot fix it: a registry, a disk, the sandbox.
    #[error("{}", .0.heading)]
    Platform(StepFailure),
    /// Someone ended it.
    #[error("the build was cancelled")]
    Cancelled,
    /// It ran into its time limit.
    #[error("the build was ended after its limit of {} s", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
}

impl BuildFailure {
    /// A failure that is not the pusher's, with the chain of what caused it.
    #[must_use]
    pub fn platform(heading: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::Platform(StepFailure { cause: chain(error), ..StepFailure::new(heading) })
    }

    /// A failure that the pusher can fix.
    #[must_use]
    pub fn app(heading: impl Into<String>) -> Self {
        Self::App(StepFailure::new(heading))
    }

    /// What failed and what caused it, on one line.
    #[must_use]
    pub fn sentence(&self) -> String {
        let causes = self.step().map(|step| step.cause.as_slice()).unwrap_or_default();
        std::iter::once(self.to_string()).chain(causes.iter().cloned()).collect::<Vec<_>>().join(": ")
    }

    /// What is known of the failing step, unless the build was ended from outside.
    #[must_use]
    pub const fn step(&self) -> Option<&StepFailure> {
        match self {
            Self::App(step) | Self::Platform(step) => Some(step),
            Self::Cancelled | Self::TimedOut { .. } => None,
        }
    }
}

/// The texts of an error and of everything that caused it.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

/// What failed, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepFailure {
    /// One sentence, lower case, without a full stop.
    pub heading: String,
    /// What caused it, outermost first.
    pub cause: Vec<String>,
    /// What to do next.
    pub hint: Option<String>,
    /// The line of the Dockerfile.
    pub at: Option<Location>,
    /// The exit status of RUN's command.
    pub exit_status: Option<i32>,
    /// The last lines that RUN printed.
    pub last_lines: Vec<String>,
}

impl StepFailure {
    /// A failure of which only the heading is known.
    #[must_use]
    pub fn new(heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), ..Self::default() }
    }
}

/// What a driver builds on, as people are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builders {
    /// The machine that the server runs on.
    ThisMachine,
    /// The nodes of a cluster.
    Nodes,
}

/// Something that builds images: see the module.
#[async_trait]
pub trait Driver: Send + Sync {
    /// What it builds on.
    fn builders(&self) -> Builders {
        Builders::ThisMachine
    }

    /// The platforms whose programs this driver runs natively now.
    async fn platforms(&self) -> Result<Vec<Platform>, BuildFailure>;

    /// Builds one platform and sends every event of the build, in order.
    ///
    /// Idempotent on the name and the platform (on one machine on `request.directory`): an engine still at work there is followed from its first event, a
    /// finished one is replayed, otherwise a new one is started, which [`BuildEvent::Begun`] says first. A slow or dropped receiver of `events` slows
    /// nothing and fails nothing.
    ///
    /// # Cancel safety
    /// Cancelling `cancel` ends the build, with all its processes, within two seconds, as
    /// [`BuildFailure::Cancelled`]. Dropping the future leaves the build at work, to be followed again.
    async fn build(
        &self,
        request: &BuildRequest,
        events: mpsc::Sender<BuildEvent>,
        cancel: CancellationToken,
    ) -> Result<PlatformImage, BuildFailure>;
}
