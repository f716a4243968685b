//! What every [`Runtime`] does, whatever it runs versions on. A place that has one passes each of these.
//!
//! The image of all versions has a shell, and an HTTP server `httpd` with `/www` to serve.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use hephy::model::{AppName, Fault, ReleaseNumber};
use hephy::rollout::{
    Author, InstanceState, InstanceStatus, LogQuery, Obstacle, Runtime, RuntimeError, RuntimeEvent, Version,
    rollout,
};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;

/// Answers with its release, its environment, or its own end.
pub(crate) const SERVE: &str = "echo serving; exec httpd -f -p 0.0.0.0:$PORT -h /www";
/// The same, and it says when it is asked to stop.
const SERVE_AND_SAY_SO: &str =
    "trap 'echo asked to stop; exit 0' TERM; httpd -f -p 0.0.0.0:$PORT -h /www & wait";
const WORK: &str = "echo working; trap 'exit 0' TERM; sleep 1000 & wait";
/// Longer than a server is believed to be at work that no longer says so.
const DEADLINE: Duration = Duration::from_mins(2);

/// Somewhere with a runtime, empty at first.
pub(crate) trait Place {
    /// Whether a version takes the place of the one before as its instances become ready, as Deployments do. Then it
    /// serves before the switch, no instance keeps its place or its lines, and a restart has the old one to start again.
    const IN_PLACE: bool = false;
    /// Made anew.
    async fn new() -> Self;
    /// Its runtime.
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// The server ends and another begins; the apps know nothing of it.
    async fn restart(&mut self);
    /// Version `number` of `hello` with process types, their lines and counts.
    fn version(&self, number: u64, processes: &[(&str, &str, u32)]) -> Version;
    /// What a client reads from `hello`.
    async fn get(&self, path: &str) -> (StatusCode, String);
}

fn hello() -> AppName {
    "hello".parse().unwrap()
}

fn sink() -> mpsc::UnboundedSender<RuntimeEvent> {
    mpsc::unbounded_channel().0
}

async fn deploy(place: &impl Place, version: &Version, previous: Option<&Version>) {
    let (runtime, progress) = (place.runtime(), mpsc::unbounded_channel().0);
    rollout(&*runtime, previous, version, &progress).await.unwrap().finish().await.unwrap();
}

async fn served(place: &impl Place) -> String {
    let (status, body) = place.get("/cgi-bin/release").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body.trim().to_owned()
}

async fn up(place: &impl Place) -> Vec<String> {
    let statuses = place.runtime().status(&hello()).await.unwrap();
    let up = statuses.iter().filter(|status| status.state == InstanceState::Up);
    up.map(|status| format!("{} {}", status.release, status.name)).collect()
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.unwrap_or_else(|_| panic!("never {what}"))
}

async fn history(place: &impl Place) -> Vec<String> {
    let query = LogQuery { process_type: None, lines: 1000, follow: false };
    let lines = place.runtime().logs(&hello(), query).await.unwrap();
    let own = lines.filter(|line| std::future::ready(line.author == Author::App));
    own.map(|line| format!("{}: {}", line.instance, line.text)).collect().await
}

/// Returns when a request is answered so: at once where the runtime is the router's, soon where the router follows it.
async fn answers<P: Place>(place: &P, status: StatusCode) {
    if !P::IN_PLACE {
        assert_eq!(place.get("/").await.0, status);
    }
    eventually("answered so", async || (place.get("/").await.0 == status).then_some(())).await;
}

/// Asks the router at `address` for `path` of the suite's app.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> (StatusCode, String) {
    let request = Request::builder().uri(format!("http://{address}{path}")).header("host", "hello.localhost");
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let response = client.request(request.body(Full::default()).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn not_ready(result: Result<(), RuntimeError>) -> (Obstacle, Vec<String>) {
    match result {
        Err(error @ RuntimeError::NotReady(_)) => {
            assert_eq!(error.fault(), Fault::App);
            let RuntimeError::NotReady(not_ready) = error else { unreachable!() };
            (not_ready.obstacle, not_ready.lines)
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_version_serves_once_it_is_switched_to_and_not_before<P: Place>(place: P) {
    let first = place.version(1, &[("web", SERVE, 2)]);
    let (events, mut received) = mpsc::unbounded_channel();
    place.runtime().start(&first, &events).await.unwrap();
    if !P::IN_PLACE {
        assert_eq!(place.get("/").await.0, StatusCode::NOT_FOUND);
    }
    place.runtime().switch(&first).await.unwrap();
    assert_eq!(served(&place).await, "v1");
    assert_eq!(up(&place).await, ["v1 web.1", "v1 web.2"]);
    let told: Vec<String> = std::iter::from_fn(|| received.try_recv().ok()).map(|e| e.to_string()).collect();
    assert_eq!(told, ["web 1/2 ready", "web 2/2 ready"]);
}

pub(crate) async fn a_version_that_ends_is_never_switched_to_and_its_last_lines_are_told(place: impl Place) {
    let first = place.version(1, &[("web", SERVE, 1)]);
    deploy(&place, &first, None).await;
    let second = place.version(2, &[("web", "echo boom; exit 3", 1)]);
    let (obstacle, lines) = not_ready(place.runtime().start(&second, &sink()).await);
    assert!(matches!(&obstacle, Obstacle::Crashed { how, .. } if how == "exit status 3"), "{obstacle}");
    assert_eq!(lines, ["boom"]);
    assert_eq!(served(&place).await, "v1");
    assert_eq!(up(&place).await, ["v1 web.1"]);
    // One of several is enough.
    let third = place.version(3, &[("web", SERVE, 1), ("worker", "exit 1", 1)]);
    not_ready(place.runtime().start(&third, &sink()).await);
    assert_eq!(up(&place).await, ["v1 web.1"]);
}

pub(crate) async fn an_app_that_listens_elsewhere_is_told_where(place: impl Place) {
    let of = |number, line: &str| {
        let mut version = place.version(number, &[("web", line, 1)]);
        version.ready_timeout = Some(Duration::from_secs(1));
        version
    };
    let loopback = of(1, "exec httpd -f -p 127.0.0.1:$PORT -h /www");
    let (obstacle, _) = not_ready(place.runtime().start(&loopback, &sink()).await);
    assert_eq!(obstacle, Obstacle::LoopbackOnly { address: "127.0.0.1:5000".parse().unwrap(), port: 5000 });
    let elsewhere = of(2, "exec httpd -f -p 0.0.0.0:8080 -h /www");
    let (obstacle, _) = not_ready(place.runtime().start(&elsewhere, &sink()).await);
    let on = vec!["0.0.0.0:8080".parse().unwrap()];
    assert_eq!(obstacle, Obstacle::Elsewhere { on, port: 5000 });
    let nowhere = of(3, "sleep 1000");
    let (obstacle, _) = not_ready(place.runtime().start(&nowhere, &sink()).await);
    assert_eq!(obstacle, Obstacle::NeverListened { port: 5000, within: Duration::from_secs(1) });
    assert!(up(&place).await.is_empty());
}

pub(crate) async fn a_release_that_is_not_newer_is_refused(place: impl Place) {
    let second = place.version(2, &[("web", SERVE, 1)]);
    deploy(&place, &second, None).await;
    for number in [1, 2] {
        let older = place.version(number, &[("web", SERVE, 1)]);
        let error = place.runtime().start(&older, &sink()).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Stale { current: ReleaseNumber(2), .. }), "{error}");
    }
    let unstarted = place.version(3, &[("web", SERVE, 1)]);
    let error = place.runtime().switch(&unstarted).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotStarted { .. }), "{error}");
    assert_eq!(served(&place).await, "v2");
}

pub(crate) async fn continuous_load_across_rollouts_sees_no_failed_request(place: impl Place) {
    let mut current = place.version(1, &[("web", SERVE, 1)]);
    deploy(&place, &current, None).await;
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = async || {
        while !stop.load(Ordering::SeqCst) {
            assert!(served(&place).await.starts_with('v'));
            answered.fetch_add(1, Ordering::SeqCst);
        }
    };
    let rollouts = async {
        for number in 2..=5 {
            let next = place.version(number, &[("web", SERVE, 1)]);
            deploy(&place, &next, Some(&current)).await;
            assert_eq!(up(&place).await, [format!("v{number} web.1")]);
            current = next;
        }
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(load(), load(), load(), rollouts);
    assert!(answered.load(Ordering::SeqCst) > 20);
    assert_eq!(served(&place).await, "v5");
}

pub(crate) async fn the_old_version_is_asked_to_stop_after_the_switch(place: impl Place) {
    let first = place.version(1, &[("web", SERVE_AND_SAY_SO, 1)]);
    deploy(&place, &first, None).await;
    let second = place.version(2, &[("web", SERVE, 1)]);
    let (runtime, progress) = (place.runtime(), mpsc::unbounded_channel().0);
    let rollout = rollout(&*runtime, Some(&first), &second, &progress).await.unwrap();
    assert_eq!(served(&place).await, "v2");
    assert_eq!(up(&place).await, ["v1 web.1", "v2 web.1"]);
    assert!(!history(&place).await.contains(&"web.1: asked to stop".to_owned()));
    rollout.finish().await.unwrap();
    assert_eq!(up(&place).await, ["v2 web.1"]);
    assert!(
        history(&place).await.contains(&"web.1: asked to stop".to_owned()),
        "{:?}",
        history(&place).await
    );
}

pub(crate) async fn a_switch_can_be_undone(place: impl Place) {
    let (first, second) = (place.version(1, &[("web", SERVE, 1)]), place.version(2, &[("web", SERVE, 1)]));
    let (runtime, progress) = (place.runtime(), mpsc::unbounded_channel().0);
    deploy(&place, &first, None).await;
    rollout(&*runtime, Some(&first), &second, &progress).await.unwrap().undo().await.unwrap();
    assert_eq!(served(&place).await, "v1");
    assert_eq!(up(&place).await, ["v1 web.1"]);
    deploy(&place, &second, Some(&first)).await;
    assert_eq!(served(&place).await, "v2");
}

pub(crate) async fn scaling_starts_and_stops_instances_of_the_current_release(place: impl Place) {
    let mut version = place.version(1, &[("web", SERVE, 1), ("worker", WORK, 0)]);
    deploy(&place, &version, None).await;
    assert_eq!(up(&place).await, ["v1 web.1"]);
    version.scale = BTreeMap::from([("web".parse().unwrap(), 2), ("worker".parse().unwrap(), 1)]);
    place.runtime().scale(&version, &sink()).await.unwrap();
    assert_eq!(up(&place).await, ["v1 web.1", "v1 web.2", "v1 worker.1"]);
    version.scale = BTreeMap::from([("web".parse().unwrap(), 1)]);
    place.runtime().scale(&version, &sink()).await.unwrap();
    assert_eq!(up(&place).await, ["v1 web.1"]);
    assert_eq!(served(&place).await, "v1");
    version.scale.clear();
    place.runtime().scale(&version, &sink()).await.unwrap();
    answers(&place, StatusCode::SERVICE_UNAVAILABLE).await;
    let other = place.version(2, &[("web", SERVE, 1)]);
    assert!(matches!(place.runtime().scale(&other, &sink()).await, Err(RuntimeError::Stale { .. })));
}

pub(crate) async fn an_instance_that_crashes_is_started_again(place: impl Place) {
    let version = place.version(1, &[("web", SERVE, 1)]);
    deploy(&place, &version, None).await;
    assert_eq!(place.get("/cgi-bin/end").await.0, StatusCode::BAD_GATEWAY);
    let again = eventually("started again", async || {
        let status = place.runtime().status(&hello()).await.unwrap().remove(0);
        (status.restarts >= 1 && status.state == InstanceState::Up).then_some(status)
    })
    .await;
    assert_eq!(again.name.to_string(), "web.1");
    eventually("served", async || (place.get("/cgi-bin/release").await.1.trim() == "v1").then_some(())).await;
}

pub(crate) async fn an_instance_sees_its_variables_and_the_config_wins<P: Place>(place: P) {
    let mut version = place.version(1, &[("web", SERVE, 1)]);
    let config = [("COLOUR", "blue"), ("DEIS_APP", "mine"), ("PORT", "80")];
    version.variables = config
        .map(|(name, value)| (name.parse().unwrap(), hephy::model::Secret::new(value.to_owned())))
        .into();
    deploy(&place, &version, None).await;
    let (_, body) = place.get("/cgi-bin/env").await;
    for line in [
        "COLOUR=blue",
        "DEIS_APP=mine",
        "PORT=80",
        "HEPHY_APP=hello",
        "HEPHY_RELEASE=v1",
        if P::IN_PLACE { "DEIS_APP=mine" } else { "HEPHY_PROCESS=web.1" },
    ] {
        assert!(body.lines().any(|seen| seen == line), "{line} is not in {body}");
    }
}

pub(crate) async fn lines_are_kept_and_followed_across_releases<P: Place>(place: P) {
    let first = place.version(1, &[("web", SERVE, 1), ("worker", WORK, 1)]);
    deploy(&place, &first, None).await;
    let mut lines = history(&place).await;
    lines.sort();
    assert_eq!(lines, ["web.1: serving", "worker.1: working"]);
    let query = LogQuery { process_type: Some("web".parse().unwrap()), lines: 10, follow: true };
    let followed = place.runtime().logs(&hello(), query).await.unwrap();
    let mut followed = followed.filter(|line| std::future::ready(line.author == Author::App));
    let first_line = followed.next().await.unwrap();
    assert_eq!((first_line.release, first_line.text.as_str()), (ReleaseNumber(1), "serving"));
    assert!(first_line.to_string().ends_with(" web.1: serving"), "{first_line}");
    let second = place.version(2, &[("web", SERVE, 1)]);
    deploy(&place, &second, Some(&first)).await;
    let next = tokio::time::timeout(DEADLINE, followed.next()).await.unwrap().unwrap();
    assert_eq!((next.release, next.text.as_str()), (ReleaseNumber(2), "serving"));
    if !P::IN_PLACE {
        assert_eq!(history(&place).await.len(), 3);
    }
}

pub(crate) async fn a_command_runs_once_to_its_end(place: impl Place) {
    let version = place.version(1, &[("web", SERVE, 1)]);
    deploy(&place, &version, None).await;
    let command = ["/bin/sh", "-c", "echo $HEPHY_RELEASE; exit 7"].map(str::to_owned);
    let output = place.runtime().run(&version, &command).await.unwrap();
    assert_eq!(output.status, 7);
    let own = output.lines.iter().filter(|line| line.author == Author::App);
    assert_eq!(own.map(|line| line.text.as_str()).collect::<Vec<_>>(), ["v1"]);
    assert_eq!(up(&place).await, ["v1 web.1"]);
}

pub(crate) async fn a_start_that_is_given_up_leaves_nothing(place: impl Place) {
    let first = place.version(1, &[("web", SERVE, 1)]);
    deploy(&place, &first, None).await;
    let second = place.version(2, &[("web", "echo never ready; sleep 1000", 1)]);
    {
        let runtime = place.runtime();
        let events = sink();
        let mut starting = std::pin::pin!(runtime.start(&second, &events));
        let running =
            eventually("running", async || up(&place).await.contains(&"v2 web.1".to_owned()).then_some(()));
        tokio::select! {
            done = &mut starting => panic!("{done:?}"),
            () = running => {}
        }
    }
    eventually("gone", async || (up(&place).await == ["v1 web.1"]).then_some(())).await;
    deploy(&place, &place.version(3, &[("web", SERVE, 1)]), Some(&first)).await;
    assert_eq!(served(&place).await, "v3");
}

pub(crate) async fn an_app_that_is_stopped_is_gone(place: impl Place) {
    deploy(&place, &place.version(1, &[("web", SERVE, 1)]), None).await;
    place.runtime().stop(&hello()).await.unwrap();
    answers(&place, StatusCode::NOT_FOUND).await;
    assert_eq!(place.runtime().status(&hello()).await.unwrap(), Vec::<InstanceStatus>::new());
    assert!(history(&place).await.is_empty());
}

pub(crate) async fn a_new_server_takes_over_what_runs<P: Place>(mut place: P) {
    let first = place.version(1, &[("web", SERVE, 2)]);
    deploy(&place, &first, None).await;
    let before = place.runtime().status(&hello()).await.unwrap();
    // A version that was started, and perhaps switched to, when the server died is not what the store calls current.
    let lost = place.version(2, &[("web", SERVE, 1)]);
    place.runtime().start(&lost, &sink()).await.unwrap();
    place.restart().await;
    let adopt = async || place.runtime().adopt(std::slice::from_ref(&first)).await.unwrap();
    let lacking = adopt().await;
    if P::IN_PLACE {
        // The other is believed to be at work until it has not said so for a while, which whoever has the app waits for.
        assert_eq!(lacking, []);
        place.runtime().scale(&first, &sink()).await.unwrap();
        assert_eq!(up(&place).await, ["v1 web.1", "v1 web.2"]);
    } else {
        assert_eq!(lacking, []);
    }
    assert_eq!(served(&place).await, "v1");
    let after = eventually("rid of the other version", async || {
        let statuses = place.runtime().status(&hello()).await.unwrap();
        (statuses.len() == 2).then_some(statuses)
    })
    .await;
    assert!(P::IN_PLACE || after == before, "{after:?}");
    deploy(&place, &place.version(3, &[("web", SERVE, 1)]), Some(&first)).await;
    assert_eq!(served(&place).await, "v3");
}

pub(crate) async fn a_new_server_finds_what_is_missing_and_scaling_brings_it_back(mut place: impl Place) {
    let first = place.version(1, &[("web", SERVE, 1)]);
    deploy(&place, &first, None).await;
    let mut more = first.clone();
    more.scale.insert("web".parse().unwrap(), 2);
    place.restart().await;
    assert_eq!(place.runtime().adopt(std::slice::from_ref(&more)).await.unwrap(), [hello()]);
    assert_eq!(served(&place).await, "v1");
    place.runtime().scale(&more, &sink()).await.unwrap();
    assert_eq!(up(&place).await, ["v1 web.1", "v1 web.2"]);
    place.restart().await;
    eventually("stopped what no store names", async || {
        assert!(place.runtime().adopt(&[]).await.unwrap().is_empty());
        up(&place).await.is_empty().then_some(())
    })
    .await;
}
