//! Service accounts with the rights that the chart gives, so that what the program does beyond them fails here.

use hephy::kubernetes::Cluster;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::Api;
use kube::api::PostParams;
use kube::config::Kubeconfig;
use serde_json::{Value, json};

use super::chart::{documents, template};

/// A kubeconfig for a new account in `namespace`, which there has the rules of the chart's Roles `roles`, rendered with
/// `values`.
pub(super) async fn kubeconfig(
    cluster: &Cluster,
    namespace: &str,
    roles: &[&str],
    values: &[&str],
) -> String {
    let name = roles.join("-");
    let rendered = documents(&template("hephy", values).succeeded().stdout);
    let rules = |role: &&str| {
        let is = |found: &&Value| found["kind"] == "Role" && found["metadata"]["name"] == **role;
        let found = rendered.iter().find(is).unwrap_or_else(|| panic!("the chart has no Role {role}"));
        found["rules"].as_array().unwrap().clone()
    };
    let rules: Vec<Value> = roles.iter().flat_map(rules).collect();
    let named = json!({ "name": name });
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), namespace);
    create::<ServiceAccount>(cluster, namespace, json!({"metadata": named})).await;
    create::<Role>(cluster, namespace, json!({"metadata": named, "rules": rules})).await;
    let binding = json!({"metadata": named,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name}]});
    create::<RoleBinding>(cluster, namespace, binding).await;
    let request = TokenRequest::default();
    let token = accounts.create_token_request(&name, &PostParams::default(), &request).await.unwrap();
    let admin = serde_json::to_value(Kubeconfig::read().unwrap()).unwrap();
    json!({
        "clusters": [{"name": "test", "cluster": admin["clusters"][0]["cluster"]}],
        "users": [{"name": "limited", "user": {"token": token.status.unwrap().token}}],
        "contexts": [{"name": "limited", "context": {"cluster": "test", "user": "limited", "namespace": namespace}}],
        "current-context": "limited",
    })
    .to_string()
}

/// The cluster, as such an account has it.
pub(super) async fn limited(cluster: &Cluster, namespace: &str, roles: &[&str], values: &[&str]) -> Cluster {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kubeconfig(cluster, namespace, roles, values).await).unwrap();
    Cluster::connect(Some(file.path()), None).await.unwrap()
}

/// Lets an account of `namespace` do what the chart lets the server do in the whole cluster, for as long as there is the
/// namespace.
pub(super) async fn everywhere(cluster: &Cluster, namespace: &str, account: &str) {
    let rendered = documents(&template("hephy", &[]).succeeded().stdout);
    let rules = &rendered.iter().find(|found| found["kind"] == "ClusterRole").unwrap()["rules"];
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    let uid = namespaces.get(namespace).await.unwrap().metadata.uid;
    let owner = json!([{"apiVersion": "v1", "kind": "Namespace", "name": namespace, "uid": uid}]);
    let metadata = json!({"name": namespace, "ownerReferences": owner});
    let role: ClusterRole = serde_json::from_value(json!({"metadata": metadata, "rules": rules})).unwrap();
    let binding: ClusterRoleBinding = serde_json::from_value(json!({"metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]}))
    .unwrap();
    let params = PostParams::default();
    Api::<ClusterRole>::all(cluster.client()).create(&params, &role).await.unwrap();
    Api::<ClusterRoleBinding>::all(cluster.client()).create(&params, &binding).await.unwrap();
}

async fn create<K>(cluster: &Cluster, namespace: &str, object: Value)
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).unwrap();
    Api::<K>::namespaced(cluster.client(), namespace).create(&PostParams::default(), &object).await.unwrap();
}
