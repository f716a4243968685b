//! Taking over what an earlier server left running.

use std::sync::Arc;

use futures::future::join_all;
use tracing::{info, warn};

use super::Shared;
use super::directory::Found;
use super::instance::end_all;
use super::lifecycle::{ids, route_to};
use crate::model::AppName;
use crate::rollout::{RuntimeError, Version};

/// Routes to what lives of `current`, and ends all else in the background, each app's under the right to act on it.
pub(super) async fn adopt(shared: &Arc<Shared>, current: &[Version]) -> Result<Vec<AppName>, RuntimeError> {
    let all = shared.directory.all()?;
    let wanted: Vec<_> = current.iter().flat_map(ids).collect();
    let alive = join_all(all.iter().map(Found::is_alive)).await;
    let (kept, rest): (Vec<_>, Vec<_>) =
        all.into_iter().zip(alive).partition(|(found, alive)| *alive && wanted.contains(&found.id));
    let kept: Vec<Found> = kept.into_iter().map(|(found, _)| found).collect();
    let mut incomplete = Vec::new();
    for version in current {
        let (name, release) = (&version.release.app, version.release.number);
        let mut app = shared.lock(name).await;
        let ours: Vec<&Found> = kept.iter().filter(|found| found.id.app == *name).collect();
        let web = ours.iter().copied().filter(|found| found.answers());
        app.leaving.push(route_to(shared, name, release, web)?);
        app.current = Some(release);
        if ours.len() < ids(version).len() {
            incomplete.push(name.clone());
        }
        info!(app = %name, %release, instances = ours.len(), "took over an app");
    }
    let mut rest: Vec<Found> = rest.into_iter().map(|(found, _)| found).collect();
    while let Some(name) = rest.first().map(|found| found.id.app.clone()) {
        let (ours, others) = rest.into_iter().partition(|found| found.id.app == name);
        rest = others;
        end_in_background(shared, name, ours).await;
    }
    Ok(incomplete)
}

async fn end_in_background(shared: &Arc<Shared>, name: AppName, instances: Vec<Found>) {
    let app = shared.lock(&name).await;
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let ended = end_all(&shared, &instances).await;
        if let Err(error) = ended {
            warn!(app = %name, error = &error as &dyn std::error::Error, "cannot end what is left of an app");
        }
        drop(app);
    });
}
