//! Start, serve, drain, stop.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::people::People;
use super::ports::{ListenError, listen, listen_optional};
use super::pprof;
use super::probes::{self, Readiness};
use super::queue::Queue;
use super::services::Services;
use super::telemetry::{self, TelemetryError};
use super::upkeep::{LayersUpkeep, Upkeep};
use super::{Server, Verbs};
use crate::build::{BuildLimits, layers_directory};
use crate::config::address::Addresses;
use crate::config::server::Settings;
use crate::driver::local::LocalDriver;
use crate::model::store::{self, StoreError};
use crate::model::{App, Chain, Fingerprint, PublicKey, UserName};
use crate::oci::{Host, Platform, Reference};
use crate::publish::{Place, Publisher};
use crate::push::log::Logs;
use crate::push::{Metrics, Pushes, Sources, Stages};
use crate::receive::keys::KeysError;
use crate::receive::{HostKey, HostKeyError};
use crate::registry::client::{Client, CredentialsError, Reach, ReachError};
use crate::registry::server as registry;
use crate::router::{self, RouteTable, RouterConfig};
use crate::runtime::processes::{Images, LocalImage, Policy, Processes, ProcessesConfig};
use crate::sandbox::{IdMap, UserIds};
use crate::store::{DirectoryStore, OpenError};

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// A directory cannot be made.
    #[error("cannot make `{path}`")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What the store holds.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The first admin.
    #[error("cannot make the first admin")]
    Admin(#[from] KeysError),
    /// An address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The host key or the operator's key.
    #[error(transparent)]
    Key(#[from] HostKeyError),
    /// The registry.
    #[error("cannot open the registry")]
    Registry(#[source] registry::ServerError),
    /// What the registry is written with.
    #[error("cannot use the registry's credentials")]
    Credentials(#[source] CredentialsError),
    /// The certificates that are trusted.
    #[error("cannot use --ca-bundle")]
    Trust(#[source] ReachError),
    /// The id map.
    #[error("cannot choose the ids of sandboxes")]
    Ids(#[source] crate::sandbox::SandboxError),
    /// The layer store.
    #[error("cannot open the layer store")]
    Layers(#[source] crate::layers::StoreError),
    /// Traces.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// Signals.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    /// What the command line on this machine reads.
    #[error("cannot write `{path}`")]
    Operator {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What there is to say once everything listens.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where people reach things.
    pub addresses: Addresses,
    /// The fingerprint of the SSH host key.
    pub host_key: Fingerprint,
    /// Where everything is kept.
    pub data: PathBuf,
    /// Where health and metrics are asked for.
    pub health: Option<SocketAddr>,
    /// Where profiles are taken.
    pub pprof: Option<SocketAddr>,
    /// Whether there is anybody who may push.
    pub users: usize,
    /// Apps there are.
    pub apps: usize,
    /// Builds that go on after a restart.
    pub builds: usize,
}

/// The first admin, if there are no users yet: whoever starts the server, by their own keys.
#[derive(Debug, Clone)]
pub struct FirstAdmin {
    /// The name to give.
    pub name: UserName,
    /// The keys, with what to call them.
    pub keys: Vec<(String, PublicKey)>,
}

/// What happens on the way, for the command line to show.
#[derive(Debug)]
pub enum Notice {
    /// The first admin was made of these keys.
    Admin {
        /// The user.
        name: UserName,
        /// What the keys are called.
        keys: Vec<String>,
    },
    /// Everything listens.
    Ready(Box<Ready>),
    /// A signal came: what is running ends first.
    Draining {
        /// How many builds are running.
        builds: usize,
        /// How long they are waited for.
        at_most: Duration,
    },
    /// Builds that did not end in time; they go on at the next start.
    Left {
        /// How many.
        builds: usize,
    },
}

/// What the server is started with.
pub struct Start {
    /// The settings.
    pub settings: Settings,
    /// Runs the verbs that come over SSH.
    pub verbs: Arc<dyn Verbs>,
    /// Who becomes the first admin.
    pub first_admin: Option<FirstAdmin>,
    /// The program, for builds and app processes.
    pub executable: PathBuf,
    /// Writes the file that tells the command line on this machine about the server: address, key, known hosts.
    pub operator_file: fn(settings: &Settings, key: &Path, known_hosts: &Path) -> Vec<u8>,
    /// Its name in the data directory.
    pub operator_file_name: &'static str,
}

struct Listeners {
    ssh: TcpListener,
    registry: TcpListener,
    http: TcpListener,
    health: Option<TcpListener>,
    pprof: Option<TcpListener>,
}

impl Listeners {
    /// Listens on every address; port 0 becomes the one that the system chose.
    async fn open(mut settings: Settings) -> Result<(Self, Settings), UpError> {
        let listeners = Self {
            ssh: listen(settings.ssh, "--ssh").await?,
            registry: listen(settings.registry, "--registry").await?,
            http: listen(settings.http, "--http").await?,
            health: listen_optional(&mut settings.health, "--health").await?,
            pprof: listen_optional(&mut settings.pprof, "--pprof").await?,
        };
        let chosen = [
            (&listeners.ssh, &mut settings.ssh, "--ssh"),
            (&listeners.registry, &mut settings.registry, "--registry"),
            (&listeners.http, &mut settings.http, "--http"),
        ];
        for (listener, address, flag) in chosen {
            let error = |source| ListenError::Io { address: *address, flag, source };
            *address = listener.local_addr().map_err(error)?;
        }
        Ok((listeners, settings))
    }
}

/// Serves until a signal, then drains; a second signal stops at once.
pub async fn up(start: Start, tell: impl Fn(Notice) + Send + Sync) -> Result<(), UpError> {
    let mut signals = Signals::new().map_err(UpError::Signals)?;
    if let Err(error) = crate::sandbox::cgroup::Delegation::adopt_self() {
        tracing::debug!(error = %Chain(&error), "builds are not limited in memory and processors");
    }
    let data = start.settings.data.clone();
    make_directory(&data)?;
    let object_store = Arc::new(DirectoryStore::open(&data.join("state"))?);
    let (listeners, settings) = Listeners::open(start.settings.clone()).await?;
    let settings = Arc::new(settings);
    let addresses = Addresses::of(&settings);
    let host_key = HostKey::open(&data.join("ssh_host_ed25519_key"))?;
    let operator = HostKey::open(&data.join("operator_ed25519_key"))?;
    let registry_config = registry::ServerConfig::new(data.join("registry"));
    let registry = registry::Server::open(registry_config).await.map_err(UpError::Registry)?;
    let table = RouteTable::new();
    let ids = IdMap::choose(&settings.data.join("idmap.json")).map_err(UpError::Ids)?;
    let stages = Arc::new(stages(
        &start,
        &settings,
        &addresses,
        Mechanisms { store: object_store.clone(), registry: &registry, table: &table, ids: &ids },
    )?);
    let people = People::new(object_store, addresses.clone(), operator.public_key().clone());
    make_first_admin(&people, start.first_admin.clone(), &tell).await?;

    let pushes = Pushes::new(Arc::clone(&stages), settings.builds);
    let server = Server {
        settings: Arc::clone(&settings),
        addresses: addresses.clone(),
        people,
        pushes,
        queue: Queue::default(),
        receiving: TaskTracker::new(),
    };
    // The apps first: a request that comes meanwhile waits for the router, and finds its app.
    adopt_apps(&stages).await?;
    // And what was left: nobody may push before it is clear who has which app.
    let builds = server.pushes.recover().await?;
    let services = Services::default();
    services.registry(registry.clone(), listeners.registry);
    serve_rest(&services, &server, (listeners.http, table), (registry, ids));
    services.receive(&server, listeners.ssh, &host_key, Arc::clone(&start.verbs));
    let readiness = Readiness::default();
    readiness.set(true);
    if let Some(listener) = listeners.health {
        services.answer(listener, probes::router(readiness.clone(), stages.metrics.clone()));
    }
    if let Some(listener) = listeners.pprof {
        services.answer(listener, pprof::router(stages.stopping.clone()));
    }
    let ready = Ready {
        addresses,
        host_key: host_key.fingerprint(),
        data,
        health: settings.health,
        pprof: settings.pprof,
        users: server.people.users().await?.len(),
        apps: store::list::<App>(server.store(), "").await?.len(),
        builds,
    };
    write_operator(&start, &settings, &host_key)?;
    tell(Notice::Ready(Box::new(ready)));
    signals.next().await;
    readiness.set(false);
    tokio::select! {
        () = services.drain(&server, settings.drain, &tell) => {}
        () = signals.next() => {}
    }
    Ok(())
}

pub(super) fn make_directory(path: &Path) -> Result<(), UpError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| UpError::Directory { path: path.to_owned(), source })
}

/// Tells the command line on this machine where the server is and how it gets in.
fn write_operator(start: &Start, settings: &Settings, host_key: &HostKey) -> Result<(), UpError> {
    let ssh = crate::config::server::HostPort::reachable(settings.ssh);
    let known_hosts = settings.data.join("known_hosts");
    let key = settings.data.join("operator_ed25519_key");
    let name = if ssh.port == 22 { ssh.host.clone() } else { format!("[{}]:{}", ssh.host, ssh.port) };
    write_private(&known_hosts, format!("{name} {}\n", host_key.public_key()).as_bytes())?;
    let text = (start.operator_file)(settings, &key, &known_hosts);
    write_private(&settings.data.join(start.operator_file_name), &text)
}

/// Written aside and renamed, for its owner alone: whoever waits for the file reads all of it.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), UpError> {
    use io::Write as _;
    let written = path.parent().ok_or(io::ErrorKind::NotFound.into()).and_then(|directory| {
        let mut aside = tempfile::NamedTempFile::new_in(directory)?;
        aside.write_all(bytes)?;
        aside.persist(path)?;
        Ok(())
    });
    written.map_err(|source: io::Error| UpError::Operator { path: path.to_owned(), source })
}

async fn make_first_admin(
    people: &People,
    first: Option<FirstAdmin>,
    tell: &(impl Fn(Notice) + Send + Sync),
) -> Result<(), UpError> {
    let Some(first) = first.filter(|first| !first.keys.is_empty()) else { return Ok(()) };
    let (names, keys): (Vec<String>, Vec<PublicKey>) = first.keys.into_iter().unzip();
    if people.make_first_admin(&first.name, &keys).await? {
        tell(Notice::Admin { name: first.name, keys: names });
    }
    Ok(())
}

/// What stages are made of, opened.
struct Mechanisms<'a> {
    store: Arc<DirectoryStore>,
    registry: &'a registry::Server,
    table: &'a RouteTable,
    ids: &'a IdMap,
}

fn stages(
    start: &Start,
    settings: &Settings,
    addresses: &Addresses,
    Mechanisms { store, registry, table, ids }: Mechanisms<'_>,
) -> Result<Stages, UpError> {
    let data = &settings.data;
    #[expect(clippy::expect_used, reason = "a socket address is a host and a port")]
    let host: Host = addresses.registry().parse().expect("the registry's address is a host");
    let place = Place {
        reach: trusting(settings.ca_bundle.as_deref())?,
        ..Place::own(host.clone(), registry.tokens().clone())
    };
    // The server's own token outlives any run of it that has not been restarted for a year.
    let client = place.client(Duration::from_secs(366 * 24 * 3600)).map_err(UpError::Credentials)?;
    let layers = layers_directory(data);
    let runtime = Processes::new(
        ProcessesConfig {
            executable: start.executable.clone(),
            directory: data.join("runtime"),
            layers: layers.clone(),
            store: crate::build::open_layer_store(&layers, ids).map_err(UpError::Layers)?,
            ids: ids.clone(),
            limits: None,
            policy: Policy {
                ready_timeout: settings.ready_timeout,
                minimum_ready: settings.minimum_ready,
                drain: settings.stop_grace,
                stop_grace: settings.stop_grace,
            },
        },
        table.clone(),
        images(layers.clone(), ids.clone(), client.clone(), host.clone()),
    );
    let driver =
        LocalDriver::new(start.executable.clone(), data.clone()).trusting(settings.ca_bundle.clone());
    let traces = telemetry::traces(settings.otlp_endpoint.as_ref(), &telemetry::machine())?;
    Ok(Stages {
        store,
        metrics: Metrics::with(driver.gauges(), traces.counts()),
        traces,
        driver: Arc::new(driver),
        runtime: Arc::new(runtime),
        publisher: Publisher::new(client.clone(), place.clone()),
        client,
        recent_bases: Arc::default(),
        place,
        sources: Sources::local(data.join("repositories")),
        logs: Logs::new(data.join("builds")),
        addresses: addresses.clone(),
        limits: BuildLimits {
            time: settings.build_timeout,
            memory_bytes: settings.build_memory_bytes,
            cpus: settings.build_cpus,
        },
        leases: None,
        stopping: CancellationToken::new(),
    })
}

/// How registries are reached by who trusts the certificates of a file too, if there is one.
pub(super) fn trusting(ca_bundle: Option<&Path>) -> Result<Reach, UpError> {
    let mut reach = Reach::default();
    if let Some(file) = ca_bundle {
        reach.trust(None, file).map_err(UpError::Trust)?;
    }
    Ok(reach)
}

/// Takes the running apps over, and starts in the background what should run and does not.
async fn adopt_apps(stages: &Arc<Stages>) -> Result<(), UpError> {
    let mut versions = Vec::new();
    for app in store::list::<App>(&*stages.store, "").await? {
        versions.extend(crate::push::current_version(&*stages.store, &app).await?);
    }
    let lacking = match stages.runtime.adopt(&versions).await {
        Ok(lacking) => lacking,
        Err(error) => {
            tracing::error!(error = %Chain(&error), "the apps cannot be taken over");
            return Ok(());
        }
    };
    for version in versions.into_iter().filter(|version| lacking.contains(&version.release.app)) {
        let stages = Arc::clone(stages);
        // Ends with the runtime's own limit on becoming ready.
        tokio::spawn(async move {
            let (events, _) = tokio::sync::mpsc::unbounded_channel();
            if let Err(error) = stages.runtime.scale(&version, &events).await {
                tracing::error!(app = %version.release.app, error = %Chain(&error), "an app cannot be started");
            }
        });
    }
    Ok(())
}

/// Serves the apps, and removes now and then what nothing needs.
fn serve_rest(
    services: &Services,
    server: &Server,
    (listener, table): (TcpListener, RouteTable),
    (registry, ids): (registry::Server, IdMap),
) {
    let config = RouterConfig::new(server.settings.domain.as_str());
    services.tasks.spawn(router::serve(listener, table, config, services.rest.clone()));
    let layers = LayersUpkeep {
        directory: layers_directory(&server.settings.data),
        ids,
        max_bytes: server.settings.cache_bytes,
    };
    let upkeep = Upkeep { registry: Some(registry), stages: server.stages().clone(), layers: Some(layers) };
    services.tasks.spawn(upkeep.run(services.rest.clone()));
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Gets the files of a published image onto this machine: from the layer store, or else from the registry.
fn images(layers: PathBuf, ids: IdMap, client: Client, host: Host) -> Images {
    let host = Arc::new(host);
    Arc::new(move |index| {
        let (layers, ids, client) = (layers.clone(), ids.clone(), client.clone());
        let reference = format!("{host}/{}@{}", index.repository, index.digest);
        Box::pin(async move {
            let reference: Reference = reference.parse()?;
            // Unpacking is file work, and its future is bound to lifetimes that the compiler cannot prove `Send` of.
            let runtime = tokio::runtime::Handle::current();
            let image = tokio::task::spawn_blocking(move || {
                runtime.block_on(crate::build::local_image(
                    &layers,
                    &ids,
                    client,
                    &reference,
                    &Platform::native(),
                ))
            });
            let image = image.await??;
            Ok(LocalImage {
                config: image.config,
                trees: image.trees,
                user: UserIds { uid: image.user.uid, gid: image.user.gid, groups: image.user.groups },
                home: image.user.home,
                lease: Some(image.lease),
            })
        })
    })
}
