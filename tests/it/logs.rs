//! Lines of builds where another server drives them, or did. The store, the leases and the registry are real; what builds only
//! says what the test wants.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hephy::build::{BuildEvent, BuildFailure, BuildRequest, Driver};
use hephy::kubernetes::Leases;
use hephy::model::store::{self, Store};
use hephy::model::{
    App, AppName, Build, BuildNumber, BuildState, Claim, CommitId, FORMAT, Holder, LogLine, Outcome,
    PlatformImage, PushEvent, PushOptions, Source,
};
use hephy::oci::Platform;
use hephy::publish::{Access, Place};
use hephy::push::log::Logs;
use hephy::push::{Archive, Pushes, Stages};
use hephy::registry::client::Reach;
use hephy::store::KubernetesStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::keeping::{Noting, stages};
use crate::registry::Registry;
use crate::registry::faulty::{Faulty, answer};
use crate::sources::push_of;
use crate::store_conformance::api_server::ApiServer;

const SOON: Duration = Duration::from_secs(60);
const LASTING: Duration = Duration::from_secs(2);

/// A Job, which goes on whatever becomes of the servers.
#[derive(Debug, Default)]
struct Job {
    begun: bool,
    lines: Vec<String>,
    is_over: bool,
}

/// Follows the one Job that there is, from its first line.
struct Following(watch::Sender<Job>);

impl Following {
    fn say(&self, line: &str) {
        self.0.send_modify(|job| job.lines.push(line.to_owned()));
    }

    fn end(&self) {
        self.0.send_modify(|job| job.is_over = true);
    }
}

struct Shared(Arc<Following>);

#[async_trait]
impl Driver for Shared {
    async fn platforms(&self) -> Result<Vec<Platform>, BuildFailure> {
        Ok(vec![Platform::native()])
    }

    async fn build(
        &self,
        _: &BuildRequest,
        events: mpsc::Sender<BuildEvent>,
        _: CancellationToken,
    ) -> Result<PlatformImage, BuildFailure> {
        let job = &self.0.0;
        if job.send_if_modified(|job| !std::mem::replace(&mut job.begun, true)) {
            events.send(BuildEvent::Begun).await.unwrap();
        }
        let (mut told, mut changed) = (0, job.subscribe());
        loop {
            let (lines, is_over) = {
                let job = changed.borrow_and_update();
                (job.lines[told..].to_vec(), job.is_over)
            };
            told += lines.len();
            for text in lines {
                events.send(BuildEvent::Note { text }).await.unwrap();
            }
            if is_over {
                return Err(BuildFailure::app("the test has seen enough"));
            }
            changed.changed().await.unwrap();
        }
    }
}

/// A cluster with a registry, in which one build is begun.
struct Fixture {
    cluster: ApiServer,
    place: Place,
    job: Arc<Following>,
    directory: tempfile::TempDir,
    commit: CommitId,
}

struct Server {
    pushes: Pushes,
}

/// A process of its own, as far as that can be had: nothing that it does goes on when it is killed.
struct Process(Option<tokio::runtime::Runtime>);

impl Process {
    fn start() -> Self {
        Self(Some(tokio::runtime::Runtime::new().unwrap()))
    }

    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.0.as_ref().unwrap().spawn(work).await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

impl Fixture {
    async fn new(place: Place) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let directory = tempfile::tempdir().unwrap();
        let (commit, _) = push_of(directory.path(), "work");
        let job = Arc::new(Following(watch::Sender::new(Job::default())));
        Self { cluster: ApiServer::start().await, place, job, directory, commit }
    }

    /// A server with a disk of its own.
    fn server(&self, name: &str) -> Server {
        self.server_every(name, Duration::from_millis(50))
    }

    /// The same, which adds so often to a log in the registry.
    fn server_every(&self, name: &str, interval: Duration) -> Server {
        let directory = self.directory.path().join(name);
        clone(&self.directory.path().join("work"), &directory.join("repositories/hello.git"));
        let store = Arc::new(KubernetesStore::new(&self.cluster.client(), "hephy-apps"));
        let leases = Leases::lasting(self.cluster.client(), "hephy", name, LASTING);
        let runtime = Arc::new(Noting::idle(store.clone()));
        let client = self.place.client(SOON).unwrap();
        let archive = Archive::new(client, self.place.clone()).every(interval, interval);
        let stages = Stages {
            driver: Arc::new(Shared(Arc::clone(&self.job))),
            logs: Logs::new(directory.join("builds")).archived(archive),
            ..stages(&directory, store, runtime, leases)
        };
        Server { pushes: Pushes::new(Arc::new(stages), 10) }
    }

    fn build(&self) -> Build {
        let app: AppName = "hello".parse().unwrap();
        let at = jiff::Timestamp::UNIX_EPOCH;
        let (number, commit) = (BuildNumber(1), self.commit);
        let source = Source { app: app.clone(), build: number, commit, committed_at: at };
        Build {
            format: FORMAT,
            app,
            number,
            commit,
            moves: Vec::new(),
            by: "ada".parse().unwrap(),
            created_at: at,
            options: PushOptions::default(),
            state: BuildState::Received(source),
            cancel: None,
            outcome: None,
        }
    }
}

fn clone(from: &Path, to: &Path) {
    let mut git = std::process::Command::new("git");
    git.args(["clone", "-q", "--bare"]).arg(from).arg(to);
    assert!(git.status().unwrap().success());
}

impl Server {
    fn store(&self) -> &dyn Store {
        &*self.pushes.stages().store
    }

    /// Begins a build as a push does.
    async fn begin(&self, build: Build) {
        let mut app = App::new(build.app.clone(), build.by.clone(), build.created_at);
        let claim = Claim::Build(build.number);
        app.last_build = build.number.0;
        app.holder = Some(Holder { claim, by: build.by.clone(), since: build.created_at });
        store::create(self.store(), app).await.unwrap();
        let build = store::create(self.store(), build).await.unwrap().object;
        let hold = self.pushes.stages().hold(&build.app).await.unwrap().unwrap();
        self.pushes.start(build, hold).await.unwrap();
    }

    /// What the log says now, as it is known here.
    async fn replay(&self, build: &Build) -> Vec<LogLine> {
        let name = Build::object_name(&build.app, build.number);
        let build = store::require::<Build>(self.store(), &name).await.unwrap().object;
        all(self.pushes.replay(&build, 0)).await
    }

    async fn says(&self, build: &Build, text: &str) -> bool {
        self.replay(build).await.iter().any(|line| says(line, text))
    }
}

async fn all(mut lines: mpsc::Receiver<LogLine>) -> Vec<LogLine> {
    let mut all = Vec::new();
    while let Some(line) = lines.recv().await {
        all.push(line);
    }
    all
}

fn says(line: &LogLine, text: &str) -> bool {
    matches!(&line.event, PushEvent::Platform { text: said, .. } if said == text)
}

async fn until(lines: &mut mpsc::Receiver<LogLine>, text: &str) -> Vec<LogLine> {
    let mut came = Vec::new();
    let wait = async {
        while let Some(line) = lines.recv().await {
            came.push(line);
            if came.last().is_some_and(|line| says(line, text)) {
                return;
            }
        }
        panic!("the lines ended without `{text}`");
    };
    assert!(tokio::time::timeout(SOON, wait).await.is_ok(), "`{text}` did not come: {came:?}");
    came
}

async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, wait).await.is_ok(), "{what}");
}

/// The log of the build of which `said` was seen, but for how long it took.
fn assert_is_whole(log: &[LogLine], said: &[&str]) {
    let numbers: Vec<u64> = log.iter().map(|line| line.number).collect();
    assert_eq!(numbers, (1..=log.len() as u64).collect::<Vec<_>>());
    let native = Platform::native();
    let mut expected = vec![
        PushEvent::Heading("Dockerfile found".to_owned()),
        PushEvent::Line(format!("platform {native} (what builds here natively)")),
        PushEvent::Heading("Building natively".to_owned()),
    ];
    expected.extend(
        said.iter().map(|text| PushEvent::Platform { platform: native.clone(), text: (*text).to_owned() }),
    );
    let (began, ended) = log.split_at(expected.len().min(log.len()));
    let began: Vec<_> = began.iter().map(|line| line.event.clone()).collect();
    assert_eq!(began, expected, "{log:?}");
    assert!(ended.iter().all(|line| matches!(line.event, PushEvent::Problem(_))), "{ended:?}");
    let end = &ended.last().unwrap().event;
    assert!(matches!(end, PushEvent::Problem(text) if text.starts_with("Full log: ")), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_followed_live_where_it_is_not_driven() {
    let registry = Registry::start().await;
    let fixture = Fixture::new(registry.place()).await;
    let (one, other, build) = (fixture.server("one"), fixture.server("other"), fixture.build());
    one.begin(build.clone()).await;
    let mut followed = other.pushes.follow(&build, 0);
    fixture.job.say("first");
    let mut came = until(&mut followed, "first").await;
    fixture.job.say("second");
    came.extend(until(&mut followed, "second").await);
    assert!(other.says(&build, "second").await);
    assert_eq!(other.pushes.outcome(&build).await.unwrap(), None, "the build runs");
    fixture.job.end();
    came.extend(tokio::time::timeout(SOON, all(followed)).await.unwrap());
    assert_is_whole(&came, &["first", "second"]);
    assert_eq!(came, one.replay(&build).await);
    assert_eq!(came, other.replay(&build).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_another_server_goes_on_with_has_all_of_its_log_once() {
    let registry = Registry::start().await;
    let fixture = Fixture::new(registry.place()).await;
    let build = fixture.build();
    let (other, third) = (fixture.server("other"), fixture.server("third"));
    let (process, one) = (Process::start(), fixture.server("one"));
    let begin = {
        let build = build.clone();
        async move {
            one.begin(build).await;
            one
        }
    };
    let one = process.run(begin).await;
    let mut followed = third.pushes.follow(&build, 0);
    fixture.job.say("first");
    let mut came = until(&mut followed, "first").await;
    fixture.job.say("second");
    eventually("the second line is written", async || {
        let (pushes, build) = (one.pushes.clone(), build.clone());
        let log = process.run(async move { all(pushes.replay(&build, 0)).await }).await;
        log.iter().any(|line| says(line, "second"))
    })
    .await;
    drop(process);
    fixture.job.say("third");
    eventually("another takes it up", async || other.pushes.take_up().await.unwrap() == 1).await;
    fixture.job.say("fourth");
    came.extend(until(&mut followed, "fourth").await);
    fixture.job.end();
    came.extend(tokio::time::timeout(SOON, all(followed)).await.unwrap());
    let said = ["first", "second", "third", "fourth"];
    assert_is_whole(&came, &said);
    assert_is_whole(&other.replay(&build).await, &said);
    drop(one);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_left_has_all_of_its_log_at_whoever_takes_it_up() {
    let registry = Registry::start().await;
    let fixture = Fixture::new(registry.place()).await;
    let (other, build) = (fixture.server("other"), fixture.build());
    let one = fixture.server_every("one", Duration::from_hours(1));
    one.begin(build.clone()).await;
    let mut followed = one.pushes.follow(&build, 0);
    fixture.job.say("first");
    let mut came = until(&mut followed, "first").await;
    one.pushes.leave().await;
    assert!(other.says(&build, "first").await, "what is left is in the registry by then");
    eventually("another takes it up", async || other.pushes.take_up().await.unwrap() == 1).await;
    fixture.job.say("second");
    fixture.job.end();
    // The follower was not told that another server goes on.
    came.extend(tokio::time::timeout(SOON, all(followed)).await.unwrap());
    assert_is_whole(&came, &["first", "second"]);
    assert_eq!(came, other.replay(&build).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_takes_no_logs_is_in_the_way_of_no_build() {
    let refusing =
        Faulty::start(|_, _| answer(403, &[], r#"{"errors":[{"code":"DENIED","message":"no"}]}"#)).await;
    let host = refusing.address.to_string().parse().unwrap();
    let place = Place { host, prefix: None, is_plain: true, access: Access::Open, reach: Reach::default() };
    let fixture = Fixture::new(place).await;
    let (one, build) = (fixture.server("one"), fixture.build());
    one.begin(build.clone()).await;
    let followed = one.pushes.follow(&build, 0);
    fixture.job.say("first");
    eventually("the registry was asked", async || refusing.asked().len() > 2).await;
    fixture.job.end();
    let came = tokio::time::timeout(SOON, all(followed)).await.unwrap();
    assert_is_whole(&came, &["first"]);
    let outcome = one.pushes.outcome(&build).await.unwrap();
    assert!(matches!(outcome, Some(Outcome::Failed { .. })), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_the_registry_did_not_take_at_the_end_of_its_build_is_there_once_it_does() {
    let registry = Registry::start().await;
    let between = Between::start(registry.address).await;
    let host = between.address.to_string().parse().unwrap();
    let fixture = Fixture::new(Place::own(host, registry.server.tokens().clone())).await;
    let (one, other, build) = (fixture.server("one"), fixture.server("other"), fixture.build());
    between.refuses.send_replace(true);
    one.begin(build.clone()).await;
    let followed = one.pushes.follow(&build, 0);
    fixture.job.say("first");
    fixture.job.end();
    let came = tokio::time::timeout(SOON, all(followed)).await.unwrap();
    one.pushes.idle().await;
    assert!(one.pushes.outcome(&build).await.unwrap().is_some());
    between.refuses.send_replace(false);
    eventually("the log is there", async || other.says(&build, "first").await).await;
    assert_is_whole(&came, &["first"]);
    assert_eq!(came, other.replay(&build).await);
}

/// Stands between the servers and a registry, and refuses what it is asked for as long as it is told to.
struct Between {
    address: std::net::SocketAddr,
    refuses: watch::Sender<bool>,
}

impl Between {
    async fn start(registry: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let refuses = watch::Sender::new(false);
        let mut told = refuses.subscribe();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let is_refused = *told.borrow_and_update();
                tokio::spawn(async move {
                    if is_refused {
                        let mut request = [0; 4096];
                        drop(client.read(&mut request).await);
                        let refusal =
                            "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                        drop(client.write_all(refusal.as_bytes()).await);
                    } else {
                        let mut server = TcpStream::connect(registry).await.unwrap();
                        drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                    }
                });
            }
        });
        Self { address, refuses }
    }
}
