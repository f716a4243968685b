//! The Secrets that the server makes for itself on a cluster: of several replicas one wins, and all read the same.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::Secret as KubernetesSecret;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};

use crate::kubernetes::{Cluster, MANAGER, managed_by};
use crate::model::Secret;
use crate::receive::{HostKey, HostKeyError, new_host_key};

/// The annotation that says what git shows at the first connection.
const FINGERPRINT: &str = "hephy.dev/fingerprint";

/// The entry of the host key.
const HOST_KEY: &str = "ssh_host_ed25519_key";

/// The entry of a Docker configuration (`kubernetes.io/dockerconfigjson`).
const DOCKER_CONFIG: &str = ".dockerconfigjson";

/// Why a Secret is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server.
    #[error("cannot {doing} the Secret `{name}` in the namespace `{namespace}`")]
    Api {
        /// `read`, `make` or `mark`.
        doing: &'static str,
        /// Which.
        name: String,
        /// Where.
        namespace: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// It lacks what it is for.
    #[error("the Secret `{name}` in the namespace `{namespace}` has no entry `{entry}` that is text")]
    Lacking {
        /// Which.
        name: String,
        /// Where.
        namespace: String,
        /// The entry.
        entry: &'static str,
    },
    /// The key in it.
    #[error(transparent)]
    Key(#[from] HostKeyError),
}

/// The Secrets of one namespace.
pub(super) struct Secrets {
    api: Api<KubernetesSecret>,
    namespace: String,
}

impl Secrets {
    pub(super) fn new(cluster: &Cluster, namespace: &str) -> Self {
        Self { api: Api::namespaced(cluster.client(), namespace), namespace: namespace.to_owned() }
    }

    #[cfg(test)]
    pub(super) fn of(api: Api<KubernetesSecret>) -> Self {
        Self { api, namespace: "hephy".to_owned() }
    }

    /// The SSH host key in `name`; made if there is none.
    pub(super) async fn host_key(&self, name: &str) -> Result<HostKey, SecretError> {
        if self.read(name).await?.is_none() {
            let text = new_host_key()?;
            let key = HostKey::parse(text.reveal(), Path::new(name))?;
            let mut metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            metadata.labels = Some(managed_by(&[]));
            metadata.annotations =
                Some(BTreeMap::from([(FINGERPRINT.to_owned(), key.fingerprint().to_string())]));
            let data = BTreeMap::from([(HOST_KEY.to_owned(), text.reveal().clone())]);
            let secret =
                KubernetesSecret { metadata, string_data: Some(data), ..KubernetesSecret::default() };
            let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            match self.api.create(&parameters, &secret).await {
                // Another replica was first: its key is the key.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(self.error("make", name, error)),
                Ok(_) => return Ok(key),
            }
        }
        let text = self.entry(name, HOST_KEY).await?;
        Ok(HostKey::parse(text.reveal(), Path::new(name))?)
    }

    /// The Docker configuration in `name`.
    pub(super) async fn docker_config(&self, name: &str) -> Result<Secret<String>, SecretError> {
        self.entry(name, DOCKER_CONFIG).await
    }

    /// What an annotation of `name` says.
    pub(super) async fn mark(&self, name: &str, annotation: &str) -> Result<Option<String>, SecretError> {
        let annotations = self.read(name).await?.and_then(|secret| secret.metadata.annotations);
        Ok(annotations.and_then(|mut annotations| annotations.remove(annotation)))
    }

    /// Sets an annotation of `name`.
    pub(super) async fn set_mark(
        &self,
        name: &str,
        annotation: &str,
        value: &str,
    ) -> Result<(), SecretError> {
        let fields = serde_json::json!({"metadata": {"annotations": {annotation: value}}});
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let written = self.api.patch(name, &parameters, &Patch::Merge(fields)).await;
        written.map(drop).map_err(|error| self.error("mark", name, error))
    }

    async fn entry(&self, name: &str, entry: &'static str) -> Result<Secret<String>, SecretError> {
        let data = self.read(name).await?.and_then(|secret| secret.data).unwrap_or_default();
        let text = data.get(entry).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        text.map(Secret::new).ok_or_else(|| SecretError::Lacking {
            name: name.to_owned(),
            namespace: self.namespace.clone(),
            entry,
        })
    }

    async fn read(&self, name: &str) -> Result<Option<KubernetesSecret>, SecretError> {
        self.api.get_opt(name).await.map_err(|error| self.error("read", name, error))
    }

    fn error(&self, doing: &'static str, name: &str, error: kube::Error) -> SecretError {
        SecretError::Api {
            doing,
            name: name.to_owned(),
            namespace: self.namespace.clone(),
            source: Box::new(error),
        }
    }
}
