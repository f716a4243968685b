//! The one function that names every stage of a push.
//!
//! A push is a value that changes type on its way: `Source → Recipe → Plan → PlatformImage → PublishedIndex →
//! Release → Rollout`. Each is written to the [`Build`] before the next step begins, and [`advance`] goes on from
//! whatever value the build holds. So a build can be followed, detached from, adopted after a crash and retried,
//! and there is one way for all of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::build::{BuildLimits, Driver, RecentBases};
use crate::config::address::Addresses;
use crate::git::Repository;
use crate::kubernetes::Leases;
use crate::model::store::{self, Store};
use crate::model::{
    App, AppName, Build, BuildState, Chain, CommitId, ObjectName, Plan, PublishedIndex, PushEvent, Recipe,
    Release, ReleaseNumber, Source,
};
use crate::publish::{Place, Publisher};
use crate::registry::client::Client;
use crate::rollout::Runtime;
use crate::traces::Exporter;

mod again;
mod archive;
mod building;
pub mod change;
pub mod claim;
mod failure;
mod following;
mod hold;
pub mod keeping;
pub mod log;
mod metrics;
mod planning;
mod recovery;
mod rolling;
mod running;
mod sources;
mod trace;
mod unwritten;

pub use archive::{Archive, ArchiveError};
pub use failure::{Ended, Failure};
pub use hold::Hold;
pub use metrics::Metrics;
pub use rolling::{counts, current_version, version};
pub use running::{Attached, Pushes};
pub use sources::{Extent, Sources, SourcesError};

use log::{LogWriter, Logs};
use trace::Trace;

/// What the stages need, made once by the server.
pub struct Stages {
    /// Keeps apps, builds and releases.
    pub store: Arc<dyn Store>,
    /// Builds images.
    pub driver: Arc<dyn Driver>,
    /// Runs apps.
    pub runtime: Arc<dyn Runtime>,
    /// Writes indexes.
    pub publisher: Publisher,
    /// The registry.
    pub place: Place,
    /// Speaks to registries, as a build may.
    pub client: Client,
    /// What of bases was found not long ago.
    pub recent_bases: Arc<RecentBases>,
    /// What was pushed.
    pub sources: Sources,
    /// The builds' logs.
    pub logs: Logs,
    /// Where people reach things.
    pub addresses: Addresses,
    /// What a build may use.
    pub limits: BuildLimits,
    /// What is counted.
    pub metrics: Metrics,
    /// Takes the traces of pushes.
    pub traces: Exporter,
    /// Which server works on which app, where there are several.
    pub leases: Option<Leases>,
    /// Fires when the server is told to stop: nothing new is begun.
    pub stopping: CancellationToken,
}

impl std::fmt::Debug for Stages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stages").field("sources", &self.sources).finish_non_exhaustive()
    }
}

impl Stages {
    /// Where the repository of an app is.
    #[must_use]
    pub fn repository_path(&self, app: &AppName) -> PathBuf {
        self.sources.path(app)
    }

    /// The repository of an app, with everything that its object names: a clone needs that. What is large is fetched.
    pub async fn repository(&self, app: &AppName) -> Result<Repository, SourcesError> {
        self.sources.open(&*self.store, app).await
    }

    /// The same, perhaps in part: what is read of it is to be brought before.
    pub async fn repository_in_part(&self, app: &AppName) -> Result<Repository, SourcesError> {
        self.sources.open_in_part(&*self.store, app).await
    }

    /// The same, of which a commit and its files can be read.
    pub async fn repository_with(&self, app: &AppName, commit: CommitId) -> Result<Repository, SourcesError> {
        let repository = self.repository_in_part(app).await?;
        repository.bring_files(commit).await?;
        Ok(repository)
    }
}

/// Takes a build from the value it holds to a running release, writing each value down on the way.
///
/// # Cancel safety
/// Cancelling `cancel` ends the push until its index is published; after that the release finishes. Dropping the
/// future leaves a build that another call goes on with.
pub async fn advance(
    stages: &Stages,
    build: &Build,
    log: &mut LogWriter,
    cancel: &CancellationToken,
) -> Result<ReleaseNumber, Ended> {
    let trace = Trace::of(stages, build);
    let mut state = build.state.clone();
    loop {
        let (stage, began) = (stage_after(&state), Instant::now());
        let span = trace.stage(stage);
        let reached = next(stages, build, state.clone(), log, cancel).await;
        stages.metrics.stage_took(stage, began.elapsed());
        span.end(&reached);
        match reached? {
            Reached::Value(reached) => {
                write_down(stages, build, (&state, &reached)).await?;
                state = *reached;
            }
            Reached::End(release) => return Ok(release),
        }
    }
}

/// What a stage came to.
enum Reached {
    Value(Box<BuildState>),
    End(ReleaseNumber),
}

/// The one stage that takes a build on from `state`.
async fn next(
    stages: &Stages,
    build: &Build,
    state: BuildState,
    log: &mut LogWriter,
    cancel: &CancellationToken,
) -> Result<Reached, Ended> {
    let value = match state {
        BuildState::Received(source) => BuildState::Detected(detect(stages, source, log).await?),
        BuildState::Detected(recipe) => {
            BuildState::Planned(planning::plan(stages, build, recipe, log, cancel).await?)
        }
        BuildState::Planned(plan) => match again::built_before(stages, build, &plan, log).await? {
            Some(index) => BuildState::Published { plan, index },
            None => {
                let images = building::build(stages, build, &plan, log, cancel).await?;
                BuildState::Built { plan, images }
            }
        },
        BuildState::Built { plan, images } => {
            let index = publish(stages, build, &images, log).await?;
            BuildState::Published { plan, index }
        }
        BuildState::Published { plan, index } => {
            let release = release(stages, build, &plan, index, log).await?;
            BuildState::Released { plan, release: release.number }
        }
        BuildState::Released { release, .. } => {
            let release = crate::release::find(&*stages.store, &build.app, release).await?;
            return rolling::roll_out(stages, build, &release, log).await.map(Reached::End);
        }
    };
    Ok(Reached::Value(Box::new(value)))
}

/// The name of the stage that takes a build on from `state`.
const fn stage_after(state: &BuildState) -> &'static str {
    match state {
        BuildState::Received(_) => "detect",
        BuildState::Detected(_) => "plan",
        BuildState::Planned(_) => "build",
        BuildState::Built { .. } => "publish",
        BuildState::Published { .. } => "release",
        BuildState::Released { .. } => "rollout",
    }
}

/// Writes the value reached over the one before. Where there is another by now, somebody else drives the build.
async fn write_down(
    stages: &Stages,
    build: &Build,
    (before, state): (&BuildState, &BuildState),
) -> Result<(), Ended> {
    let published = matches!(state, BuildState::Published { .. } | BuildState::Released { .. });
    let name = Build::object_name(&build.app, build.number);
    store::modify(&*stages.store, &name, |build: &mut Build| {
        // The same already: the answer to a write that succeeded was lost.
        if build.outcome.is_some() || ![before, state].contains(&&build.state) {
            return Err(Ended::NotOurs);
        }
        if let (Some(cancel), false) = (&build.cancel, published) {
            return Err(Ended::Cancelled(cancel.reason));
        }
        build.state = state.clone();
        Ok(())
    })
    .await?;
    Ok(())
}

async fn detect(stages: &Stages, source: Source, log: &mut LogWriter) -> Result<Recipe, Ended> {
    let repository = stages.repository_with(&source.app, source.commit).await;
    let repository = repository.map_err(|error| Failure::platform("open the repository", &error))?;
    let detected = tokio::task::spawn_blocking(move || {
        let commit = repository
            .commit(source.commit)
            .map_err(|error| Failure::platform("read the pushed commit", &error))?;
        let survey = commit.survey().map_err(|error| Failure::platform("read the pushed files", &error))?;
        crate::detect::detect(&CommitTree(&commit), &survey.submodules, &survey.lfs_pointers, source)
            .map_err(|refusal| Failure::app(refusal.reason(), refusal.details()))
    })
    .await;
    let recipe = match detected {
        Ok(recipe) => recipe?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    tell(log, PushEvent::Heading(recipe.reason.clone())).await;
    Ok(recipe)
}

/// A commit as the files that detection reads.
struct CommitTree<'a>(&'a crate::git::Commit);

impl crate::detect::SourceTree for CommitTree<'_> {
    fn root(&self) -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
        let name = |entry: crate::git::Entry| {
            let directory = matches!(entry.kind, crate::git::EntryKind::Directory);
            format!("{}{}", entry.name.to_string_lossy(), if directory { "/" } else { "" })
        };
        Ok(self.0.root()?.into_iter().map(name).collect())
    }

    fn read(
        &self,
        path: &str,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read(path, max_bytes)?)
    }
}

async fn publish(
    stages: &Stages,
    build: &Build,
    images: &[crate::model::PlatformImage],
    log: &mut LogWriter,
) -> Result<PublishedIndex, Ended> {
    let started = Instant::now();
    let index =
        stages.publisher.publish(&build.app, images).await.map_err(|error| publish_failure(&error))?;
    let platforms = counted(index.images.len() as u64, "platform");
    let layers = counted(u64::from(index.new_layers()), "new layer");
    let (repository, digest) = (&index.repository, index.digest.short());
    let registry = stages.addresses.registry();
    let text = format!(
        "Published {registry}/{repository}@sha256:{digest}… ({platforms}, {}, {layers}) in {}",
        megabytes(index.size_bytes()),
        seconds(started.elapsed())
    );
    tell(log, PushEvent::Heading(text)).await;
    Ok(index)
}

fn publish_failure(error: &crate::publish::PublishError) -> Failure {
    if error.is_app() {
        Failure::app(format!("publish failed: {error}"), Vec::new())
    } else {
        Failure::platform("publish the image index", error)
    }
}

async fn release(
    stages: &Stages,
    build: &Build,
    plan: &Plan,
    index: PublishedIndex,
    log: &mut LogWriter,
) -> Result<Release, Ended> {
    let ingredients = crate::release::Ingredients {
        build: build.number,
        commit: build.commit,
        index,
        processes: crate::release::processes(&plan.recipe.processes),
        ready_timeout_seconds: plan.recipe.ready_timeout_seconds,
        config: crate::release::next_config(&*stages.store, &build.app).await?,
        by: build.by.clone(),
        summary: format!("{} deployed {}", build.by, build.commit.short()),
    };
    let release = crate::release::release(&*stages.store, &build.app, ingredients).await?;
    tag(stages, &release).await?;
    tell(log, PushEvent::Heading(format!("Released {}", release.number))).await;
    Ok(release)
}

/// Names the index in the registry: `v4` and the commit, `latest` last.
pub(crate) async fn tag(stages: &Stages, release: &Release) -> Result<(), Failure> {
    let tags = crate::publish::release_tags(release.number, Some(release.commit));
    stages
        .publisher
        .tag(&release.index, &tags)
        .await
        .map_err(|error| Failure::platform("tag the image index", &error))
}

/// The release that serves, if there is one.
pub async fn current_release(stages: &Stages, app: &AppName) -> Result<Option<Release>, store::StoreError> {
    let read = store::load::<App>(&*stages.store, &ObjectName::of(app)).await?;
    match read.and_then(|app| app.object.current) {
        Some(number) => crate::release::find(&*stages.store, app, number).await.map(Some),
        None => Ok(None),
    }
}

/// Writes an event to the log. A log that cannot be written stops no push; the operator is told.
pub(crate) async fn tell(log: &mut LogWriter, event: PushEvent) {
    if let Err(error) = log.write(event).await {
        tracing::error!(error = %Chain(&error), "a build's log cannot be written");
    }
}

fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn megabytes(bytes: u64) -> String {
    match bytes {
        0..100_000 => format!("{} kB", bytes.div_ceil(1000)),
        100_000..10_000_000 => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}
