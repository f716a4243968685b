//! What an operator decides of the pods that build.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ResourceRequirements, SecurityContext, Toleration};
use url::Url;

use crate::build::{BuildRequest, NetworkMode};
use crate::oci::{Host, Reference, Repository};

/// How Jobs are made.
#[derive(Debug, Clone)]
pub struct JobConfig {
    /// Where they are made.
    pub namespace: String,
    /// Our own image, for every architecture.
    pub image: String,
    /// `IfNotPresent`, `Always`, `Never`; Kubernetes' own choice if absent.
    pub image_pull_policy: Option<String>,
    /// Secrets of the namespace that the image is pulled with.
    pub image_pull_secrets: Vec<String>,
    /// A Secret of the namespace with a `config.json` for registries, where there are no tickets.
    pub docker_config_secret: Option<String>,
    /// Where an engine exchanges its ticket for credentials; no tickets are made if absent.
    pub ticket_url: Option<Url>,
    /// `--isolation` of the engine; it chooses if absent.
    pub isolation: Option<String>,
    /// Requests and limits of the container.
    pub resources: ResourceRequirements,
    /// Taints that build pods may be put on.
    pub tolerations: Vec<Toleration>,
    /// Labels that a node must have besides its architecture.
    pub node_selector: BTreeMap<String, String>,
    /// The container's security context.
    pub security_context: Option<SecurityContext>,
    /// `hostUsers`: `false` gives a pod a user namespace of its own.
    pub host_users: Option<bool>,
    /// How large the layer store of a build may become, `20Gi`.
    pub scratch_size_limit: Option<String>,
    /// A registry that the engine has another name for than we have.
    pub registry: Option<RegistryNames>,
    /// Registries (`host:port`, by the engine's name) that speak plain HTTP.
    pub insecure_registries: Vec<Host>,
    /// Certificates that the engine and RUN trust beside the usual ones.
    pub ca_bundle: Option<CaBundle>,
    /// Whether steps are kept in `REPOSITORY/cache`.
    pub step_cache: bool,
    /// Where sources are packed; else where temporary files are.
    pub spool: Option<PathBuf>,
    /// Whether [`super::KubernetesDriver::forget`] removes what a build has left in its repository, once it is known here.
    pub is_forgotten: bool,
    /// How many builds of one architecture run at once.
    pub parallel_per_architecture: usize,
    /// How long a pod may wait for a node.
    pub waiting_limit: Duration,
    /// How long a finished Job is kept.
    pub kept: Duration,
}

/// Where Jobs have certificates from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaBundle {
    /// An entry of a `ConfigMap` of the namespace.
    ConfigMap {
        /// Its name.
        name: String,
        /// The entry's.
        key: String,
    },
    /// The Job itself has them, in PEM: for who may make nothing else. At most [`MAX_INLINE_BUNDLE_BYTES`].
    Inline(String),
}

/// The largest bundle that a Job itself has: one variable of a process has 128 KiB at most.
pub const MAX_INLINE_BUNDLE_BYTES: usize = 120 << 10;

/// One registry by two names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryNames {
    /// Ours.
    pub here: Host,
    /// The engine's, in a pod.
    pub engine: Host,
}

impl JobConfig {
    /// The usual, for Jobs in `namespace` that run `image`.
    #[must_use]
    pub fn new(namespace: impl Into<String>, image: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            image: image.into(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            docker_config_secret: None,
            ticket_url: None,
            isolation: None,
            resources: ResourceRequirements::default(),
            tolerations: Vec::new(),
            node_selector: BTreeMap::new(),
            security_context: None,
            host_users: None,
            scratch_size_limit: None,
            registry: None,
            insecure_registries: Vec::new(),
            ca_bundle: None,
            step_cache: true,
            spool: None,
            is_forgotten: false,
            parallel_per_architecture: 8,
            waiting_limit: Duration::from_mins(15),
            kept: Duration::from_hours(1),
        }
    }

    /// A repository by the name that an engine reaches it by.
    pub(super) fn repository(&self, repository: &Repository) -> Repository {
        match &self.registry {
            Some(names) if names.here == repository.host => {
                Repository { host: names.engine.clone(), name: repository.name.clone() }
            }
            _ => repository.clone(),
        }
    }

    /// The request as an engine in a pod is to see it.
    pub(super) fn as_seen_by_engine(&self, request: &BuildRequest) -> BuildRequest {
        let reference = |reference: &Reference| Reference {
            repository: self.repository(&reference.repository),
            ..reference.clone()
        };
        let text = |text: &String| match &self.registry {
            Some(RegistryNames { here, engine }) => match text.strip_prefix(here.as_str()) {
                Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{engine}{rest}"),
                _ => text.clone(),
            },
            None => text.clone(),
        };
        let mut insecure: Vec<String> = request.insecure_registries.iter().map(text).collect();
        insecure.extend(self.insecure_registries.iter().map(ToString::to_string));
        insecure.sort();
        insecure.dedup();
        BuildRequest {
            destinations: request.destinations.iter().map(reference).collect(),
            mirrors: request.mirrors.iter().map(text).collect(),
            insecure_registries: insecure,
            // RUN has the pod's network, and what it may reach there is a NetworkPolicy's business; or it has none.
            network: match request.network {
                NetworkMode::None => NetworkMode::None,
                NetworkMode::Host | NetworkMode::Isolated => NetworkMode::Host,
            },
            ..request.clone()
        }
    }
}
