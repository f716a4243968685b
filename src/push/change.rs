//! Changes without a build: config, scale, rollback. They take the same way from Release to Rollout as a push.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::claim::{self, ClaimError};
use super::{Ended, Failure, Stages, rolling};
use crate::model::store::{self, StoreError};
use crate::model::{
    App, AppName, Claim, Config, EnvName, FORMAT, ObjectName, ProcessType, PushEvent, Release, ReleaseNumber,
    Secret, UserName,
};
use crate::release::Ingredients;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Somebody works on the app.
    #[error("the app is busy")]
    Busy(Box<crate::model::Holder>),
    /// It would change nothing.
    #[error("{0}")]
    Nothing(String),
    /// The new release does not run.
    #[error("{}", .0.reason)]
    Failed(Failure),
    /// Nothing may be begun on the app now.
    #[error(transparent)]
    Claim(ClaimError),
    /// Another server has taken the work over.
    #[error("this server was cut off from the cluster, and another puts the app right: look with `ps`")]
    Lost,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ClaimError> for ChangeError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Busy(holder) => Self::Busy(holder),
            ClaimError::Store(error) => Self::Store(error),
            other => Self::Claim(other),
        }
    }
}

/// What becomes of variables: a value, or gone.
pub type VariableChanges = BTreeMap<EnvName, Option<Secret<String>>>;

/// Changes the variables and, where the app runs, releases it with them. `None`: nothing runs yet.
pub async fn config(
    stages: &Stages,
    app: &AppName,
    by: &UserName,
    changes: VariableChanges,
    lines: mpsc::UnboundedSender<PushEvent>,
) -> Result<Option<ReleaseNumber>, ChangeError> {
    held(stages, app, by, |claim| async move {
        let before = crate::release::next_config(&*stages.store, app).await?;
        let mut after = before.clone();
        for (name, value) in &changes {
            match value {
                Some(value) => after.variables.insert(name.clone(), value.clone()),
                None => after.variables.remove(name),
            };
        }
        if before == after {
            return Err(ChangeError::Nothing("the variables are as you want them already".to_owned()));
        }
        write_config(stages, after.clone()).await?;
        let Some(current) = super::current_release(stages, app).await? else { return Ok(None) };
        let summary = summary(by, &changes);
        let released = release((stages, claim), &current, after, by, summary, lines).await;
        if released.is_err() {
            // What does not run is not what the next push is released with.
            write_config(stages, before).await?;
        }
        released.map(Some)
    })
    .await
}

fn summary(by: &UserName, changes: &VariableChanges) -> String {
    let names = |set: bool| {
        let names = changes.iter().filter(move |(_, value)| value.is_some() == set);
        names.map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(", ")
    };
    match (names(true), names(false)) {
        (set, unset) if unset.is_empty() => format!("{by} set {set}"),
        (set, unset) if set.is_empty() => format!("{by} unset {unset}"),
        (set, unset) => format!("{by} set {set}, unset {unset}"),
    }
}

/// Makes a new release of what `number` was, its config included.
pub async fn rollback(
    stages: &Stages,
    app: &AppName,
    by: &UserName,
    number: ReleaseNumber,
    lines: mpsc::UnboundedSender<PushEvent>,
) -> Result<ReleaseNumber, ChangeError> {
    held(stages, app, by, |claim| async move {
        let older = crate::release::find(&*stages.store, app, number).await?;
        let config = crate::release::config_of(&*stages.store, &older).await?;
        let next = Config { release: None, ..config.clone() };
        let summary = format!("{by} rolled back to {number}");
        let released = release((stages, claim), &older, config, by, summary, lines).await?;
        write_config(stages, next).await?;
        Ok(released)
    })
    .await
}

/// Sets how many instances of each type run.
pub async fn scale(
    stages: &Stages,
    app: &AppName,
    by: &UserName,
    counts: &BTreeMap<ProcessType, u32>,
    lines: mpsc::UnboundedSender<PushEvent>,
) -> Result<(), ChangeError> {
    held(stages, app, by, |_| async {
        let current = super::current_release(stages, app).await?;
        if let Some(release) = &current {
            let unknown = counts.keys().find(|process_type| !release.processes.contains_key(process_type));
            if let Some(unknown) = unknown {
                let known = release.processes.keys().map(ProcessType::as_str).collect::<Vec<_>>().join(", ");
                return Err(ChangeError::Nothing(format!(
                    "{app} has no process type `{unknown}`; it has {known}"
                )));
            }
        }
        let name = ObjectName::of(app);
        let mut scale = store::require::<App>(&*stages.store, &name).await?.object.scale;
        scale.extend(counts.clone());
        if let Some(release) = current {
            let version = rolling::version(&*stages.store, release, &scale).await?;
            rolling::scale(stages, &version, lines).await.map_err(ChangeError::Failed)?;
        }
        store::modify(&*stages.store, &name, |app: &mut App| {
            app.scale.clone_from(&scale);
            Ok::<_, StoreError>(())
        })
        .await?;
        Ok(())
    })
    .await
}

async fn write_config(stages: &Stages, config: Config) -> Result<(), StoreError> {
    let name = Config::next_name(&config.app);
    let config = Config { format: FORMAT, release: None, ..config };
    match store::load::<Config>(&*stages.store, &name).await? {
        None => drop(store::create(&*stages.store, config).await?),
        Some(mut read) => {
            read.object = config;
            drop(store::replace(&*stages.store, read).await?);
        }
    }
    Ok(())
}

async fn release(
    (stages, claim): (&Stages, Claim),
    of: &Release,
    config: Config,
    by: &UserName,
    summary: String,
    lines: mpsc::UnboundedSender<PushEvent>,
) -> Result<ReleaseNumber, ChangeError> {
    let ingredients = Ingredients::of(of, config, by, summary);
    let release = crate::release::release(&*stages.store, &of.app, ingredients).await?;
    super::tag(stages, &release).await.map_err(ChangeError::Failed)?;
    match rolling::roll((stages, claim), &release, lines, |_| Ok(())).await {
        Ok(()) => Ok(release.number),
        Err(Ended::Failed(failure)) => Err(ChangeError::Failed(failure)),
        Err(Ended::Cancelled(reason)) => Err(ChangeError::Nothing(reason.sentence().to_owned())),
        Err(Ended::NotOurs) => Err(ChangeError::Lost),
    }
}

/// Runs `work` while the app is held; frees it whatever comes of it.
async fn held<T, F: Future<Output = Result<T, ChangeError>> + Send>(
    stages: &Stages,
    app: &AppName,
    by: &UserName,
    work: impl FnOnce(Claim) -> F + Send,
) -> Result<T, ChangeError> {
    let (claimed, hold) = claim::claim_change(stages, app, by).await?;
    let lost = async {
        hold.lost().await;
        // What was begun is another's to take back.
        stages.runtime.leave(app);
    };
    let result = tokio::select! {
        result = work(claimed) => result,
        // Who has the right now frees the app.
        () = lost => return Err(ChangeError::Lost),
    };
    let freed = claim::free(&*stages.store, app, claimed).await;
    hold.release().await;
    freed?;
    result
}
