//! Taking over what an earlier server left running.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use tracing::{info, warn};

use super::objects::ApiError;
use super::state::{State, app_of};
use super::{Shared, lifecycle, names};
use crate::model::AppName;
use crate::rollout::{RuntimeError, Version};

/// Finds which apps are not what the store says, and stops in the background what it does not name.
///
/// Apps that another server is at work on, or that are ahead of what this one read, are left alone.
pub(super) async fn adopt(shared: &Arc<Shared>, current: &[Version]) -> Result<Vec<AppName>, RuntimeError> {
    let mut lacking = Vec::new();
    for version in current {
        let name = &version.release.app;
        let _turn = shared.turn(name).await;
        let there = State::read(shared, name).await?;
        if there.is_anothers(&shared.config.identity)
            || there.current().is_some_and(|ahead| ahead > version.release.number)
        {
            info!(app = %name, "another server is at work on an app");
            continue;
        }
        if !there.is(version) {
            lacking.push(name.clone());
        }
    }
    let named: BTreeSet<&AppName> = current.iter().map(|version| &version.release.app).collect();
    // What there is of no app at all is no reason not to start.
    match apps(shared).await {
        Ok(apps) => {
            for app in apps.into_iter().filter(|app| !named.contains(app)) {
                stop_in_background(shared, app).await;
            }
        }
        Err(error) => warn!(error = &error as &dyn std::error::Error, "cannot list the apps that run"),
    }
    Ok(lacking)
}

/// Every app of which there is anything.
async fn apps(shared: &Shared) -> Result<BTreeSet<AppName>, ApiError> {
    let selector = names::selector(None);
    let deployments = shared.objects.list::<Deployment>(&selector).await?;
    let services = shared.objects.list::<Service>(&selector).await?;
    let deployments = deployments.iter().filter_map(|found| app_of(&found.metadata));
    Ok(deployments.chain(services.iter().filter_map(|found| app_of(&found.metadata))).collect())
}

/// The app's turn is taken before it returns: what is started later is not stopped by this.
async fn stop_in_background(shared: &Arc<Shared>, app: AppName) {
    let (shared, turn) = (Arc::clone(shared), shared.turn(&app).await);
    // Ends when the pods are gone, or after their grace.
    tokio::spawn(async move {
        let stopped = match State::read(&shared, &app).await {
            Ok(there) if there.is_anothers(&shared.config.identity) => return,
            Ok(_) => lifecycle::remove(&shared, &app).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            warn!(%app, error = &error as &dyn std::error::Error, "cannot stop what is left of an app");
        }
        drop(turn);
    });
}
