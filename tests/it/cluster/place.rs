//! A namespace of the cluster with a runtime and a router, as every test of the runtime has one of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hephy::kubernetes::Cluster;
use hephy::model::{BuildNumber, PublishedIndex, Release, ReleaseNumber, ReleaseState};
use hephy::oci::{Host, ImageConfig};
use hephy::registry::client::{Client as RegistryClient, ClientConfig, Credentials, Reach};
use hephy::rollout::{InstanceState, Runtime, RuntimeError, RuntimeEvent, Version, rollout};
use hephy::router::{RouteTable, RouterConfig, serve};
use hephy::runtime::kubernetes::{
    Exposure, ImageConfigs, KubernetesConfig, KubernetesRuntime, Policy, Resources, image_configs, routes,
};
use hyper::StatusCode;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Setting, rights, web_image};
use crate::runtime_conformance::{self as conformance, Place};

const DEADLINE: Duration = Duration::from_mins(3);

pub(super) struct Namespaced {
    pub(super) cluster: Cluster,
    /// The same with the rights that the chart gives the server there.
    pub(super) limited: Cluster,
    pub(super) namespace: String,
    index: PublishedIndex,
    pub(super) runtime: Arc<dyn Runtime>,
    exposure: Exposure,
    /// How many servers there were: each is another pod.
    servers: u32,
    address: std::net::SocketAddr,
    /// The router, which ends with its tasks.
    router: JoinSet<()>,
}

impl Place for Namespaced {
    const IN_PLACE: bool = true;

    async fn new() -> Self {
        Self::with(&json!({})).await
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.runtime)
    }

    async fn restart(&mut self) {
        self.servers += 1;
        self.runtime = self.server(self.exposure.clone()).await;
        (self.address, self.router) = router(&self.cluster, &self.namespace).await;
    }

    fn version(&self, number: u64, processes: &[(&str, &str, u32)]) -> Version {
        // The first process of a container ignores the signals that it has no handler for, also its own.
        let line = |line: &str| match line.split_once("exec httpd") {
            Some((before, arguments)) => {
                format!("{before} trap 'exit 0' TERM; httpd {arguments} & wait $!; exit 1")
            }
            None => line.to_owned(),
        };
        let release = Release {
            format: 1,
            app: "hello".parse().unwrap(),
            number: ReleaseNumber(number),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            by: "ada".parse().unwrap(),
            summary: "ada deployed 3f2a1c9".to_owned(),
            build: BuildNumber(number),
            commit: "3f2a1c9000000000000000000000000000000000".parse().unwrap(),
            index: self.index.clone(),
            processes: processes.iter().map(|(t, l, _)| (t.parse().unwrap(), Some(line(l)))).collect(),
            ready_timeout_seconds: None,
            state: ReleaseState::Pending,
        };
        let scale = processes.iter().map(|(name, _, count)| (name.parse().unwrap(), *count)).collect();
        Version { release, variables: BTreeMap::new(), scale, ready_timeout: None }
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        conformance::ask(self.address, path).await
    }
}

impl Namespaced {
    /// A namespace with `labels`, and a runtime and a router for it.
    pub(super) async fn with(labels: &serde_json::Value) -> Self {
        // With the rights for the one exposure that the suite changes to.
        let values = ["domain=apps.test", "ingress.enabled=true"];
        Self::exposed(labels, Exposure::Services, &values).await
    }

    /// The same, whose apps are reached so; `values` are those that give the server the rights for that.
    pub(super) async fn exposed(labels: &serde_json::Value, exposure: Exposure, values: &[&str]) -> Self {
        let cluster = Cluster::connect(None, None).await.unwrap();
        let namespace = format!("hephy-test-runtime-{:08x}", rand::random::<u32>());
        let object = json!({"metadata": {"name": namespace, "labels": labels}});
        let namespaces: Api<Namespace> = Api::all(cluster.client());
        let object = serde_json::from_value(object).unwrap();
        namespaces.create(&PostParams::default(), &object).await.unwrap();
        let index = web_image::push(&registry(), &host()).await;
        let limited = rights::limited(&cluster, &namespace, &["hephy-apps"], values).await;
        let runtime = runtime(&limited, &namespace, "hephy-0", exposure.clone()).await;
        let (address, router) = router(&cluster, &namespace).await;
        Self { cluster, limited, namespace, index, runtime, exposure, servers: 1, address, router }
    }

    /// The runtime of one more server.
    pub(super) async fn server(&self, exposure: Exposure) -> Arc<dyn Runtime> {
        runtime(&self.limited, &self.namespace, &format!("hephy-{}", self.servers), exposure).await
    }

    pub(super) fn api<K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>>(
        &self,
    ) -> Api<K> {
        Api::namespaced(self.cluster.client(), &self.namespace)
    }

    pub(super) async fn deploy(&self, version: &Version, previous: Option<&Version>) {
        let progress = mpsc::unbounded_channel().0;
        rollout(&*self.runtime, previous, version, &progress).await.unwrap().finish().await.unwrap();
    }

    /// What `start` fails with, and what was told on the way.
    pub(super) async fn failing_start(&self, version: &Version) -> (RuntimeError, Vec<String>) {
        let (events, mut received) = mpsc::unbounded_channel::<RuntimeEvent>();
        let error = self.runtime.start(version, &events).await.unwrap_err();
        (error, std::iter::from_fn(|| received.try_recv().ok()).map(|event| event.to_string()).collect())
    }

    pub(super) async fn up(&self) -> Vec<String> {
        let statuses = self.runtime.status(&"hello".parse().unwrap()).await.unwrap();
        let up = statuses.iter().filter(|status| status.state == InstanceState::Up);
        up.map(|status| format!("{} {}", status.release, status.name)).collect()
    }
}

impl Drop for Namespaced {
    /// The namespace goes with everything in it.
    fn drop(&mut self) {
        self.router.abort_all();
        let (cluster, namespace) = (self.cluster.clone(), self.namespace.clone());
        let deleted = std::thread::spawn(move || {
            let delete = async {
                // The client's connections belong to the runtime that made them.
                drop(cluster);
                let cluster = Cluster::connect(None, None).await.unwrap();
                let namespaces: Api<Namespace> = Api::all(cluster.client());
                drop(namespaces.delete(&namespace, &DeleteParams::default()).await);
            };
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(delete);
        });
        drop(deleted.join());
    }
}

pub(super) fn host() -> Host {
    Setting::read().registry.parse().unwrap()
}

fn registry() -> RegistryClient {
    drop(rustls::crypto::ring::default_provider().install_default());
    let reach = Reach::plain(host());
    RegistryClient::new(ClientConfig { credentials: Credentials::none(), reach, ..ClientConfig::default() })
}

async fn runtime(cluster: &Cluster, namespace: &str, identity: &str, exposure: Exposure) -> Arc<dyn Runtime> {
    let config = KubernetesConfig {
        namespace: namespace.to_owned(),
        identity: identity.to_owned(),
        pull_host: host(),
        pull_secret: None,
        resources: Resources {
            requests: [("cpu".to_owned(), "10m".to_owned()), ("memory".to_owned(), "16Mi".to_owned())].into(),
            limits: [("memory".to_owned(), "64Mi".to_owned())].into(),
        },
        exposure,
        policy: Policy {
            ready_timeout: Duration::from_secs(30),
            // A program that ends at once takes a second to do so where it is emulated.
            minimum_ready: Duration::from_secs(2),
            pending: Duration::from_secs(45),
            refused: Duration::from_secs(5),
            drain: Duration::from_secs(2),
            stop_grace: Duration::from_secs(5),
            run: Duration::from_secs(60),
        },
    };
    let real = image_configs(registry(), host());
    // Of an image that is not there, only the kubelet is to find out.
    let images: ImageConfigs = Arc::new(move |index| {
        let read = real(index);
        Box::pin(async move { Ok(read.await.unwrap_or_else(|_| vec![ImageConfig::default()])) })
    });
    Arc::new(KubernetesRuntime::new(cluster, config, images).await.unwrap())
}

async fn router(cluster: &Cluster, namespace: &str) -> (std::net::SocketAddr, JoinSet<()>) {
    let table = RouteTable::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ready, mut is_ready) = tokio::sync::watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, table.clone(), RouterConfig::new("localhost"), CancellationToken::new()));
    let (cluster, namespace) = (cluster.clone(), namespace.to_owned());
    tasks.spawn(async move { routes::follow(&cluster, &namespace, table, ready).await });
    is_ready.wait_for(|ready| *ready).await.unwrap();
    (address, tasks)
}

pub(super) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.unwrap_or_else(|_| panic!("never {what}"))
}
