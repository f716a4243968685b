//! The way to the API server: a kubeconfig outside, the service account inside a pod.

use std::path::Path;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

/// A cluster that answers to our credentials.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    address: String,
}

/// Why a cluster cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is a kubeconfig, and it is wrong.
    #[error("cannot use the kubeconfig `{path}`")]
    Kubeconfig {
        /// Which.
        path: String,
        /// What is wrong.
        source: Box<kube::config::KubeconfigError>,
    },
    /// There is neither a kubeconfig nor a service account.
    #[error("no cluster is known here: set KUBECONFIG, or run this in a pod with a service account")]
    Nowhere(#[source] Box<kube::config::InferConfigError>),
    /// The credentials or certificates are of no use.
    #[error("cannot make a client for the cluster at {address}")]
    Client {
        /// The API server.
        address: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl Cluster {
    /// The cluster of `kubeconfig`, or else of `KUBECONFIG`, of `~/.kube/config`, or of the pod that this runs in.
    /// Nothing is asked of it yet.
    pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self, ConnectError> {
        let options =
            KubeConfigOptions { context: context.map(ToOwned::to_owned), ..KubeConfigOptions::default() };
        let config = match kubeconfig {
            Some(path) => {
                let wrong = |source| ConnectError::Kubeconfig {
                    path: path.display().to_string(),
                    source: Box::new(source),
                };
                let read = Kubeconfig::read_from(path).map_err(wrong)?;
                Config::from_custom_kubeconfig(read, &options).await.map_err(wrong)?
            }
            None if context.is_some() => {
                let wrong = |source| ConnectError::Kubeconfig {
                    path: std::env::var("KUBECONFIG").unwrap_or_else(|_| "~/.kube/config".to_owned()),
                    source: Box::new(source),
                };
                Config::from_kubeconfig(&options).await.map_err(wrong)?
            }
            None => Config::infer().await.map_err(|source| ConnectError::Nowhere(Box::new(source)))?,
        };
        Self::of(config)
    }

    fn of(config: Config) -> Result<Self, ConnectError> {
        let (namespace, address) = (config.default_namespace.clone(), config.cluster_url.to_string());
        match Client::try_from(config) {
            Ok(client) => Ok(Self { client, namespace, address }),
            Err(source) => Err(ConnectError::Client { address, source: Box::new(source) }),
        }
    }

    /// The client, which is cheap to clone.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace of the context or of the pod.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The API server's URL.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("address", &self.address)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}
