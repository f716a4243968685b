//! Apps behind a controller that is not ours: what Traefik makes of the Ingress and of the HTTPRoute of an app.
//!
//! Tried where `traefik` is in the PATH; the latter where the cluster also knows the Gateway API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hephy::runtime::kubernetes::Exposure;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::place::{Namespaced, eventually};
use super::{kubectl, run};
use crate::runtime_conformance::{Place as _, SERVE, ask};

const DOMAIN: &str = "localhost";

/// A Traefik that looks at one namespace.
struct Traefik {
    process: Child,
    address: SocketAddr,
    _config: tempfile::TempDir,
}

impl Traefik {
    fn start(provider: &str, namespace: &str, address: SocketAddr) -> Self {
        let config = tempfile::tempdir().unwrap();
        let file = config.path().join("traefik.yaml");
        let settings = json!({
            "entryPoints": {"web": {"address": address.to_string()}},
            "providers": {provider: {"namespaces": [namespace]}},
            "global": {"checkNewVersion": false, "sendAnonymousUsage": false},
        });
        std::fs::write(&file, settings.to_string()).unwrap();
        let mut command = Command::new("traefik");
        command.arg("--configfile").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        Self { process: command.spawn().unwrap(), address, _config: config }
    }

    async fn served(&self) -> Option<String> {
        let (status, body) = ask(self.address, "/cgi-bin/release").await;
        (status == StatusCode::OK).then(|| body.trim().to_owned())
    }
}

impl Drop for Traefik {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[expect(clippy::print_stderr, reason = "a test that tries nothing says so")]
fn is_there(what: &str, is_there: bool) -> bool {
    if !is_there {
        eprintln!("there is no {what}: not tried");
    }
    is_there
}

fn has_traefik() -> bool {
    is_there("traefik in the PATH", Command::new("traefik").arg("version").output().is_ok())
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn apply(object: &Value) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), object.to_string()).unwrap();
    kubectl(&["apply", "-f", file.path().to_str().unwrap()]).succeeded();
}

/// The app is reached through the controller, across rollouts without a failed request, until it is stopped.
async fn serves_across_rollouts(place: &Namespaced, traefik: &Traefik) {
    let mut current = place.version(1, &[("web", SERVE, 1)]);
    place.deploy(&current, None).await;
    let is_listening = async || std::net::TcpStream::connect(traefik.address).ok();
    eventually("listening", is_listening).await;
    eventually("reached", async || traefik.served().await.filter(|served| served == "v1")).await;
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = async || {
        while !stop.load(Ordering::SeqCst) {
            let (status, body) = ask(traefik.address, "/cgi-bin/release").await;
            assert!(status == StatusCode::OK && body.starts_with('v'), "{status} {body}");
            answered.fetch_add(1, Ordering::SeqCst);
        }
    };
    let rollouts = async {
        for number in 2..=3 {
            let next = place.version(number, &[("web", SERVE, 1)]);
            place.deploy(&next, Some(&current)).await;
            current = next;
        }
        eventually("the last one", async || traefik.served().await.filter(|served| served == "v3")).await;
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(load(), load(), rollouts);
    assert!(answered.load(Ordering::SeqCst) > 20);
    place.runtime.stop(&current.release.app).await.unwrap();
    eventually("gone", async || {
        let (status, _) = ask(traefik.address, "/").await;
        (status == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn an_app_is_reached_through_its_ingress() {
    if !has_traefik() {
        return;
    }
    let class = format!("traefik-{:08x}", rand::random::<u32>());
    let exposure = Exposure::Ingress {
        domain: DOMAIN.to_owned(),
        class: Some(class.clone()),
        annotations: BTreeMap::new(),
        tls_secret: None,
    };
    let place =
        Namespaced::exposed(&json!({}), exposure, &["domain=localhost", "ingress.enabled=true"]).await;
    apply(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": class},
        "spec": {"controller": "traefik.io/ingress-controller"}}));
    let traefik = Traefik::start("kubernetesIngress", &place.namespace, free_address());
    serves_across_rollouts(&place, &traefik).await;
    kubectl(&["delete", "ingressclass", &class]).succeeded();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn an_app_is_reached_through_its_route_of_the_gateway_api() {
    let knows = || run("kubectl", &["get", "crd", "httproutes.gateway.networking.k8s.io"]).ok;
    if !has_traefik() || !is_there("Gateway API", knows()) {
        return;
    }
    let class = format!("traefik-{:08x}", rand::random::<u32>());
    let exposure = Exposure::HttpRoute {
        domain: DOMAIN.to_owned(),
        gateway: "public".to_owned(),
        gateway_namespace: None,
        section: None,
    };
    let values = ["domain=localhost", "httpRoute.enabled=true", "httpRoute.gateway=public"];
    let place = Namespaced::exposed(&json!({}), exposure, &values).await;
    let address = free_address();
    let api = "gateway.networking.k8s.io/v1";
    apply(&json!({"apiVersion": api, "kind": "GatewayClass", "metadata": {"name": class},
        "spec": {"controllerName": "traefik.io/gateway-controller"}}));
    apply(&json!({"apiVersion": api, "kind": "Gateway",
        "metadata": {"name": "public", "namespace": place.namespace},
        "spec": {"gatewayClassName": class, "listeners": [{"name": "web", "protocol": "HTTP", "port": address.port()}]}}));
    let traefik = Traefik::start("kubernetesGateway", &place.namespace, address);
    serves_across_rollouts(&place, &traefik).await;
    kubectl(&["delete", "gatewayclass", &class]).succeeded();
}
