//! What servers of a cluster do for apps that nobody pushes to, and what one does that has lost the right to its work. The
//! store and the leases are real, the runtime only says and notes.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::http::Method;
use futures::stream::BoxStream;
use hephy::build::{BuildEvent, BuildFailure, BuildLimits, BuildRequest, Driver};
use hephy::config::address::Addresses;
use hephy::config::server::GivenSettings;
use hephy::kubernetes::Leases;
use hephy::model::store::{self, Store};
use hephy::model::{
    App, AppName, Build, BuildNumber, BuildState, Claim, CommitId, Config, FORMAT, Holder,
    Method as BuildMethod, ObjectName, Plan, PlatformImage, ProcessType, PublishedIndex, PushOptions, Recipe,
    Release, ReleaseNumber, ReleaseState, Source,
};
use hephy::oci::{Digest, Platform};
use hephy::publish::{Access, Place, Publisher};
use hephy::push::claim;
use hephy::push::keeping::{KeepError, Keeper};
use hephy::push::log::Logs;
use hephy::push::{Metrics, Pushes, Sources, Stages};
use hephy::registry::client::Reach;
use hephy::rollout::{
    EventSink, InstanceLine, InstanceStatus, LogQuery, RunOutput, Runtime, RuntimeError, Version,
};
use hephy::store::KubernetesStore;
use hephy::traces::Exporter;
use tokio_util::sync::CancellationToken;

use crate::store_conformance::api_server::ApiServer;

const SOON: Duration = Duration::from_secs(60);
const LASTING: Duration = Duration::from_secs(2);

/// What the runtime is to say, and what was asked of it.
#[derive(Default)]
struct Said {
    lacking: Vec<&'static str>,
    /// How a scale ends.
    fails: bool,
    adopted: Vec<Vec<String>>,
    /// Of which app, and who had it then.
    scaled: Vec<(String, Option<Holder>)>,
    started: usize,
    left: Vec<String>,
}

pub(crate) struct Noting {
    said: Arc<Mutex<Said>>,
    store: Arc<dyn Store>,
}

impl Noting {
    /// One of which nobody wants to know anything.
    pub(crate) fn idle(store: Arc<dyn Store>) -> Self {
        Self { said: Arc::default(), store }
    }
}

#[async_trait]
impl Runtime for Noting {
    async fn start(&self, _: &Version, _: &EventSink) -> Result<(), RuntimeError> {
        self.said.lock().unwrap().started += 1;
        pending().await
    }

    async fn switch(&self, _: &Version) -> Result<(), RuntimeError> {
        unreachable!("nothing is started")
    }

    async fn retire(&self, _: &AppName, _: ReleaseNumber) -> Result<(), RuntimeError> {
        unreachable!("nothing is started")
    }

    async fn undo(&self, _: &Version, _: Option<&Version>) -> Result<(), RuntimeError> {
        unreachable!("nothing is taken back")
    }

    async fn scale(&self, version: &Version, _: &EventSink) -> Result<(), RuntimeError> {
        let app = &version.release.app;
        let read = store::require::<App>(&*self.store, &ObjectName::of(app)).await.unwrap();
        let mut said = self.said.lock().unwrap();
        said.scaled.push((format!("{app} {}", version.release.number), read.object.holder));
        if said.fails {
            return Err(RuntimeError::NotStarted { app: app.clone(), release: version.release.number });
        }
        said.lacking.retain(|lacking| *lacking != app.as_str());
        Ok(())
    }

    async fn stop(&self, _: &AppName) -> Result<(), RuntimeError> {
        unreachable!("no app is destroyed")
    }

    async fn run(&self, _: &Version, _: &[String]) -> Result<RunOutput, RuntimeError> {
        unreachable!("nothing is run once")
    }

    async fn status(&self, _: &AppName) -> Result<Vec<InstanceStatus>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn logs(&self, _: &AppName, _: LogQuery) -> Result<BoxStream<'static, InstanceLine>, RuntimeError> {
        unreachable!("nobody reads logs")
    }

    fn leave(&self, app: &AppName) {
        self.said.lock().unwrap().left.push(app.to_string());
    }

    async fn adopt(&self, current: &[Version]) -> Result<Vec<AppName>, RuntimeError> {
        let mut said = self.said.lock().unwrap();
        said.adopted.push(current.iter().map(|version| version.release.app.to_string()).collect());
        Ok(said.lacking.iter().map(|app| app.parse().unwrap()).collect())
    }
}

struct NoDriver;

#[async_trait]
impl Driver for NoDriver {
    async fn platforms(&self) -> Result<Vec<Platform>, BuildFailure> {
        Ok(vec![Platform::native()])
    }

    async fn build(
        &self,
        _: &BuildRequest,
        _: tokio::sync::mpsc::Sender<BuildEvent>,
        _: CancellationToken,
    ) -> Result<PlatformImage, BuildFailure> {
        unreachable!("nothing is built")
    }
}

/// What drives the builds of a server that builds nothing, of this store, this runtime and these leases.
pub(crate) fn pushes(
    directory: &Path,
    store: Arc<dyn Store>,
    runtime: Arc<dyn Runtime>,
    leases: Leases,
) -> Pushes {
    Pushes::new(Arc::new(stages(directory, store, runtime, leases)), 10)
}

/// The stages of a server that has such sources, and neither builds nor runs anything.
pub(crate) fn idle(directory: &Path, store: Arc<dyn Store>, leases: Leases, sources: Sources) -> Stages {
    let runtime = Arc::new(Noting::idle(Arc::clone(&store)));
    Stages { sources, ..stages(directory, store, runtime, leases) }
}

/// The stages of such a server.
pub(crate) fn stages(
    directory: &Path,
    store: Arc<dyn Store>,
    runtime: Arc<dyn Runtime>,
    leases: Leases,
) -> Stages {
    drop(rustls::crypto::ring::default_provider().install_default());
    let settings = GivenSettings::default();
    let settings = settings.resolve(GivenSettings::default(), Some(directory.to_owned())).unwrap();
    let host = "registry.test".parse().unwrap();
    let place = Place { host, prefix: None, is_plain: true, access: Access::Open, reach: Reach::default() };
    let client = place.client(SOON).unwrap();
    Stages {
        store,
        driver: Arc::new(NoDriver),
        runtime,
        publisher: Publisher::new(client.clone(), place.clone()),
        place,
        client,
        recent_bases: Arc::default(),
        sources: Sources::local(directory.join("repositories")),
        logs: Logs::new(directory.join("builds")),
        addresses: Addresses::of(&settings),
        limits: BuildLimits::default(),
        metrics: Metrics::default(),
        traces: Exporter::off(),
        leases: Some(leases),
        stopping: CancellationToken::new(),
    }
}

/// A server of a cluster whose API server is `cluster`.
struct Server {
    pushes: Pushes,
    said: Arc<Mutex<Said>>,
    leases: Leases,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(cluster: &ApiServer, name: &str) -> Self {
        Self::lasting(cluster, name, LASTING)
    }

    fn lasting(cluster: &ApiServer, name: &str, lasting: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let objects = Arc::new(KubernetesStore::new(&cluster.client(), "hephy-apps"));
        let said = Arc::<Mutex<Said>>::default();
        let leases = Leases::lasting(cluster.client(), "hephy", name, lasting);
        let runtime = Noting { said: Arc::clone(&said), store: objects.clone() };
        let pushes = pushes(directory.path(), objects, Arc::new(runtime), leases.clone());
        Self { pushes, said, leases, _directory: directory }
    }

    fn keeper(&self, interval: Duration) -> Keeper {
        Keeper::new(self.pushes.clone(), "operator".parse().unwrap(), interval)
    }

    fn store(&self) -> &dyn Store {
        &*self.pushes.stages().store
    }

    async fn app(&self, name: &str) -> App {
        store::require::<App>(self.store(), &ObjectName::of(&name)).await.unwrap().object
    }

    fn rounds(&self) -> usize {
        self.said.lock().unwrap().adopted.len()
    }
}

fn commit() -> CommitId {
    "3f2a1c9000000000000000000000000000000000".parse().unwrap()
}

fn release(app: &AppName, number: u64) -> Release {
    Release {
        format: FORMAT,
        app: app.clone(),
        number: ReleaseNumber(number),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        by: "ada".parse().unwrap(),
        summary: "ada deployed 3f2a1c9".to_owned(),
        build: BuildNumber(number),
        commit: commit(),
        index: PublishedIndex {
            digest: Digest::of(b"index"),
            repository: app.to_string(),
            images: Vec::new(),
        },
        processes: BTreeMap::from([(ProcessType::web(), None)]),
        ready_timeout_seconds: None,
        state: ReleaseState::Pending,
    }
}

/// An app whose release `v1` serves.
async fn deployed(store: &dyn Store, name: &str, holder: Option<Holder>) {
    let name: AppName = name.parse().unwrap();
    let mut app = App::new(name.clone(), "ada".parse().unwrap(), jiff::Timestamp::UNIX_EPOCH);
    (app.current, app.last_release, app.last_build) = (Some(ReleaseNumber(1)), 1, 1);
    app.holder = holder;
    store::create(store, app).await.unwrap();
    release_of(store, &name, 1).await;
}

async fn release_of(store: &dyn Store, app: &AppName, number: u64) {
    let variables = BTreeMap::new();
    let config = Config { format: FORMAT, app: app.clone(), release: Some(ReleaseNumber(number)), variables };
    store::create(store, config).await.unwrap();
    store::create(store, release(app, number)).await.unwrap();
}

fn pushing() -> Holder {
    let claim = Claim::Build(BuildNumber(2));
    Holder { claim, by: "ada".parse().unwrap(), since: jiff::Timestamp::UNIX_EPOCH }
}

async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, wait).await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_the_records_say_is_put_right_under_a_claim_and_what_somebody_has_is_left_alone() {
    let cluster = ApiServer::start().await;
    let server = Server::start(&cluster, "one");
    deployed(server.store(), "lacking", None).await;
    deployed(server.store(), "busy", Some(pushing())).await;
    deployed(server.store(), "fine", None).await;
    server.said.lock().unwrap().lacking = vec!["lacking", "busy"];
    // Who pushes has the right, too.
    let held = server.leases.hold("app-busy").await.unwrap().unwrap();
    server.keeper(SOON).once().await.unwrap();
    {
        let said = server.said.lock().unwrap();
        assert_eq!(said.adopted, [["busy", "fine", "lacking"]]);
        let [(scaled, holder)] = &said.scaled[..] else { panic!("{:?}", said.scaled) };
        assert_eq!(scaled, "lacking v1");
        let holder = holder.as_ref().unwrap();
        assert_eq!((holder.claim, holder.by.as_str()), (Claim::Change(ReleaseNumber(2)), "operator"));
    }
    assert_eq!(server.app("lacking").await.holder, None);
    assert_eq!(server.app("busy").await.holder, Some(pushing()));
    assert_eq!(server.leases.names("app-").await.unwrap(), ["app-busy"]);
    held.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_put_right_is_not_tried_all_the_time() {
    let cluster = ApiServer::start().await;
    let server = Server::start(&cluster, "one");
    deployed(server.store(), "broken", None).await;
    *server.said.lock().unwrap() = Said { lacking: vec!["broken"], fails: true, ..Said::default() };
    let mut keeper = server.keeper(SOON);
    for _ in 0..3 {
        keeper.once().await.unwrap();
    }
    assert_eq!((server.rounds(), server.said.lock().unwrap().scaled.len()), (3, 1));
    assert_eq!(server.app("broken").await.holder, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stopped_because_its_record_cannot_be_read() {
    let cluster = ApiServer::start().await;
    let server = Server::start(&cluster, "one");
    deployed(server.store(), "fine", None).await;
    let mut app = App::new("lost".parse().unwrap(), "ada".parse().unwrap(), jiff::Timestamp::UNIX_EPOCH);
    // There is no such release.
    (app.current, app.last_release) = (Some(ReleaseNumber(4)), 4);
    store::create(server.store(), app).await.unwrap();
    let error = server.keeper(SOON).once().await.unwrap_err();
    assert!(matches!(error, KeepError::Store(_)), "{error}");
    assert_eq!(server.rounds(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_looks_after_the_apps_until_it_goes_and_then_another() {
    let cluster = ApiServer::start().await;
    let servers = [Server::start(&cluster, "one"), Server::start(&cluster, "two")];
    let stops = [CancellationToken::new(), CancellationToken::new()];
    let run = |index: usize| {
        tokio::spawn(servers[index].keeper(Duration::from_millis(50)).run(stops[index].clone()))
    };
    let first = run(0);
    eventually("the first looks again and again", async || servers[0].rounds() >= 3).await;
    let second = run(1);
    // Each looks once when it starts; then it is one's turn.
    eventually("the second has started", async || servers[1].rounds() == 1).await;
    let before = servers[0].rounds();
    eventually("the first goes on", async || servers[0].rounds() >= before + 5).await;
    assert_eq!(servers[1].rounds(), 1);
    stops[0].cancel();
    first.await.unwrap();
    eventually("the second goes on", async || servers[1].rounds() >= 3).await;
    stops[1].cancel();
    second.await.unwrap();
    assert_eq!(servers[0].leases.names("").await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leases_of_dead_servers_go_and_those_of_others_stay() {
    let cluster = ApiServer::start().await;
    let server = Server::start(&cluster, "one");
    let other = Server::start(&cluster, "other");
    deployed(server.store(), "done", None).await;
    deployed(server.store(), "claimed", Some(pushing())).await;
    deployed(server.store(), "alive", None).await;
    let dead = Leases::lasting(cluster.client(), "hephy", "dead", LASTING);
    // One of an app that is no more, one whose work is done, one whose work is to be taken up, one of another kind.
    for name in ["app-gone", "app-done", "app-claimed", "packs-done"] {
        drop(dead.hold(name).await.unwrap().unwrap());
    }
    let alive = other.leases.hold("app-alive").await.unwrap().unwrap();
    let keeper = server.keeper(SOON);
    eventually("the leases are swept", async || {
        keeper.sweep_leases().await.unwrap();
        server.leases.names("").await.unwrap() == ["app-alive", "app-claimed"]
    })
    .await;
    assert!(!alive.lost().is_cancelled());
    // And whoever comes has the app at once.
    server.leases.hold("app-done").await.unwrap().unwrap().release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_after_a_server_that_died_waits_for_the_end_of_its_lease() {
    // Longer than a server that lives may take to say what it does.
    const LONG: Duration = Duration::from_secs(11);
    let cluster = ApiServer::start().await;
    let server = Server::lasting(&cluster, "one", LONG);
    deployed(server.store(), "hello", None).await;
    let dead = Leases::lasting(cluster.client(), "hephy", "dead", LONG);
    drop(dead.hold("app-hello").await.unwrap().unwrap());
    let (app, by) = ("hello".parse().unwrap(), "ada".parse().unwrap());
    let (_, hold) = claim::claim_change(server.pushes.stages(), &app, &by).await.unwrap();
    hold.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_the_right_to_an_app_in_a_rollout_leaves_all_as_it_is() {
    let cluster = ApiServer::start().await;
    let server = Server::start(&cluster, "one");
    deployed(server.store(), "hello", Some(pushing())).await;
    let app: AppName = "hello".parse().unwrap();
    release_of(server.store(), &app, 2).await;
    let source = Source {
        app: app.clone(),
        build: BuildNumber(2),
        commit: commit(),
        committed_at: jiff::Timestamp::UNIX_EPOCH,
    };
    let method = BuildMethod::Dockerfile {
        path: "Dockerfile".to_owned(),
        context: ".".to_owned(),
        target: None,
        args: Vec::new(),
    };
    let recipe = Recipe {
        source,
        method,
        reason: "Dockerfile found".to_owned(),
        processes: BTreeMap::new(),
        platforms: Vec::new(),
        build_timeout_seconds: None,
        ready_timeout_seconds: None,
        require_native_nodes: true,
    };
    let machines = BTreeMap::new();
    let plan = Plan { recipe, platforms: vec![Platform::native()], machines, no_cache: false };
    let build = Build {
        format: FORMAT,
        app: app.clone(),
        number: BuildNumber(2),
        commit: commit(),
        moves: Vec::new(),
        by: "ada".parse().unwrap(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        options: PushOptions::default(),
        state: BuildState::Released { plan, release: ReleaseNumber(2) },
        cancel: None,
        outcome: None,
    };
    let build = store::create(server.store(), build).await.unwrap().object;
    let hold = server.pushes.stages().hold(&app).await.unwrap().unwrap();
    server.pushes.start(build.clone(), hold).await.unwrap();
    eventually("the rollout has begun", async || server.said.lock().unwrap().started == 1).await;
    // It can no longer be renewed.
    cluster.forbid("leases", Method::PUT);
    tokio::time::timeout(SOON, server.pushes.ended(&app, BuildNumber(2))).await.unwrap();
    assert_eq!(server.said.lock().unwrap().left, ["hello"]);
    let name = Build::object_name(&app, BuildNumber(2));
    assert_eq!(store::require::<Build>(server.store(), &name).await.unwrap().object, build);
    let after = server.app("hello").await;
    assert_eq!((after.holder, after.current), (Some(pushing()), Some(ReleaseNumber(1))));
    let name = Release::object_name(&app, ReleaseNumber(2));
    let release = store::require::<Release>(server.store(), &name).await.unwrap().object;
    assert_eq!(release.state, ReleaseState::Pending);
}
