//! `--driver=k8s`: the Jobs that a cluster's server makes, made from a laptop, from CI, or from a Job.

use std::collections::BTreeMap;

use clap::Args;
use futures::future::{join, join_all};
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::{BuildArguments, IsolationChoice, Refusal, cancel_on_signals, code, exit_code, tell};
use super::Asked;
use crate::build::{
    BuildEvent, BuildFailure, BuildLimits, BuildRequest, CacheUse, Driver as _, NetworkMode, chain,
};
use crate::driver::kubernetes::{JobConfig, KubernetesDriver};
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

/// Flags with a value that an engine in a Job is told as they were given here.
const PASSED: [&str; 12] = [
    "mirror",
    "registry-mirror",
    "registry-map",
    "insecure-registry",
    "skip-tls-verify-registry",
    "push-retry",
    "image-download-retry",
    "compression-level",
    "annotation",
    "cache-ttl",
    "cache-copy-layers",
    "cache-run-layers",
];
/// The same without a value.
const PASSED_SWITCHES: [&str; 6] = [
    "insecure",
    "insecure-pull",
    "skip-tls-verify",
    "skip-tls-verify-pull",
    "skip-default-registry-fallback",
    "reproducible",
];

/// Builds every platform in a Job; the first failure cancels the others.
pub(super) async fn build(arguments: &BuildArguments, asked: &Asked) -> Result<Vec<PlatformImage>, Refusal> {
    super::repository(arguments)?;
    refuse_what_stays_here(arguments)?;
    let driver = driver(arguments).await?;
    let machines = machines(arguments, &driver, &asked.platforms).await?;
    let contexts = arguments.context.contexts(false)?;
    let spool = std::env::temp_dir();
    let fetched = contexts.fetch(&spool, &super::client(arguments)?).await.map_err(of_failure)?;
    let dockerfile = fetched.main.dockerfile.clone().unwrap_or(arguments.dockerfile.clone());
    let request =
        BuildRequest { context: fetched.main.directory.clone(), dockerfile, ..request(arguments, asked) };
    let cancel = CancellationToken::new();
    let signals = tokio::spawn(cancel_on_signals(cancel.clone()));
    let (lines, mut received) = mpsc::channel::<(String, String)>(256);
    let has_several = asked.platforms.len() > 1;
    let builds = asked.platforms.iter().map(|platform| {
        let request = BuildRequest {
            platform: platform.clone(),
            machine: machines.get(platform).cloned(),
            flags: flags(arguments, platform, &request),
            ..request.clone()
        };
        one(&driver, request, lines.clone(), cancel.clone())
    });
    let builds = join_all(builds.collect::<Vec<_>>());
    drop(lines);
    let print = async {
        while let Some((architecture, line)) = received.recv().await {
            tell(&if has_several { format!("[{architecture}] {line}") } else { line });
        }
    };
    let (built, ()) = Box::pin(join(builds, print)).await;
    signals.abort();
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
        Some(failure) => Err(Refusal { text: String::new(), ..of_failure(failure) }),
        None => Ok(images),
    }
}

async fn one(
    driver: &KubernetesDriver,
    request: BuildRequest,
    lines: mpsc::Sender<(String, String)>,
    cancel: CancellationToken,
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
        cancel.cancel();
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
    let platform_error = |text: String| Refusal { text, code: code::PLATFORM };
    let cluster = Cluster::connect(None, None).await;
    let cluster = cluster.map_err(|error| platform_error(chain(&error).join(": ")))?;
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
        step_cache: false,
        ..JobConfig::new(namespace, image)
    };
    Ok(KubernetesDriver::new(cluster, super::client(arguments)?, config))
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

/// The platform of the machine that builds each platform. One that no node builds is named before anything is built, unless
/// it executes nothing of its own and `--require-native-nodes=false` lets another node build it.
async fn machines(
    arguments: &BuildArguments,
    driver: &KubernetesDriver,
    platforms: &[Platform],
) -> Result<BTreeMap<Platform, Platform>, Refusal> {
    let Ok(available) = driver.platforms().await else {
        tell(
            "the nodes may not be listed (`list` on `nodes`): a missing architecture shows when its pod waits",
        );
        return Ok(BTreeMap::new());
    };
    let mut machines = BTreeMap::new();
    let names: Vec<String> = available.iter().map(ToString::to_string).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    for platform in platforms.iter().filter(|platform| !available.contains(platform)) {
        let missing = |more: String| Refusal {
            text: format!("no native nodes available for {platform}: the ready nodes are {names}{more}"),
            code: code::PLATFORM,
        };
        if arguments.multi.require_native_nodes {
            return Err(missing(String::new()));
        }
        let found = Box::pin(super::dry_run::look_at(arguments, platform)).await?;
        match (found.first_run, available.first()) {
            (Some(line), _) => {
                return Err(missing(format!(
                    "; {line} executes a program of this platform, and nothing is emulated"
                )));
            }
            (None, Some(machine)) => machines.insert(platform.clone(), machine.clone()),
            (None, None) => return Err(missing(String::new())),
        };
    }
    Ok(machines)
}

fn refuse_what_stays_here(arguments: &BuildArguments) -> Result<(), String> {
    let given = [
        (!arguments.mounts.secret.is_empty(), "--secret"),
        (!arguments.mounts.ssh.is_empty(), "--ssh"),
        (!arguments.mounts.allow.is_empty(), "--allow"),
        (!arguments.context.build_context.is_empty(), "--build-context"),
        (arguments.tar_path.is_some(), "--tar-path"),
        (arguments.oci_layout_path.is_some(), "--oci-layout-path"),
        (arguments.no_push, "--no-push"),
        (arguments.check.check, "--check"),
    ];
    match given.into_iter().find(|(given, _)| *given) {
        Some((_, flag)) => Err(format!("`{flag}` is of this machine, and `--driver=k8s` builds elsewhere")),
        None => Ok(()),
    }
}

fn request(arguments: &BuildArguments, asked: &Asked) -> BuildRequest {
    let random: u64 = rand::random();
    let labels = arguments.label.iter().map(|label| match label.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (label.clone(), String::new()),
    });
    let build_args = arguments.build_arg.iter().filter_map(|argument| match argument.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), Some(value.to_owned()))),
        // The environment is ours, and not the pod's.
        None => Some((argument.clone(), Some(std::env::var(argument).ok()?))),
    });
    let mut destinations = arguments.destination.clone();
    if asked.publishes {
        // The index has the tag.
        for destination in &mut destinations {
            destination.tag = None;
        }
    } else {
        destinations = destinations.into_iter().map(crate::build::with_default_tag).collect();
    }
    BuildRequest {
        name: format!("build-{random:016x}"),
        directory: std::path::PathBuf::new(),
        context: std::path::PathBuf::new(),
        dockerfile: arguments.dockerfile.clone(),
        platform: Platform::native(),
        target: arguments.target.clone(),
        build_args: build_args.collect(),
        labels: labels.collect(),
        destinations,
        mirrors: Vec::new(),
        insecure_registries: Vec::new(),
        docker_config: None,
        source_date_epoch: arguments.source_date_epoch,
        cache: if arguments.no_cache { CacheUse::Ignore } else { CacheUse::Read },
        network: NetworkMode::Host,
        limits: BuildLimits { time: arguments.time_limit, memory_bytes: None, cpus: None },
        compression: arguments.compression,
        machine: None,
        flags: Vec::new(),
    }
}

/// What an engine in a Job is told besides.
fn flags(arguments: &BuildArguments, platform: &Platform, request: &BuildRequest) -> Vec<String> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let words = super::super::kaniko::normalized(&words);
    let words: Vec<String> = words.into_iter().filter_map(|word| word.into_string().ok()).collect();
    let mut flags = passed(&words);
    if arguments.kaniko.image_format == crate::build::ImageFormat::Docker {
        flags.push("--image-format=docker".to_owned());
    }
    let cache = arguments.step_cache.repository(&request.destinations, platform.architecture());
    if let Ok(Some(cache)) = cache {
        flags.push("--cache=true".to_owned());
        flags.push(format!("--cache-repo={}", cache.repository));
    }
    flags
}

/// Those of our words that an engine elsewhere is to have too.
fn passed(words: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else { continue };
        let name = flag.split_once('=').map_or(flag, |(name, _)| name);
        if PASSED_SWITCHES.contains(&flag) || (PASSED.contains(&name) && flag != name) {
            found.push(word.clone());
        } else if PASSED.contains(&name)
            && let Some(value) = words.next()
        {
            found.push(format!("--{name}={value}"));
        }
    }
    found
}

fn of_failure(failure: BuildFailure) -> Refusal {
    let code = exit_code(&failure);
    Refusal { text: BuildEvent::Failed { failure: Box::new(failure) }.lines().join("\n"), code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_elsewhere_gets_the_flags_for_registries_in_one_word_each() {
        let words = [
            "build",
            "--insecure",
            "--mirror",
            "m.example",
            "--destination=x",
            "--annotation=a=b",
            "--force",
        ];
        let words = words.map(ToOwned::to_owned);
        assert_eq!(passed(&words), ["--insecure", "--mirror=m.example", "--annotation=a=b"]);
    }
}
