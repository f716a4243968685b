//! The driver of Jobs passes the suite that every driver passes, and makes another attempt when a pod is taken away.
//!
//! The Jobs run the image that `HEPHY_TEST_IMAGE` names.

use std::time::Duration;

use hephy::build::{BuildEvent, BuildFailure, BuildRequest, Driver as _};
use hephy::driver::kubernetes::{JobConfig, KubernetesDriver};
use hephy::kubernetes::Cluster;
use hephy::oci::{Host, Reference, Target};
use hephy::registry::client::{Client, ClientConfig, Reach};
use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Setting, rights};
use crate::build::{Place, pushes};
use crate::driver_conformance::{Bench, request, suite};

fn registry() -> String {
    Setting::read().registry
}

struct Jobs {
    place: Place,
    driver: KubernetesDriver,
    client: Client,
    cluster: Cluster,
    namespace: String,
}

impl Jobs {
    async fn new() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let cluster = Cluster::connect(None, None).await.unwrap();
        let namespace = format!("hephy-driver-{:08x}", rand::random::<u32>());
        let made: Namespace =
            serde_json::from_value(serde_json::json!({"metadata": {"name": namespace}})).unwrap();
        Api::all(cluster.client()).create(&PostParams::default(), &made).await.unwrap();
        let host: Host = registry().parse().unwrap();
        let client = Client::new(ClientConfig { reach: Reach::plain(host), ..ClientConfig::default() });
        let busybox = format!("{}/driver-test/mirror/library/busybox", registry()).parse().unwrap();
        pushes::push_layout(&client, &busybox).await;
        let image = Setting::read().image;
        let limited = rights::limited(&cluster, &namespace, &["hephy-builds"], &[]).await;
        rights::everywhere(&cluster, &namespace, "hephy-builds").await;
        let driver = KubernetesDriver::new(limited, client.clone(), JobConfig::new(&namespace, image));
        Self { place: Place::new(), driver, client, cluster, namespace }
    }
}

impl Jobs {
    fn config(&self) -> JobConfig {
        JobConfig::new(&self.namespace, Setting::read().image)
    }

    fn driver_of(&self, config: JobConfig) -> KubernetesDriver {
        let reach = Reach::plain(registry().parse().unwrap());
        let client = Client::new(ClientConfig { reach, ..ClientConfig::default() });
        KubernetesDriver::new(self.cluster.clone(), client, config)
    }

    /// How a build fails that is made as `config` says.
    async fn failure(&self, config: JobConfig, dockerfile: &str) -> BuildFailure {
        let request = request(self, dockerfile);
        let (sender, mut receiver) = mpsc::channel(16);
        tokio::spawn(async move { while receiver.recv().await.is_some() {} });
        self.driver_of(config).build(&request, sender, CancellationToken::new()).await.unwrap_err()
    }
}

impl Bench for Jobs {
    type Driver = KubernetesDriver;

    fn driver(&self) -> KubernetesDriver {
        self.driver.clone()
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn adjust(&self, request: BuildRequest) -> BuildRequest {
        let destination: Reference =
            format!("{}/driver-test/{}", registry(), self.namespace).parse().unwrap();
        BuildRequest {
            destinations: vec![destination],
            mirrors: vec![format!("{}/driver-test/mirror", registry())],
            insecure_registries: vec![registry()],
            docker_config: None,
            ..request
        }
    }

    async fn end(self) {
        let namespaces: Api<Namespace> = Api::all(self.cluster.client());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
    }
}

suite!(Jobs::new().await, #[ignore = "needs a cluster: scripts/test-cluster"]);

#[tokio::test]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_build_whose_pod_is_taken_away_is_made_again() {
    let bench = Jobs::new().await;
    let request = request(&bench, "FROM busybox:1\nRUN echo begun; sleep 5; echo over\n");
    let (sender, mut receiver) = mpsc::channel(16);
    let driver = bench.driver();
    let building =
        tokio::spawn(async move { driver.build(&request, sender, CancellationToken::new()).await });
    let pods: Api<Pod> = Api::namespaced(bench.cluster.client(), &bench.namespace);
    let (mut begun, mut notes) = (0, Vec::new());
    while let Some(event) = receiver.recv().await {
        assert!(!matches!(event, BuildEvent::Failed { .. }), "{event:?}");
        if let BuildEvent::Note { text } = &event {
            notes.push(text.clone());
        }
        if event.lines().iter().any(|line| line.trim() == "begun") {
            begun += 1;
            if begun == 1 {
                let found = pods.list(&ListParams::default()).await.unwrap();
                let name = found.items[0].metadata.name.clone().unwrap();
                pods.delete(&name, &DeleteParams::default()).await.unwrap();
            }
        }
    }
    building.await.unwrap().unwrap();
    assert_eq!(begun, 2);
    assert!(notes.iter().any(|note| note.contains("attempt 2 of 3")), "{notes:?}");
    bench.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_later_attempt_at_work_is_adopted_and_the_first_is_not_made_anew() {
    let bench = Jobs::new().await;
    let request = request(&bench, "FROM busybox:1\nRUN echo begun; sleep 8; echo over\n");
    let (sender, mut receiver) = mpsc::channel(16);
    let (driver, first) = (bench.driver(), request.clone());
    let building = tokio::spawn(async move { driver.build(&first, sender, CancellationToken::new()).await });
    let pods: Api<Pod> = Api::namespaced(bench.cluster.client(), &bench.namespace);
    let (mut begun, mut first_name) = (0, String::new());
    while let Some(event) = receiver.recv().await {
        if event.lines().iter().any(|line| line.trim() == "begun") {
            begun += 1;
            if begun == 2 {
                break;
            }
            let found = pods.list(&ListParams::default()).await.unwrap();
            let pod = &found.items[0].metadata;
            first_name = pod.labels.as_ref().unwrap()["job-name"].clone();
            let name = pod.name.clone().unwrap();
            pods.delete(&name, &DeleteParams::default()).await.unwrap();
        }
    }
    let jobs: Api<k8s_openapi::api::batch::v1::Job> =
        Api::namespaced(bench.cluster.client(), &bench.namespace);
    // The Job of an attempt that was lost is deleted, at the latest when it was kept for long enough.
    jobs.delete(&first_name, &DeleteParams::background()).await.unwrap();
    // Nor is there a result of it, as after the loss of a node: nothing tells of a first attempt.
    let repository = &request.destinations[0].repository;
    for tag in bench.client.tags(repository).await.unwrap() {
        if tag.to_string().starts_with(&format!("{first_name}.")) {
            let found = bench.client.find_manifest(repository, &Target::Tag(tag)).await.unwrap();
            let left = Target::Digest(found.unwrap().digest());
            bench.client.delete_manifest(repository, &left).await.unwrap();
        }
    }
    // The server dies, and another has the build.
    building.abort();
    drop(building.await);
    let (sender, mut receiver) = mpsc::channel(16);
    tokio::spawn(async move { while receiver.recv().await.is_some() {} });
    bench.driver().build(&request, sender, CancellationToken::new()).await.unwrap();
    let names: Vec<_> = jobs.list(&ListParams::default()).await.unwrap().into_iter().collect();
    let names: Vec<_> = names.into_iter().filter_map(|job| job.metadata.name).collect();
    assert!(names.len() == 1 && names[0].ends_with("--2"), "{names:?}");
    bench.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn the_job_of_an_app_that_is_gone_is_not_that_of_another_with_its_name() {
    let bench = Jobs::new().await;
    for said in ["of the first", "of the second"] {
        let named = BuildRequest {
            name: "hello--1".to_owned(),
            ..request(&bench, &format!("FROM busybox:1\nRUN echo {said}\n"))
        };
        let (sender, mut receiver) = mpsc::channel(16);
        let driver = bench.driver();
        let building =
            tokio::spawn(async move { driver.build(&named, sender, CancellationToken::new()).await });
        let mut lines = Vec::new();
        while let Some(event) = receiver.recv().await {
            lines.extend(event.lines());
        }
        building.await.unwrap().unwrap();
        let of: Vec<&str> =
            lines.iter().map(|line| line.trim()).filter(|line| line.starts_with("of the")).collect();
        assert_eq!(of, [said], "{lines:?}");
    }
    bench.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_build_that_writes_more_than_its_room_is_told_the_limit() {
    let bench = Jobs::new().await;
    let config = JobConfig { scratch_size_limit: Some("64Mi".to_owned()), ..bench.config() };
    // Evicted by its kubelet, which looks every few seconds.
    let failure =
        bench.failure(config, "FROM busybox:1\nRUN dd if=/dev/zero of=/large bs=1M count=160; sleep 120\n");
    let failure = failure.await;
    let BuildFailure::App(step) = failure else { panic!("{failure:?}") };
    assert!(step.heading.contains("exceeds the limit \"64Mi\""), "{step:?}");
    assert!(step.hint.as_ref().is_some_and(|hint| hint.contains("build.scratchSizeLimit")), "{step:?}");
    bench.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_build_that_uses_more_than_its_memory_is_told_the_limit() {
    let bench = Jobs::new().await;
    let limits = [("memory".to_owned(), Quantity("96Mi".to_owned()))].into();
    let resources = ResourceRequirements { limits: Some(limits), ..ResourceRequirements::default() };
    let config = JobConfig { resources, ..bench.config() };
    // busybox's `tail` keeps what may be the last line.
    let failure = bench.failure(config, "FROM busybox:1\nRUN tail /dev/zero\n").await;
    let BuildFailure::App(step) = failure else { panic!("{failure:?}") };
    assert!(step.hint.as_ref().is_some_and(|hint| hint.contains("may use 96 MiB")), "{step:?}");
    bench.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn an_architecture_without_a_node_is_named() {
    let bench = Jobs::new().await;
    let driver = bench.driver_of(JobConfig { waiting_limit: Duration::from_secs(5), ..bench.config() });
    let request = BuildRequest {
        platform: "linux/s390x".parse().unwrap(),
        ..request(&bench, "FROM busybox:1\nRUN true\n")
    };
    let (sender, mut receiver) = mpsc::channel(16);
    tokio::spawn(async move { while receiver.recv().await.is_some() {} });
    let built = driver.build(&request, sender, CancellationToken::new()).await;
    let Err(BuildFailure::Platform(step)) = built else { panic!("{built:?}") };
    assert!(step.heading.starts_with("no node for linux/s390x takes the build: 0/"), "{step:?}");
    bench.end().await;
}
