//! `hephy router` as it runs in a pod: with a service account that may read Services and EndpointSlices, and no more.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use hyper::StatusCode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::place::{Namespaced, eventually};
use super::rights;
use crate::registry::tls::certificate;
use crate::runtime_conformance::{Place as _, SERVE};

struct Router {
    process: Child,
    http: SocketAddr,
    https: SocketAddr,
    health: SocketAddr,
}

impl Router {
    async fn start(place: &Namespaced) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        let rights = rights::kubeconfig(&place.cluster, &place.namespace, &["hephy-router"], &[]).await;
        std::fs::write(&kubeconfig, rights).unwrap();
        let files = certificate("server");
        let mut process = Command::new(crate::ordinary_user::executable())
            .args(["router", "--domain=apps.test", "--linger=2s", "--kubeconfig"])
            .arg(&kubeconfig)
            .args([format!("--namespace={}", place.namespace)])
            .args(["--http=127.0.0.1:0", "--https=127.0.0.1:0", "--health=127.0.0.1:0"])
            .arg(format!("--tls-cert={}", files.with_extension("pem").display()))
            .arg(format!("--tls-key={}", files.with_extension("key").display()))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut address = async |what: &str| loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if let Some(address) = line.trim().strip_prefix(what) {
                return address.trim().parse().unwrap();
            }
        };
        let (http, https, health) = (address("HTTP").await, address("TLS").await, address("health").await);
        let router = Self { process, http, https, health };
        eventually("ready", async || (router.health("readyz").await == 200).then_some(())).await;
        router
    }

    async fn health(&self, page: &str) -> u16 {
        reqwest::get(format!("http://{}/{page}", self.health)).await.unwrap().status().as_u16()
    }

    async fn get(&self) -> Result<(StatusCode, String), reqwest::Error> {
        let url = format!("http://{}/cgi-bin/release", self.http);
        let request = reqwest::Client::new().get(url).header("host", "hello.apps.test");
        let response = request.send().await?;
        Ok((response.status(), response.text().await?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn the_router_reads_two_kinds_answers_both_protocols_and_drains() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let place = Namespaced::new().await;
    let mut router = Router::start(&place).await;
    assert_eq!(router.get().await.unwrap().0, StatusCode::NOT_FOUND);
    place.deploy(&place.version(1, &[("web", SERVE, 1)]), None).await;
    eventually("routed", async || (router.get().await.unwrap().1.trim() == "v1").then_some(())).await;

    let authority = std::fs::read(certificate("authority").with_extension("pem")).unwrap();
    let client = reqwest::Client::builder()
        .http1_only()
        .tls_certs_merge([reqwest::Certificate::from_pem(&authority).unwrap()])
        .build()
        .unwrap();
    let url = format!("https://localhost:{}/cgi-bin/env", router.https.port());
    let answer =
        client.get(url).header("host", "hello.apps.test").send().await.unwrap().text().await.unwrap();
    assert!(answer.contains("HTTP_X_FORWARDED_PROTO=https"), "{answer}");

    let pid = Pid::from_raw(i32::try_from(router.process.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    eventually("not ready", async || (router.health("readyz").await == 503).then_some(())).await;
    assert_eq!(router.get().await.unwrap().1.trim(), "v1");
    let status = tokio::time::timeout(Duration::from_secs(20), router.process.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}
