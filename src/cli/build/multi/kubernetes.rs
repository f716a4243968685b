//! `--driver=k8s`: the Jobs that a cluster's server makes, made from a laptop, from CI, or from a Job.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use futures::future::{join, join_all};
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::signals::Signals;
use super::super::{BuildArguments, IsolationChoice, Refusal, options, tell};
use super::job::{flags, request};
use super::machines::{Available, Machine};
use super::{Asked, machines};
use crate::build::{BuildEvent, BuildFailure, BuildRequest, Driver as _, chain};
use crate::driver::kubernetes::{CaBundle, JobConfig, KubernetesDriver, MAX_INLINE_BUNDLE_BYTES};
use crate::kubernetes::Cluster;
use crate::model::PlatformImage;
use crate::oci::Platform;

/// How Jobs are made.
#[derive(Debug, Clone, Default, Args)]
pub struct JobArguments {
    /// With --driver=k8s: the namespace of the Jobs [default: that of the context, or of this pod]
    #[arg(long = "k8s-namespace", value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// With --driver=k8s: the image of hephy that the Jobs run [default: that of this pod]
    #[arg(long = "k8s-image", env = "HEPHY_IMAGE", value_name = "IMAGE")]
    pub image: Option<String>,
    /// With --driver=k8s: a Secret of type kubernetes.io/dockerconfigjson that the Jobs reach registries with
    #[arg(long = "k8s-registry-secret", value_name = "SECRET")]
    pub registry_secret: Option<String>,
    /// With --driver=k8s: a Secret that the image of the Jobs is pulled with; may be repeated
    #[arg(long = "k8s-pull-secret", value_name = "SECRET")]
    pub pull_secret: Vec<String>,
    /// With --driver=k8s: a label that the nodes have besides their architecture; may be repeated
    #[arg(long = "k8s-node-selector", value_name = "NAME=VALUE")]
    pub node_selector: Vec<String>,
}

/// Builds every platform in a Job; the first failure cancels the others, unless `--fail-fast=false`.
pub(super) async fn build(
    arguments: &BuildArguments,
    asked: &Asked,
    context: &Path,
    signals: &Signals,
) -> Result<Vec<PlatformImage>, Refusal> {
    super::repository(arguments)?;
    // The file stays until the source is pushed.
    let (dockerfile, _kept) = dockerfile(arguments)?;
    let shared = BuildRequest { context: context.to_owned(), dockerfile, ..request(arguments, asked)? };
    let mut requests = Vec::new();
    for platform in &asked.platforms {
        let flags = flags(arguments, platform, &shared)?;
        requests.push(BuildRequest { platform: platform.clone(), flags, ..shared.clone() });
    }
    let driver = driver(arguments).await?;
    let looking = signals.first.run_until_cancelled(Box::pin(machines(arguments, asked, &driver)));
    let machines = looking.await.ok_or_else(Refusal::cancelled)??;
    let cancel = signals.first.child_token();
    let (lines, mut received) = mpsc::channel::<(String, String)>(256);
    let builds = requests.into_iter().map(|mut request| {
        request.machine = machines.get(&request.platform).cloned();
        one(&driver, request, lines.clone(), (cancel.clone(), arguments.multi.fail_fast))
    });
    let builds = join_all(builds.collect::<Vec<_>>());
    drop(lines);
    let has_several = asked.platforms.len() > 1;
    let print = async {
        while let Some((architecture, line)) = received.recv().await {
            let line = if has_several { format!("[{architecture}] {line}") } else { line };
            if arguments.kaniko.log_timestamp {
                let now = jiff::Timestamp::now().strftime("%FT%TZ");
                tell(&format!("{now} {line}"));
            } else {
                tell(&line);
            }
        }
    };
    let (built, ()) = Box::pin(join(builds, print)).await;
    // What was left in the repository was for the Jobs, and for us.
    signals.second.run_until_cancelled(driver.forget()).await;
    let mut images = Vec::new();
    let (mut failure, mut cancelled) = (None, None);
    for built in built {
        match built {
            Ok(image) => images.push(image),
            Err(BuildFailure::Cancelled) => cancelled = Some(BuildFailure::Cancelled),
            Err(other) => failure = failure.or(Some(other)),
        }
    }
    // Of several failures the one that was first is the cause; the others were cancelled by it.
    match failure.or(cancelled) {
        Some(failure) => Err(Refusal { text: String::new(), ..Refusal::of(failure) }),
        None => Ok(images),
    }
}

/// The Dockerfile, and what keeps it if it was typed.
fn dockerfile(arguments: &BuildArguments) -> Result<(PathBuf, Option<TempDir>), Refusal> {
    let Some(text) = arguments.typed.as_ref().filter(|_| arguments.is_typed()) else {
        return Ok((arguments.dockerfile.clone(), None));
    };
    let failed = |error| Refusal::of(BuildFailure::platform("failed to keep the Dockerfile", &error));
    let directory = tempfile::tempdir().map_err(failed)?;
    let path = directory.path().join("Dockerfile");
    std::fs::write(&path, text).map_err(failed)?;
    Ok((path, Some(directory)))
}

async fn one(
    driver: &KubernetesDriver,
    request: BuildRequest,
    lines: mpsc::Sender<(String, String)>,
    (cancel, fail_fast): (CancellationToken, bool),
) -> Result<PlatformImage, BuildFailure> {
    let architecture = request.platform.architecture().to_owned();
    let (events, mut received) = mpsc::channel::<BuildEvent>(256);
    let mut told_failure = false;
    let forward = async {
        while let Some(event) = received.recv().await {
            told_failure |= matches!(event, BuildEvent::Failed { .. });
            for line in event.lines() {
                // The receiver lives as long as the builds do.
                drop(lines.send((architecture.clone(), line)).await);
            }
        }
    };
    let (built, ()) = Box::pin(join(driver.build(&request, events, cancel.clone()), forward)).await;
    if let Err(failure) = &built {
        if fail_fast {
            cancel.cancel();
        }
        if !told_failure {
            for line in (BuildEvent::Failed { failure: Box::new(failure.clone()) }).lines() {
                drop(lines.send((architecture.clone(), line)).await);
            }
        }
    }
    built
}

/// The driver for the cluster of this environment.
pub(super) async fn driver(arguments: &BuildArguments) -> Result<KubernetesDriver, Refusal> {
    let cluster = Cluster::connect(None, None).await;
    let cluster = cluster.map_err(|error| Refusal::platform(chain(&error).join(": ")))?;
    let jobs = &arguments.multi.kubernetes;
    let namespace = jobs.namespace.clone().unwrap_or_else(|| cluster.namespace().to_owned());
    let image = match &jobs.image {
        Some(image) => image.clone(),
        None => own_image(&cluster).await.ok_or_else(|| {
            Refusal::from("which image do the Jobs run? Give `--k8s-image REGISTRY/hephy:VERSION`".to_owned())
        })?,
    };
    let mut node_selector = BTreeMap::new();
    for text in &jobs.node_selector {
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("`--k8s-node-selector {text}`: it is NAME=VALUE"))?;
        node_selector.insert(name.to_owned(), value.to_owned());
    }
    let config = JobConfig {
        docker_config_secret: jobs.registry_secret.clone(),
        image_pull_secrets: jobs.pull_secret.clone(),
        isolation: isolation(arguments.isolation).map(ToOwned::to_owned),
        node_selector,
        resources: resources(arguments),
        ca_bundle: arguments.mounts.trusted()?.map(inline).transpose()?,
        step_cache: false,
        spool: options::data_directory(arguments).ok().map(|data| data.join("contexts")),
        is_forgotten: true,
        ..JobConfig::new(namespace, image)
    };
    Ok(KubernetesDriver::new(cluster, super::client(arguments)?, config))
}

/// Certificates for Jobs by someone who may make nothing but these.
fn inline(pem: String) -> Result<CaBundle, String> {
    if pem.len() > MAX_INLINE_BUNDLE_BYTES {
        let (has, most) = (pem.len() >> 10, MAX_INLINE_BUNDLE_BYTES >> 10);
        return Err(format!(
            "`--ca-bundle`: its certificates have {has} KiB, and a Job takes {most} KiB: leave out those that every system trusts anyway"
        ));
    }
    Ok(CaBundle::Inline(pem))
}

/// The image that this very pod runs, if this is one.
async fn own_image(cluster: &Cluster) -> Option<String> {
    std::env::var_os("KUBERNETES_SERVICE_HOST")?;
    let name = std::env::var("HOSTNAME").ok()?;
    let pods: Api<Pod> = Api::namespaced(cluster.client(), cluster.namespace());
    let pod = pods.get_opt(&name).await.ok()??;
    pod.spec?.containers.into_iter().next()?.image
}

const fn isolation(choice: IsolationChoice) -> Option<&'static str> {
    match choice {
        IsolationChoice::Auto => None,
        IsolationChoice::Userns => Some("userns"),
        IsolationChoice::InPlace => Some("in-place"),
    }
}

/// `--memory` and `--cpus` are the container's, in a Job.
fn resources(arguments: &BuildArguments) -> ResourceRequirements {
    let mut limits = BTreeMap::new();
    if let Some(bytes) = arguments.memory {
        limits.insert("memory".to_owned(), Quantity(bytes.to_string()));
    }
    if let Some(cpus) = arguments.cpus {
        limits.insert("cpu".to_owned(), Quantity(format!("{}m", (cpus * 1000.0).round())));
    }
    ResourceRequirements { limits: (!limits.is_empty()).then_some(limits), ..ResourceRequirements::default() }
}

/// The platform of the machine that builds each platform, where it is another. One that no node builds is named before
/// anything is built.
async fn machines(
    arguments: &BuildArguments,
    asked: &Asked,
    driver: &KubernetesDriver,
) -> Result<BTreeMap<Platform, Platform>, Refusal> {
    let available = Available::in_cluster(driver).await?;
    if matches!(available, Available::Unknown) {
        tell(
            "the nodes may not be listed (`list` on `nodes`): a missing architecture shows when its pod waits",
        );
    }
    let mut others = BTreeMap::new();
    for platform in &asked.platforms {
        let found = machines::find(arguments, asked, platform, &available).await?;
        if let Machine::Other(machine) = found.map_err(Refusal::platform)? {
            others.insert(platform.clone(), machine);
        }
    }
    Ok(others)
}
