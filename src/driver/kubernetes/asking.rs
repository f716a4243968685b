//! Asking the registry whether an attempt has left a result.

use std::time::Duration;

use tokio::time::Instant;

use super::KubernetesDriver;
use super::follow::TICK;
use crate::build::{BuildFailure, Report, find_report};
use crate::oci::Reference;

/// How long a registry may fail to say whether there is a result, before that is the end.
const PATIENCE: Duration = Duration::from_secs(180);
/// The longest wait before a registry that failed is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is asked for, and since when there is no answer.
pub(super) struct Asking {
    report: Reference,
    silent: Option<Silent>,
}

/// A registry that does not say whether there is a result.
#[derive(Clone, Copy)]
struct Silent {
    since: Instant,
    next: Instant,
    pause: Duration,
}

/// What the registry says of a result.
pub(super) enum Asked {
    Found(Box<Report>),
    None,
    /// Nothing: it is to be asked again.
    Later,
}

impl Asking {
    pub(super) const fn new(report: Reference) -> Self {
        Self { report, silent: None }
    }

    /// Whether `job` has left a result, where the registry says so.
    pub(super) async fn ask(&mut self, driver: &KubernetesDriver, job: &str) -> Result<Asked, BuildFailure> {
        if self.silent.is_some_and(|silent| Instant::now() < silent.next) {
            return Ok(Asked::Later);
        }
        match find_report(&driver.client, &self.report).await {
            Ok(found) => {
                self.silent = None;
                if let Some(report) = &found {
                    driver.leaves(&self.report.repository, report.digest);
                }
                Ok(found.map_or(Asked::None, |report| Asked::Found(Box::new(report))))
            }
            Err(error) => {
                let now = Instant::now();
                let Silent { since, pause, .. } =
                    self.silent.unwrap_or(Silent { since: now, next: now, pause: TICK });
                if since.elapsed() >= PATIENCE {
                    return Err(BuildFailure::platform("failed to read the build's result", &error));
                }
                let chain = crate::build::chain(&error).join(": ");
                tracing::warn!(%job, error = %chain, "a build's result is asked for again");
                self.silent = Some(Silent { since, next: now + pause, pause: LONGEST_PAUSE.min(pause * 2) });
                Ok(Asked::Later)
            }
        }
    }
}
