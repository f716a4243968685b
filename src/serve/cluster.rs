//! `hephy serve`: receives on a cluster. Builds are Jobs, apps are Deployments, records are custom resources.
//!
//! It is the server of [`super::up`] put together from other parts; what happens to a push is the same.

mod config;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use config::{job_config, runtime_config};

use super::admins::{AdminsError, FirstAdmins};
use super::cloud::{CloudCredentials, CloudError};
use super::people::People;
use super::ports::{ListenError, listen, listen_optional};
use super::pprof;
use super::probes::{self, Readiness};
use super::pulls::{self, PullCheck, Pulls};
use super::queue::Queue;
use super::secrets::{SecretError, Secrets};
use super::services::Services;
use super::telemetry::{self, TelemetryError};
use super::up::{FirstAdmin, Notice, Ready, Signals, UpError, make_directory, trusting};
use super::upkeep::Upkeep;
use super::{Server, Verbs, tickets};
use crate::build::BuildLimits;
use crate::config::cluster::{ClusterSettings, Pods};
use crate::config::server::{Settings, SettingsError};
use crate::driver::kubernetes::KubernetesDriver;
use crate::kubernetes::{Cluster, ConnectError, Leases};
use crate::model::store::{self, StoreError};
use crate::model::{App, Chain, Secret};
use crate::oci::{Host, NameError, RepositoryName};
use crate::publish::{Access, Place, Publisher};
use crate::push::keeping::Keeper;
use crate::push::log::Logs;
use crate::push::{Archive, Metrics, Pushes, Sources, Stages};
use crate::receive::HostKey;
use crate::registry::client::{CredentialsError, DockerConfig};
use crate::registry::identity::Identities;
use crate::registry::server as registry;
use crate::runtime::kubernetes::pull_secret::{PullSecret, PullSecretError};
use crate::runtime::kubernetes::{KubernetesRuntime, image_configs};
use crate::store::KubernetesStore;

/// How long the server's own token for its registry is good; longer than any run of it.
const TOKEN_LIFE: Duration = Duration::from_secs(366 * 24 * 3600);

/// How long connections are still taken after a signal, until every node knows that this server goes.
const LINGER: Duration = Duration::from_secs(5);

/// How long what a build may write with is good for, beyond the build's own limit.
const TICKET_SLACK: Duration = Duration::from_secs(600);

/// How often is looked for builds that nobody drives any more.
const ADOPT_INTERVAL: Duration = Duration::from_secs(5);

/// How often is looked whether the apps are what their records say.
const KEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How often kubelets get a new token for a registry of our own.
const PULL_TOKEN_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// How long such a token is good: a cluster that hephy is away from goes on pulling.
const PULL_TOKEN_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// The Secret that kubelets pull with, in the apps' namespace.
const PULL_SECRET: &str = "hephy-pull";

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What `hephy up` may fail of, too.
    #[error(transparent)]
    Up(#[from] UpError),
    /// A setting.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The cluster.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The store.
    #[error("the records cannot be read")]
    Store(#[from] StoreError),
    /// The cluster does not answer.
    #[error("the cluster does not say its version")]
    Version(#[source] Box<kube::Error>),
    /// The host key, or a registry's credentials.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// What kubelets pull with.
    #[error("kubelets cannot be given the registry's credentials")]
    Pull(#[from] PullSecretError),
    /// Traces.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// An address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The name of a registry.
    #[error("`{text}` is not a registry such as `registry.example/team`")]
    Registry {
        /// What was given.
        text: String,
        /// Why not.
        source: NameError,
    },
    /// The URL for build pods.
    #[error("--internal-url has no room for a path")]
    Url {
        /// Why.
        source: url::ParseError,
    },
    /// There is no registry.
    #[error(
        "no registry is given: use --registry-url, or --registry and --registry-service for one of our own"
    )]
    NoRegistry,
    /// What the registry is written with.
    #[error("cannot use the registry's credentials")]
    Credentials(#[source] CredentialsError),
    /// What a cloud gives for its registry.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The first admins.
    #[error(transparent)]
    Admins(#[from] AdminsError),
}

/// What the server is started with.
pub struct Start {
    /// The settings.
    pub settings: ClusterSettings,
    /// Runs the verbs that come over SSH.
    pub verbs: Arc<dyn Verbs>,
    /// Who becomes admin if there is nobody, with what to call the keys.
    pub first_admins: Vec<FirstAdmin>,
    /// What tells this replica from the others: the pod's name.
    pub identity: String,
}

/// Serves until a signal, then drains; a second signal stops at once.
pub async fn serve(start: Start, tell: impl Fn(Notice) + Send + Sync) -> Result<(), ServeError> {
    let mut signals = Signals::new().map_err(UpError::Signals)?;
    let given = &start.settings;
    let settings = Arc::new(given.settings()?);
    make_directory(&settings.data)?;
    make_directory(&settings.data.join("tmp"))?;
    let cluster = Cluster::connect(None, None).await?;
    let namespace = given.namespace.clone().unwrap_or_else(|| cluster.namespace().to_owned());
    let secrets = Secrets::new(&cluster, &namespace);
    let object_store = Arc::new(KubernetesStore::new(&cluster.client(), &given.apps_namespace));
    object_store.check().await?;
    let host_key_name = format!("{}-host-key", given.name);
    let host_key = secrets.host_key(&host_key_name).await?;
    let own_registry = match given.registry {
        Some(address) => Some((own_registry(&settings.data).await?, listen(address, "--registry").await?)),
        None => None,
    };
    let (place, cloud) = place(given, own_registry.as_ref().map(|(server, _)| server), &secrets).await?;
    let addresses = given.addresses();
    let stages =
        Arc::new(stages(&start, &settings, (&cluster, &namespace), place, object_store.clone()).await?);
    // Nobody has its private half: whoever runs the cluster names the first admins to the chart.
    let operator = HostKey::open(&settings.data.join("operator_ed25519_key")).map_err(UpError::Key)?;
    let people = People::new(object_store, addresses.clone(), operator.public_key().clone());
    let first = FirstAdmins { people: &people, secrets: &secrets, marked: &host_key_name };
    first.make(&*stages.store, start.first_admins.clone(), &tell).await?;
    let server = Server {
        settings: Arc::clone(&settings),
        addresses: addresses.clone(),
        people,
        // The Jobs of each architecture queue by themselves.
        pushes: Pushes::new(Arc::clone(&stages), 1000),
        queue: Queue::default(),
        receiving: TaskTracker::new(),
    };
    let listeners =
        Listeners { ssh: listen(settings.ssh, "--ssh").await?, http: listen(settings.http, "--http").await? };
    let readiness = Readiness::default();
    let (tell_pulls, pulls) = watch::channel(Pulls::default());
    let http = probes::router(readiness.clone(), stages.metrics.clone());
    let http = http.merge(tickets(given, &cluster, &stages)?).merge(pulls::router(pulls));
    let services = Services::default();
    services.answer(listeners.http, http);
    profile(&services, &server).await?;
    let upkeep = Upkeep {
        registry: own_registry.as_ref().map(|(registry, _)| registry.clone()),
        stages: Arc::clone(&stages),
        layers: None,
    };
    services.tasks.spawn(upkeep.run(services.rest.clone()));
    if let Some((registry, listener)) = own_registry {
        services.registry(registry, listener);
    }
    keep_pull_secret(&cluster, &namespace, given, &stages.place, cloud).await?;
    let check = pull_check(&start, &cluster, &stages)?;
    services.tasks.spawn(check.run(tell_pulls, services.rest.clone()));
    let builds = server.pushes.recover().await?;
    services.receive(&server, listeners.ssh, &host_key, Arc::clone(&start.verbs));
    look_after(&services, &server);
    readiness.set(true);
    tell(Notice::Ready(Box::new(Ready {
        addresses,
        host_key: host_key.fingerprint(),
        data: settings.data.clone(),
        health: Some(settings.http),
        pprof: settings.pprof,
        users: server.people.users().await?.len(),
        apps: store::list_each::<App>(server.store(), "").await?.len(),
        builds,
    })));
    signals.next().await;
    readiness.set(false);
    let ending = async {
        tokio::time::sleep(LINGER).await;
        services.drain(&server, settings.drain, &tell).await;
    };
    tokio::select! {
        () = ending => {}
        () = signals.next() => {}
    }
    Ok(())
}

/// Exchanges the tickets of build Jobs.
fn tickets(given: &ClusterSettings, cluster: &Cluster, stages: &Stages) -> Result<axum::Router, ServeError> {
    let jobs = Api::namespaced(cluster.client(), &given.builds_namespace);
    let valid = stages.limits.time + TICKET_SLACK;
    Ok(tickets::router(jobs, as_engines_reach_it(given, &stages.place)?, valid))
}

async fn own_registry(data: &Path) -> Result<registry::Server, UpError> {
    let config = registry::ServerConfig {
        // In a pod loopback is not only this process: a sidecar is there too.
        anonymous_read_from_loopback: false,
        ..registry::ServerConfig::new(data.join("registry"))
    };
    registry::Server::open(config).await.map_err(UpError::Registry)
}

/// The registry, as this process reaches it, and what has to be kept good for it.
async fn place(
    settings: &ClusterSettings,
    own: Option<&registry::Server>,
    secrets: &Secrets,
) -> Result<(Place, Option<CloudCredentials>), ServeError> {
    let reach = trusting(settings.ca_bundle.as_deref())?;
    if let (Some(own), Some(address)) = (own, settings.registry) {
        let host = host(&format!("127.0.0.1:{}", address.port()))?;
        return Ok((Place { reach, ..Place::own(host, own.tokens().clone()) }, None));
    }
    let url = settings.registry_url.as_deref().ok_or(ServeError::NoRegistry)?;
    let (name, prefix) = url.split_once('/').map_or((url, None), |(name, prefix)| (name, Some(prefix)));
    let wrong = |source| ServeError::Registry { text: url.to_owned(), source };
    let prefix = prefix.map(str::parse::<RepositoryName>).transpose().map_err(wrong)?;
    let host = host(name)?;
    let mut cloud = None;
    let access = match &settings.registry_secret {
        Some(secret) => {
            let config = secrets.docker_config(secret).await?;
            Access::DockerConfig(DockerConfig::parse(config).map_err(ServeError::Credentials)?)
        }
        None if settings.registry_identity => {
            let had =
                CloudCredentials::begin(Identities::from_environment().reached_as(&reach), &host).await?;
            Access::DockerConfig(cloud.insert(had).config())
        }
        None => Access::Open,
    };
    Ok((Place { host, prefix, is_plain: settings.registry_insecure, access, reach }, cloud))
}

fn host(text: &str) -> Result<Host, ServeError> {
    text.parse().map_err(|source| ServeError::Registry { text: text.to_owned(), source })
}

/// The registry by the name that engines have for it.
fn as_engines_reach_it(settings: &ClusterSettings, place: &Place) -> Result<Place, ServeError> {
    match &settings.registry_service {
        Some(service) => Ok(Place { host: host(service)?, ..place.clone() }),
        None => Ok(place.clone()),
    }
}

/// Gives kubelets what they pull with, now and whenever it changes.
async fn keep_pull_secret(
    cluster: &Cluster,
    namespace: &str,
    settings: &ClusterSettings,
    place: &Place,
    cloud: Option<CloudCredentials>,
) -> Result<(), ServeError> {
    if !has_pull_secret(settings) {
        return Ok(());
    }
    let pull_host = settings.pull_host.split('/').next().unwrap_or_default();
    let hosts = (place.host.clone(), host(pull_host)?);
    let secret = PullSecret::new(cluster, &settings.apps_namespace, PULL_SECRET, hosts);
    match (&place.access, &settings.registry_secret) {
        (Access::Tokens(tokens), _) => {
            let (tokens, host) = (tokens.clone(), place.host.clone());
            let config = move || {
                let scope = registry::Scope::pull(registry::RepositoryPattern::Everything);
                let token = tokens.issue("kubelet", &[scope], PULL_TOKEN_LIFE);
                Secret::new(registry::docker_config(&host, &token))
            };
            secret.apply(&config()).await?;
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(PULL_TOKEN_INTERVAL).await;
                    if let Err(error) = secret.apply(&config()).await {
                        tracing::error!(error = %Chain(&error), "kubelets cannot be given a new token");
                    }
                }
            });
        }
        (Access::DockerConfig(config), Some(source)) => {
            secret.apply(&config.text()).await?;
            let (cluster, namespace, source) = (cluster.clone(), namespace.to_owned(), source.clone());
            let config = config.clone();
            let changed = move |text: &Secret<String>| {
                if let Err(error) = config.replace(text.clone(), None) {
                    tracing::error!(error = %Chain(&error), "the registry credentials are not taken over");
                }
            };
            tokio::spawn(async move { secret.follow(&cluster, &namespace, &source, changed).await });
        }
        (Access::DockerConfig(config), None) => {
            secret.apply(&config.text()).await?;
            if let Some(cloud) = cloud {
                let changed = async move |text: Secret<String>| {
                    if let Err(error) = secret.apply(&text).await {
                        tracing::error!(error = %Chain(&error), "kubelets cannot be given a new token");
                    }
                };
                tokio::spawn(cloud.keep(changed));
            }
        }
        (Access::Open, _) => {}
    }
    Ok(())
}

/// What tries whether kubelets can pull.
fn pull_check(start: &Start, cluster: &Cluster, stages: &Stages) -> Result<PullCheck, ServeError> {
    let (given, place) = (&start.settings, &stages.place);
    let wrong = |source| ServeError::Registry { text: given.pull_host.clone(), source };
    Ok(PullCheck {
        driver: Arc::clone(&stages.driver),
        client: stages.client.clone(),
        repository: place.named(pulls::REPOSITORY).map_err(wrong)?,
        pulled_as: format!("{}/{}", given.pull_host, pulls::REPOSITORY),
        pull_secret: has_pull_secret(given).then(|| PULL_SECRET.to_owned()),
        pods: Api::namespaced(cluster.client(), &given.apps_namespace),
        identity: start.identity.clone(),
    })
}

async fn stages(
    start: &Start,
    settings: &Settings,
    (cluster, namespace): (&Cluster, &str),
    place: Place,
    object_store: Arc<KubernetesStore>,
) -> Result<Stages, ServeError> {
    let given = &start.settings;
    let pods = given.pods.as_deref().map(Pods::read).transpose()?.unwrap_or_default();
    let client = place.client(TOKEN_LIFE).map_err(ServeError::Credentials)?;
    let driver = KubernetesDriver::new(cluster.clone(), client.clone(), job_config(given, &pods, &place)?);
    let runtime = KubernetesRuntime::new(
        cluster,
        runtime_config(start, settings, &pods)?,
        image_configs(client.clone(), place.host.clone()),
    )
    .await
    .map_err(|error| ServeError::Version(Box::new(error)))?;
    let traces = telemetry::traces(settings.otlp_endpoint.as_ref(), &start.identity)?;
    Ok(Stages {
        store: object_store,
        metrics: Metrics::with(driver.gauges(), traces.counts()),
        traces,
        driver: Arc::new(driver),
        runtime: Arc::new(runtime),
        publisher: Publisher::new(client.clone(), place.clone()),
        sources: Sources::shared(settings.data.join("repositories"), client.clone(), place.clone()),
        logs: Logs::new(settings.data.join("builds")).archived(Archive::new(client.clone(), place.clone())),
        client,
        recent_bases: Arc::default(),
        place,
        addresses: given.addresses(),
        limits: BuildLimits { time: settings.build_timeout, memory_bytes: None, cpus: None },
        leases: Some(Leases::new(cluster.client(), namespace, &start.identity)),
        stopping: CancellationToken::new(),
    })
}

/// Whether kubelets need credentials to pull.
const fn has_pull_secret(settings: &ClusterSettings) -> bool {
    settings.registry.is_some() || settings.registry_secret.is_some() || settings.registry_identity
}

/// Takes profiles for whoever asks, where there is an address for it.
async fn profile(services: &Services, server: &Server) -> Result<(), ListenError> {
    if let Some(listener) = listen_optional(&mut server.settings.pprof.clone(), "--pprof").await? {
        services.answer(listener, pprof::router(server.stages().stopping.clone()));
    }
    Ok(())
}

/// Takes up what other servers leave, and keeps the apps what their records say.
fn look_after(services: &Services, server: &Server) {
    tokio::spawn(adopt_builds(server.clone()));
    let keeper = Keeper::new(server.pushes.clone(), People::operator(), KEEP_INTERVAL);
    services.tasks.spawn(keeper.run(server.stages().stopping.clone()));
}

/// Goes on with the builds of servers that are gone.
async fn adopt_builds(server: Server) {
    let stopping = server.stages().stopping.clone();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(ADOPT_INTERVAL) => {}
        }
        server.pushes.settle().await;
        if let Err(error) = server.pushes.take_up().await {
            tracing::error!(error = %Chain(&error), "what other servers left cannot be looked at");
        }
    }
}

struct Listeners {
    ssh: TcpListener,
    http: TcpListener,
}
