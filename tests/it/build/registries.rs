//! Builds and the registries around them: mirrors, credentials, certificates, and whose fault a failure is.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hephy::build::{BuildEvent, BuildResult, Outcome, StepFailure, StepState};
use hephy::oci::{Digest, RawManifest, Target};

use super::pushes::mirror_as;
use super::{Place, base};
use crate::registry::Registry;
use crate::registry::faulty::{Faulty, answer};
use crate::registry::tls::{Front, Http2, certificate};

/// How long a slow registry takes for a layer: longer than any step of these tests.
const SLOW: Duration = Duration::from_secs(4);

/// Runs a build with a home of its own, and nothing of ours in its environment.
fn run(place: &Place, mut command: Command) -> Output {
    let home = place.path("home");
    fs::create_dir_all(&home).unwrap();
    for name in ["DOCKER_CONFIG", "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"] {
        command.env_remove(name);
    }
    command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
    tokio::task::block_in_place(|| command.output().unwrap())
}

fn config(place: &Place, text: &str) {
    fs::create_dir_all(place.path("home/.docker")).unwrap();
    fs::write(place.path("home/.docker/config.json"), text).unwrap();
}

fn ok(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The failure that a build left, which names no secret.
fn failure(place: &Place) -> StepFailure {
    let text = fs::read_to_string(place.path("build/result.json")).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg"), "{text}");
    match BuildResult::read(&place.path("build/result.json")).unwrap().unwrap().outcome {
        Outcome::Failed(failure) => failure.step().unwrap().clone(),
        Outcome::Built { .. } => panic!("it was built"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_of_any_registry_comes_from_its_mirror_or_not_at_all() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = Registry::start().await;
    mirror_as(&registry, "mirror/quay/org/busybox").await;
    let place = Place::new();
    let map = format!("--registry-map=gcr.io=127.0.0.1:1;nowhere.invalid={}/mirror/quay", registry.address);
    let dockerfile = "FROM nowhere.invalid/org/busybox:1\nENV A=1\n";
    ok(&run(&place, place.command(dockerfile, &[&map, "--no-push"])));
    // What no mirror has is asked for at the registry itself, unless that is forbidden.
    let missing = "FROM nowhere.invalid/org/other:1\nENV A=1\n";
    let output = run(&place, place.command(missing, &[&map, "--no-push"]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let heading = failure(&place).heading;
    assert!(heading.contains("nowhere.invalid: registry `nowhere.invalid` cannot be reached"), "{heading}");
    let only = [&map, "--no-push", "--skip-default-registry-fallback=true"];
    run(&place, place.command(missing, &only));
    let heading = failure(&place).heading;
    let tried = format!("{}/mirror/quay: not there; nowhere.invalid: not asked", registry.address);
    assert!(heading.contains(&tried), "{heading}");
    ok(&run(&place, place.command(dockerfile, &only)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_that_hephy_base_wrote_has_the_image_under_its_name() {
    let layout = tempfile::tempdir().unwrap();
    base::write(layout.path(), "1", &base::rootfs(), &[]);
    let place = Place::new();
    let mirror = format!("oci:{}", layout.path().display());
    let build = || run(&place, place.command_with(&mirror, "FROM busybox:1\nENV A=1\n", &["--no-push"]));
    assert_eq!(build().status.code(), Some(1));
    assert!(failure(&place).heading.contains("tagged `1` that does not say of what"));
    // As `publish::write_layout` writes it.
    let index = layout.path().join("index.json");
    let text = fs::read_to_string(&index).unwrap();
    let annotation =
        "\"io.containerd.image.name\":\"docker.io/library/busybox:1\",\"org.opencontainers.image.ref.name\"";
    fs::write(&index, text.replace("\"org.opencontainers.image.ref.name\"", annotation)).unwrap();
    ok(&build());
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_a_helper_and_a_refusal_says_whose_they_were() {
    let registry = Registry::start().await;
    let place = Place::new();
    let destination = format!("--destination={}/hello:v1", registry.address);
    let build = || {
        let mut command = place.command("FROM busybox:1\nENV A=1\n", &[&destination]);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", place.path("").display()));
        run(&place, command)
    };
    assert_eq!(build().status.code(), Some(3));
    let without = failure(&place);
    assert!(without.heading.contains("it got no credentials"), "{without:?}");
    let login = format!("docker login {}", registry.address);
    assert!(without.hint.as_ref().unwrap().contains(&login), "{without:?}");
    config(&place, &format!(r#"{{"auths":{{"{}":{{"auth":"aGVwaHk6aHVudGVyMg=="}}}}}}"#, registry.address));
    build();
    let refused = failure(&place);
    let origin = format!("the credentials of `{}`", place.path("home/.docker/config.json").display());
    assert!(refused.heading.contains(&origin), "{refused:?}");
    config(&place, &format!(r#"{{"credHelpers":{{"{}":"mine"}}}}"#, registry.address));
    build();
    let missing = failure(&place);
    assert!(
        missing.cause[0].contains("`docker-credential-mine`") && missing.cause[0].contains("not in PATH")
    );
    helper(&place, "echo 'the vault is sealed' >&2; exit 1");
    build();
    assert!(failure(&place).cause[0].contains("the vault is sealed (exit status 1)"));
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    helper(&place, &format!("echo '{{\"Username\":\"hephy\",\"Secret\":\"{}\"}}'", token.reveal()));
    ok(&build());
    let target = Target::Tag("v1".parse().unwrap());
    registry.client().manifest(&registry.repository("hello"), &target).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_reached_through_a_proxy_unless_they_are_excepted() {
    let proxy = Faulty::start(|_, _| answer(404, &[], "")).await;
    let place = Place::new();
    let flags = ["--no-push", "--insecure-registry=behind.invalid:5000"];
    let build = |excepted: &str| {
        let mut command = place.command("FROM behind.invalid:5000/org/app:1\nENV A=1\n", &flags);
        command.env("HTTP_PROXY", format!("http://{}", proxy.address)).env("NO_PROXY", excepted);
        for name in ["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy"] {
            command.env_remove(name);
        }
        run(&place, command);
        failure(&place).heading
    };
    let through = build("");
    assert!(through.contains("registry `behind.invalid:5000` has no manifest `1` in `org/app`"), "{through}");
    assert_eq!(proxy.asked().last().unwrap().host, "behind.invalid:5000");
    let before = proxy.asked().len();
    let without = build("other.test,.invalid");
    assert!(without.contains("registry `behind.invalid:5000` cannot be reached"), "{without}");
    assert_eq!(proxy.asked().len(), before);
}

fn helper(place: &Place, script: &str) {
    let (text, program) = (place.path("text"), place.path("docker-credential-mine"));
    fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    let installed = Command::new("install").args(["-m", "755"]).args([&text, &program]).status().unwrap();
    assert!(installed.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_to_a_registry_with_a_private_certificate_that_is_named() {
    let registry = Registry::start().await;
    let front = Front::start("itself", registry.address, Http2::Spoken).await;
    let (place, host) = (Place::new(), front.host());
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    // The registry names its token server without TLS, since it does not know of the front.
    config(&place, &format!(r#"{{"auths":{{"{host}":{{"registrytoken":"{}"}}}}}}"#, token.reveal()));
    let build = |flag: &str, file: &Path| {
        let flag = format!("{flag}={host}={}", file.display());
        let destination = format!("--destination={host}/hello:v1");
        run(&place, place.command("FROM busybox:1\nENV A=1\n", &[&destination, &flag]))
    };
    let output = build("--registry-certificate", &certificate("authority.pem"));
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let untrusted = failure(&place);
    assert!(untrusted.heading.contains("is not trusted: no authority"), "{untrusted:?}");
    let hint = untrusted.hint.unwrap();
    assert!(hint.contains(&format!("--registry-certificate {host}=FILE")), "{hint}");
    ok(&build("--registry-certificate", &certificate("itself.pem")));
    let missing = build("--registry-certificate", Path::new("/nowhere.pem"));
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    let target = Target::Tag("v1".parse().unwrap());
    registry.client().manifest(&registry.repository("hello"), &target).await.unwrap();
}

/// A mirror that has the manifest and the configuration of the busybox, and of its layer what `layer` makes of it.
async fn mirror_without(layer: impl Fn(Vec<u8>) -> (u16, Vec<u8>) + Clone + Send + Sync + 'static) -> Faulty {
    let blob = |digest: &Digest| fs::read(base::layout().join("blobs/sha256").join(digest.hex())).unwrap();
    let index = RawManifest::parse(fs::read(base::layout().join("index.json")).unwrap(), None).unwrap();
    let manifest = RawManifest::parse(blob(&index.as_index().unwrap().manifests[0].digest), None).unwrap();
    let image = manifest.as_image().unwrap().clone();
    Faulty::start(move |_, asked| {
        let last = asked.path.rsplit('/').next().unwrap();
        if asked.path.contains("/manifests/") {
            let kind = [("content-type", manifest.media_type().as_str())];
            return answer(200, &kind, manifest.bytes().clone());
        }
        let digest: Digest = last.parse().unwrap();
        if digest == image.config.digest {
            return answer(200, &[], blob(&digest));
        }
        let (status, content) = layer(blob(&digest));
        answer(status, &[], content)
    })
    .await
}

/// What a mirror makes of a blob that it is asked for: status and body.
type Fault = fn(Vec<u8>) -> (u16, Vec<u8>);

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_a_mirror_has_lost_or_spoilt_comes_from_the_next_place() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = Registry::start().await;
    mirror_as(&registry, "mirror/library/busybox").await;
    let faults: [Fault; 4] = [
        |_| (404, Vec::new()),
        |_| (500, Vec::new()),
        |whole| (200, whole[..whole.len() / 2].to_vec()),
        |whole| (200, whole.iter().map(|byte| byte ^ 1).collect()),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let (faulty, place) = (mirror_without(fault).await, Place::new());
        let second = format!("--mirror={}/mirror", registry.address);
        let first = faulty.address.to_string();
        let command =
            place.command_with(&first, "FROM busybox:1\nRUN echo made > /made\n", &[&second, "--no-push"]);
        let output = run(&place, command);
        assert!(output.status.success(), "fault {number}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(faulty.asked().iter().any(|asked| asked.path.contains("/blobs/")), "fault {number}");
    }
    // Where nobody has it, everybody is named.
    let (one, other) = (mirror_without(faults[0]).await, mirror_without(faults[2]).await);
    let place = Place::new();
    let second = format!("--mirror={}", other.address);
    let flags = [&second, "--no-push", "--skip-default-registry-fallback"];
    let command = place.command_with(&one.address.to_string(), "FROM busybox:1\nRUN true\n", &flags);
    assert_eq!(run(&place, command).status.code(), Some(3));
    let heading = failure(&place).heading;
    for address in [one.address, other.address] {
        assert!(heading.contains(&format!("; {address}/library/busybox: ")), "{heading}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clouds_registry_is_met_as_whom_the_cloud_knows() {
    let host = "000000000000.dkr.ecr.nowhere-1.amazonaws.com";
    // `AWS:hunter2`, as both sides write it.
    let cloud = Faulty::start(|_, _| {
        answer(200, &[], r#"{"authorizationData":[{"authorizationToken":"QVdTOmh1bnRlcjI="}]}"#)
    })
    .await;
    let registry = Faulty::start(|_, asked| match asked.authorization.as_deref() {
        Some("Basic QVdTOmh1bnRlcjI=") => answer(404, &[], ""),
        _ => answer(401, &[("www-authenticate", "Basic realm=\"ecr\"")], ""),
    })
    .await;
    let place = Place::new();
    let build = |flag: &str| {
        let dockerfile = format!("FROM {host}/org/app:1\nENV A=1\n");
        let insecure = format!("--insecure-registry={host}");
        let mut command = place.command(&dockerfile, &["--no-push", &insecure, flag]);
        for name in ["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy"] {
            command.env_remove(name);
        }
        command.env("HTTP_PROXY", format!("http://{}", registry.address)).env("NO_PROXY", "127.0.0.1");
        command.env("AWS_ENDPOINT_URL_ECR", format!("http://{}", cloud.address));
        command.env("AWS_ACCESS_KEY_ID", "AKIA1").env("AWS_SECRET_ACCESS_KEY", "s");
        run(&place, command);
        failure(&place).heading
    };
    let known = build("--credential-helpers=ecr");
    assert!(known.contains(&format!("registry `{host}` has no manifest `1` in `org/app`")), "{known}");
    assert_eq!(cloud.methods(), "POST");
    let unknown = build("--credential-helpers=google,acr");
    assert!(unknown.contains("it got no credentials, since there are none for it"), "{unknown}");
    assert_eq!(cloud.methods(), "POST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steps_time_is_its_own_and_not_that_of_the_base_it_waited_for() {
    let blob = |digest: &Digest| fs::read(base::layout().join("blobs/sha256").join(digest.hex())).unwrap();
    let index = RawManifest::parse(fs::read(base::layout().join("index.json")).unwrap(), None).unwrap();
    let manifest = blob(&index.as_index().unwrap().manifests[0].digest);
    let image = RawManifest::parse(manifest.clone(), None).unwrap().as_image().unwrap().clone();
    let config = image.config.digest.to_string();
    let registry = Faulty::start(move |_, asked| {
        if asked.path.contains("/manifests/") {
            return answer(
                200,
                &[("content-type", "application/vnd.oci.image.manifest.v1+json")],
                manifest.clone(),
            );
        }
        let digest: Digest = asked.path.rsplit('/').next().unwrap().parse().unwrap();
        if !asked.path.ends_with(&config) {
            std::thread::sleep(SLOW);
        }
        answer(200, &[], blob(&digest))
    })
    .await;
    for (step, succeeds) in [("COPY Dockerfile /", true), ("RUN exit 3", false)] {
        let place = Place::new();
        let dockerfile = format!("FROM {}/busybox:1\n{step}\n", registry.address);
        let output = run(&place, place.command(&dockerfile, &["--no-push"]));
        assert_eq!(output.status.success(), succeeds, "{output:?}");
        let events = place.events();
        let at = |is: &dyn Fn(&BuildEvent) -> bool| events.iter().position(is).unwrap();
        let fetched =
            at(&|event| matches!(event, BuildEvent::Note { text } if text.contains("fetched and unpacked")));
        let started =
            at(&|event| matches!(event, BuildEvent::Step { number: 2, state: StepState::Started, .. }));
        assert!(fetched < started, "{events:?}");
        let took = events.iter().find_map(|event| match event {
            BuildEvent::Step { number: 2, state: StepState::Done { millis, .. }, .. }
            | BuildEvent::Step { number: 2, state: StepState::Failed { millis, .. }, .. } => Some(*millis),
            _ => None,
        });
        assert!(Duration::from_millis(took.unwrap()) < SLOW, "{took:?}");
        if !succeeds {
            let heading = failure(&place).heading;
            let seconds = heading.split("failed after ").nth(1).unwrap().split('s').next().unwrap();
            assert!(seconds.parse::<f64>().unwrap() < SLOW.as_secs_f64(), "{heading}");
        }
    }
}
