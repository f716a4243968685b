//! The runtime of Deployments passes what every runtime does, on a real cluster, through hephy's own router; and it
//! names what only a cluster does to an app.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hephy::kubernetes::Leases;
use hephy::model::store;
use hephy::model::{App, Config, ObjectName, ReleaseNumber, Secret as Hidden};
use hephy::oci::Digest;
use hephy::push::keeping::Keeper;
use hephy::rollout::{InstanceState, Obstacle, RuntimeError, RuntimeEvent, rollout};
use hephy::runtime::kubernetes::Exposure;
use hephy::runtime::kubernetes::pull_secret::PullSecret;
use hephy::store::KubernetesStore;
use hyper::StatusCode;
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota};
use kube::api::{Api, DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::place::{Namespaced, eventually, host};
use super::rights;
use crate::runtime_conformance::{self as conformance, Place, SERVE};

macro_rules! conforms {
    ($($name:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "needs a cluster: scripts/test-cluster"]
        async fn $name() {
            conformance::$name(Namespaced::new().await).await;
        }
    )* };
}

// Not among them: where an app listens instead of on its port cannot be seen from outside its pod, and old instances
// leave as new ones become ready, not at the switch.
conforms! {
    a_version_serves_once_it_is_switched_to_and_not_before
    a_version_that_ends_is_never_switched_to_and_its_last_lines_are_told
    a_release_that_is_not_newer_is_refused
    continuous_load_across_rollouts_sees_no_failed_request
    a_switch_can_be_undone
    scaling_starts_and_stops_instances_of_the_current_release
    an_instance_that_crashes_is_started_again
    an_instance_sees_its_variables_and_the_config_wins
    lines_are_kept_and_followed_across_releases
    a_command_runs_once_to_its_end
    a_start_that_is_given_up_leaves_nothing
    an_app_that_is_stopped_is_gone
    a_new_server_takes_over_what_runs
    a_new_server_finds_what_is_missing_and_scaling_brings_it_back
}

fn progress() -> mpsc::UnboundedSender<hephy::model::PushEvent> {
    mpsc::unbounded_channel().0
}

fn sink() -> mpsc::UnboundedSender<RuntimeEvent> {
    mpsc::unbounded_channel().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_rollout_that_another_server_resumes_and_that_fails_is_taken_back() {
    let mut place = Namespaced::new().await;
    let first = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&first, None).await;
    // Its server dies before the commit.
    place.runtime.start(&place.version(2, &[("web", SERVE, 1)]), &sink()).await.unwrap();
    place.restart().await;
    let crashing = place.version(2, &[("web", "echo boom; exit 3", 1)]);
    let failed = rollout(&*place.runtime, Some(&first), &crashing, &progress()).await.err().unwrap();
    assert!(why(failed).contains("exit status 3"));
    assert_eq!(place.up().await, ["v1 web.1"]);
    assert_eq!(place.get("/cgi-bin/release").await.1.trim(), "v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn what_is_left_to_another_server_is_not_taken_back() {
    let mut place = Namespaced::new().await;
    let first = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&first, None).await;
    let (left, stuck) = (Arc::clone(&place.runtime), place.version(2, &[("web", "sleep 1000", 1)]));
    let started = {
        let left = Arc::clone(&left);
        tokio::spawn(async move { left.start(&stuck, &sink()).await })
    };
    eventually("begun", async || place.up().await.contains(&"v2 web.1".to_owned()).then_some(())).await;
    // Its lease is lost, and another server goes on.
    left.leave(&"hello".parse().unwrap());
    assert!(matches!(started.await.unwrap(), Err(RuntimeError::Left { .. })));
    place.restart().await;
    let second = place.version(2, &[("web", SERVE, 1)]);
    place.deploy(&second, Some(&first)).await;
    assert_eq!(place.up().await, ["v2 web.1"]);
    assert_eq!(place.get("/cgi-bin/release").await.1.trim(), "v2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_server_that_is_slow_to_give_up_takes_nothing_back_from_the_next() {
    let mut place = Namespaced::new().await;
    let first = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&first, None).await;
    let (slow, stuck) = (Arc::clone(&place.runtime), place.version(2, &[("web", "sleep 1000", 1)]));
    let started = {
        let slow = Arc::clone(&slow);
        tokio::spawn(async move { slow.start(&stuck, &sink()).await })
    };
    eventually("begun", async || place.up().await.contains(&"v2 web.1".to_owned()).then_some(())).await;
    place.restart().await;
    place.runtime.start(&place.version(2, &[("web", SERVE, 1)]), &sink()).await.unwrap();
    started.abort();
    drop(started.await);
    // The task that takes back ends by itself: this call, which does nothing, has its turn after it.
    slow.retire(&"hello".parse().unwrap(), ReleaseNumber(0)).await.unwrap();
    assert_eq!(place.up().await, ["v2 web.1"]);
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = place.api();
    assert!(secrets.get_opt("hello--v2--env").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn an_app_that_crashed_in_its_life_can_be_scaled() {
    let place = Namespaced::new().await;
    let mut version = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&version, None).await;
    for crashes in 1..=2 {
        assert_eq!(place.get("/cgi-bin/end").await.0, StatusCode::BAD_GATEWAY);
        eventually("started again", async || {
            let status = place.runtime.status(&"hello".parse().unwrap()).await.unwrap().remove(0);
            (status.restarts == crashes && status.state == InstanceState::Up).then_some(())
        })
        .await;
        eventually("served", async || (place.get("/cgi-bin/release").await.1.trim() == "v1").then_some(()))
            .await;
    }
    version.scale.insert("web".parse().unwrap(), 2);
    place.runtime.scale(&version, &sink()).await.unwrap();
    assert_eq!(place.up().await, ["v1 web.1", "v1 web.2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_changed_way_from_outside_reaches_the_apps_that_run() {
    let place = Namespaced::new().await;
    let version = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&version, None).await;
    let ingresses: Api<k8s_openapi::api::networking::v1::Ingress> = place.api();
    assert!(ingresses.get_opt("hello--web").await.unwrap().is_none());
    let exposure = Exposure::Ingress {
        domain: "apps.test".to_owned(),
        class: None,
        annotations: BTreeMap::new(),
        tls_secret: None,
    };
    let current = [version];
    assert_eq!(place.server(exposure).await.adopt(&current).await.unwrap(), []);
    let made = ingresses.get("hello--web").await.unwrap();
    assert_eq!(made.spec.unwrap().rules.unwrap()[0].host.as_deref(), Some("hello.apps.test"));
    assert_eq!(place.server(Exposure::Services).await.adopt(&current).await.unwrap(), []);
    assert!(ingresses.get_opt("hello--web").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn what_somebody_deletes_or_scales_is_put_back() {
    let place = Namespaced::new().await;
    let version = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&version, None).await;
    let client = place.cluster.client();
    super::store::define(&client).await;
    let records = Arc::new(KubernetesStore::new(&client, &place.namespace));
    let (release, app) = (&version.release, version.release.app.clone());
    let mut record = App::new(app.clone(), "ada".parse().unwrap(), release.created_at);
    (record.current, record.last_release) = (Some(release.number), 1);
    store::create(&*records, record).await.unwrap();
    let variables = BTreeMap::new();
    let config = Config { format: 1, app: app.clone(), release: Some(release.number), variables };
    store::create(&*records, config).await.unwrap();
    store::create(&*records, release.clone()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let leases = Leases::new(client, &place.namespace, "hephy-0");
    let runtime = place.runtime();
    let pushes = crate::keeping::pushes(directory.path(), records.clone(), runtime, leases.clone());
    let mut keeper = Keeper::new(pushes, "operator".parse().unwrap(), Duration::from_secs(60));
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = place.api();
    deployments.delete("hello--web", &DeleteParams::background()).await.unwrap();
    keeper.once().await.unwrap();
    assert_eq!(place.up().await, ["v1 web.1"]);
    let scaled = Patch::Merge(json!({"spec": {"replicas": 3}}));
    deployments.patch("hello--web", &PatchParams::default(), &scaled).await.unwrap();
    keeper.once().await.unwrap();
    let there = deployments.get("hello--web").await.unwrap();
    assert_eq!(there.spec.replicas, Some(1));
    let app = store::require::<App>(&*records, &ObjectName::of(&app)).await.unwrap().object;
    assert_eq!((app.holder, leases.names("app-").await.unwrap()), (None, Vec::new()));
}

fn why(error: RuntimeError) -> String {
    match error {
        RuntimeError::NotReady(not_ready) => not_ready.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn what_keeps_a_version_from_running_is_named_and_the_one_before_serves_on() {
    let place = Namespaced::new().await;
    let first = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&first, None).await;

    let mut missing = place.version(2, &[("web", SERVE, 1)]);
    missing.release.index.digest = Digest::of(b"there is no such image");
    let (error, told) = place.failing_start(&missing).await;
    let waits = format!("web.1 waits: the image {}/hephy-test/web@sha256:", host());
    assert!(told[0].starts_with(&waits), "{told:?}");
    assert!(why(error).starts_with(&format!("web.1 cannot run: the image {}/", host())));

    let mut deaf = place.version(3, &[("web", "sleep 1000", 1)]);
    deaf.ready_timeout = Some(Duration::from_secs(8));
    let (error, told) = place.failing_start(&deaf).await;
    let RuntimeError::NotReady(not_ready) = error else { panic!("{error:?}") };
    assert_eq!(not_ready.obstacle, Obstacle::NeverListened { port: 5000, within: Duration::from_secs(8) });
    assert_eq!(told, ["web.1 does not take connections on port 5000 yet"]);

    let mut nowhere = place.version(4, &[("web", SERVE, 1)]);
    nowhere.release.index.images.iter_mut().for_each(|image| image.platform = "linux/s390x".parse().unwrap());
    let (error, told) = place.failing_start(&nowhere).await;
    assert!(told[0].starts_with("web.1 waits: no node takes the pod: 0/"), "{told:?}");
    assert!(why(error).starts_with("web.1 cannot run: no node takes the pod: 0/"));

    let hungry = "echo eating; tail /dev/zero";
    let (error, _) =
        place.failing_start(&place.version(5, &[("web", SERVE, 1), ("worker", hungry, 1)])).await;
    assert_eq!(why(error), "worker.1 cannot run: it used more memory than its limit of 64Mi and was killed");
    assert_eq!(place.up().await, ["v1 web.1"]);
    assert_eq!(place.get("/cgi-bin/release").await.1.trim(), "v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_quota_and_pod_security_are_named_and_not_waited_for() {
    let place = Namespaced::with(&json!({"pod-security.kubernetes.io/enforce": "restricted"})).await;
    // The image's user is root.
    let (error, told) = place.failing_start(&place.version(1, &[("web", SERVE, 1)])).await;
    assert!(told[0].starts_with("web.1 waits: violates PodSecurity \"restricted"), "{told:?}");
    assert!(error.hints().concat().contains("numeric `USER`"), "{error:?}");
    assert!(why(error).contains("violates PodSecurity"));

    let place = Namespaced::with(&json!({"pod-security.kubernetes.io/enforce": "baseline"})).await;
    let first = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&first, None).await;
    let quota = json!({"metadata": {"name": "small"}, "spec": {"hard": {"pods": "1"}}});
    let quota: ResourceQuota = serde_json::from_value(quota).unwrap();
    place.api().create(&PostParams::default(), &quota).await.unwrap();
    eventually("counted", async || {
        let quota = place.api::<ResourceQuota>().get("small").await.unwrap();
        quota.status.and_then(|status| status.used).map(drop)
    })
    .await;
    let (error, _) = place.failing_start(&place.version(2, &[("web", SERVE, 1)])).await;
    let text = why(error);
    assert!(text.starts_with("web.1 cannot run: exceeded quota: small"), "{text}");
    assert_eq!(place.get("/cgi-bin/release").await.1.trim(), "v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_node_that_is_drained_takes_no_request_with_it() {
    let place = Namespaced::new().await;
    let version = place.version(1, &[("web", SERVE, 2)]);
    place.deploy(&version, None).await;
    let pods: Api<Pod> = place.api();
    let stop = CancellationToken::new();
    let load = async {
        let mut answered = 0_u32;
        while !stop.is_cancelled() {
            let (status, body) = place.get("/cgi-bin/release").await;
            assert_eq!(status, StatusCode::OK, "{body}");
            answered += 1;
        }
        answered
    };
    let drain = async {
        for pod in pods.list(&ListParams::default()).await.unwrap() {
            let name = pod.metadata.name.unwrap();
            // Refused while another is away already: the budget keeps one at least.
            eventually("evicted", async || pods.evict(&name, &EvictParams::default()).await.ok().map(drop))
                .await;
            eventually("gone", async || pods.get_opt(&name).await.unwrap().is_none().then_some(())).await;
        }
        stop.cancel();
    };
    let (answered, ()) = tokio::join!(load, drain);
    assert!(answered > 20, "{answered}");
    eventually("both back", async || (place.up().await.len() == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn an_app_with_one_instance_does_not_make_a_drain_hang() {
    let place = Namespaced::new().await;
    place.deploy(&place.version(1, &[("web", SERVE, 1)]), None).await;
    let pods: Api<Pod> = place.api();
    let pod = pods.list(&ListParams::default()).await.unwrap().items.remove(0).metadata.name.unwrap();
    pods.evict(&pod, &EvictParams::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn both_architectures_run_the_one_image() {
    let place = Namespaced::new().await;
    let nodes: Api<Node> = Api::all(place.cluster.client());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        let architecture = node.status.unwrap().node_info.unwrap().architecture;
        let mut version = place.version(1, &[("web", SERVE, 1)]);
        version.release.index.images.retain(|image| image.platform.architecture() == architecture);
        let command = ["/bin/sh", "-c", "uname -m"].map(str::to_owned);
        let output = place.runtime.run(&version, &command).await.unwrap();
        let machine = if architecture == "arm64" { "aarch64" } else { "x86_64" };
        assert_eq!((output.status, output.lines[0].text.as_str()), (0, machine));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn the_environment_of_old_releases_is_collected_and_other_secrets_are_not() {
    let place = Namespaced::new().await;
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = place.api();
    let config = json!({"metadata": {"name": "config--hello--v1", "labels": {
        "app.kubernetes.io/managed-by": "hephy", "hephy.dev/app": "hello", "hephy.dev/release": "v1"}},
        "type": "hephy.dev/config"});
    secrets.create(&PostParams::default(), &serde_json::from_value(config).unwrap()).await.unwrap();
    let mut first = place.version(1, &[("web", SERVE, 1)]);
    first.variables.insert("COLOUR".parse().unwrap(), Hidden::new("blue".to_owned()));
    place.deploy(&first, None).await;
    place.deploy(&place.version(2, &[("web", SERVE, 1)]), Some(&first)).await;
    let names = async || {
        let all = secrets.list(&ListParams::default()).await.unwrap();
        all.into_iter().filter_map(|secret| secret.metadata.name).collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["config--hello--v1", "hello--v2--env"]);
    place.runtime.stop(&"hello".parse().unwrap()).await.unwrap();
    assert_eq!(names().await, ["config--hello--v1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn what_another_server_is_at_work_on_is_left_alone() {
    let place = Namespaced::new().await;
    let first = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&first, None).await;
    let until = jiff::Timestamp::now() + Duration::from_mins(5);
    let others = json!({"metadata": {"annotations": {
        "hephy.dev/changed-by": "hephy-1", "hephy.dev/changing-until": until.to_string()}}});
    let services: Api<k8s_openapi::api::core::v1::Service> = place.api();
    services.patch("hello--web", &PatchParams::default(), &Patch::Merge(&others)).await.unwrap();
    assert_eq!(place.runtime.adopt(&[]).await.unwrap(), []);
    let mut more = first.clone();
    more.scale.insert("web".parse().unwrap(), 2);
    assert_eq!(place.runtime.adopt(&[more]).await.unwrap(), []);
    assert_eq!(place.up().await, ["v1 web.1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn kubelets_get_a_credential_that_was_changed_without_a_restart() {
    let place = Namespaced::new().await;
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = place.api();
    let source = |auth: &str| {
        let config = json!({"auths": {"registry.test": {"auth": auth}, "other.test": {"auth": "secret"}}});
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "credentials"},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config.to_string()}})
    };
    let hosts = ("registry.test".parse().unwrap(), host());
    let values = ["registry.url=registry.test", "registry.secret=credentials"];
    // What it may read is in one namespace, and what it may write in another, which here are one.
    let server = rights::limited(&place.cluster, &place.namespace, &["hephy"], &values).await;
    let pull = PullSecret::new(&place.limited, &place.namespace, "hephy-pull", hosts);
    let (cluster, namespace) = (server, place.namespace.clone());
    let mut following = JoinSet::new();
    following.spawn(async move { pull.follow(&cluster, &namespace, "credentials", |_| {}).await });
    for auth in ["YTpi", "YTpj"] {
        let params = PatchParams::apply("test").force();
        secrets.patch("credentials", &params, &Patch::Apply(source(auth))).await.unwrap();
        let wanted = json!({"auths": {host().to_string(): {"auth": auth}}}).to_string();
        eventually("copied", async || {
            let copy = secrets.get_opt("hephy-pull").await.unwrap()?;
            let config = copy.data?.remove(".dockerconfigjson")?;
            (config.0 == wanted.as_bytes()).then_some(())
        })
        .await;
    }
}
