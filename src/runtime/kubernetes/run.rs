//! A command that is run once, in a pod of its own, as an app's version would run it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use tokio::time::{Instant, sleep};

use super::deployment::Recipe;
use super::objects::failed;
use super::pods::{self, Instance};
use super::{Shared, logs, state};
use crate::kubernetes::{PodTrouble, trouble};
use crate::model::{AppName, ProcessType};
use crate::rollout::{InstanceName, NotReady, Obstacle, RunOutput, RuntimeError, Version};
use crate::runtime::{environment, task::in_task};

const INTERVAL: Duration = Duration::from_millis(300);
const MAX_LINES: usize = 10_000;
/// How often a number is drawn that another command has.
const DRAWS: u32 = 20;

pub(super) async fn run(
    shared: &Arc<Shared>,
    version: &Version,
    command: &[String],
) -> Result<RunOutput, RuntimeError> {
    let (shared, version, command) = (Arc::clone(shared), version.clone(), command.to_vec());
    in_task(&version.release.app.clone(), |cancel| async move {
        let app = &version.release.app;
        let images = shared.images(&version).await?;
        let recipe = Recipe::new(&shared.config, shared.abilities, &version, &images)?;
        if command.is_empty() && images.iter().any(|image| environment::image_command(image).is_empty()) {
            return Err(RuntimeError::NoCommand(ProcessType::run()));
        }
        state::put_environment(&shared, &recipe, app).await?;
        let pod = create(&shared, &recipe, app, &command).await?;
        let name = pod.metadata.name.clone().unwrap_or_default();
        let output = match cancel.run_until_cancelled(finished(&shared, app, &name)).await {
            Some(output) => output,
            None => Err(RuntimeError::Cancelled { app: app.clone(), release: version.release.number }),
        };
        // What it wrote is read by now; a command that was given up gets its grace all the same.
        let deleted = shared.objects.delete::<Pod>(&name, &DeleteParams::default()).await;
        deleted.map_err(failed(format!("delete the pod {name}"), app))?;
        output
    })
    .await
}

/// Makes the pod `hello--run-4821`, by a number that no other command of the app has.
async fn create(
    shared: &Shared,
    recipe: &Recipe<'_>,
    app: &AppName,
    command: &[String],
) -> Result<Pod, RuntimeError> {
    let mut draw = 0;
    loop {
        draw += 1;
        let pod = recipe.once(rand::random_range(1000..10_000), command);
        let pod: Pod = match serde_json::from_value(pod) {
            Ok(pod) => pod,
            Err(source) => {
                let (action, app) = ("describe the pod of a command".to_owned(), app.clone());
                return Err(RuntimeError::Cluster { action, app, source: Box::new(source) });
            }
        };
        match shared.objects.create(&pod).await {
            Ok(pod) => return Ok(pod),
            Err(error) if error.is_conflict() && draw < DRAWS => {}
            Err(error) => return Err(state::refused("run a command", app, &ProcessType::run())(error)),
        }
    }
}

async fn finished(shared: &Shared, app: &AppName, name: &str) -> Result<RunOutput, RuntimeError> {
    let began = Instant::now();
    let mut refused = None;
    loop {
        let found = shared.objects.get::<Pod>(name).await;
        let found = found.map_err(failed(format!("follow the pod {name}"), app))?;
        let Some(instance) = found.and_then(|pod| pods::instances(vec![pod]).pop()) else {
            return Err(blocked(app, ProcessType::run(), "its pod was deleted".to_owned()));
        };
        if let (true, Some(ended)) = (instance.is_over(), instance.ended()) {
            let status = ended.exit_code;
            let lines = logs::all(&shared.objects, &instance, MAX_LINES).await;
            return Ok(RunOutput {
                status,
                lines: lines.map_err(failed("read the output of a command", app))?,
            });
        }
        let limit = &shared.config.policy;
        let trouble = trouble(&instance.pod);
        let is_refused =
            matches!(trouble, Some(PodTrouble::ImagePull { .. } | PodTrouble::NotStarted { .. }));
        if !is_refused {
            refused = None;
        }
        let is_refused_long =
            is_refused && refused.get_or_insert_with(Instant::now).elapsed() >= limit.refused;
        let late = is_refused_long || is_pending(&instance) && began.elapsed() >= limit.pending;
        if late || instance.is_over() {
            let why =
                trouble.map_or_else(|| "its pod did not start".to_owned(), |trouble| trouble.to_string());
            return Err(blocked(app, ProcessType::run(), why));
        }
        sleep(INTERVAL).await;
    }
}

fn is_pending(instance: &Instance) -> bool {
    instance.running_since().is_none() && instance.ended().is_none()
}

fn blocked(app: &AppName, process_type: ProcessType, why: String) -> RuntimeError {
    let (instance, obstacle) =
        (InstanceName { process_type, number: 1 }, Obstacle::Blocked { why, hint: None });
    RuntimeError::NotReady(Box::new(NotReady { app: app.clone(), instance, obstacle, lines: Vec::new() }))
}
