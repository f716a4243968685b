//! Starting, switching, scaling and stopping an app's versions.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::deployment::Recipe;
use super::objects::failed;
use super::state::{self, Over, State, release_of, type_of};
use super::work::{self, Work, acting};
use super::{Shared, expose, names, ready};
use crate::kubernetes::Label;
use crate::model::{AppName, ProcessType, ReleaseNumber};
use crate::rollout::{EventSink, RuntimeError, Version};

/// How often an object is read and written again that somebody changed in between.
const CONFLICTS: u32 = 10;
const INTERVAL: Duration = Duration::from_millis(300);
/// How often is looked whether another server is still at work.
const REST_INTERVAL: Duration = Duration::from_secs(1);
/// How much longer than their own grace pods may take to be gone.
const SLACK: Duration = Duration::from_secs(30);

pub(super) async fn start(
    shared: &Arc<Shared>,
    version: &Version,
    events: &EventSink,
) -> Result<(), RuntimeError> {
    let (shared, version, events) = (Arc::clone(shared), version.clone(), events.clone());
    acting(&Arc::clone(&shared), &version.release.app.clone(), |cancel| async move {
        let (app, release) = (&version.release.app, version.release.number);
        let _turn = shared.turn(app).await;
        let before = State::read(&shared, app).await?;
        newer(&version, before.current())?;
        let images = shared.images(&version).await?;
        let recipe = Recipe::new(&shared.config, shared.abilities, &version, &images)?;
        let saying = work::say(&shared, app);
        let work = async {
            prepare(&shared, &version, &before).await?;
            state::put(&shared, &recipe, &version, release).await?;
            ready::wait(&shared, &recipe, &version, &events).await
        };
        let failed = match cancel.run_until_cancelled(work).await {
            Some(Ok(())) => {
                info!(%app, %release, "a version is ready");
                return Ok(());
            }
            Some(Err(stale @ RuntimeError::Stale { .. })) => return Err(stale),
            Some(Err(failed)) => failed,
            None => RuntimeError::Cancelled { app: app.clone(), release },
        };
        let restored = state::restore(&shared, &recipe, &version, &before).await;
        let restored = match restored {
            // What was there before may be the same release: one whose server died. It goes with an undo.
            Ok(()) if !before.has(release) => gone(&shared, app, Some(release)).await,
            restored => restored,
        };
        drop(saying);
        work::done(&shared, app).await;
        if let Err(error) = restored {
            error!(%app, %release, error = &error as &dyn std::error::Error, "a version that failed cannot be taken back");
        }
        Err(failed)
    })
    .await
}

pub(super) async fn switch(shared: &Arc<Shared>, version: &Version) -> Result<(), RuntimeError> {
    let (shared, version) = (Arc::clone(shared), version.clone());
    acting(&Arc::clone(&shared), &version.release.app.clone(), |_| async move {
        let (app, release) = (&version.release.app, version.release.number);
        let _turn = shared.turn(app).await;
        make_current(&shared, &version, |there| {
            newer(&version, there.current())?;
            let is_there = |name: &ProcessType| {
                let found = there.deployment(name);
                found.and_then(|found| release_of(&found.metadata)) == Some(release)
            };
            if version.release.processes.keys().all(is_there) {
                Ok(())
            } else {
                Err(RuntimeError::NotStarted { app: app.clone(), release })
            }
        })
        .await?;
        info!(%app, %release, "a new version is current");
        Ok(())
    })
    .await
}

pub(super) async fn retire(
    shared: &Arc<Shared>,
    app: &AppName,
    keep: ReleaseNumber,
) -> Result<(), RuntimeError> {
    let (shared, app) = (Arc::clone(shared), app.clone());
    acting(&Arc::clone(&shared), &app.clone(), |_| async move {
        let _turn = shared.turn(&app).await;
        for deployment in &State::read(&shared, &app).await?.deployments {
            let is_old = release_of(&deployment.metadata).is_none_or(|release| release < keep);
            if let (true, Some(process_type)) = (is_old, type_of(&deployment.metadata)) {
                state::remove_deployment(&shared, &app, &process_type).await?;
            }
        }
        state::remove_environments(&shared, &app, |release| release < keep).await?;
        work::done(&shared, &app).await;
        Ok(())
    })
    .await
}

pub(super) async fn undo(
    shared: &Arc<Shared>,
    failed: &Version,
    previous: Option<&Version>,
) -> Result<(), RuntimeError> {
    let (shared, failed, previous) = (Arc::clone(shared), failed.clone(), previous.cloned());
    acting(&Arc::clone(&shared), &failed.release.app.clone(), |_| async move {
        let (app, release) = (&failed.release.app, failed.release.number);
        let _turn = shared.turn(app).await;
        let there = State::read(&shared, app).await?;
        if let Some(current) = there.current().max(there.newest()).filter(|current| *current > release) {
            return Err(RuntimeError::Stale { app: app.clone(), release, current });
        }
        if there.is_untouched(previous.as_ref()) {
            // Its start failed, and that was taken back.
            return Ok(());
        }
        let Some(previous) = previous else {
            state::remove_all(&shared, app).await?;
            return gone(&shared, app, None).await;
        };
        let images = shared.images(&previous).await?;
        let recipe = Recipe::new(&shared.config, shared.abilities, &previous, &images)?;
        let saying = work::say(&shared, app);
        state::put(&shared, &recipe, &previous, release).await?;
        remove_other_types(&shared, &previous, &there).await?;
        make_current(&shared, &previous, |_| Ok(())).await?;
        // Nobody listens: the pusher reads of the failure, not of the way back.
        ready::wait(&shared, &recipe, &previous, &mpsc::unbounded_channel().0).await?;
        state::remove_environments(&shared, app, |number| number == release).await?;
        drop(saying);
        work::done(&shared, app).await;
        warn!(%app, %release, back = %previous.release.number, "a version was taken back");
        Ok(())
    })
    .await
}

pub(super) async fn scale(
    shared: &Arc<Shared>,
    version: &Version,
    events: &EventSink,
) -> Result<(), RuntimeError> {
    let (shared, version, events) = (Arc::clone(shared), version.clone(), events.clone());
    acting(&Arc::clone(&shared), &version.release.app.clone(), |cancel| async move {
        let (app, release) = (&version.release.app, version.release.number);
        let _turn = shared.turn(app).await;
        let before = at_rest(&shared, app).await?;
        current_is(&version, &before)?;
        let images = shared.images(&version).await?;
        let recipe = Recipe::new(&shared.config, shared.abilities, &version, &images)?;
        let saying = work::say(&shared, app);
        let work = async {
            prepare(&shared, &version, &before).await?;
            set_counts(&shared, &recipe, &version).await?;
            ready::wait(&shared, &recipe, &version, &events).await
        };
        let failed = match cancel.run_until_cancelled(work).await {
            Some(Ok(())) => None,
            Some(Err(failed)) => Some(failed),
            None => Some(RuntimeError::Cancelled { app: app.clone(), release }),
        };
        let done = match failed {
            Some(failed) => {
                if let Err(error) = reset_counts(&shared, &recipe, &version, &before).await {
                    error!(%app, %release, error = &error as &dyn std::error::Error, "what ran before cannot be given its count back");
                }
                Err(failed)
            }
            None => finish_scale(&shared, &version, &before).await,
        };
        drop(saying);
        work::done(&shared, app).await;
        done
    })
    .await
}

/// What there is of an app once no other server says that it is at work on it. Whoever calls has the app by now, so the
/// other has ended, and is believed no longer in a moment.
async fn at_rest(shared: &Shared, app: &AppName) -> Result<State, RuntimeError> {
    loop {
        let there = State::read(shared, app).await?;
        if there.work(&shared.config.identity) != Work::Anothers {
            return Ok(there);
        }
        sleep(REST_INTERVAL).await;
    }
}

async fn finish_scale(shared: &Shared, version: &Version, before: &State) -> Result<(), RuntimeError> {
    remove_other_types(shared, version, before).await?;
    make_current(shared, version, |there| current_is(version, there)).await
}

pub(super) async fn stop(shared: &Arc<Shared>, app: &AppName) -> Result<(), RuntimeError> {
    let (shared, app) = (Arc::clone(shared), app.clone());
    acting(&Arc::clone(&shared), &app.clone(), |_| async move {
        let _turn = shared.turn(&app).await;
        remove(&shared, &app).await
    })
    .await
}

/// Deletes everything of the app, whose turn it is, and waits until its pods are gone.
pub(super) async fn remove(shared: &Shared, app: &AppName) -> Result<(), RuntimeError> {
    state::remove_all(shared, app).await?;
    let pods = shared.objects.list::<Pod>(&names::selector(Some(app))).await;
    let once = ProcessType::run();
    for pod in pods.map_err(failed("list the pods", app))? {
        if let (Some(name), true) = (&pod.metadata.name, type_of(&pod.metadata).as_ref() == Some(&once)) {
            let deleted = shared.objects.delete::<Pod>(name, &DeleteParams::default()).await;
            deleted.map_err(failed(format!("delete the pod {name}"), app))?;
        }
    }
    gone(shared, app, None).await?;
    info!(%app, "an app was stopped");
    Ok(())
}

/// Refuses a version that is not above the current one.
fn newer(version: &Version, current: Option<ReleaseNumber>) -> Result<(), RuntimeError> {
    let (app, release) = (version.release.app.clone(), version.release.number);
    match current {
        Some(current) if release <= current => Err(RuntimeError::Stale { app, release, current }),
        _ => Ok(()),
    }
}

/// Refuses a version where another is current.
fn current_is(version: &Version, there: &State) -> Result<(), RuntimeError> {
    let (app, release) = (version.release.app.clone(), version.release.number);
    match there.current() {
        Some(current) if release != current => Err(RuntimeError::Stale { app, release, current }),
        _ => Ok(()),
    }
}

/// Makes the way to an app that has none.
async fn prepare(shared: &Shared, version: &Version, before: &State) -> Result<(), RuntimeError> {
    if before.service.is_some() {
        return Ok(());
    }
    let prepared = expose::prepare(shared, version).await;
    prepared.map_err(state::refused("apply the Service", &version.release.app, &ProcessType::web()))
}

/// Records that `version` is current, if `allows` says so of what is there.
async fn make_current(
    shared: &Shared,
    version: &Version,
    allows: impl Fn(&State) -> Result<(), RuntimeError>,
) -> Result<(), RuntimeError> {
    let app = &version.release.app;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let there = State::read(shared, app).await?;
        allows(&there)?;
        match expose::make_current(shared, version, there.service.as_ref()).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_conflict() && attempt < CONFLICTS => {}
            Err(error) => {
                return Err(state::refused("send requests to a version", app, &ProcessType::web())(error));
            }
        }
    }
}

/// Sets how many instances run, and brings back what is missing or of another release.
async fn set_counts(shared: &Shared, recipe: &Recipe<'_>, version: &Version) -> Result<(), RuntimeError> {
    let (app, release) = (&version.release.app, version.release.number);
    // A higher release is one that was never committed: no other server is at work on it.
    let ceiling = ReleaseNumber(u64::MAX);
    state::put_environment(shared, recipe, app).await?;
    for (process_type, count) in version.wanted() {
        if !state::put_count(shared, (app, process_type), release, count).await? {
            state::put_deployment(shared, (app, process_type), Over::UpTo(ceiling), |resource_version| {
                recipe.deployment(process_type, count, resource_version)
            })
            .await?;
        }
        state::put_budget(shared, recipe, (app, process_type), count).await?;
    }
    Ok(())
}

/// Gives what ran before its count back; what did not run is left to the cluster, which goes on trying.
async fn reset_counts(
    shared: &Shared,
    recipe: &Recipe<'_>,
    version: &Version,
    before: &State,
) -> Result<(), RuntimeError> {
    let (app, release) = (&version.release.app, version.release.number);
    for process_type in version.release.processes.keys() {
        let Some(there) = before.deployment(process_type).filter(|there| is_of(there, release)) else {
            continue;
        };
        let count = there.spec.replicas;
        let count = count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
        if state::put_count(shared, (app, process_type), release, count).await? {
            state::put_budget(shared, recipe, (app, process_type), count).await?;
        }
    }
    Ok(())
}

fn is_of(deployment: &Deployment, release: ReleaseNumber) -> bool {
    release_of(&deployment.metadata) == Some(release)
}

/// Deletes the Deployments of process types that `version` does not have.
async fn remove_other_types(shared: &Shared, version: &Version, before: &State) -> Result<(), RuntimeError> {
    for deployment in &before.deployments {
        if let Some(process_type) = type_of(&deployment.metadata)
            && !version.release.processes.contains_key(&process_type)
        {
            state::remove_deployment(shared, &version.release.app, &process_type).await?;
        }
    }
    Ok(())
}

/// Waits until the app has no pod, or none of `release` that is not being stopped; not for ever.
async fn gone(shared: &Shared, app: &AppName, release: Option<ReleaseNumber>) -> Result<(), RuntimeError> {
    let policy = &shared.config.policy;
    let deadline = Instant::now() + policy.stop_grace + policy.drain + SLACK;
    let mut selector = names::selector(Some(app));
    if let Some(release) = release {
        selector = format!("{selector},{}", Label::Release.is(&release.to_string()));
    }
    let once = ProcessType::run();
    loop {
        let pods = match shared.objects.list::<Pod>(&selector).await {
            // No news.
            Err(error) if error.is_passing() && Instant::now() < deadline => {
                sleep(INTERVAL).await;
                continue;
            }
            pods => pods.map_err(failed("list the pods", app))?,
        };
        let counts = |pod: &&Pod| {
            release.is_none()
                || pod.metadata.deletion_timestamp.is_none() && type_of(&pod.metadata).as_ref() != Some(&once)
        };
        let left = pods.iter().filter(counts).count();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            warn!(%app, left, "pods that were to stop are still there");
            return Ok(());
        }
        sleep(INTERVAL).await;
    }
}
