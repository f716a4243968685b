//! A command that is run once, as an app's version would run it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::directory::{Found, Id};
use super::instance::end_all;
use super::{Shared, environment, launch, logs};
use crate::model::ProcessType;
use crate::rollout::{InstanceName, RunOutput, RuntimeError, Version};
use crate::runtime::task::in_task;
use crate::sandbox::Outcome;
use crate::sandbox::app::AppState;

const INTERVAL: Duration = Duration::from_millis(50);
const MAX_LINES: usize = 10_000;
/// What a shell says of a command that a signal ended, without the signal's number.
const SIGNALLED: i32 = 128;

pub(super) async fn run(
    shared: &Arc<Shared>,
    version: &Version,
    command: &[String],
) -> Result<RunOutput, RuntimeError> {
    let (shared, version, command) = (Arc::clone(shared), version.clone(), command.to_vec());
    in_task(&version.release.app.clone(), |cancel| async move {
        let image = shared.image(&version).await?;
        let port = environment::port(&version, &image.config)?;
        let id = free_id(&shared, &version)?;
        let argv = if command.is_empty() { environment::image_command(&image.config) } else { command };
        if argv.is_empty() {
            return Err(RuntimeError::NoCommand(id.instance.process_type));
        }
        let spec = launch::spec(&shared, &version, &image, &id, argv, port)?;
        let launched = launch::launch(&shared, &TaskTracker::new(), &id, spec, port).await;
        let found = shared.directory.place(&id);
        let output = match launched {
            Ok(_) => finished(&found, &cancel).await,
            Err(error) => Err(error),
        };
        end_all(&shared, &[found]).await?;
        output
    })
    .await
}

/// `run.4821`: a number that no other command of the app has.
fn free_id(shared: &Shared, version: &Version) -> Result<Id, RuntimeError> {
    let app = &version.release.app;
    let there = shared.directory.of(app)?;
    let is_free =
        |number: &u32| !there.iter().any(|found| found.id.once && found.id.instance.number == *number);
    let number =
        std::iter::repeat_with(|| rand::random_range(1000..10_000)).take(1000).find(is_free).unwrap_or(1);
    let instance = InstanceName { process_type: ProcessType::run(), number };
    Ok(Id { app: app.clone(), release: version.release.number, instance, once: true })
}

async fn finished(found: &Found, cancel: &CancellationToken) -> Result<RunOutput, RuntimeError> {
    loop {
        let status = match found.status().await?.map(|status| status.state) {
            Some(AppState::Ended { last }) => match last {
                Outcome::Exited(status) => status,
                Outcome::Signalled(signal) => SIGNALLED + signal,
                Outcome::TimedOut | Outcome::Cancelled => SIGNALLED,
            },
            Some(AppState::Failed { why }) => return Err(found.error("start", why)),
            Some(_) => {
                if cancel.run_until_cancelled(sleep(INTERVAL)).await.is_none() {
                    let (app, release) = (found.id.app.clone(), found.id.release);
                    return Err(RuntimeError::Cancelled { app, release });
                }
                continue;
            }
            None => return Err(found.error("follow", "its holder is gone")),
        };
        return Ok(RunOutput { status, lines: logs::tail(found, MAX_LINES) });
    }
}
