//! Why a build ends without an image, as the engine itself knows it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::build::driver::{BuildFailure, Location, StepFailure, chain};
use crate::build::event::elapsed;
use crate::build::protocol::WorkerFailure;
use crate::build::remote::RemoteError;
use crate::build::state::StateError;
use crate::dockerfile::{ExpandError, IgnoreError, ParseError};
use crate::layers::StoreError;
use crate::oci::{Digest, Platform};
use crate::registry::client::ClientError;
use crate::sandbox::SandboxError;

/// Why a build ends without an image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The Dockerfile does not read.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A variable does not expand.
    #[error(transparent)]
    Expand(#[from] ExpandError),
    /// An instruction's value is wrong.
    #[error(transparent)]
    State(#[from] StateError),
    /// The ignore file does not read.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// Something asked for that is not there.
    #[error("{0}")]
    Wrong(String),
    /// A file of the context or the Dockerfile itself cannot be read.
    #[error("failed to read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// No place has the base image.
    #[error("base image `{reference}` was not found{}", tried(.places))]
    BaseNotFound {
        reference: String,
        platform: Platform,
        places: Vec<(String, String)>,
        offline: bool,
        advice: Vec<String>,
    },
    /// No place that has the base image gives one of its blobs.
    #[error("blob `{digest}` of a base image was not to be had{}", tried(.places))]
    BlobNotFound { digest: Digest, places: Vec<(String, String)>, advice: Vec<String> },
    /// The base image is for something else.
    #[error("base image `{reference}` is for {found}, not for {wanted}")]
    BasePlatform { reference: String, found: String, wanted: Platform },
    /// The base image contradicts itself.
    #[error("base image `{reference}` is not a valid image: {problem}")]
    BaseInvalid { reference: String, problem: String },
    /// Something from elsewhere.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A registry.
    #[error(transparent)]
    Registry(Box<ClientError>),
    /// The layer store.
    #[error("failed to use the layer store")]
    Store(#[from] StoreError),
    /// The sandbox.
    #[error("failed to run the sandbox")]
    Sandbox(#[from] SandboxError),
    /// Files of our own.
    #[error("failed to {what}")]
    Io { what: String, source: io::Error },
    /// What the worker could not do.
    #[error("{}", .0.chain.first().map_or("the sandbox failed", String::as_str))]
    Worker(WorkerFailure),
    /// The worker answered something else than it was asked.
    #[error("the sandbox gave no proper answer")]
    Protocol,
    /// A RUN's command failed.
    #[error("`{command}` {end}")]
    Run {
        command: String,
        end: String,
        status: Option<i32>,
        /// The kernel has killed for want of memory: all that the build may use, or of a machine without a limit.
        out_of_memory: Option<Option<u64>>,
        last_lines: Vec<String>,
    },
    /// A RUN's program is not in the image.
    #[error("the image has no `{program}`{}", if *is_shell { ", which runs command lines" } else { "" })]
    NoProgram { program: String, is_shell: bool },
    /// A layer's blob is gone.
    #[error("the layer {0} is gone from the store while the build used it")]
    LayerGone(Digest),
    /// Someone ended the build.
    #[error("the build was cancelled")]
    Cancelled,
    /// The build took too long.
    #[error("the build was ended after its limit")]
    TimedOut { limit: Duration },
}

fn tried(places: &[(String, String)]) -> String {
    let words: Vec<String> = places.iter().map(|(place, why)| format!("; {place}: {why}")).collect();
    words.concat()
}

impl From<ClientError> for EngineError {
    fn from(error: ClientError) -> Self {
        Self::Registry(Box::new(error))
    }
}

impl EngineError {
    /// Shorthand for `map_err` on files of our own.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    fn is_app(&self) -> bool {
        match self {
            Self::Parse(_)
            | Self::Expand(_)
            | Self::State(_)
            | Self::Ignore(_)
            | Self::Wrong(_)
            | Self::Read { .. }
            | Self::BaseNotFound { .. }
            | Self::BasePlatform { .. }
            | Self::BaseInvalid { .. }
            | Self::NoProgram { .. }
            | Self::Run { .. } => true,
            Self::Worker(failure) => failure.app,
            Self::Remote(error) => error.is_app(),
            Self::Registry(_)
            | Self::BlobNotFound { .. }
            | Self::Store(_)
            | Self::Sandbox(_)
            | Self::Io { .. }
            | Self::Protocol
            | Self::LayerGone(_)
            | Self::Cancelled
            | Self::TimedOut { .. } => false,
        }
    }

    /// Whether it is this machine's trouble, and not that of who was asked.
    pub(crate) fn is_our_own(&self) -> bool {
        match self {
            Self::Registry(error) => matches!(**error, ClientError::Sink { .. } | ClientError::File { .. }),
            Self::Store(_) | Self::Io { .. } | Self::Cancelled | Self::TimedOut { .. } => true,
            _ => false,
        }
    }

    /// What would help.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.advice(),
            Self::BaseNotFound { advice, .. } | Self::BlobNotFound { advice, .. } if !advice.is_empty() => {
                Some(advice.join("\n"))
            }
            Self::BaseNotFound { reference, platform, offline, .. } => Some(format!(
                "Two ways to have it: {},\nor {}",
                assembly(reference, platform),
                if *offline {
                    "give this machine a way to a registry that has it (`--mirror HOST[:PORT]/PREFIX`)"
                } else {
                    "copy it to a mirror (`skopeo copy`) or correct the name"
                },
            )),
            Self::NoProgram { is_shell: true, .. } => Some(
                "Write the command as a list, which needs no shell: RUN [\"/program\", \"argument\"]; or begin with a base that has one."
                    .to_owned(),
            ),
            Self::Run { out_of_memory: Some(limit), status, .. } => {
                // What failed by itself may have started what was killed, as `make` does; or another stage did.
                let whom = if *status == Some(137) { "it" } else { "a process meanwhile, perhaps one of its own," };
                Some(match limit {
                    Some(bytes) => format!(
                        "The kernel killed {whom} for want of memory: the build may use {} MiB. Let it use less, or give builds more.",
                        bytes >> 20
                    ),
                    None => format!("The kernel killed {whom} since the machine has no more memory."),
                })
            }
            Self::Run { status: Some(127), .. } => {
                Some("Status 127: a command was not found in the image.".to_owned())
            }
            Self::Run { status: Some(137), .. } => {
                Some("Status 137: the command was killed, often for want of memory.".to_owned())
            }
            _ => None,
        }
    }

    /// The failure that is told, with the place in the Dockerfile where it happened.
    pub(crate) fn into_failure(self, at: Option<Location>) -> BuildFailure {
        let mut step = StepFailure {
            heading: self.to_string(),
            cause: match &self {
                Self::Worker(failure) => failure.chain.iter().skip(1).cloned().collect(),
                error => chain(error).into_iter().skip(1).collect(),
            },
            hint: self.hint(),
            at,
            exit_status: None,
            last_lines: Vec::new(),
        };
        let is_app = self.is_app();
        match self {
            Self::Cancelled => return BuildFailure::Cancelled,
            Self::TimedOut { limit } => return BuildFailure::TimedOut { limit },
            Self::Parse(error) => {
                step.at = Some(Location { file: error.file.clone(), line: error.position.line });
                step.heading = error.problem.to_string();
            }
            Self::Run { status, last_lines, .. } => {
                step.exit_status = status;
                step.last_lines = last_lines;
            }
            _ => {}
        }
        if is_app { BuildFailure::App(step) } else { BuildFailure::Platform(step) }
    }
}

/// The command that assembles a base from Debian's archive, if it can be one.
fn assembly(reference: &str, platform: &Platform) -> String {
    let (base, packages) = reference.split_once("-with-").unwrap_or((reference, ""));
    let arch = platform.architecture();
    match base.parse::<crate::bases::Base>() {
        Ok(base) if packages.is_empty() => {
            format!("`hephy base {base} --arch {arch}` assembles it from Debian's archive")
        }
        Ok(base) => format!(
            "`hephy base {base} --include PACKAGE,… --arch {arch}` assembles it from Debian's archive (`{packages}` names the packages)"
        ),
        Err(_) => {
            "say `FROM debian:12`, which `hephy base debian:12` assembles from Debian's archive".to_owned()
        }
    }
}

/// How a command ended, for people.
pub(crate) fn ending(status: Option<i32>, signal: Option<i32>, millis: u64) -> String {
    match (status, signal) {
        (Some(status), _) => format!("failed after {}, exit status {status}", elapsed(millis)),
        (None, Some(signal)) => format!("was ended by signal {signal} after {}", elapsed(millis)),
        (None, None) => format!("failed after {}", elapsed(millis)),
    }
}
