//! PublishedIndex → Release: an index, a config and process types under one number, immutable.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::model::store::{self, Store, StoreError};
use crate::model::{
    App, AppName, BuildNumber, CommitId, Config, FORMAT, ObjectName, ProcessType, PublishedIndex, Release,
    ReleaseNumber, ReleaseState, UserName,
};

/// What a new release is made of.
#[derive(Debug, Clone)]
pub struct Ingredients {
    /// The build that the index came from.
    pub build: BuildNumber,
    /// The commit that was built.
    pub commit: CommitId,
    /// The published index.
    pub index: PublishedIndex,
    /// Process type to command; `None` runs the image's own.
    pub processes: BTreeMap<ProcessType, Option<String>>,
    /// How long it may take to become ready, in seconds, where the app says.
    pub ready_timeout_seconds: Option<u64>,
    /// What it runs with.
    pub config: Config,
    /// Who makes it.
    pub by: UserName,
    /// What changed, for people.
    pub summary: String,
}

impl Ingredients {
    /// The same image and config as `release` had, to be changed.
    #[must_use]
    pub fn of(release: &Release, config: Config, by: &UserName, summary: String) -> Self {
        Self {
            build: release.build,
            commit: release.commit,
            index: release.index.clone(),
            processes: release.processes.clone(),
            ready_timeout_seconds: release.ready_timeout_seconds,
            config,
            by: by.clone(),
            summary,
        }
    }
}

/// The process types of an app: those of its `Procfile`, else one `web` that runs the image's own command.
#[must_use]
pub fn processes(procfile: &BTreeMap<ProcessType, String>) -> BTreeMap<ProcessType, Option<String>> {
    if procfile.is_empty() {
        return BTreeMap::from([(ProcessType::web(), None)]);
    }
    procfile.iter().map(|(process_type, command)| (process_type.clone(), Some(command.clone()))).collect()
}

/// The app's variables to release next; none where nothing was ever set.
pub async fn next_config(store: &dyn Store, app: &AppName) -> Result<Config, StoreError> {
    let config = store::load::<Config>(store, &Config::next_name(app)).await?;
    let none = || Config { format: FORMAT, app: app.clone(), release: None, variables: BTreeMap::new() };
    Ok(config.map_or_else(none, |config| config.object))
}

/// The variables of a release.
pub async fn config_of(store: &dyn Store, release: &Release) -> Result<Config, StoreError> {
    let name = Config::release_name(&release.app, release.number);
    Ok(store::require::<Config>(store, &name).await?.object)
}

/// Makes the release under the app's next number.
///
/// # Guarantees
/// A number is used once. After a crash in here there may be a number without a release, never half a release: its
/// variables are written first, and a release that was made for the same build and never tried is found again.
pub async fn release(
    store: &dyn Store,
    app: &AppName,
    ingredients: Ingredients,
) -> Result<Release, StoreError> {
    if let Some(made) = untried(store, app, &ingredients).await? {
        return Ok(made);
    }
    let (_, number) =
        store::modify(store, &ObjectName::of(app), |app: &mut App| Ok::<_, StoreError>(app.next_release()))
            .await?;
    let config = Config { release: Some(number), ..ingredients.config };
    store::create(store, config).await?;
    let release = Release {
        format: FORMAT,
        app: app.clone(),
        number,
        created_at: Timestamp::now(),
        by: ingredients.by,
        summary: ingredients.summary,
        build: ingredients.build,
        commit: ingredients.commit,
        index: ingredients.index,
        processes: ingredients.processes,
        ready_timeout_seconds: ingredients.ready_timeout_seconds,
        state: ReleaseState::Pending,
    };
    Ok(store::create(store, release).await?.object)
}

async fn untried(
    store: &dyn Store,
    app: &AppName,
    ingredients: &Ingredients,
) -> Result<Option<Release>, StoreError> {
    let releases = store::list::<Release>(store, &format!("{app}--")).await?;
    let last = releases.into_iter().max_by_key(|release| release.number);
    Ok(last.filter(|last| {
        last.state == ReleaseState::Pending
            && last.build == ingredients.build
            && last.index == ingredients.index
            && last.summary == ingredients.summary
    }))
}

/// Writes how the release went.
pub async fn conclude(
    store: &dyn Store,
    app: &AppName,
    number: ReleaseNumber,
    state: ReleaseState,
) -> Result<(), StoreError> {
    let name = Release::object_name(app, number);
    store::modify(store, &name, |release: &mut Release| {
        release.state = state.clone();
        Ok::<_, StoreError>(())
    })
    .await?;
    Ok(())
}

/// A release that must be there.
pub async fn find(store: &dyn Store, app: &AppName, number: ReleaseNumber) -> Result<Release, StoreError> {
    Ok(store::require::<Release>(store, &Release::object_name(app, number)).await?.object)
}
