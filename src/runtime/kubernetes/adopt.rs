//! Taking over what an earlier server left running, and putting right what one left half done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::DeleteParams;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::objects::{ApiError, failed};
use super::state::{State, app_of};
use super::work::Work;
use super::{Shared, expose, lifecycle, names};
use crate::kubernetes::Label;
use crate::model::{AppName, ProcessType};
use crate::rollout::{RuntimeError, Version};

/// How often what commands left behind is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How long the pod of a command that ended is kept for whoever reads it.
const KEPT: Duration = Duration::from_secs(600);

/// Finds which apps are not what the store says, and stops in the background what it does not name.
///
/// Apps that a server is at work on, or that are ahead of what this one read, are left alone: the next call sees them.
pub(super) async fn adopt(shared: &Arc<Shared>, current: &[Version]) -> Result<Vec<AppName>, RuntimeError> {
    let listed = match apps(shared).await {
        Ok(listed) => listed,
        Err(error) => {
            let nobody = current.first().map(|version| version.release.app.clone());
            return nobody.map_or(Ok(Vec::new()), |app| Err(failed("list the apps that run", &app)(error)));
        }
    };
    let mut lacking = Vec::new();
    for version in current {
        let name = &version.release.app;
        // It is being worked on here.
        let Some(_turn) = shared.try_turn(name) else { continue };
        if listed.get(name).is_some_and(|there| there.is(version)) {
            keep_route(shared, name).await;
            continue;
        }
        let there = State::read(shared, name).await?;
        let work = there.work(&shared.config.identity);
        if matches!(work, Work::Ours | Work::Anothers) {
            debug!(app = %name, ?work, "a server is at work on an app");
        } else if there.current().is_some_and(|ahead| ahead > version.release.number) {
            info!(app = %name, "an app is ahead of its record");
        } else if !there.is(version) {
            lacking.push(name.clone());
        }
    }
    let named: BTreeSet<&AppName> = current.iter().map(|version| &version.release.app).collect();
    for (app, there) in &listed {
        if !named.contains(app) && there.work(&shared.config.identity) == Work::Nobody {
            stop_in_background(shared, app.clone());
        }
    }
    sweep(shared).await;
    Ok(lacking)
}

/// That the way from outside cannot be put right is no reason to leave the app alone.
async fn keep_route(shared: &Shared, app: &AppName) {
    if let Err(error) = expose::keep_route(shared, app).await {
        warn!(%app, error = &error as &dyn std::error::Error, "the way to an app cannot be made what the setting says");
    }
}

/// Everything that there is, by app.
async fn apps(shared: &Shared) -> Result<BTreeMap<AppName, State>, ApiError> {
    let selector = names::selector(None);
    let mut apps: BTreeMap<AppName, State> = BTreeMap::new();
    for deployment in shared.objects.list::<Deployment>(&selector).await? {
        if let Some(app) = app_of(&deployment.metadata) {
            apps.entry(app).or_default().deployments.push(deployment);
        }
    }
    for service in shared.objects.list::<Service>(&selector).await? {
        if let Some(app) = app_of(&service.metadata) {
            apps.entry(app).or_default().service = Some(service);
        }
    }
    Ok(apps)
}

/// Stops what no record names, unless it is being worked on.
fn stop_in_background(shared: &Arc<Shared>, app: AppName) {
    let Some(turn) = shared.try_turn(&app) else { return };
    let shared = Arc::clone(shared);
    // Ends when the pods are gone, or after their grace.
    tokio::spawn(async move {
        let stopped = match State::read(&shared, &app).await {
            Ok(there) if there.work(&shared.config.identity) != Work::Nobody => return,
            Ok(_) => lifecycle::remove(&shared, &app).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            warn!(%app, error = &error as &dyn std::error::Error, "cannot stop what is left of an app");
        }
        drop(turn);
    });
}

/// Deletes the pods of commands that ended a while ago: the server that ran them would have.
async fn sweep(shared: &Shared) {
    {
        let mut swept = shared.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.is_some_and(|swept| swept.elapsed() < SWEEP_INTERVAL) {
            return;
        }
        *swept = Some(Instant::now());
    }
    let selector =
        format!("{},{}", names::selector(None), Label::ProcessType.is(ProcessType::run().as_str()));
    let pods = match shared.objects.list::<Pod>(&selector).await {
        Ok(pods) => pods,
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "the pods of commands cannot be listed");
            return;
        }
    };
    let longest = shared.config.policy.run + KEPT;
    for pod in pods.iter().filter(|pod| is_left(pod, longest, Timestamp::now())) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if let Err(error) = shared.objects.delete::<Pod>(name, &DeleteParams::default()).await {
            warn!(pod = name, error = &error as &dyn std::error::Error, "a command's pod cannot be deleted");
        }
    }
}

/// Whether a pod has ended so long ago that nobody reads it any more, or is older than any command.
fn is_left(pod: &Pod, longest: Duration, now: Timestamp) -> bool {
    let status = pod.status.as_ref();
    let is_over = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
    let mut containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    let ended = containers.find_map(|found| found.state.as_ref()?.terminated.as_ref()?.finished_at.clone());
    let made = pod.metadata.creation_timestamp.as_ref();
    let is_ago = |time: Option<Timestamp>, ago: Duration| time.is_some_and(|time| time + ago < now);
    is_over && is_ago(ended.map(|time| time.0), KEPT) || is_ago(made.map(|time| time.0), longest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pod_of_a_command_is_left_when_nobody_reads_it_any_more() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let left = |made: &str, phase: &str, ended: &str| {
            let state = json!({"terminated": {"exitCode": 0, "finishedAt": ended}});
            let pod = serde_json::from_value(json!({
                "metadata": {"creationTimestamp": made},
                "status": {"phase": phase, "containerStatuses": [{"name": "app", "image": "i", "imageID": "",
                    "ready": false, "restartCount": 0, "state": state}]},
            }));
            is_left(&pod.unwrap(), Duration::from_secs(3600) + KEPT, now)
        };
        assert!(left("2026-01-01T11:30:00Z", "Failed", "2026-01-01T11:40:00Z"));
        assert!(!left("2026-01-01T11:30:00Z", "Failed", "2026-01-01T11:59:00Z"));
        assert!(!left("2026-01-01T11:30:00Z", "Running", "2026-01-01T11:40:00Z"));
        assert!(left("2026-01-01T10:30:00Z", "Running", "2026-01-01T11:59:00Z"));
    }
}
