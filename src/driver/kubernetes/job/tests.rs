//! What the Job of a build is, as the cluster is given it.

use std::path::PathBuf;

use super::*;
use crate::build::{BuildLimits, CacheUse, Compression, NetworkMode};
use crate::driver::kubernetes::RegistryNames;

fn request() -> BuildRequest {
    BuildRequest {
        name: "hello--17".to_owned(),
        directory: PathBuf::new(),
        context: PathBuf::from("/tmp/context"),
        dockerfile: PathBuf::from("Dockerfile"),
        platform: "linux/arm64".parse().unwrap(),
        target: None,
        build_args: vec![("A".to_owned(), Some("b c".to_owned()))],
        labels: Vec::new(),
        destinations: vec!["127.0.0.1:5000/hello".parse().unwrap()],
        mirrors: vec!["127.0.0.1:5000/mirror".to_owned()],
        insecure_registries: vec!["127.0.0.1:5000".to_owned()],
        docker_config: Some("{\"auths\":{\"x\":{\"auth\":\"c2VjcmV0\"}}}".to_owned()),
        source_date_epoch: Some(7),
        cache: CacheUse::Read,
        network: NetworkMode::Isolated,
        limits: BuildLimits::default(),
        compression: Compression::Gzip,
        machine: None,
        flags: Vec::new(),
    }
}

fn config() -> JobConfig {
    let registry = RegistryNames {
        here: "127.0.0.1:5000".parse().unwrap(),
        engine: "hephy-registry.hephy.svc:5000".parse().unwrap(),
    };
    JobConfig { registry: Some(registry), ..JobConfig::new("hephy-builds", "registry.example/hephy:1") }
}

fn build_job(config: &JobConfig) -> BuildJob {
    let source = PushedSource { digest: Digest::of("source"), dockerfile: Some("Dockerfile".into()) };
    BuildJob::new(config, &request(), &source).unwrap()
}

#[test]
fn certificates_come_from_a_config_map_or_are_in_the_job() {
    let rendered = |ca_bundle| {
        let config = JobConfig { ca_bundle: Some(ca_bundle), ..config() };
        serde_json::to_value(build_job(&config).render(&config, 1).unwrap()).unwrap()
    };
    let (name, key) = ("company".to_owned(), "ca.crt".to_owned());
    let value = rendered(CaBundle::ConfigMap { name, key });
    let pod = &value["spec"]["template"]["spec"];
    let items = serde_json::json!([{"key": "ca.crt", "path": "ca-bundle.crt"}]);
    assert_eq!(
        (&pod["volumes"][1]["configMap"]["name"], &pod["volumes"][1]["configMap"]["items"]),
        (&"company".into(), &items)
    );
    let container = &pod["containers"][0];
    assert_eq!(container["volumeMounts"][1]["mountPath"], "/.hephy-trusted");
    let arguments = container["args"].as_array().unwrap();
    assert!(arguments.contains(&"--ca-bundle=/.hephy-trusted/ca-bundle.crt".into()), "{arguments:?}");

    let value = rendered(CaBundle::Inline("PEM".to_owned()));
    let container = &value["spec"]["template"]["spec"]["containers"][0];
    let variable = serde_json::json!({"name": "HEPHY_CA_BUNDLE_PEM", "value": "PEM"});
    assert!(container["env"].as_array().unwrap().contains(&variable), "{container}");
}

#[test]
fn a_job_is_known_by_what_it_was_asked_for_and_not_by_its_name() {
    let config = config();
    let job = build_job(&config);
    let source = PushedSource { digest: Digest::of("another"), dockerfile: Some("Dockerfile".into()) };
    let other = BuildJob::new(&config, &request(), &source).unwrap();
    let made = |job: &BuildJob, attempt| job.render(&config, attempt).unwrap();
    assert_eq!(made(&job, 1).metadata.name, made(&other, 1).metadata.name);
    assert!(job.is_its_own(1, &made(&job, 1)) && job.is_its_own(2, &made(&job, 2)));
    assert!(!job.is_its_own(1, &made(&other, 1)) && !job.is_its_own(1, &Job::default()));
}

#[test]
fn a_job_is_one_attempt_on_a_node_of_its_architecture() {
    let config = config();
    let job = build_job(&config);
    let value = serde_json::to_value(job.render(&config, 1).unwrap()).unwrap();
    assert_eq!(value["metadata"]["name"], "hello--17--arm64");
    assert_eq!(value["metadata"]["labels"]["hephy.dev/app"], "hello");
    assert_eq!(value["spec"]["backoffLimit"], 0);
    assert_eq!(value["spec"]["ttlSecondsAfterFinished"], 3600);
    let pod = &value["spec"]["template"]["spec"];
    assert_eq!(
        pod["nodeSelector"],
        serde_json::json!({"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"})
    );
    assert_eq!(
        (&pod["restartPolicy"], &pod["automountServiceAccountToken"]),
        (&"Never".into(), &false.into())
    );
    assert_eq!(pod["activeDeadlineSeconds"], 3690);
    let volumes = serde_json::json!([{"name": "scratch", "emptyDir": {}}]);
    assert_eq!(pod["volumes"], volumes);
    assert_eq!(job.render(&config, 2).unwrap().metadata.name.as_deref(), Some("hello--17--arm64--2"));
}

#[test]
fn a_job_for_another_architecture_counts_where_it_runs() {
    let source = PushedSource { digest: Digest::of("source"), dockerfile: None };
    let request = BuildRequest { machine: Some("linux/amd64".parse().unwrap()), ..request() };
    let rendered = BuildJob::new(&config(), &request, &source).unwrap().render(&config(), 1).unwrap();
    let value = serde_json::to_value(rendered).unwrap();
    let labels = &value["metadata"]["labels"];
    assert_eq!(
        (&labels["hephy.dev/architecture"], &labels["hephy.dev/machine"]),
        (&"arm64".into(), &"amd64".into())
    );
    let pod = &value["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"]["kubernetes.io/arch"], "amd64");
}

#[test]
fn an_engine_is_told_the_names_that_it_can_reach() {
    let config = config();
    let job = build_job(&config);
    let rendered = job.render(&config, 1).unwrap().spec.unwrap().template.spec.unwrap();
    let arguments = rendered.containers[0].args.clone().unwrap();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    let source = Digest::of("source");
    for wanted in [
        &format!("--context=oci:hephy-registry.hephy.svc:5000/hello@{source}"),
        "--destination=hephy-registry.hephy.svc:5000/hello",
        "--mirror=hephy-registry.hephy.svc:5000/mirror",
        "--insecure-registry=hephy-registry.hephy.svc:5000",
        "--cache-repo=hephy-registry.hephy.svc:5000/hello/cache",
        "--build-arg=A=b c",
        "--network=host",
        "--progress=events",
    ] {
        assert!(has(wanted), "{wanted}: {arguments:?}");
    }
    let report = job.report(1).unwrap();
    assert_eq!(report.repository.to_string(), "127.0.0.1:5000/hello");
    let by_engine = format!("--report=hephy-registry.hephy.svc:5000/hello:{}", report.tag.unwrap());
    assert!(has(&by_engine), "{by_engine}: {arguments:?}");
}

#[test]
fn a_pod_holds_no_credentials_but_a_ticket_whose_sum_the_job_knows() {
    let url = "http://hephy.hephy.svc:8080/tickets".parse().unwrap();
    let config = JobConfig { ticket_url: Some(url), ..config() };
    let job = build_job(&config).render(&config, 1).unwrap();
    let text = serde_json::to_string(&job).unwrap();
    assert!(!text.contains("c2VjcmV0"), "{text}");
    let sum = job.metadata.annotations.unwrap()[TICKET_SUM].clone();
    let container = &job.spec.unwrap().template.spec.unwrap().containers[0];
    let ticket = container.env.iter().flatten().find(|variable| variable.name == "HEPHY_TICKET").unwrap();
    let (name, secret) = ticket.value.as_deref().unwrap().split_once('.').unwrap();
    assert_eq!((name, sum), ("hello--17--arm64", Digest::of(secret).to_string()));
}

#[test]
fn a_job_counts_until_it_has_ended() {
    let job = |status: serde_json::Value| -> Job {
        serde_json::from_value(serde_json::json!({ "status": status })).unwrap()
    };
    let ended = |kind: &str| serde_json::json!({"conditions": [{"type": kind, "status": "True"}]});
    assert!(!is_over(&job(serde_json::json!({}))));
    assert!(!is_over(&job(ended("Suspended"))));
    assert!(is_over(&job(ended("Complete"))) && is_over(&job(ended("Failed"))));
}

#[test]
fn what_is_asked_for_otherwise_has_another_result() {
    let config = config();
    let one = build_job(&config).report(1).unwrap();
    let source = PushedSource { digest: Digest::of("other"), dockerfile: Some("Dockerfile".into()) };
    let other = BuildJob::new(&config, &request(), &source).unwrap().report(1).unwrap();
    assert_ne!(one, other);
    assert_eq!(one, build_job(&config).report(1).unwrap());
}
