//! What a build in a Job is told of the flags that were given here: each is passed on, has its effect here, or is an error.
//!
//! All flags are named, so that a new one does not compile until somebody has decided.

use std::path::PathBuf;

use super::super::kaniko::KanikoArguments;
use super::super::{
    BuildArguments, CheckArguments, ContextArguments, Progress, Refusal, RegistryArguments, ReportArguments,
    cache, mounts,
};
use super::Asked;
use crate::build::{BuildLimits, BuildRequest, CacheUse, ImageFormat, Mirror, NetworkMode, with_default_tag};
use crate::oci::{Platform, Reference};

/// Refuses what a Job cannot have.
pub(super) fn refuse_what_stays_here(arguments: &BuildArguments) -> Result<(), String> {
    let BuildArguments {
        context: ContextArguments { context: _, context_sub_path: _, git: _, build_context },
        check: CheckArguments { check, format: _ },
        // Part of the source.
        dockerfile: _,
        typed: _,
        // Of the request.
        destination: _,
        build_arg: _,
        target: _,
        label: _,
        custom_platform: _,
        push_by_digest: _,
        compression: _,
        no_cache: _,
        source_date_epoch: _,
        time_limit: _,
        // The machine is chosen by its platform, and nothing there is the host's root.
        force: _,
        no_push,
        // Written here when the digest is known.
        digest_file: _,
        tar_path,
        oci_layout_path,
        compression_level: _,
        isolation: _,
        network,
        // Where the context is fetched to.
        data: _,
        progress: _,
        explain: _,
        kaniko,
        step_cache: _,
        reproducible: _,
        // Limits of the pod.
        memory: _,
        cpus: _,
        mounts,
        build_directory,
        registry,
        report: ReportArguments { report, ticket_url },
        multi: _,
    } = arguments;
    let here = "is of this machine, and `--driver=k8s` builds elsewhere";
    let pod = "the network of a pod is the cluster's: a NetworkPolicy closes it, or `--network=none`";
    let trust =
        "is a file of this machine, and the Jobs have none of it: let their image or their nodes trust it";
    let is_layout = |mirror: &Mirror| matches!(mirror, Mirror::Layout(_));
    let lines = "the lines of several builds are for people: leave it out";
    let given = [
        (!mounts.secret.is_empty(), "--secret", here),
        (!mounts.ssh.is_empty(), "--ssh", here),
        (!mounts.allow.is_empty(), "--allow", here),
        (!build_context.is_empty(), "--build-context", here),
        (kaniko.cache_dir.is_some(), "--cache-dir", here),
        (tar_path.is_some(), "--tar-path", here),
        (oci_layout_path.is_some(), "--oci-layout-path", here),
        (*no_push, "--no-push", here),
        (*check, "--check", here),
        (build_directory.is_some(), "--build-directory", here),
        (report.is_some() || ticket_url.is_some(), "--report", here),
        (*network == NetworkMode::Isolated, "--network=isolated", pod),
        (!registry.registry_certificate.is_empty(), "--registry-certificate", trust),
        (!registry.registry_client_cert.is_empty(), "--registry-client-cert", trust),
        (registry.mirrors()?.places.iter().any(is_layout), "--mirror oci:DIRECTORY", here),
        (matches!(arguments.progress(), Progress::Json | Progress::Events), "--progress=json", lines),
    ];
    match given.into_iter().find(|(given, ..)| *given) {
        Some((_, flag, why)) if why == here => Err(format!("`{flag}` {why}")),
        Some((_, flag, why)) if why == trust => Err(format!("`{flag}` {why}")),
        Some((_, flag, why)) => Err(format!("`{flag}` is not done by `--driver=k8s`: {why}")),
        None => Ok(()),
    }
}

/// What the engine of every platform is told; what is of one platform, and the source, are put in later.
pub(super) fn request(arguments: &BuildArguments, asked: &Asked) -> Result<BuildRequest, Refusal> {
    let random: u64 = rand::random();
    // The environment is ours, and not the pod's.
    let build_args = arguments.build_args().into_iter().map(|(name, value)| (name, Some(value)));
    let destination = |destination: &Reference| match (asked.publishes, arguments.push_by_digest) {
        // The index has the tag.
        (true, _) => Reference { tag: None, ..destination.clone() },
        (false, true) => destination.clone(),
        (false, false) => with_default_tag(destination.clone()),
    };
    let mirrors = arguments.registry.mirrors()?;
    Ok(BuildRequest {
        name: format!("build-{random:016x}"),
        directory: PathBuf::new(),
        context: PathBuf::new(),
        dockerfile: PathBuf::new(),
        platform: Platform::native(),
        target: arguments.target.clone(),
        build_args: build_args.collect(),
        labels: arguments.labels(),
        destinations: arguments.destination.iter().map(destination).collect(),
        mirrors: mirrors.places.iter().map(ToString::to_string).collect(),
        insecure_registries: arguments.registry.insecure_registry.iter().map(ToString::to_string).collect(),
        docker_config: None,
        source_date_epoch: arguments.source_date_epoch,
        cache: if arguments.no_cache { CacheUse::Ignore } else { CacheUse::Read },
        network: arguments.network,
        limits: BuildLimits { time: arguments.time_limit, memory_bytes: None, cpus: None },
        compression: arguments.compression,
        machine: None,
        flags: Vec::new(),
    })
}

/// What an engine in a Job is told besides.
pub(super) fn flags(
    arguments: &BuildArguments,
    platform: &Platform,
    request: &BuildRequest,
) -> Result<Vec<String>, Refusal> {
    let mut flags = Flags::default();
    flags.value("compression-level", arguments.compression_level);
    flags.switch("explain", arguments.explain);
    flags.switch("reproducible", arguments.reproducible);
    of_kaniko(&mut flags, arguments)?;
    of_registries(&mut flags, &arguments.registry);
    of_mounts(&mut flags, &arguments.mounts);
    let cache::CacheArguments {
        // Said below, as one repository.
        cache: _,
        no_push_cache,
        cache_repo: _,
        arch_cache_repo_suffix: _,
        cache_ttl,
        cache_copy_layers,
        cache_run_layers,
    } = &arguments.step_cache;
    if let Some(cache) = arguments.step_cache.repository(&request.destinations, platform.architecture())? {
        flags.value("cache", Some(true));
        flags.value("cache-repo", Some(cache.repository));
        flags.switch("no-push-cache", *no_push_cache);
        flags.value("cache-ttl", Some(format!("{}s", cache_ttl.as_secs())));
        flags.value("cache-copy-layers", Some(cache_copy_layers));
        flags.value("cache-run-layers", Some(cache_run_layers));
    }
    Ok(flags.0)
}

#[derive(Default)]
struct Flags(Vec<String>);

impl Flags {
    fn value(&mut self, name: &str, value: Option<impl ToString>) {
        self.0.extend(value.map(|value| format!("--{name}={}", value.to_string())));
    }

    fn values(&mut self, name: &str, values: &[impl ToString]) {
        self.0.extend(values.iter().map(|value| format!("--{name}={}", value.to_string())));
    }

    fn switch(&mut self, name: &str, is_given: bool) {
        self.0.extend(is_given.then(|| format!("--{name}")));
    }
}

fn of_kaniko(flags: &mut Flags, arguments: &BuildArguments) -> Result<(), String> {
    let KanikoArguments {
        annotation,
        image_format: _,
        // Written here when the digest is known.
        image_name_with_digest_file: _,
        image_name_tag_with_digest_file: _,
        log_timestamp: _,
        log_format: _,
        push_ignore_immutable_tag_errors,
        // Refused: a directory of this machine.
        cache_dir: _,
        // Where the context is fetched to, and nothing.
        kaniko_dir: _,
        image_fs_extract_retry: _,
        // They change nothing, here or there.
        snapshot_mode: _,
        use_new_run: _,
        cleanup: _,
        pre_cleanup: _,
        preserve_context: _,
        compressed_caching: _,
        skip_push_permission_check: _,
        verbosity: _,
        // `refusal()` has seen them.
        single_snapshot: _,
        materialize: _,
        bucket: _,
        ignore_path: _,
        ignore_var_run: _,
    } = &arguments.kaniko;
    flags.switch("push-ignore-immutable-tag-errors", *push_ignore_immutable_tag_errors);
    // Here rather than in the pod.
    arguments.kaniko.annotations()?;
    flags.values("annotation", annotation);
    if arguments.image_format() == ImageFormat::Docker {
        flags.value("image-format", Some("docker"));
    }
    Ok(())
}

fn of_registries(flags: &mut Flags, registry: &RegistryArguments) {
    let RegistryArguments {
        // Of the request.
        mirror: _,
        registry_map: _,
        insecure_registry: _,
        skip_default_registry_fallback,
        insecure,
        insecure_pull,
        skip_tls_verify_registry,
        skip_tls_verify,
        skip_tls_verify_pull,
        // Refused: files of this machine.
        registry_certificate: _,
        registry_client_cert: _,
        push_retry,
        image_download_retry,
        // Our own credentials are for what we do here: the Jobs have those of `--k8s-registry-secret`.
        credential_helpers: _,
        docker_config_stdin: _,
        docker_config: _,
    } = registry;
    flags.switch("skip-default-registry-fallback", *skip_default_registry_fallback);
    flags.switch("insecure", *insecure);
    flags.switch("insecure-pull", *insecure_pull);
    flags.switch("skip-tls-verify", *skip_tls_verify);
    flags.switch("skip-tls-verify-pull", *skip_tls_verify_pull);
    flags.values("skip-tls-verify-registry", skip_tls_verify_registry);
    flags.value("push-retry", push_retry.as_ref());
    flags.value("image-download-retry", image_download_retry.as_ref());
}

fn of_mounts(flags: &mut Flags, mounts: &mounts::MountArguments) {
    let mounts::MountArguments {
        // Refused.
        secret: _,
        ssh: _,
        allow: _,
        // In the Job.
        ca_bundle: _,
        ca_bundle_pem: _,
        cache_mount_scope,
        cache_mount_limit,
        cache_mount_save_limit,
    } = mounts;
    if !cache_mount_scope.is_empty() {
        flags.value("cache-mount-scope", Some(cache_mount_scope));
    }
    flags.value("cache-mount-limit", Some(cache_mount_limit.0));
    flags.value("cache-mount-save-limit", Some(cache_mount_save_limit.0));
}

#[cfg(test)]
mod tests {
    use super::super::asked;
    use super::super::tests::parsed;
    use super::*;

    const JOB: [&str; 2] = ["--driver=k8s", "--destination=registry.example/app:1"];

    fn told(words: &[&str]) -> Result<(BuildRequest, Vec<String>), String> {
        let arguments = parsed(&[&JOB, words].concat());
        let asked = asked(&arguments)?;
        refuse_what_stays_here(&arguments)?;
        let request = request(&arguments, &asked).map_err(|refusal| refusal.text)?;
        let flags = flags(&arguments, &Platform::native(), &request).map_err(|refusal| refusal.text)?;
        Ok((request, flags))
    }

    #[test]
    fn an_engine_elsewhere_is_told_what_was_said_here() {
        let given = [
            "--insecure",
            "--push-retry=9",
            "--explain",
            "--push-ignore-immutable-tag-errors",
            "--reproducible",
            "--annotation=a=b",
            "--image-format=docker",
            "--cache-mount-scope=team",
            "--compression-level=9",
            "--skip-tls-verify-registry=r.example",
        ];
        let flags = told(&given).unwrap().1;
        for flag in given {
            assert!(flags.contains(&flag.to_owned()), "{flag}: {flags:?}");
        }
        let given = [
            "--network=none",
            "--mirror=m.example",
            "--registry-map=quay.io=m.example/quay",
            "--insecure-registry=m.example",
        ];
        let request = told(&given).unwrap().0;
        assert_eq!(request.network, NetworkMode::None);
        assert_eq!(request.mirrors, ["docker.io=m.example", "quay.io=m.example/quay"]);
        assert_eq!(request.insecure_registries, ["m.example"]);
    }

    #[test]
    fn a_cache_is_one_repository_and_a_wrong_one_is_an_error() {
        let cache =
            ["--cache", "--arch-cache-repo-suffix=-{arch}", "--cache-ttl=1h", "--cache-copy-layers=false"];
        let flags = told(&cache).unwrap().1;
        let repository =
            format!("--cache-repo=registry.example/app/cache-{}", Platform::native().architecture());
        for flag in [repository.as_str(), "--cache=true", "--cache-ttl=3600s", "--cache-copy-layers=false"] {
            assert!(flags.contains(&flag.to_owned()), "{flag}: {flags:?}");
        }
        assert!(told(&["--cache", "--arch-cache-repo-suffix=-X"]).unwrap_err().contains("cache-X"));
    }

    #[test]
    fn what_a_job_cannot_have_is_refused_by_name() {
        for flag in [
            "--network=isolated",
            "--registry-certificate=r.example=/ca.pem",
            "--registry-client-cert=r.example=/c,/k",
            "--mirror=oci:/bases",
            "--build-context=a=/a",
            "--tar-path=/x",
            "--cache-dir=/x",
            "--progress=json",
            "--log-format=json",
        ] {
            let said = told(&[flag]).unwrap_err();
            let name = flag.split(['=', ':']).next().unwrap().replace("log-format", "progress");
            assert!(said.contains(&name), "{flag}: {said}");
        }
    }
}
