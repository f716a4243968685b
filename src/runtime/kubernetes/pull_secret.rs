//! The Secret in the apps' namespace that kubelets pull images with, kept what it should be.
//!
//! Every pod names it, so a new credential needs no new pod: a kubelet reads it at every pull.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret as Object;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use super::objects::{ApiError, Objects};
use crate::kubernetes::{Cluster, managed_by};
use crate::model::Secret;
use crate::oci::Host;
use crate::registry::client::registry_key;

/// Where a Secret keeps a docker config: as `kubectl create secret docker-registry` writes it, or as a file.
const KEYS: [&str; 2] = [".dockerconfigjson", "config.json"];
/// The most that a Secret holds.
const MAX_BYTES: usize = 1024 * 1024;

/// The Secret that kubelets pull with.
#[derive(Clone)]
pub struct PullSecret {
    objects: Objects,
    name: String,
    /// The registry by the name that the credentials are for, and by the one that kubelets use.
    hosts: (Host, Host),
}

/// Why kubelets cannot be given a credential.
#[derive(Debug, thiserror::Error)]
pub enum PullSecretError {
    /// What should be a docker config is none.
    #[error("the registry credentials are no docker config")]
    Config(#[source] serde_json::Error),
    /// It has none for the registry.
    #[error("the registry credentials have none for {0}")]
    Host(Host),
    /// There is nothing of the kind.
    #[error("the Secret has neither `.dockerconfigjson` nor `config.json`")]
    Missing,
    /// The API server would not take it.
    #[error("cannot write the Secret `{name}`")]
    Write {
        /// Its name.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl PullSecret {
    /// The Secret `name` in `namespace`, with the credentials for `host`, which kubelets know as `pull_host`.
    #[must_use]
    pub fn new(cluster: &Cluster, namespace: &str, name: &str, (host, pull_host): (Host, Host)) -> Self {
        let objects = Objects::new(cluster.client(), namespace.to_owned());
        Self { objects, name: name.to_owned(), hosts: (host, pull_host) }
    }

    /// Makes it hold what `docker_config` has for the registry, and nothing else of it.
    pub async fn apply(&self, docker_config: &Secret<String>) -> Result<(), PullSecretError> {
        let config = for_kubelets(docker_config.reveal(), &self.hosts)?;
        let object = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self.name, "labels": managed_by(&[])},
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": BASE64.encode(config)},
        });
        let written = self.objects.apply::<Object>(&object).await.map(drop);
        written.map_err(|source: ApiError| PullSecretError::Write {
            name: self.name.clone(),
            source: Box::new(source),
        })
    }

    /// Keeps it what the Secret `source` of the server's `namespace` says, for as long as it runs, and tells `changed` too.
    pub async fn follow(
        self,
        cluster: &Cluster,
        namespace: &str,
        source: &str,
        changed: impl Fn(&Secret<String>) + Send + Sync,
    ) {
        let api: Api<Object> = Api::namespaced(cluster.client(), namespace);
        let mut changes = watch_object(api, source).default_backoff().boxed();
        while let Some(change) = changes.next().await {
            let applied = match change {
                Ok(Some(secret)) => match docker_config(&secret) {
                    Some(config) => {
                        changed(&config);
                        self.apply(&config).await
                    }
                    None => Err(PullSecretError::Missing),
                },
                Ok(None) => {
                    warn!(
                        secret = source,
                        "the Secret with the registry credentials is gone; kubelets keep theirs"
                    );
                    continue;
                }
                Err(error) => {
                    warn!(
                        secret = source,
                        error = &error as &dyn std::error::Error,
                        "cannot watch the registry credentials"
                    );
                    continue;
                }
            };
            match applied {
                Ok(()) => info!(secret = source, "kubelets have the registry credentials"),
                Err(error) => {
                    tracing::error!(
                        secret = source,
                        error = &error as &dyn std::error::Error,
                        "kubelets cannot be given the registry credentials"
                    );
                }
            }
        }
    }
}

fn docker_config(secret: &Object) -> Option<Secret<String>> {
    let data = secret.data.as_ref()?;
    let bytes = KEYS.iter().find_map(|key| data.get(*key)).filter(|bytes| bytes.0.len() <= MAX_BYTES)?;
    Some(Secret::new(String::from_utf8(bytes.0.clone()).ok()?))
}

/// The registry's entries, under the name that kubelets use; those for some of its repositories stay so.
fn for_kubelets(config: &str, (host, pull_host): &(Host, Host)) -> Result<String, PullSecretError> {
    let config: Value = serde_json::from_str(config).map_err(PullSecretError::Config)?;
    let entries = config.get("auths").and_then(Value::as_object).into_iter().flatten();
    let (mut found, wanted) = (Map::new(), host.to_string());
    for (key, entry) in entries {
        let key = registry_key(key);
        let (name, path) =
            key.split_once('/').map_or((key.as_str(), None), |(name, path)| (name, Some(path)));
        if name == wanted {
            found.insert(kubelets_key(pull_host, path), entry.clone());
        }
    }
    if found.is_empty() {
        return Err(PullSecretError::Host(host.clone()));
    }
    Ok(json!({"auths": found}).to_string())
}

/// Docker Hub has a name of its own there.
fn kubelets_key(host: &Host, path: Option<&str>) -> String {
    match path {
        Some(path) => format!("{host}/{path}"),
        None if *host == Host::docker_hub() => "https://index.docker.io/v1/".to_owned(),
        None => host.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(host: &str, pull: &str) -> (Host, Host) {
        (host.parse().unwrap(), pull.parse().unwrap())
    }

    #[test]
    fn kubelets_get_the_one_entry_under_the_name_they_use() {
        let config = r#"{"auths": {"https://registry.example/v1/": {"auth": "YTpi"}, "other.example": {"auth": "eDp5"}},
            "credsStore": "desktop"}"#;
        let made = for_kubelets(config, &hosts("registry.example", "127.0.0.1:30500")).unwrap();
        assert_eq!(made, r#"{"auths":{"127.0.0.1:30500":{"auth":"YTpi"}}}"#);
    }

    #[test]
    fn docker_hub_is_known_by_the_name_that_docker_login_writes() {
        let config = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"}}}"#;
        let made = for_kubelets(config, &hosts("docker.io", "docker.io")).unwrap();
        assert_eq!(made, r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}}}"#);
    }

    #[test]
    fn an_entry_for_some_repositories_stays_one() {
        let config = r#"{"auths": {"quay.io/other": {"auth": "eDp5"}, "quay.io/team": {"auth": "YTpi"}}}"#;
        let made = for_kubelets(config, &hosts("quay.io", "mirror.example")).unwrap();
        let wanted =
            r#"{"auths":{"mirror.example/other":{"auth":"eDp5"},"mirror.example/team":{"auth":"YTpi"}}}"#;
        assert_eq!(made, wanted);
    }

    #[test]
    fn what_has_no_entry_for_the_registry_is_named_without_its_content() {
        let config = r#"{"auths": {"other.example": {"auth": "eDp5"}}}"#;
        let error = for_kubelets(config, &hosts("registry.example", "registry.example")).unwrap_err();
        assert_eq!(error.to_string(), "the registry credentials have none for registry.example");
        let broken = for_kubelets("hunter2", &hosts("registry.example", "registry.example")).unwrap_err();
        assert!(!format!("{broken:?}").contains("hunter2"), "{broken:?}");
    }
}
