//! Apps as Deployments of a cluster: one per process type, named `APP--TYPE`, in one namespace.
//!
//! A Deployment rolls in place: new instances serve as they become ready, and the old ones leave one by one. So a
//! version that is started serves before [`Runtime::switch`], which only records which release is current, in an
//! annotation of the Service `APP--web`; and what fails to become ready is taken back by applying what was there.
//! The objects are the truth of what runs. Nothing is kept in memory but whose turn it is to act on an app.
//!
//! Several servers may act on one cluster. Every Deployment carries the number of its release and is changed only in
//! the version of it that was read, and never over a higher number; and the Service says, for as long as it lasts, which
//! server is at work on the app.
//!
//! In the apps' namespace it needs `get`, `list`, `create`, `patch` and `delete` of deployments, services and secrets,
//! `get`, `list`, `create` and `delete` of pods, `get` of pods/log, `list` of events, and `create`, `patch` and `delete`
//! of poddisruptionbudgets and of ingresses or httproutes, of which `delete` alone removes what another setting made.

mod adopt;
mod deployment;
mod expose;
mod lifecycle;
mod logs;
mod names;
mod objects;
mod pods;
mod ready;
pub mod pull_secret;
pub mod routes;
mod run;
mod state;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::Cluster;
use crate::model::{AppName, PublishedIndex, ReleaseNumber};
use crate::oci::{Digest, Host, ImageConfig, Platform, Reference};
use crate::registry::client::Client;
use crate::rollout::{
    EventSink, InstanceLine, InstanceStatus, LogQuery, RunOutput, Runtime, RuntimeError, Version,
};
use objects::Objects;

/// How many images' configs are kept; each is some kilobytes.
const MAX_KNOWN_IMAGES: usize = 256;

/// What the runtime is told.
#[derive(Debug, Clone)]
pub struct KubernetesConfig {
    /// The namespace of the apps.
    pub namespace: String,
    /// What tells this server from every other: the name of its pod.
    pub identity: String,
    /// The registry by the name that kubelets pull from.
    pub pull_host: Host,
    /// The Secret in the apps' namespace that kubelets pull with.
    pub pull_secret: Option<String>,
    /// What one instance may use.
    pub resources: Resources,
    /// How clients reach the apps.
    pub exposure: Exposure,
    /// How long things may take.
    pub policy: Policy,
}

/// What one instance asks for and may use, in Kubernetes' quantities: `cpu: 100m`, `memory: 512Mi`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// What the scheduler reserves.
    pub requests: BTreeMap<String, String>,
    /// What it may not go beyond.
    pub limits: BTreeMap<String, String>,
}

/// How clients reach the apps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exposure {
    /// By hephy's own router, which reads the Services, or not at all.
    Services,
    /// By an Ingress for each app, at `APP.DOMAIN`.
    Ingress {
        /// Under which the apps' names are.
        domain: String,
        /// The IngressClass; the cluster's default where none is named.
        class: Option<String>,
        /// Annotations of every Ingress.
        annotations: BTreeMap<String, String>,
        /// The Secret with the certificate, in the apps' namespace.
        tls_secret: Option<String>,
    },
    /// By an HTTPRoute for each app, at `APP.DOMAIN`.
    HttpRoute {
        /// Under which the apps' names are.
        domain: String,
        /// The Gateway.
        gateway: String,
        /// Its namespace, where it is not the apps'.
        gateway_namespace: Option<String>,
        /// The listener of the Gateway.
        section: Option<String>,
    },
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// For an instance to become ready, from when its process runs.
    pub ready_timeout: Duration,
    /// For which it must have been ready before it counts; in whole seconds.
    pub minimum_ready: Duration,
    /// For a pod to be given a node and its image, a new node by an autoscaler included.
    pub pending: Duration,
    /// For an image that cannot be pulled, and for a pod that is refused or cannot be made, to come right.
    pub refused: Duration,
    /// For which an instance that is to stop still serves, so that whoever sends requests learns of it; in whole
    /// seconds.
    pub drain: Duration,
    /// For an instance to end after its stop signal; in whole seconds.
    pub stop_grace: Duration,
    /// For a command that is run once; in whole seconds.
    pub run: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ready_timeout: Duration::from_secs(60),
            minimum_ready: Duration::from_secs(2),
            pending: Duration::from_secs(300),
            refused: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            stop_grace: Duration::from_secs(30),
            run: Duration::from_secs(3600),
        }
    }
}

/// How the configs of a published image are read, one for each platform.
pub type ImageConfigs = Arc<
    dyn Fn(
            &PublishedIndex,
        ) -> BoxFuture<'static, Result<Vec<ImageConfig>, Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + Sync,
>;

/// Reads the configs of images from the registry that `client` reaches as `host`.
#[must_use]
pub fn image_configs(client: Client, host: Host) -> ImageConfigs {
    Arc::new(move |index| {
        let client = client.clone();
        let reference = format!("{host}/{}@{}", index.repository, index.digest);
        let platforms: Vec<Platform> = index.images.iter().map(|image| image.platform.clone()).collect();
        Box::pin(async move {
            let reference: Reference = reference.parse()?;
            let mut configs = Vec::new();
            for platform in &platforms {
                let image = client.image(&reference, platform).await?.manifest;
                let Some(manifest) = image.as_image() else { continue };
                configs.push(client.image_config(&reference.repository, manifest).await?.0);
            }
            Ok(configs)
        })
    })
}

/// Apps as Deployments of a cluster.
pub struct KubernetesRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    config: KubernetesConfig,
    objects: Objects,
    abilities: Abilities,
    images: ImageConfigs,
    /// The configs that were read, so that going back to an image needs no registry.
    known_images: Mutex<HashMap<Digest, Vec<ImageConfig>>>,
    turns: Mutex<HashMap<AppName, Arc<tokio::sync::Mutex<()>>>>,
    /// What ends the work on an app that is left to another server.
    left: Mutex<HashMap<AppName, CancellationToken>>,
    /// The apps whose way from outside is as the setting says.
    exposed: Mutex<BTreeSet<AppName>>,
    /// When what commands left behind was looked for.
    swept: Mutex<Option<Instant>>,
}

/// What the API server knows beyond Kubernetes 1.24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Abilities {
    /// A `sleep` before the stop signal, which needs no program in the image: 1.30.
    sleep: bool,
    /// Eviction of instances that are not ready although the budget is used up: 1.27.
    evict_unhealthy: bool,
}

impl Abilities {
    /// Of version 1.`minor`, which some clouds write as `30+`.
    fn of(minor: &str) -> Self {
        let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
        let minor: u32 = digits.parse().unwrap_or(0);
        Self { sleep: minor >= 30, evict_unhealthy: minor >= 27 }
    }
}

impl KubernetesRuntime {
    /// Runs apps on `cluster` as `config` says; asks the cluster for its version.
    pub async fn new(
        cluster: &Cluster,
        mut config: KubernetesConfig,
        images: ImageConfigs,
    ) -> Result<Self, kube::Error> {
        let client = cluster.client();
        let version = client.apiserver_version().await?;
        let objects = Objects::new(client, config.namespace.clone());
        let abilities = Abilities::of(&version.minor);
        config.identity = work::identity(&config.identity);
        let (known_images, turns, left, exposed, swept) = Default::default();
        let shared = Shared { config, objects, abilities, images, known_images, turns, left, exposed, swept };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Shared {
    /// Waits for the turn to act on `app`.
    async fn turn(&self, app: &AppName) -> OwnedMutexGuard<()> {
        self.row(app).lock_owned().await
    }

    /// The turn to act on `app`, if it is nobody's here.
    fn try_turn(&self, app: &AppName) -> Option<OwnedMutexGuard<()>> {
        self.row(app).try_lock_owned().ok()
    }

    fn row(&self, app: &AppName) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(app.clone()).or_default())
    }

    /// Is cancelled when the app is left to another server.
    fn left(&self, app: &AppName) -> CancellationToken {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.entry(app.clone()).or_default().clone()
    }

    fn leave(&self, app: &AppName) {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).remove(app);
        if let Some(left) = left {
            left.cancel();
        }
    }

    /// The configs of the version's images.
    async fn images(&self, version: &Version) -> Result<Vec<ImageConfig>, RuntimeError> {
        let index = &version.release.index;
        if let Some(known) = self.known_images().get(&index.digest) {
            return Ok(known.clone());
        }
        let failed = |source| {
            let reference = format!("{}@{}", index.repository, index.digest);
            RuntimeError::Image { reference, source }
        };
        let configs = (self.images)(index).await.map_err(failed)?;
        let mut known = self.known_images();
        if known.len() >= MAX_KNOWN_IMAGES {
            known.clear();
        }
        known.insert(index.digest, configs.clone());
        Ok(configs)
    }

    fn exposed(&self) -> MutexGuard<'_, BTreeSet<AppName>> {
        self.exposed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_images(&self) -> MutexGuard<'_, HashMap<Digest, Vec<ImageConfig>>> {
        self.known_images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Runtime for KubernetesRuntime {
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
        pods::statuses(&self.shared.objects, app).await
    }

    async fn logs(
        &self,
        app: &AppName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, InstanceLine>, RuntimeError> {
        logs::stream(&self.shared.objects, app, query).await
    }

    fn leave(&self, app: &AppName) {
        self.shared.leave(app);
    }

    async fn adopt(&self, current: &[Version]) -> Result<Vec<AppName>, RuntimeError> {
        adopt::adopt(&self.shared, current).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abilities_are_those_of_the_version_however_a_cloud_writes_it() {
        let of = Abilities::of;
        assert_eq!(of("24"), Abilities::default());
        assert_eq!(of("29+"), Abilities { sleep: false, evict_unhealthy: true });
        assert_eq!(of("30+"), Abilities { sleep: true, evict_unhealthy: true });
        assert_eq!(of("strange"), Abilities::default());
    }
}
