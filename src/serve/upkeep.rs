//! What is done now and then: what no release and no build needs is removed from the registry, the repositories and the
//! layer store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::build;
use crate::git::CROWDED_PACKS;
use crate::layers::PrunePolicy;
use crate::model::store::{self, Store, StoreError};
use crate::model::{App, AppName, Build, BuildState, Chain, CommitId, ObjectName, Release, ReleaseState};
use crate::push::{Extent, SourcesError, Stages};
use crate::registry::server::{Keep, Server};
use crate::sandbox::IdMap;

/// How often. The first time is this long after the start, so that a server that is restarted often does it too.
const INTERVAL: Duration = Duration::from_secs(3600);

/// Longer than any push takes.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// How long an app's build cache, and a layer, is kept without use.
const CACHE_AGE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Of so many builds of an app, from the last one back, the source is kept, whatever the refs say: they can be looked at
/// and deployed again.
const KEPT_BUILDS: u64 = 20;

/// What is kept small.
#[derive(Debug)]
pub struct Upkeep {
    /// A registry of our own.
    pub registry: Option<Server>,
    /// Whose repositories.
    pub stages: Arc<Stages>,
    /// The layer store of builds on this machine.
    pub layers: Option<LayersUpkeep>,
}

/// How a layer store is kept small.
#[derive(Debug)]
pub struct LayersUpkeep {
    /// Where it is.
    pub directory: PathBuf,
    /// Whose its files are.
    pub ids: IdMap,
    /// What it may have.
    pub max_bytes: u64,
}

impl Upkeep {
    /// Goes on until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.once() => {}
            }
        }
    }

    /// Does it. One part that fails does not keep the others from being done.
    async fn once(&self) {
        if let Some(registry) = &self.registry {
            self.clean(registry).await;
        }
        if let Err(error) = self.tidy_repositories().await {
            tracing::error!(error = %Chain(&error), "the repositories are not tidied: the apps cannot be read");
        }
        if let Some(layers) = &self.layers {
            layers.prune().await;
        }
    }

    async fn clean(&self, registry: &Server) {
        match keep(&*self.stages.store).await {
            Ok(keep) => match registry.collect_garbage(&keep).await {
                Ok(collected) => tracing::info!(?collected, "the registry is cleaned"),
                Err(error) => tracing::error!(error = %Chain(&error), "the registry cannot be cleaned"),
            },
            // Without knowing all releases nothing may be removed.
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the registry is not cleaned: the releases cannot be read");
            }
        }
    }

    /// Repacks the repositories here that became crowded, and makes few packs of those in the registry.
    pub async fn tidy_repositories(&self) -> Result<(), StoreError> {
        let store = &*self.stages.store;
        self.stages.sources.let_go_of_old();
        for app in store::list::<App>(store, "").await? {
            match self.tidy(&app.name).await {
                Ok(true) => tracing::info!(app = %app.name, "the repository is tidied"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(app = %app.name, error = %Chain(&error), "the repository cannot be tidied");
                }
            }
        }
        Ok(())
    }

    async fn tidy(&self, app: &AppName) -> Result<bool, SourcesError> {
        if !self.stages.repository_path(app).exists() {
            return Ok(false);
        }
        let (store, sources) = (&*self.stages.store, &self.stages.sources);
        let Extent::Part { packs } = sources.extent(store, app).await? else {
            return self.tidy_whole(app).await;
        };
        if packs <= CROWDED_PACKS {
            sources.consolidate(store, app, false).await?;
            return Ok(false);
        }
        // Many packs are a burden to each server that has the repository in part. It takes all of them to make few of
        // them, so one server does it.
        match self.stages.hold_packs(app).await {
            Ok(Some(hold)) => {
                let tidied = self.tidy_whole(app).await;
                hold.release().await;
                tidied
            }
            Ok(None) => Ok(false),
            Err(error) => {
                tracing::error!(%app, error = %Chain(&error), "the repository is not tidied");
                Ok(false)
            }
        }
    }

    async fn tidy_whole(&self, name: &AppName) -> Result<bool, SourcesError> {
        let store = &*self.stages.store;
        let repository = self.stages.repository(name).await?;
        // What is here is read before what is named, and the app before its builds: a build that comes meanwhile keeps its
        // own commit for a day.
        let app = store::require::<App>(store, &ObjectName::of(name)).await?.object;
        let builds = store::list::<Build>(store, &format!("{name}--")).await?;
        let tidied = repository.tidy(commits_to_keep(&app, &builds)).await?;
        self.stages.sources.consolidate(store, name, tidied).await?;
        Ok(tidied)
    }
}

impl LayersUpkeep {
    async fn prune(&self) {
        let policy = PrunePolicy {
            max_bytes: Some(self.max_bytes),
            max_age: Some(CACHE_AGE),
            ..PrunePolicy::default()
        };
        match build::prune(&self.directory, &self.ids, policy).await {
            Ok(pruned) => tracing::info!(?pruned, "the layer store is pruned"),
            Err(failure) => tracing::error!(?failure, "the layer store cannot be pruned"),
        }
    }
}

/// The commits of an app that must stay: those of its refs, of the builds at work and of the last ones.
fn commits_to_keep(app: &App, builds: &[Build]) -> Vec<CommitId> {
    let is_kept = |build: &&Build| {
        build.app == app.name && (build.outcome.is_none() || build.number.0 + KEPT_BUILDS > app.last_build)
    };
    app.refs.values().copied().chain(builds.iter().filter(is_kept).map(|build| build.commit)).collect()
}

async fn keep(store: &dyn Store) -> Result<Keep, StoreError> {
    let releases = store::list::<Release>(store, "").await?.into_iter();
    let runnable = releases.filter(|release| !matches!(release.state, ReleaseState::Failed { .. }));
    let published =
        store::list::<Build>(store, "").await?.into_iter().filter_map(|build| match build.state {
            BuildState::Published { index, .. } if build.outcome.is_none() => Some(index.digest),
            _ => None,
        });
    let packs = store::list::<App>(store, "").await?.into_iter().filter_map(|app| app.packs);
    let releases = runnable.map(|release| release.index.digest).chain(published).chain(packs).collect();
    Ok(Keep { releases, grace: GRACE, cache_age: CACHE_AGE })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::{BuildNumber, Outcome, PushOptions, RefName, ReleaseNumber, Source};

    fn commit(number: u64) -> CommitId {
        format!("{number:040x}").parse().unwrap()
    }

    fn build(app: &str, number: u64, ended: bool) -> Build {
        let (app, at) = (app.parse::<crate::model::AppName>().unwrap(), Timestamp::UNIX_EPOCH);
        let source =
            Source { app: app.clone(), build: BuildNumber(number), commit: commit(number), committed_at: at };
        Build {
            format: 1,
            app,
            number: BuildNumber(number),
            commit: commit(number),
            moves: Vec::new(),
            by: "ada".parse().unwrap(),
            created_at: at,
            options: PushOptions::default(),
            state: BuildState::Received(source),
            cancel: None,
            outcome: ended.then_some(Outcome::Succeeded { at, release: ReleaseNumber(1) }),
        }
    }

    #[test]
    fn the_source_of_refs_of_builds_at_work_and_of_the_last_builds_is_kept_and_no_other() {
        let mut app = App::new("web".parse().unwrap(), "ada".parse().unwrap(), Timestamp::UNIX_EPOCH);
        app.last_build = 30;
        app.refs.insert(RefName::branch("main").unwrap(), commit(99));
        let builds = [
            build("web", 2, false),
            build("web", 10, true),
            build("web", 11, true),
            build("web", 30, true),
            build("other", 29, false),
        ];
        assert_eq!(commits_to_keep(&app, &builds), [99, 2, 11, 30].map(commit));
    }
}
