//! How a push that failed is told: what failed, whose fault it is, what still serves, and the next command.

use crate::build::{BuildFailure, StepFailure};
use crate::model::store::StoreError;
use crate::model::{CancelReason, Fault};
use crate::oci::Platform;

/// Why a push did not become a running release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Something failed.
    Failed(Failure),
    /// It was stopped.
    Cancelled(CancelReason),
    /// Another server goes on with it, or has ended it: nothing of it is written here any more.
    NotOurs,
}

/// A failure in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault.
    pub fault: Fault,
    /// One line, which git shows behind `! [remote rejected]`: `build failed: Dockerfile:9 on linux/arm64`.
    pub reason: String,
    /// What more there is to say, a line each.
    pub details: Vec<String>,
}

impl Failure {
    /// A failure that the pusher can mend.
    pub(crate) fn app(reason: impl Into<String>, details: Vec<String>) -> Self {
        Self { fault: Fault::App, reason: reason.into(), details }
    }

    /// A failure of the platform: the operator sees the chain of errors in the log, the pusher what was being done.
    pub(crate) fn platform(doing: &str, error: &dyn std::error::Error) -> Self {
        let chain: Vec<String> =
            std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
        tracing::error!(doing, error = chain.join(": "), "a push failed");
        let reason = format!("hephy could not {doing}");
        Self { fault: Fault::Platform, reason, details: chain }
    }

    /// The failure of one platform's build.
    pub(crate) fn of_build(platform: &Platform, failure: BuildFailure) -> Ended {
        let (fault, step) = match failure {
            BuildFailure::App(step) => (Fault::App, step),
            BuildFailure::Platform(step) => (Fault::Platform, step),
            BuildFailure::Cancelled => return Ended::Cancelled(CancelReason::Requested),
            BuildFailure::TimedOut { limit } => {
                let limit = humantime::format_duration(limit);
                let reason = format!("build failed: it took longer than {limit} on {platform}");
                let hint = "make the build faster, or raise `timeout` under [build] in hephy.toml".to_owned();
                return Ended::Failed(Self::app(reason, vec![hint]));
            }
        };
        Ended::Failed(Self::of_step(platform, fault, step))
    }

    fn of_step(platform: &Platform, fault: Fault, step: StepFailure) -> Self {
        let reason = match (fault, &step.at) {
            (Fault::App, Some(at)) => format!("build failed: {at} on {platform}"),
            (Fault::App, None) => format!("build failed on {platform}: {}", step.heading),
            (Fault::Platform, Some(at)) => format!("hephy could not build {at} on {platform}"),
            (Fault::Platform, None) => format!("hephy could not build on {platform}: {}", step.heading),
        };
        let mut details = vec![step.heading];
        details.extend(step.cause);
        details.dedup();
        if fault == Fault::Platform {
            tracing::error!(reason, error = details.join(": "), "a build failed, and not by its Dockerfile");
        }
        details.extend(step.hint);
        Self { fault, reason, details }
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(Failure::platform("write down how far the push is", &error))
    }
}
