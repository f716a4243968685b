//! Apps as processes of this machine: each instance in its own namespaces, over the image's layer trees.
//!
//! An instance is a directory `<app>--v<n>--<type>--<i>` and a holder that outlives this program: the directories
//! are the truth of what runs, and nothing of it is kept in memory that a restart could not find again. What is
//! in memory is who may act on an app (one call at a time), which release is current, and the route table.

mod adopt;
mod directory;
mod environment;
mod instance;
mod launch;
mod lifecycle;
mod logs;
mod ready;
mod run;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use crate::layers::{LayerStore, Lease};
use crate::model::{AppName, PublishedIndex, ReleaseNumber};
use crate::oci::ImageConfig;
use crate::rollout::{
    EventSink, InstanceLine, InstanceStatus, LogQuery, RunOutput, Runtime, RuntimeError, Version,
};
use crate::router::{Retired, RouteTable};
use crate::sandbox::{IdMap, Limits, UserIds};
use directory::Directory;

/// How many instances are brought up at the same moment.
const CONCURRENT_LAUNCHES: usize = 4;

/// What the runtime is told.
#[derive(Debug, Clone)]
pub struct ProcessesConfig {
    /// Where instances have their directories.
    pub directory: PathBuf,
    /// The directory of the layer store.
    pub layers: PathBuf,
    /// The layer store, which is to keep the layers of what runs.
    pub store: LayerStore,
    /// This program, which also is the holder of each instance.
    pub executable: PathBuf,
    /// The ids that instances run as.
    pub ids: IdMap,
    /// What one instance may use.
    pub limits: Option<Limits>,
    /// How long things may take.
    pub policy: Policy,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// For a new instance to become ready.
    pub ready_timeout: Duration,
    /// For which it must have been up, and have answered, before it counts as ready.
    pub minimum_ready: Duration,
    /// For the requests of an old instance to end.
    pub drain: Duration,
    /// For an instance to end after its stop signal.
    pub stop_grace: Duration,
}

/// An image whose files are on this machine.
#[derive(Debug)]
pub struct LocalImage {
    /// Its config.
    pub config: ImageConfig,
    /// Its layers' trees, lowest first, relative to the layer store.
    pub trees: Vec<PathBuf>,
    /// Whom its `USER` means.
    pub user: UserIds,
    /// That user's home directory.
    pub home: String,
    /// What keeps the trees until the runtime has pinned them.
    pub lease: Option<Lease>,
}

/// How the files of a published image get onto this machine.
pub type Images = Arc<
    dyn Fn(
            &PublishedIndex,
        ) -> BoxFuture<'static, Result<LocalImage, Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + Sync,
>;

/// Apps as processes of this machine.
pub struct Processes {
    shared: Arc<Shared>,
}

struct Shared {
    config: ProcessesConfig,
    directory: Directory,
    table: RouteTable,
    images: Images,
    launches: Semaphore,
    apps: Mutex<HashMap<AppName, Arc<tokio::sync::Mutex<App>>>>,
}

/// What is known of an app by whoever may act on it.
#[derive(Default)]
struct App {
    current: Option<ReleaseNumber>,
    /// Instances that get no new requests, and whose last ones are to be waited for before they stop.
    leaving: Vec<Retired>,
}

impl Processes {
    /// Runs apps as `config` says, and sends requests to them through `table`.
    #[must_use]
    pub fn new(config: ProcessesConfig, table: RouteTable, images: Images) -> Self {
        let directory = Directory::new(config.directory.clone());
        let launches = Semaphore::new(CONCURRENT_LAUNCHES);
        let apps = Mutex::default();
        Self { shared: Arc::new(Shared { config, directory, table, images, launches, apps }) }
    }
}

impl Shared {
    /// Waits for the right to act on `app`.
    async fn lock(&self, app: &AppName) -> OwnedMutexGuard<App> {
        let entry = {
            let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(apps.entry(app.clone()).or_default())
        };
        entry.lock_owned().await
    }

    /// The image of `version`, whose layers stay from now on until nothing of the release is left.
    async fn image(&self, version: &Version) -> Result<LocalImage, RuntimeError> {
        let (release, index) = (&version.release, &version.release.index);
        let failed = |source| {
            let reference = format!("{}@{}", index.repository, index.digest);
            RuntimeError::Image { reference, source }
        };
        let mut image = (self.images)(index).await.map_err(failed)?;
        let pinned = self.config.store.pin(&pin(&release.app, release.number), &image.config.rootfs.diff_ids);
        pinned.map_err(|error| failed(error.into()))?;
        image.lease = None;
        Ok(image)
    }

    fn unpin(&self, app: &AppName, release: ReleaseNumber) -> Result<(), RuntimeError> {
        let unpinned = self.config.store.unpin(&pin(app, release));
        unpinned.map_err(|source| RuntimeError::Layers { app: app.clone(), release, source: source.into() })
    }
}

/// The name that the layers of a release are kept under.
fn pin(app: &AppName, release: ReleaseNumber) -> String {
    format!("{app}--{release}")
}

#[async_trait]
impl Runtime for Processes {
    async fn start(&self, version: &Version, events: &EventSink) -> Result<(), RuntimeError> {
        lifecycle::start(&self.shared, version, events).await
    }

    async fn switch(&self, version: &Version) -> Result<(), RuntimeError> {
        lifecycle::switch(&self.shared, version).await
    }

    async fn retire(&self, app: &AppName, keep: ReleaseNumber) -> Result<(), RuntimeError> {
        lifecycle::retire(&self.shared, app, keep).await
    }

    async fn undo(&self, failed: &Version, previous: Option<&Version>) -> Result<(), RuntimeError> {
        lifecycle::undo(&self.shared, failed, previous).await
    }

    async fn scale(&self, version: &Version, events: &EventSink) -> Result<(), RuntimeError> {
        lifecycle::scale(&self.shared, version, events).await
    }

    async fn stop(&self, app: &AppName) -> Result<(), RuntimeError> {
        lifecycle::stop(&self.shared, app).await
    }

    async fn run(&self, version: &Version, command: &[String]) -> Result<RunOutput, RuntimeError> {
        run::run(&self.shared, version, command).await
    }

    async fn status(&self, app: &AppName) -> Result<Vec<InstanceStatus>, RuntimeError> {
        instance::statuses(&self.shared.directory.of(app)?).await
    }

    async fn logs(
        &self,
        app: &AppName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, InstanceLine>, RuntimeError> {
        logs::stream(&self.shared.directory, app, query).await
    }

    async fn adopt(&self, current: &[Version]) -> Result<Vec<AppName>, RuntimeError> {
        adopt::adopt(&self.shared, current).await
    }
}
