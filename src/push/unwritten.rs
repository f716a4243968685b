//! Ends of builds that could not be written: a full disk stops no build from ending, and must not keep its app busy once
//! there is room again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Stages;
use super::running::conclude;
use crate::model::{AppName, Build, BuildNumber, Chain, Outcome};

/// How often it is tried again by itself.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is yet to be written. A process that ends with some of it left finds these builds at its next start, unfinished.
#[derive(Debug, Clone, Default)]
pub(super) struct Unwritten(Arc<Mutex<Vec<(Build, Outcome)>>>);

impl Unwritten {
    fn all(&self) -> MutexGuard<'_, Vec<(Build, Outcome)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a build ended, if that is yet to be written.
    pub(super) fn outcome(&self, app: &AppName, number: BuildNumber) -> Option<Outcome> {
        let is_it = |(build, _): &&(Build, Outcome)| build.app == *app && build.number == number;
        self.all().iter().find(is_it).map(|(_, outcome)| outcome.clone())
    }

    /// Writes the end of a build, now or as soon as it can be.
    pub(super) async fn conclude(&self, stages: &Arc<Stages>, build: Build, outcome: Outcome) {
        let Err(error) = conclude(stages, &build, outcome.clone()).await else { return };
        tracing::error!(app = %build.app, build = %build.number, error = %Chain(&error), "the end of a build cannot be written");
        let is_first = {
            let mut all = self.all();
            all.push((build, outcome));
            all.len() == 1
        };
        if is_first {
            let (this, stages) = (self.clone(), Arc::clone(stages));
            tokio::spawn(async move {
                while !this.settle(&stages).await {
                    tokio::time::sleep(INTERVAL).await;
                }
            });
        }
    }

    /// Tries to write all of it; says whether nothing is left.
    pub(super) async fn settle(&self, stages: &Stages) -> bool {
        let all = self.all().clone();
        for (build, outcome) in all {
            if conclude(stages, &build, outcome).await.is_ok() {
                self.all().retain(|(other, _)| (&other.app, other.number) != (&build.app, build.number));
            }
        }
        self.all().is_empty()
    }
}
