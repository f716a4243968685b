//! The settings of `hephy serve`: what the chart says. Each is a flag.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::address::{Addresses, Apps};
use super::server::{Domain, GivenSettings, HostPort, LoopbackAddress, Settings, SettingsError, Size, Span};
use super::traces::Endpoint;

/// The settings of a server on a cluster.
#[derive(Debug, Clone, Args)]
pub struct ClusterSettings {
    /// What the objects of this installation are named by
    #[arg(long, default_value = "hephy", value_name = "NAME")]
    pub name: String,
    /// The namespace of the server [default: the pod's own, or the kubeconfig's]
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The namespace of the Jobs that build
    #[arg(long, default_value = "hephy-builds", value_name = "NAMESPACE")]
    pub builds_namespace: String,
    /// The namespace of the apps and of all records
    #[arg(long, default_value = "hephy-apps", value_name = "NAMESPACE")]
    pub apps_namespace: String,
    /// The image that build Jobs run: hephy's own
    #[arg(long, value_name = "IMAGE")]
    pub image: String,
    /// How build pods reach this server
    #[arg(long, value_name = "URL")]
    pub internal_url: url::Url,
    /// Where git and the command line connect
    #[arg(long, default_value = "0.0.0.0:2222", value_name = "ADDRESS")]
    pub ssh: SocketAddr,
    /// Where health and metrics are asked for, and tickets are exchanged
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    pub http: SocketAddr,
    /// What pushers connect to
    #[arg(long, value_name = "HOST:PORT")]
    pub public_ssh: HostPort,
    /// Where packs, contexts and the registry of our own are kept
    #[arg(long, default_value = "/data", value_name = "DIRECTORY")]
    pub data: PathBuf,
    /// Apps are at APP.DOMAIN
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Domain,
    /// Where the apps answer by their Host header, while no DNS name leads to them
    #[arg(long, value_name = "URL")]
    pub apps_url: Option<String>,
    /// The port that the apps answer at [default: 80, or 443 with --apps-tls]
    #[arg(long, value_name = "PORT")]
    pub apps_port: Option<u16>,
    /// The apps answer by https
    #[arg(long)]
    pub apps_tls: bool,
    /// Make an Ingress for each app
    #[arg(long)]
    pub ingress: bool,
    /// The class of the Ingresses [default: the cluster's]
    #[arg(long, value_name = "NAME")]
    pub ingress_class: Option<String>,
    /// An annotation of each Ingress; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub ingress_annotation: Vec<(String, String)>,
    /// The Secret with the certificate of the Ingresses, in the apps' namespace
    #[arg(long, value_name = "NAME")]
    pub ingress_tls_secret: Option<String>,
    /// Make an HTTPRoute for each app, of this Gateway
    #[arg(long, value_name = "NAME", conflicts_with = "ingress")]
    pub gateway: Option<String>,
    /// The namespace of the Gateway [default: that of the apps]
    #[arg(long, value_name = "NAMESPACE", requires = "gateway")]
    pub gateway_namespace: Option<String>,
    /// The listener of the Gateway [default: all]
    #[arg(long, value_name = "NAME", requires = "gateway")]
    pub gateway_section: Option<String>,
    /// A registry of yours: HOST or HOST/PREFIX
    #[arg(long, value_name = "HOST[/PREFIX]", conflicts_with = "registry")]
    pub registry_url: Option<String>,
    /// It speaks plain HTTP
    #[arg(long)]
    pub registry_insecure: bool,
    /// The Secret of type kubernetes.io/dockerconfigjson with its credentials
    #[arg(long, value_name = "NAME")]
    pub registry_secret: Option<String>,
    /// It is a cloud's, which knows this server: its role or service account there
    #[arg(long, requires = "registry_url", conflicts_with = "registry_secret")]
    pub registry_identity: bool,
    /// Where a registry of our own listens, instead
    #[arg(long, value_name = "ADDRESS", requires = "registry_service")]
    pub registry: Option<SocketAddr>,
    /// What engines call it
    #[arg(long, value_name = "HOST:PORT")]
    pub registry_service: Option<String>,
    /// What kubelets call the registry: HOST or HOST/PREFIX
    #[arg(long, value_name = "HOST[/PREFIX]")]
    pub pull_host: String,
    /// How a RUN is kept apart: auto, userns or in-place
    #[arg(long, default_value = "auto", value_name = "KIND")]
    pub isolation: String,
    /// A JSON file that says what the pods of builds and apps are made with
    #[arg(long, value_name = "FILE")]
    pub pods: Option<PathBuf>,
    /// A file as ~/.ssh/authorized_keys with the keys of the first admins
    #[arg(long, value_name = "FILE")]
    pub admin_keys: Option<PathBuf>,
    /// A PEM file with certificates that registries are believed by, too
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// The branch that deploys [default: main, or master where there is no main]
    #[arg(long, value_name = "BRANCH")]
    pub deploy_branch: Option<String>,
    /// How many builds run at once on each architecture [default: 2]
    #[arg(long, value_name = "NUMBER")]
    pub builds: Option<usize>,
    /// How long a build may take [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub build_timeout: Option<Span>,
    /// The largest pack that is received [default: 2GiB]
    #[arg(long, value_name = "BYTES")]
    pub max_pack: Option<Size>,
    /// How long a new version may take to answer [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub ready_timeout: Option<Span>,
    /// How long a new version must have been ready [default: 1s]
    #[arg(long, value_name = "DURATION")]
    pub minimum_ready: Option<Span>,
    /// How long an old version has after SIGTERM [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub stop_grace: Option<Span>,
    /// Where profiles of the server are taken, an address of loopback [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    pub pprof: Option<LoopbackAddress>,
    /// Where traces of pushes are sent, by OTLP over HTTP [default: where OTEL_EXPORTER_OTLP_ENDPOINT says, or nowhere]
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<Endpoint>,
}

/// What the pods of builds and apps are made with.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pods {
    /// The Jobs that build.
    pub build: BuildPods,
    /// The apps.
    pub app: AppPods,
}

/// What the pods of builds are made with.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct BuildPods {
    /// What one asks for and may use.
    pub resources: PodResources,
    /// The taints that one stands, as Kubernetes writes them.
    pub tolerations: Vec<serde_json::Value>,
    /// Labels of the nodes that build.
    pub node_selector: BTreeMap<String, String>,
    /// `false`: a user namespace for each pod.
    pub host_users: bool,
    /// How large the layers and files of one build may become, as a quantity; no limit if empty.
    pub scratch_size_limit: Option<String>,
    /// When our image is pulled.
    pub image_pull_policy: Option<String>,
    /// What our image is pulled with.
    pub image_pull_secrets: Vec<String>,
    /// The certificates that builds trust beside the system's and their images'.
    pub ca_bundle: Option<ConfigMapEntry>,
}

/// An entry of a `ConfigMap` in the namespace of the builds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConfigMapEntry {
    /// Its name.
    pub config_map: String,
    /// The entry's.
    pub key: String,
}

impl Default for BuildPods {
    fn default() -> Self {
        Self {
            resources: PodResources::default(),
            tolerations: Vec::new(),
            node_selector: BTreeMap::new(),
            host_users: true,
            scratch_size_limit: None,
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            ca_bundle: None,
        }
    }
}

/// What the pods of apps are made with.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AppPods {
    /// What one asks for and may use.
    pub resources: PodResources,
}

/// What a pod asks for and may use, in Kubernetes' quantities. A number is one without a unit: `cpu: 2`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodResources {
    /// What the scheduler reserves.
    #[serde(deserialize_with = "quantities")]
    pub requests: BTreeMap<String, String>,
    /// What it may not go beyond.
    #[serde(deserialize_with = "quantities")]
    pub limits: BTreeMap<String, String>,
}

fn quantities<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let given = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
    let quantity = |(name, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) => Ok((name, text)),
        serde_json::Value::Number(number) => Ok((name, number.to_string())),
        other => {
            Err(serde::de::Error::custom(format!("`{name}` is {other}, not a quantity such as `512Mi`")))
        }
    };
    given.into_iter().map(quantity).collect()
}

impl Pods {
    /// Reads the file that the chart renders.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        serde_json::from_str(&text)
            .map_err(|source| SettingsError::Json { path: path.to_owned(), source: Box::new(source) })
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ClusterSettings {
    /// The settings that a server has wherever it runs.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let given = GivenSettings {
            ssh: Some(self.ssh),
            registry: self.registry,
            http: Some(self.http),
            domain: Some(self.domain.clone()),
            public_ssh: Some(self.public_ssh.clone()),
            data: Some(self.data.clone()),
            deploy_branch: self.deploy_branch.clone(),
            builds: self.builds,
            build_timeout: self.build_timeout,
            max_pack: self.max_pack,
            ready_timeout: self.ready_timeout,
            minimum_ready: self.minimum_ready,
            stop_grace: self.stop_grace,
            pprof: self.pprof,
            otlp_endpoint: self.otlp_endpoint.clone(),
            ..GivenSettings::default()
        };
        given.resolve(GivenSettings::default(), None)
    }

    /// Where people reach things.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        let (scheme, port) = if self.apps_tls { ("https", 443) } else { ("http", 80) };
        let apps = match &self.apps_url {
            Some(url) => Apps::ByHeader(url.clone()),
            None => Apps::ByName { scheme, port: self.apps_port.unwrap_or(port) },
        };
        Addresses::of_cluster(self.domain.clone(), apps, self.public_ssh.clone(), self.pull_host.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_pods_is_read_strictly_and_numbers_are_quantities() {
        let read = |text: &str| serde_json::from_str::<Pods>(text);
        let pods = read(
            r#"{"build": {"resources": {"limits": {"cpu": 2, "memory": "1Gi"}}, "hostUsers": false,
                "caBundle": {"configMap": "a", "key": "b"}}}"#,
        )
        .unwrap();
        let entry = ConfigMapEntry { config_map: "a".to_owned(), key: "b".to_owned() };
        assert_eq!(pods.build.ca_bundle, Some(entry));
        assert_eq!(pods.build.resources.limits["cpu"], "2");
        assert!(!pods.build.host_users);
        assert!(read(r#"{"build": {"resorces": {}}}"#).is_err());
        assert!(read(r#"{"app": {"resources": {"limits": {"cpu": []}}}}"#).is_err());
    }
}
