//! A build for one platform as a Job.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, KeyToPath, LocalObjectReference, PodSpec,
    PodTemplateSpec, SecretVolumeSource, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::config::{CaBundle, JobConfig};
use super::ticket::{TICKET_SUM, Ticket};
use crate::build::{BuildFailure, BuildRequest, PushedSource};
use crate::driver::arguments::Arguments;
use crate::kubernetes::{Label, managed_by};
use crate::oci::{Digest, Platform, Reference, Repository};

/// The name of the container that builds.
pub(super) const CONTAINER: &str = "build";
/// Where the engine keeps what it has: a directory that is in nobody's image.
const SCRATCH: &str = "/.hephy";
/// Where credentials of a Secret are.
const DOCKER_CONFIG: &str = "/.hephy-docker";
/// Where certificates of a `ConfigMap` are.
const TRUSTED: &str = "/.hephy-trusted";
const BUNDLE: &str = "ca-bundle.crt";
/// How long a pod that is to end has to leave its result: more than `SIGNALLED` of `cli/build/report.rs`.
pub const GRACE_SECONDS: i64 = 20;
/// How much longer than its engine a pod lives: the engine ends itself, and says so.
const DEADLINE_SLACK_SECONDS: u64 = 90;
/// How long a build may stay on a node that does not answer.
const LOST_NODE_SECONDS: i64 = 60;

/// A build for one platform, ready to be made a Job for each attempt.
#[derive(Debug, Clone)]
pub(super) struct BuildJob {
    /// `app--17--arm64`, of the first attempt.
    pub(super) name: String,
    /// On a machine of this one.
    pub(super) machine: Platform,
    /// Whose it is: builds of one owner stand in one row.
    pub(super) owner: String,
    /// The repository, by our name.
    pub(super) repository: Repository,
    /// What the engine is told in every attempt.
    arguments: Vec<String>,
    /// The same by the engine's name.
    engine_repository: Repository,
    labels: BTreeMap<String, String>,
    time_seconds: u64,
}

impl BuildJob {
    /// The Job for a request whose source is in the registry.
    pub(super) fn new(
        config: &JobConfig,
        request: &BuildRequest,
        source: &PushedSource,
    ) -> Result<Self, BuildFailure> {
        let repository = repository_of(request)?;
        let seen = config.as_seen_by_engine(request);
        let engine_repository = config.repository(repository);
        let mut arguments = Arguments::default();
        arguments.set("data", format!("{SCRATCH}/data"));
        arguments.set("build-directory", format!("{SCRATCH}/build"));
        arguments.set("context", format!("oci:{engine_repository}@{}", source.digest));
        if let Some(dockerfile) = &source.dockerfile {
            arguments.set("dockerfile", dockerfile);
        }
        arguments.of_request(&seen);
        arguments.set("progress", "events");
        if let Some(isolation) = &config.isolation {
            arguments.set("isolation", isolation);
        }
        if config.step_cache {
            arguments.flag("cache");
            arguments.set("cache-repo", format!("{engine_repository}/cache"));
        }
        let arguments = arguments.into_vec().into_iter().map(std::ffi::OsString::into_string);
        let arguments = arguments.collect::<Result<Vec<_>, _>>().map_err(|_| {
            BuildFailure::app("the path of the Dockerfile is not UTF-8, which a Job's arguments must be")
        })?;
        let machine = request.machine.clone().unwrap_or_else(|| request.platform.clone());
        let (architecture, native) = (architecture(&request.platform), architecture(&machine));
        let name = format!("{}--{architecture}", request.name);
        let (app, number) = request.name.rsplit_once("--").unwrap_or((&request.name, "0"));
        let labels = [
            (Label::App, app),
            (Label::Build, number),
            (Label::Architecture, &architecture),
            (Label::Machine, &native),
        ];
        Ok(Self {
            owner: repository.name.to_string(),
            machine,
            repository: repository.clone(),
            labels: managed_by(&labels),
            time_seconds: request.limits.time.as_secs(),
            name,
            arguments,
            engine_repository,
        })
    }

    /// The name of an attempt's Job, from 1.
    pub(super) fn name_of(&self, attempt: u32) -> String {
        if attempt == 1 { self.name.clone() } else { format!("{}--{attempt}", self.name) }
    }

    /// Where an attempt's result is, by our name.
    ///
    /// The tag says what was asked for, so that the result of another build of this name is nobody's.
    pub(super) fn report(&self, attempt: u32) -> Result<Reference, BuildFailure> {
        self.report_in(&self.repository, attempt)
    }

    fn report_in(&self, repository: &Repository, attempt: u32) -> Result<Reference, BuildFailure> {
        let asked = Digest::of(self.arguments.join("\0")).short();
        let tag = format!("{}.{asked}", self.name_of(attempt));
        let wrong = |error| BuildFailure::platform("failed to name the build's result", &error);
        Ok(Reference { repository: repository.clone(), tag: Some(tag.parse().map_err(wrong)?), digest: None })
    }

    /// Whether a Job of an attempt's name is to leave the result that is waited for. One of an earlier app of this name is not.
    pub(super) fn is_its_own(&self, attempt: u32, job: &Job) -> bool {
        let Ok(report) = self.report_in(&self.engine_repository, attempt) else { return false };
        let argument = format!("--report={report}");
        let pod = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        let mut containers = pod.into_iter().flat_map(|pod| &pod.containers);
        containers.any(|container| container.args.as_ref().is_some_and(|args| args.contains(&argument)))
    }

    /// An attempt's Job.
    pub(super) fn render(&self, config: &JobConfig, attempt: u32) -> Result<Job, BuildFailure> {
        let name = self.name_of(attempt);
        let mut arguments = self.arguments.clone();
        arguments.push(format!("--report={}", self.report_in(&self.engine_repository, attempt)?));
        let (mut environment, mut annotations) = (Vec::new(), BTreeMap::new());
        environment.push(variable("HOME", SCRATCH));
        environment.push(variable("TMPDIR", SCRATCH));
        if let Some(url) = &config.ticket_url {
            let ticket = Ticket::new(&name);
            annotations.insert(TICKET_SUM.to_owned(), ticket.sum.to_string());
            arguments.push(format!("--ticket-url={url}"));
            environment.push(variable("HEPHY_TICKET", ticket.text.reveal()));
        }
        let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
        let size_limit = config.scratch_size_limit.clone().map(Quantity);
        volumes.push(Volume {
            name: "scratch".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource { size_limit, ..EmptyDirVolumeSource::default() }),
            ..Volume::default()
        });
        mounts.push(mount("scratch", SCRATCH));
        if let Some(secret) = &config.docker_config_secret {
            volumes.push(Volume {
                name: "registries".to_owned(),
                secret: Some(docker_config(secret)),
                ..Volume::default()
            });
            mounts.push(VolumeMount { read_only: Some(true), ..mount("registries", DOCKER_CONFIG) });
            environment.push(variable("DOCKER_CONFIG", DOCKER_CONFIG));
        }
        match &config.ca_bundle {
            Some(CaBundle::ConfigMap { name, key }) => {
                volumes.push(trusted(name, key));
                mounts.push(VolumeMount { read_only: Some(true), ..mount("trusted", TRUSTED) });
                arguments.push(format!("--ca-bundle={TRUSTED}/{BUNDLE}"));
            }
            Some(CaBundle::Inline(pem)) => environment.push(variable("HEPHY_CA_BUNDLE_PEM", pem)),
            None => {}
        }
        let container = Container {
            name: CONTAINER.to_owned(),
            image: Some(config.image.clone()),
            image_pull_policy: config.image_pull_policy.clone(),
            command: Some(vec!["/hephy".to_owned(), "build".to_owned()]),
            args: Some(arguments),
            env: Some(environment),
            resources: Some(config.resources.clone()),
            security_context: config.security_context.clone(),
            volume_mounts: Some(mounts),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            ..Container::default()
        };
        let labels = self.labels.clone();
        Ok(Job {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(config.namespace.clone()),
                labels: Some(labels.clone()),
                annotations: (!annotations.is_empty()).then_some(annotations),
                ..ObjectMeta::default()
            },
            spec: Some(self.spec(config, labels, container, volumes)),
            status: None,
        })
    }

    fn spec(
        &self,
        config: &JobConfig,
        labels: BTreeMap<String, String>,
        container: Container,
        volumes: Vec<Volume>,
    ) -> JobSpec {
        let seconds = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let alive = self.time_seconds + DEADLINE_SLACK_SECONDS;
        let pull_secrets = config.image_pull_secrets.iter();
        let pull_secrets = pull_secrets.map(|name| LocalObjectReference { name: name.clone() }).collect();
        let pod = PodSpec {
            active_deadline_seconds: Some(seconds(alive)),
            automount_service_account_token: Some(false),
            containers: vec![container],
            enable_service_links: Some(false),
            host_users: config.host_users,
            image_pull_secrets: Some(pull_secrets),
            node_selector: Some(node_selector(config, &self.machine)),
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            tolerations: Some(tolerations(config)),
            volumes: Some(volumes),
            ..PodSpec::default()
        };
        JobSpec {
            // For the case that nobody watches: waiting for a node counts here, and not for the pod.
            active_deadline_seconds: Some(seconds(alive + config.waiting_limit.as_secs() + 600)),
            backoff_limit: Some(0),
            ttl_seconds_after_finished: Some(i32::try_from(config.kept.as_secs()).unwrap_or(i32::MAX)),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod),
            },
            ..JobSpec::default()
        }
    }
}

/// Whether a Job has ended, or is to.
pub(super) fn is_over(job: &Job) -> bool {
    let mut conditions =
        job.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let has_ended = conditions.any(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed" | "FailureTarget" | "SuccessCriteriaMet")
            && condition.status == "True"
    });
    has_ended || job.metadata.deletion_timestamp.is_some()
}

/// The repository that source and result of a request are kept in.
pub(super) fn repository_of(request: &BuildRequest) -> Result<&Repository, BuildFailure> {
    let destination = request.destinations.first().ok_or_else(|| {
        BuildFailure::app(
            "a build on a cluster needs a destination: its source and its result are kept there",
        )
    })?;
    Ok(&destination.repository)
}

/// `arm64`, or `arm-v7`.
pub(super) fn architecture(platform: &Platform) -> String {
    match platform.variant() {
        Some(variant) => format!("{}-{variant}", platform.architecture()),
        None => platform.architecture().to_owned(),
    }
}

fn node_selector(config: &JobConfig, platform: &Platform) -> BTreeMap<String, String> {
    let mut selector = config.node_selector.clone();
    selector.insert("kubernetes.io/arch".to_owned(), platform.architecture().to_owned());
    selector.insert("kubernetes.io/os".to_owned(), platform.os().to_owned());
    selector
}

fn tolerations(config: &JobConfig) -> Vec<Toleration> {
    let lost = |key: &str| Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        toleration_seconds: Some(LOST_NODE_SECONDS),
        value: None,
    };
    let ours = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(lost);
    config.tolerations.iter().cloned().chain(ours).collect()
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

/// An entry of a `ConfigMap` as a file.
fn trusted(name: &str, key: &str) -> Volume {
    let item = KeyToPath { key: key.to_owned(), path: BUNDLE.to_owned(), ..KeyToPath::default() };
    Volume {
        name: "trusted".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: name.to_owned(),
            items: Some(vec![item]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The entry of a `kubernetes.io/dockerconfigjson` Secret as the file that programs look for.
fn docker_config(secret: &str) -> SecretVolumeSource {
    let item = KeyToPath {
        key: ".dockerconfigjson".to_owned(),
        path: "config.json".to_owned(),
        ..KeyToPath::default()
    };
    SecretVolumeSource {
        secret_name: Some(secret.to_owned()),
        items: Some(vec![item]),
        ..SecretVolumeSource::default()
    }
}

#[cfg(test)]
mod tests;
