//! A version as objects: the Secret with its environment, and a Deployment and a budget for each process type.
//!
//! Pure: what is made here is applied elsewhere.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::names::{self, CHANGED_BY, CHANGING_UNTIL, CONTAINER, ENVIRONMENT_TYPE, PORT, RELEASE};
use super::{Abilities, KubernetesConfig, work};
use crate::kubernetes::{Label, managed_by};
use crate::model::ProcessType;
use crate::oci::ImageConfig;
use crate::rollout::{RuntimeError, Version};
use crate::runtime::environment;

/// The variable that names the instance, which only the cluster knows.
const PROCESS: &str = "HEPHY_PROCESS";
/// So long after the time that we wait, the kubelet starts an instance again that never took a connection.
const STARTUP_SLACK: Duration = Duration::from_secs(30);

/// A version with all that its objects are made of.
#[derive(Clone, Copy)]
pub(super) struct Recipe<'a> {
    config: &'a KubernetesConfig,
    abilities: Abilities,
    version: &'a Version,
    images: &'a [ImageConfig],
    pub(super) port: u16,
}

impl<'a> Recipe<'a> {
    /// Fails where the version cannot run whatever the cluster says: no port, no command.
    pub(super) fn new(
        config: &'a KubernetesConfig,
        abilities: Abilities,
        version: &'a Version,
        images: &'a [ImageConfig],
    ) -> Result<Self, RuntimeError> {
        let default = ImageConfig::default();
        let port = environment::port(version, images.first().unwrap_or(&default))?;
        let without_command = images.iter().any(|image| environment::image_command(image).is_empty());
        for (process_type, line) in &version.release.processes {
            if line.is_none() && without_command {
                return Err(RuntimeError::NoCommand(process_type.clone()));
            }
        }
        Ok(Self { config, abilities, version, images, port })
    }

    /// How long an instance may take to become ready.
    pub(super) fn ready_timeout(&self) -> Duration {
        self.version.ready_timeout.unwrap_or(self.config.policy.ready_timeout)
    }

    /// The Secret with the environment of the release: ours, then the config over it.
    pub(super) fn environment(&self) -> Value {
        let release = &self.version.release;
        let mut data = Map::new();
        for (name, value) in environment::of_release(release, self.port) {
            data.insert(name.to_owned(), BASE64.encode(value).into());
        }
        for (name, value) in &self.version.variables {
            data.insert(name.as_str().to_owned(), BASE64.encode(value.reveal()).into());
        }
        let number = release.number.to_string();
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": names::environment(&release.app, release.number),
                "labels": managed_by(&[(Label::App, release.app.as_str()), (Label::Release, &number)]),
            },
            "type": ENVIRONMENT_TYPE,
            "data": data,
        })
    }

    /// The Deployment of a process type, over the `resource_version` that was read, if there was one.
    pub(super) fn deployment(
        &self,
        process_type: &ProcessType,
        count: u32,
        resource_version: Option<&str>,
    ) -> Value {
        let (release, policy) = (&self.version.release, &self.config.policy);
        let labels = names::labels(&release.app, process_type);
        let command = release.processes.get(process_type).and_then(Option::as_ref);
        let command = command.map(|line| vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()]);
        let mut spec = self.pod_spec(process_type, command.as_deref());
        spec["restartPolicy"] = "Always".into();
        spec["topologySpreadConstraints"] = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
            .map(|key| spread(key, &labels))
            .to_vec()
            .into();
        let pending = policy.pending + self.ready_timeout() + policy.minimum_ready;
        let mut deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": names::deployment(&release.app, process_type),
                "labels": labels,
                "annotations": changed(self.config, self.version),
            },
            "spec": {
                "replicas": count,
                "selector": {"matchLabels": labels},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
                "minReadySeconds": seconds(policy.minimum_ready),
                "progressDeadlineSeconds": seconds(pending),
                "revisionHistoryLimit": 2,
                "template": {"metadata": {"labels": self.pod_labels(process_type)}, "spec": spec},
            },
        });
        if let Some(version) = resource_version {
            deployment["metadata"]["resourceVersion"] = version.into();
        }
        deployment
    }

    /// How many instances a drain may take at once: one, and only where there are others.
    pub(super) fn budget(&self, process_type: &ProcessType) -> Value {
        let app = &self.version.release.app;
        let labels = names::labels(app, process_type);
        let mut spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": labels}});
        if self.abilities.evict_unhealthy {
            spec["unhealthyPodEvictionPolicy"] = "AlwaysAllow".into();
        }
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": names::deployment(app, process_type), "labels": labels},
            "spec": spec,
        })
    }

    /// The pod in which a command runs once.
    pub(super) fn once(&self, number: u32, command: &[String]) -> Value {
        let release = &self.version.release;
        let run = ProcessType::run();
        let command = (!command.is_empty()).then_some(command);
        let mut spec = self.pod_spec(&run, command);
        spec["restartPolicy"] = "Never".into();
        spec["activeDeadlineSeconds"] = seconds(self.config.policy.run).into();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": format!("{}--{run}-{number}", release.app),
                "labels": self.pod_labels(&run),
            },
            "spec": spec,
        })
    }

    fn pod_labels(&self, process_type: &ProcessType) -> Value {
        let release = &self.version.release;
        let mut labels = names::labels(&release.app, process_type);
        labels.insert(Label::Release.key().to_owned(), release.number.to_string());
        json!(labels)
    }

    /// Everything of a pod but how often it is started.
    fn pod_spec(&self, process_type: &ProcessType, command: Option<&[String]>) -> Value {
        let policy = &self.config.policy;
        let answers = *process_type == ProcessType::web();
        let drain = match self.pause(command) {
            Some(_) if answers => policy.drain,
            _ => Duration::ZERO,
        };
        let mut spec = json!({
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": seconds(policy.stop_grace) + seconds(drain),
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [self.container(answers, drain, command)],
        });
        if let Some(secret) = &self.config.pull_secret {
            spec["imagePullSecrets"] = json!([{"name": secret}]);
        }
        if let Some(affinity) = self.affinity() {
            spec["affinity"] = affinity;
        }
        spec
    }

    /// What lets an instance serve on for a while before its stop signal, so that whoever sends requests learns of it.
    ///
    /// Where the API server knows no `sleep`, the shell that a line of the Procfile needs anyway does it.
    fn pause(&self, command: Option<&[String]>) -> Option<Value> {
        let sleep = seconds(self.config.policy.drain);
        if self.abilities.sleep {
            Some(json!({"sleep": {"seconds": sleep}}))
        } else {
            command.map(|_| json!({"exec": {"command": ["/bin/sh", "-c", format!("sleep {sleep}")]}}))
        }
    }

    fn container(&self, answers: bool, drain: Duration, command: Option<&[String]>) -> Value {
        let release = &self.version.release;
        let index = &release.index;
        let mut container = json!({
            "name": CONTAINER,
            "image": format!("{}/{}@{}", self.config.pull_host, index.repository, index.digest),
            "imagePullPolicy": "IfNotPresent",
            "envFrom": [{"secretRef": {"name": names::environment(&release.app, release.number)}}],
            "resources": {"requests": self.config.resources.requests, "limits": self.config.resources.limits},
            "terminationMessagePolicy": "File",
            "securityContext": self.security(),
        });
        if !self.version.variables.keys().any(|name| name.as_str() == PROCESS) {
            container["env"] =
                json!([{"name": PROCESS, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
        }
        if let Some(command) = command {
            // Kubernetes would put variables in for `$(NAME)`, and takes `$$` for `$`.
            container["command"] =
                command.iter().map(|word| word.replace('$', "$$")).collect::<Vec<_>>().into();
        }
        if answers {
            let probe = |failures: u64| json!({"tcpSocket": {"port": PORT}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": failures});
            container["ports"] = json!([{"name": PORT, "containerPort": self.port, "protocol": "TCP"}]);
            container["startupProbe"] = probe(seconds(self.ready_timeout() + STARTUP_SLACK));
            container["readinessProbe"] = probe(3);
            container["readinessProbe"]["periodSeconds"] = 2.into();
            container["readinessProbe"]["timeoutSeconds"] = 2.into();
            if let Some(pause) = self.pause(command).filter(|_| !drain.is_zero()) {
                container["lifecycle"] = json!({"preStop": pause});
            }
        }
        container
    }

    /// As strict as the image allows: what runs as a numbered user that is not root passes Pod Security `restricted`,
    /// all else `baseline`.
    fn security(&self) -> Value {
        let is_plain = |image: &ImageConfig| {
            let user = image.config.user.as_deref().unwrap_or_default();
            user.split(':').next().and_then(|user| user.parse::<u32>().ok()).is_some_and(|uid| uid != 0)
        };
        if !self.images.is_empty() && self.images.iter().all(is_plain) {
            json!({
                "runAsNonRoot": true,
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
            })
        } else {
            json!({})
        }
    }

    /// Nodes that the index has an image for.
    fn affinity(&self) -> Option<Value> {
        let images = &self.version.release.index.images;
        let of = |part: fn(&crate::oci::Platform) -> &str| -> BTreeSet<&str> {
            images.iter().map(|image| part(&image.platform)).collect()
        };
        let expressions = json!([
            {"key": "kubernetes.io/arch", "operator": "In", "values": of(crate::oci::Platform::architecture)},
            {"key": "kubernetes.io/os", "operator": "In", "values": of(crate::oci::Platform::os)},
        ]);
        (!images.is_empty()).then(|| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": expressions}],
            }}})
        })
    }
}

/// What says which release this is, and who is at work on the app.
pub(super) fn changed(config: &KubernetesConfig, version: &Version) -> Value {
    json!({
        RELEASE: version.release.number.to_string(),
        CHANGED_BY: config.identity,
        CHANGING_UNTIL: work::until().to_string(),
    })
}

fn spread(key: &str, labels: &std::collections::BTreeMap<String, String>) -> Value {
    json!({
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
    })
}

/// Whole seconds, never less than asked.
pub(super) const fn seconds(duration: Duration) -> u64 {
    let whole = duration.as_secs();
    if duration.subsec_nanos() > 0 { whole + 1 } else { whole }
}

#[cfg(test)]
mod tests {
    use super::super::{Exposure, Policy, Resources};
    use super::*;
    use crate::model::{
        BuildNumber, PlatformImage, PublishedIndex, Release, ReleaseNumber, ReleaseState, Secret,
    };
    use crate::oci::Digest;

    fn config() -> KubernetesConfig {
        KubernetesConfig {
            namespace: "apps".to_owned(),
            identity: "hephy-0".to_owned(),
            pull_host: "127.0.0.1:30500".parse().unwrap(),
            pull_secret: Some("hephy-pull".to_owned()),
            resources: Resources {
                limits: [("memory".to_owned(), "64Mi".to_owned())].into(),
                ..Resources::default()
            },
            exposure: Exposure::Services,
            policy: Policy::default(),
        }
    }

    fn version(platforms: &[&str], variables: &[(&str, &str)]) -> Version {
        let image = |platform: &&str| PlatformImage {
            platform: platform.parse().unwrap(),
            manifest: Digest::of(platform.as_bytes()),
            size_bytes: 0,
            layers: 1,
            new_layers: 0,
            steps: Vec::new(),
        };
        let release = Release {
            format: 1,
            app: "hello".parse().unwrap(),
            number: ReleaseNumber(4),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            by: "ada".parse().unwrap(),
            summary: "ada deployed 3f2a1c9".to_owned(),
            build: BuildNumber(7),
            commit: "3f2a1c9000000000000000000000000000000000".parse().unwrap(),
            index: PublishedIndex {
                digest: Digest::of(b""),
                repository: "hello".to_owned(),
                images: platforms.iter().map(image).collect(),
            },
            processes: [
                ("web".parse().unwrap(), Some("exec serve $PORT $(date)".to_owned())),
                ("worker".parse().unwrap(), None),
            ]
            .into(),
            ready_timeout_seconds: None,
            state: ReleaseState::Pending,
        };
        let variables =
            variables.iter().map(|(n, v)| (n.parse().unwrap(), Secret::new((*v).to_owned()))).collect();
        Version { release, variables, scale: std::collections::BTreeMap::default(), ready_timeout: None }
    }

    fn image(user: &str) -> ImageConfig {
        let mut image = ImageConfig::default();
        image.config.user = Some(user.to_owned());
        image.config.cmd = Some(vec!["serve".to_owned()]);
        image
    }

    fn rendered(version: &Version, image: &ImageConfig, process_type: &str) -> Value {
        let (config, images) = (config(), [image.clone()]);
        let abilities = Abilities { sleep: true, evict_unhealthy: true };
        let recipe = Recipe::new(&config, abilities, version, &images).unwrap();
        recipe.deployment(&process_type.parse().unwrap(), 2, Some("17"))
    }

    fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
        value.pointer(path).unwrap_or(&Value::Null)
    }

    #[test]
    fn a_deployment_is_what_the_api_server_reads_and_rolls_without_a_gap() {
        let value = rendered(&version(&["linux/amd64", "linux/arm64"], &[]), &image("root"), "web");
        let typed: k8s_openapi::api::apps::v1::Deployment = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&typed).unwrap()["spec"]["template"], value["spec"]["template"]);
        assert_eq!(at(&value, "/spec/strategy/rollingUpdate/maxUnavailable"), &json!(0));
        assert_eq!(at(&value, "/metadata/resourceVersion"), "17");
        let image = at(&value, "/spec/template/spec/containers/0/image").as_str().unwrap();
        assert_eq!(image, format!("127.0.0.1:30500/hello@{}", Digest::of(b"")));
        let terms = "/spec/template/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
        assert_eq!(at(&value, terms)[0]["matchExpressions"][0]["values"], json!(["amd64", "arm64"]));
    }

    #[test]
    fn kubernetes_puts_nothing_in_for_the_dollars_of_a_line() {
        let value = rendered(&version(&[], &[]), &image("root"), "web");
        let command = at(&value, "/spec/template/spec/containers/0/command");
        assert_eq!(command, &json!(["/bin/sh", "-c", "exec serve $$PORT $$(date)"]));
    }

    #[test]
    fn only_what_takes_requests_is_probed_and_waits_before_it_stops() {
        let version = version(&[], &[]);
        let web = rendered(&version, &image("root"), "web");
        let worker = rendered(&version, &image("root"), "worker");
        let of = |value: &Value, field: &str| at(value, "/spec/template/spec/containers/0")[field].clone();
        assert_eq!(of(&web, "lifecycle"), json!({"preStop": {"sleep": {"seconds": 5}}}));
        assert_eq!(of(&web, "ports")[0]["containerPort"], json!(5000));
        for field in ["lifecycle", "readinessProbe", "startupProbe", "ports", "command"] {
            assert_eq!(of(&worker, field), Value::Null, "{field}");
        }
        let grace = |value: &Value| at(value, "/spec/template/spec/terminationGracePeriodSeconds").clone();
        assert_eq!((grace(&web), grace(&worker)), (json!(35), json!(30)));
    }

    #[test]
    fn an_older_cluster_lets_the_shell_of_a_line_wait() {
        let (config, images, mut version) = (config(), [image("root")], version(&[], &[]));
        let of = |version: &Version| {
            let recipe = Recipe::new(&config, Abilities::default(), version, &images).unwrap();
            let web = recipe.deployment(&"web".parse().unwrap(), 1, None);
            at(&web, "/spec/template/spec/containers/0/lifecycle").clone()
        };
        assert_eq!(of(&version)["preStop"]["exec"]["command"], json!(["/bin/sh", "-c", "sleep 5"]));
        version.release.processes.insert("web".parse().unwrap(), None);
        assert_eq!(of(&version), Value::Null, "an image may have no shell");
    }

    #[test]
    fn an_image_of_a_numbered_user_is_held_to_the_restricted_rules() {
        let of = |user: &str| {
            let value = rendered(&version(&[], &[]), &image(user), "web");
            at(&value, "/spec/template/spec/containers/0/securityContext/runAsNonRoot").clone()
        };
        for user in ["1000", "1000:1000"] {
            assert_eq!(of(user), json!(true), "{user}");
        }
        for user in ["", "0", "0:1000", "root", "app"] {
            assert_eq!(of(user), Value::Null, "{user}");
        }
    }

    #[test]
    fn the_config_wins_over_ours_in_the_environment() {
        let version = version(&[], &[("DEIS_APP", "mine"), ("HEPHY_PROCESS", "me"), ("PORT", "80")]);
        let (config, images) = (config(), [image("root")]);
        let recipe = Recipe::new(&config, Abilities::default(), &version, &images).unwrap();
        let secret = recipe.environment();
        let get = |name: &str| {
            String::from_utf8(BASE64.decode(secret["data"][name].as_str().unwrap()).unwrap()).unwrap()
        };
        assert_eq!(
            (get("DEIS_APP"), get("PORT"), get("HEPHY_RELEASE")),
            ("mine".into(), "80".into(), "v4".into())
        );
        assert_eq!(secret["metadata"]["name"], "hello--v4--env");
        let web = recipe.deployment(&"web".parse().unwrap(), 1, None);
        assert_eq!(at(&web, "/spec/template/spec/containers/0/env"), &Value::Null);
        assert_eq!(at(&web, "/metadata/resourceVersion"), &Value::Null);
    }

    #[test]
    fn a_process_without_a_line_needs_a_command_of_the_image() {
        let (config, images) = (config(), [ImageConfig::default()]);
        let made = Recipe::new(&config, Abilities::default(), &version(&[], &[]), &images).map(|_| ());
        assert!(matches!(made, Err(RuntimeError::NoCommand(name)) if name.as_str() == "worker"));
    }
}
