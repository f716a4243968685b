//! The store of custom resources and the leases do on a real cluster what they do everywhere.

use std::sync::Arc;
use std::time::Duration;

use hephy::kubernetes::{Cluster, Leases};
use hephy::model::{Kind, Store, StoreError};
use hephy::store::KubernetesStore;
use hephy::store::kubernetes::DEFINITIONS;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Request;
use serde_json::{Value, json};

use crate::crds::resources;
use crate::store_conformance as conformance;

/// A namespace for one test, in a cluster that has our definitions.
struct Place {
    client: Client,
    namespace: String,
}

impl Place {
    async fn new() -> Self {
        let client = Cluster::connect(None, None).await.unwrap().client();
        define(&client).await;
        let namespace = format!("i5-store-{:08x}", rand::random::<u32>());
        let object = serde_json::from_value(json!({ "metadata": { "name": namespace } })).unwrap();
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
        Self { client, namespace }
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(KubernetesStore::new(&self.client, &self.namespace))
    }

    async fn remove(self) {
        let namespaces = Api::<Namespace>::all(self.client);
        namespaces.delete(&self.namespace, &DeleteParams::background()).await.unwrap();
    }
}

/// Makes a cluster know our kinds.
pub(super) async fn define(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for document in serde_saphyr::from_multiple::<Value>(DEFINITIONS).unwrap() {
        let name = document["metadata"]["name"].as_str().unwrap();
        let parameters = PatchParams::apply("hephy-tests").force();
        definitions.patch(name, &parameters, &Patch::Apply(&document)).await.unwrap();
        let established = kube::runtime::conditions::is_crd_established();
        kube::runtime::wait::await_condition(definitions.clone(), name, established).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn the_cluster_conforms() {
    let place = Place::new().await;
    conformance::conforms(place.store(), 1001).await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn the_api_server_takes_every_object_that_the_program_writes() {
    let place = Place::new().await;
    for (plural, object) in resources() {
        let kind = match plural {
            "apps" => "App",
            "builds" => "Build",
            "releases" => "Release",
            _ => "User",
        };
        let mut object = object;
        object["kind"] = json!(kind);
        let path = format!("/apis/hephy.dev/v1alpha1/namespaces/{}/{plural}", place.namespace);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let mut request = Request::new(path).create(&dry, serde_json::to_vec(&object).unwrap()).unwrap();
        *request.uri_mut() = format!("{}&fieldValidation=Strict", request.uri()).parse().unwrap();
        let written: Value =
            place.client.request(request).await.unwrap_or_else(|e| panic!("{e}: {object:#}"));
        assert_eq!(written["spec"], object["spec"]);
    }
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn what_the_cluster_does_not_take_is_an_error_with_a_name() {
    let place = Place::new().await;
    let store = place.store();
    let name = hephy::model::ObjectName::of(&"a");
    let refused = store.create(Kind::App, &name, b"{\"format\":1}".to_vec()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused { .. }), "{refused:?}");
    let nowhere = KubernetesStore::new(&place.client, "i5-store-nowhere");
    let user = resources().into_iter().find(|(plural, _)| *plural == "users").unwrap().1;
    let refused = nowhere.create(Kind::User, &name, user["spec"].to_string().into_bytes()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unknown { .. }), "{refused:?}");
    KubernetesStore::new(&place.client, &place.namespace).check().await.unwrap();
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: scripts/test-cluster"]
async fn a_lease_has_one_holder_and_is_taken_up_when_that_is_gone() {
    let place = Place::new().await;
    let leases =
        |owner: &str| Leases::lasting(place.client.clone(), &place.namespace, owner, Duration::from_secs(3));
    let (one, other) = (leases("one"), leases("other"));
    let held = one.hold("build--hello--7").await.unwrap().unwrap();
    assert!(other.hold("build--hello--7").await.unwrap().is_none());
    drop(held);
    let taken = async {
        loop {
            if let Some(held) = other.hold("build--hello--7").await.unwrap() {
                return held;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let held = tokio::time::timeout(Duration::from_secs(30), taken).await.unwrap();
    held.release().await;
    assert!(one.hold("build--hello--7").await.unwrap().is_some());
    place.remove().await;
}
