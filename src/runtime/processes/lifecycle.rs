//! Starting, switching, scaling and stopping an app's versions.
//!
//! What takes the right to act on an app does its work in a task of its own: dropped by its caller it cancels, and
//! gives the right back only when everything is as it was.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;
use tracing::{info, warn};

use super::directory::{Found, Id};
use super::instance::end_all;
use super::{App, Shared, launch};
use crate::model::{AppName, ProcessType, ReleaseNumber};
use crate::rollout::{EventSink, InstanceName, RuntimeError, Version};
use crate::router::{Backend, Retired};
use crate::runtime::task::in_task;

pub(super) async fn start(
    shared: &Arc<Shared>,
    version: &Version,
    events: &EventSink,
) -> Result<(), RuntimeError> {
    let (shared, version, events) = (Arc::clone(shared), version.clone(), events.clone());
    in_task(&version.release.app.clone(), |cancel| async move {
        let (name, release) = (&version.release.app, version.release.number);
        let app = shared.lock(name).await;
        newer(&version, app.current)?;
        launch::launch_all(&shared, &version, &ids(&version), &events, &cancel).await?;
        info!(app = %name, %release, "a version is ready");
        Ok(())
    })
    .await
}

pub(super) async fn switch(shared: &Arc<Shared>, version: &Version) -> Result<(), RuntimeError> {
    let name = &version.release.app;
    let mut app = shared.lock(name).await;
    newer(version, app.current)?;
    let retired = route(shared, version)?;
    app.leaving.push(retired);
    app.current = Some(version.release.number);
    info!(app = %name, release = %version.release.number, "requests go to a new version");
    Ok(())
}

pub(super) async fn retire(
    shared: &Arc<Shared>,
    name: &AppName,
    keep: ReleaseNumber,
) -> Result<(), RuntimeError> {
    let (shared, name) = (Arc::clone(shared), name.clone());
    in_task(&name.clone(), |_| async move {
        let mut app = shared.lock(&name).await;
        drain(&mut app, shared.config.policy.drain).await;
        end_others(&shared, &name, keep).await
    })
    .await
}

pub(super) async fn undo(
    shared: &Arc<Shared>,
    failed: &Version,
    previous: Option<&Version>,
) -> Result<(), RuntimeError> {
    let (shared, failed, previous) = (Arc::clone(shared), failed.clone(), previous.cloned());
    in_task(&failed.release.app.clone(), |_| async move {
        let name = &failed.release.app;
        let mut app = shared.lock(name).await;
        let was = previous.as_ref().map(|previous| previous.release.number);
        if app.current == was && of_release(&shared, name, failed.release.number)?.is_empty() {
            // Its start failed, and that left nothing.
            return Ok(());
        }
        let retired = match &previous {
            Some(previous) => route(&shared, previous)?,
            None => shared.table.remove(name.as_str()),
        };
        app.current = was;
        // What left for the failed version serves again: only the failed version's own requests are waited for.
        app.leaving = vec![retired];
        drain(&mut app, shared.config.policy.drain).await;
        let instances = of_release(&shared, name, failed.release.number)?;
        end_all(&shared, &instances).await
    })
    .await
}

pub(super) async fn scale(
    shared: &Arc<Shared>,
    version: &Version,
    events: &EventSink,
) -> Result<(), RuntimeError> {
    let (shared, version, events) = (Arc::clone(shared), version.clone(), events.clone());
    in_task(&version.release.app.clone(), |cancel| async move {
        let (name, release) = (&version.release.app, version.release.number);
        let mut app = shared.lock(name).await;
        if let Some(current) = app.current.filter(|current| *current != release) {
            return Err(RuntimeError::Stale { app: name.clone(), release, current });
        }
        let wanted = ids(&version);
        let there = of_release(&shared, name, release)?;
        let alive = join_all(there.iter().map(Found::is_alive)).await;
        let alive: Vec<&Id> =
            there.iter().zip(alive).filter(|(_, alive)| *alive).map(|(found, _)| &found.id).collect();
        let missing: Vec<Id> = wanted.iter().filter(|id| !alive.contains(id)).cloned().collect();
        launch::launch_all(&shared, &version, &missing, &events, &cancel).await?;
        app.current = Some(release);
        let retired = route(&shared, &version)?;
        app.leaving.push(retired);
        drain(&mut app, shared.config.policy.drain).await;
        let surplus: Vec<Found> = there.into_iter().filter(|found| !wanted.contains(&found.id)).collect();
        end_all(&shared, &surplus).await
    })
    .await
}

pub(super) async fn stop(shared: &Arc<Shared>, name: &AppName) -> Result<(), RuntimeError> {
    let (shared, name) = (Arc::clone(shared), name.clone());
    in_task(&name.clone(), |_| async move {
        let mut app = shared.lock(&name).await;
        let retired = shared.table.remove(name.as_str());
        app.leaving.push(retired);
        app.current = None;
        drain(&mut app, shared.config.policy.drain).await;
        end_all(&shared, &shared.directory.of(&name)?).await?;
        shared.directory.forget(&name)
    })
    .await
}

/// Refuses a version that is not above the current one.
fn newer(version: &Version, current: Option<ReleaseNumber>) -> Result<(), RuntimeError> {
    let (app, release) = (version.release.app.clone(), version.release.number);
    match current {
        Some(current) if release <= current => Err(RuntimeError::Stale { app, release, current }),
        _ => Ok(()),
    }
}

/// The instances that `version` is to have.
pub(super) fn ids(version: &Version) -> Vec<Id> {
    let (app, release) = (&version.release.app, version.release.number);
    let of_type = |(process_type, count): (&ProcessType, u32)| {
        let process_type = process_type.clone();
        (1..=count).map(move |number| InstanceName { process_type: process_type.clone(), number })
    };
    let instances = version.wanted().flat_map(of_type);
    instances.map(|instance| Id { app: app.clone(), release, instance, once: false }).collect()
}

/// The instances of a release that there are; a command that runs once is none.
pub(super) fn of_release(
    shared: &Shared,
    app: &AppName,
    release: ReleaseNumber,
) -> Result<Vec<Found>, RuntimeError> {
    let all = shared.directory.of(app)?;
    Ok(all.into_iter().filter(|found| found.id.release == release && !found.id.once).collect())
}

/// Sends requests to those `web` instances of `version` that it is to have, which must be there.
fn route(shared: &Shared, version: &Version) -> Result<Retired, RuntimeError> {
    let (app, release) = (version.release.app.clone(), version.release.number);
    let wanted = ids(version);
    let there = of_release(shared, &app, release)?;
    if !wanted.iter().all(|id| there.iter().any(|found| found.id == *id)) {
        return Err(RuntimeError::NotStarted { app, release });
    }
    let web = there.iter().filter(|found| wanted.contains(&found.id) && found.answers());
    route_to(shared, &app, release, web)
}

/// Sends requests for `app` to `instances`.
pub(super) fn route_to<'a>(
    shared: &Shared,
    app: &AppName,
    release: ReleaseNumber,
    instances: impl Iterator<Item = &'a Found>,
) -> Result<Retired, RuntimeError> {
    let backends = instances
        .map(|found| Ok(Arc::new(found.backend()?) as Arc<dyn Backend>))
        .collect::<Result<Vec<_>, RuntimeError>>()?;
    Ok(shared.table.switch(app.as_str(), release.0, backends))
}

/// Waits for the requests of instances that left, but not for ever.
async fn drain(app: &mut App, limit: Duration) {
    let leaving = std::mem::take(&mut app.leaving);
    let all = join_all(leaving.iter().map(Retired::drained));
    if timeout(limit, all).await.is_err() {
        let left: usize = leaving.iter().map(Retired::in_flight).sum();
        warn!(left, "requests and tunnels are still on instances that stop now");
    }
}

/// Ends every instance of `app` that is of another release than `keep`, but no command that runs once.
async fn end_others(shared: &Shared, app: &AppName, keep: ReleaseNumber) -> Result<(), RuntimeError> {
    let all = shared.directory.of(app)?;
    let others: Vec<Found> =
        all.into_iter().filter(|found| found.id.release != keep && !found.id.once).collect();
    end_all(shared, &others).await
}
