//! Bringing instances up side by side, and taking all of them down again unless all become ready.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::try_join_all;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::directory::{Found, Id};
use super::instance::end_all;
use super::ready::{self, Patience};
use super::{LocalImage, Shared, environment};
use crate::model::ProcessType;
use crate::rollout::{EventSink, RuntimeError, RuntimeEvent, Version};
use crate::sandbox::Step;
use crate::sandbox::app::{self, AppSpec, Restart};

/// How much of an instance's output is kept.
const LOG_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Where instances write, in the layer store: the only place that their ids may write to.
const SCRATCH: &str = "apps";

/// Starts `ids` of `version` and returns when all are ready; if one is not, or on `cancel`, all of them are ended.
///
/// Not to be dropped before it ends: run it in a task.
pub(super) async fn launch_all(
    shared: &Shared,
    version: &Version,
    ids: &[Id],
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<(), RuntimeError> {
    if ids.is_empty() {
        return Ok(());
    }
    let image = shared.image(version).await?;
    let port = environment::port(version, &image.config)?;
    let mut specs = Vec::new();
    for id in ids {
        let command = environment::command(version, &image.config, id)?;
        specs.push(spec(shared, version, &image, id, command, port)?);
    }
    let counters = Counters::new(version, ids, events);
    let policy = shared.config.policy;
    let timeout = version.ready_timeout.unwrap_or(policy.ready_timeout);
    let patience = Patience { timeout, minimum: policy.minimum_ready };
    let threads = TaskTracker::new();
    let all = try_join_all(ids.iter().zip(specs).map(async |(id, spec)| {
        let found = launch(shared, &threads, id, spec, port).await?;
        ready::wait(&found, port, patience, events).await?;
        counters.ready(&id.instance.process_type);
        Ok::<_, RuntimeError>(())
    }));
    let failed = match cancel.run_until_cancelled(all).await {
        Some(Ok(_)) => return Ok(()),
        Some(Err(error)) => error,
        None => RuntimeError::Cancelled { app: version.release.app.clone(), release: version.release.number },
    };
    // A launch is a thread, which nothing stops halfway.
    threads.close();
    threads.wait().await;
    let places: Vec<_> = ids.iter().map(|id| shared.directory.place(id)).collect();
    end_all(shared, &places).await?;
    Err(failed)
}

/// Brings one instance up, in the place of any earlier one of this name.
pub(super) async fn launch(
    shared: &Shared,
    threads: &TaskTracker,
    id: &Id,
    spec: AppSpec,
    port: u16,
) -> Result<Found, RuntimeError> {
    let found = shared.directory.place(id);
    found.end(&shared.directory, shared.config.policy.stop_grace).await?;
    // Never closed, so an error is impossible and would only mean no limit.
    let permit = shared.launches.acquire().await.ok();
    let (directory, executable) = (shared.directory.clone(), shared.config.executable.clone());
    let id = id.clone();
    let launched = threads.spawn_blocking(move || {
        let found = directory.create(&id, port)?;
        app::launch(&executable, &spec).map_err(|error| found.error("start", error))?;
        Ok(found)
    });
    let launched = launched.await.map_err(|error| found.error("start", error))?;
    drop(permit);
    launched
}

/// How the holder of `id` is told what to run.
pub(super) fn spec(
    shared: &Shared,
    version: &Version,
    image: &LocalImage,
    id: &Id,
    argv: Vec<String>,
    port: u16,
) -> Result<AppSpec, RuntimeError> {
    let step = Step {
        argv,
        environment: environment::variables(version, image, id, port),
        directory: image.config.config.working_dir.as_deref().filter(|d| !d.is_empty()).unwrap_or("/").into(),
        user: image.user.clone(),
        hostname: environment::hostname(id),
        ..Step::default()
    };
    Ok(AppSpec {
        directory: shared.directory.place(id).path,
        layers: shared.config.layers.clone(),
        lowers: image.trees.clone(),
        scratch: Path::new(SCRATCH).join(id.text()),
        step,
        ids: shared.config.ids.clone(),
        limits: shared.config.limits.clone(),
        stop_signal: environment::stop_signal(&image.config)?,
        restart: if id.once { Restart::Never } else { Restart::WithBackoff },
        log_max_bytes: LOG_MAX_BYTES,
    })
}

/// How many instances of each type are ready.
struct Counters<'a> {
    wanted: BTreeMap<&'a ProcessType, (AtomicU32, u32)>,
    events: &'a EventSink,
}

impl<'a> Counters<'a> {
    /// Instances of the version that are not among `ids` run already.
    fn new(version: &Version, ids: &'a [Id], events: &'a EventSink) -> Self {
        let mut wanted = BTreeMap::new();
        for id in ids {
            wanted.entry(&id.instance.process_type).or_insert((AtomicU32::new(0), 0)).1 += 1;
        }
        for (process_type, (ready, wanted)) in &mut wanted {
            let all = version.scale.get(*process_type).copied().unwrap_or(*wanted).max(*wanted);
            *ready = AtomicU32::new(all - *wanted);
            *wanted = all;
        }
        Self { wanted, events }
    }

    fn ready(&self, process_type: &ProcessType) {
        if let Some((ready, wanted)) = self.wanted.get(process_type) {
            let ready = ready.fetch_add(1, Ordering::Relaxed) + 1;
            let event = RuntimeEvent::Ready { process_type: process_type.clone(), ready, wanted: *wanted };
            // That nobody listens is no error.
            drop(self.events.send(event));
        }
    }
}
