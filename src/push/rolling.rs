//! Release → Rollout, and the commit point: one compare-and-swap of the App.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;

use super::log::LogWriter;
use super::{Ended, Failure, Stages, tell};
use crate::model::store::{self, Store, StoreError};
use crate::model::{
    App, AppName, Build, Chain, Claim, Fault, ObjectName, ProcessType, PushEvent, Release, ReleaseNumber,
    ReleaseState,
};
use crate::rollout::{RuntimeError, Version, rollout};

/// How many instances of a process type run: what was asked for, else one `web` and no other.
fn count(scale: &BTreeMap<ProcessType, u32>, process_type: &ProcessType) -> u32 {
    let default = u32::from(*process_type == ProcessType::web());
    scale.get(process_type).copied().unwrap_or(default)
}

/// How many instances of each of a release's process types run.
pub fn counts(release: &Release, scale: &BTreeMap<ProcessType, u32>) -> BTreeMap<ProcessType, u32> {
    release.processes.keys().map(|name| (name.clone(), count(scale, name))).collect()
}

/// What a release is to the runtime: its variables, and how many of each process run.
pub async fn version(
    store: &dyn Store,
    release: Release,
    scale: &BTreeMap<ProcessType, u32>,
) -> Result<Version, StoreError> {
    let config = crate::release::config_of(store, &release).await?;
    let counts = counts(&release, scale);
    let ready_timeout = release.ready_timeout_seconds.map(Duration::from_secs);
    Ok(Version { variables: config.variables, scale: counts, ready_timeout, release })
}

/// The version that serves an app, if one does.
pub async fn current_version(store: &dyn Store, app: &App) -> Result<Option<Version>, StoreError> {
    match app.current {
        Some(number) => {
            let release = crate::release::find(store, &app.name, number).await?;
            version(store, release, &app.scale).await.map(Some)
        }
        None => Ok(None),
    }
}

/// Rolls a build's release out and commits it; on failure the previous release serves on.
pub(super) async fn roll_out(
    stages: &Stages,
    build: &Build,
    release: &Release,
    log: &mut LogWriter,
) -> Result<ReleaseNumber, Ended> {
    let (lines, mut received) = mpsc::unbounded_channel();
    let rolled = roll((stages, Claim::Build(build.number)), release, lines, |app| {
        app.move_refs(&build.moves).map_err(|name| {
            let reason = format!("{} was moved by another push", name.short());
            Failure::app(reason, vec!["fetch, then push again".to_owned()])
        })
    });
    let forward = async {
        while let Some(event) = received.recv().await {
            tell(log, event).await;
        }
    };
    let (rolled, ()) = futures::future::join(rolled, forward).await;
    rolled?;
    let url = stages.addresses.app_url(&build.app);
    tell(log, PushEvent::Heading(url)).await;
    Ok(release.number)
}

/// Starts a release, commits it together with what `also` changes in the App, and stops the one before. Only while the App is
/// claimed for `claim`.
///
/// `also` may run more than once. The order makes a crash anywhere harmless: before the swap the previous release
/// is the current one and is restored, after it the new one is.
pub(super) async fn roll(
    (stages, claim): (&Stages, Claim),
    release: &Release,
    lines: mpsc::UnboundedSender<PushEvent>,
    also: impl Fn(&mut App) -> Result<(), Failure> + Send + Sync,
) -> Result<(), Ended> {
    let app = store::require::<App>(&*stages.store, &ObjectName::of(&release.app)).await?.object;
    let live = || ReleaseState::Live { at: jiff::Timestamp::now() };
    if app.current == Some(release.number) {
        // Committed by a server that ended before it had said so.
        if release.state == ReleaseState::Pending {
            crate::release::conclude(&*stages.store, &release.app, release.number, live()).await?;
        }
        return Ok(());
    }
    let version = version(&*stages.store, release.clone(), &app.scale).await?;
    let previous = current_version(&*stages.store, &app).await?;
    let started = rollout(&*stages.runtime, previous.as_ref(), &version, &lines).await;
    let rollout = match started {
        Ok(rollout) => rollout,
        Err(error) => {
            let failure = failure(&error);
            fail(stages, release, &failure).await?;
            return Err(failure.into());
        }
    };
    match commit((stages, claim), &release.app, release.number, also).await {
        Ok(()) => {}
        Err(Ended::Failed(failure)) => {
            if let Err(error) = rollout.undo().await {
                tracing::error!(app = %release.app, error = %Chain(&error), "the previous release cannot be restored");
            }
            fail(stages, release, &failure).await?;
            return Err(failure.into());
        }
        Err(other) => return Err(other),
    }
    crate::release::conclude(&*stages.store, &release.app, release.number, live()).await?;
    if let Err(error) = rollout.finish().await {
        // The new version serves: what is left of the old one is stopped at the next start.
        tracing::error!(app = %release.app, error = %Chain(&error), "the previous release cannot be stopped");
    }
    suggest_scale(stages, release, &app, &lines);
    Ok(())
}

async fn fail(stages: &Stages, release: &Release, failure: &Failure) -> Result<(), StoreError> {
    let state = ReleaseState::Failed { reason: failure.reason.clone() };
    crate::release::conclude(&*stages.store, &release.app, release.number, state).await
}

fn failure(error: &RuntimeError) -> Failure {
    match error.fault() {
        Fault::App => Failure::app(format!("rollout failed: {error}"), error.details()),
        Fault::Platform => Failure::platform("start the new version", error),
    }
}

/// Makes the current release run with these counts.
pub(super) async fn scale(
    stages: &Stages,
    version: &Version,
    lines: mpsc::UnboundedSender<PushEvent>,
) -> Result<(), Failure> {
    let (events, mut received) = mpsc::unbounded_channel::<crate::rollout::RuntimeEvent>();
    let forward = async {
        while let Some(event) = received.recv().await {
            drop(lines.send(PushEvent::Line(event.to_string())));
        }
    };
    let scaled = async {
        let scaled = stages.runtime.scale(version, &events).await;
        drop(events);
        scaled
    };
    let (scaled, ()) = futures::future::join(scaled, forward).await;
    scaled.map_err(|error| failure(&error))
}

/// The commit point: the refs and the current release move together, only forward, and only by who has the App.
async fn commit(
    (stages, claim): (&Stages, Claim),
    app: &AppName,
    number: ReleaseNumber,
    also: impl Fn(&mut App) -> Result<(), Failure> + Send + Sync,
) -> Result<(), Ended> {
    enum Refused {
        Store(StoreError),
        Said(Ended),
    }
    impl From<StoreError> for Refused {
        fn from(error: StoreError) -> Self {
            Self::Store(error)
        }
    }
    let name = ObjectName::of(app);
    let committed = store::modify(&*stages.store, &name, |app: &mut App| {
        if app.current == Some(number) {
            return Ok(());
        }
        if app.holder.as_ref().map(|holder| holder.claim) != Some(claim) {
            return Err(Refused::Said(Ended::NotOurs));
        }
        if app.current.is_some_and(|current| current > number) {
            let reason = format!("a newer release than {number} serves already");
            return Err(Refused::Said(Failure::app(reason, Vec::new()).into()));
        }
        also(app).map_err(|failure| Refused::Said(failure.into()))?;
        app.current = Some(number);
        Ok(())
    });
    match committed.await {
        Ok(_) => Ok(()),
        Err(Refused::Said(ended)) => Err(ended),
        Err(Refused::Store(error)) => Err(Failure::platform("commit the release", &error).into()),
    }
}

/// Names the process types that do not run, once, when they are new.
fn suggest_scale(stages: &Stages, release: &Release, app: &App, lines: &mpsc::UnboundedSender<PushEvent>) {
    let idle: Vec<_> =
        release.processes.keys().filter(|process_type| count(&app.scale, process_type) == 0).collect();
    let (Some(first), true) = (idle.first(), app.current.is_none()) else { return };
    let names = idle.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let verb = stages.addresses.verb(&format!("ps scale {first}=1 -a {}", release.app));
    for text in [format!("{names} not running; to start one:"), verb] {
        // A pusher who is gone needs no suggestion.
        drop(lines.send(PushEvent::Line(text)));
    }
}
