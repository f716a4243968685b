//! `hephy build` for several platforms by this machine: what it builds, what it refuses, and when tags move.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{Method, StatusCode};
use hephy::oci::{Digest, MediaType, Platform, RawManifest, Target};

use super::{Place, base};
use crate::registry::Registry;

/// Another platform than this machine's.
fn foreign() -> &'static str {
    if Platform::native().architecture() == "arm64" { "linux/amd64" } else { "linux/arm64" }
}

/// This machine's platform and another, in the order in which they are to be built.
fn both(native_first: bool) -> String {
    let (native, foreign) = (Platform::native().to_string(), foreign().to_owned());
    let (one, two) = if native_first { (native, foreign) } else { (foreign, native) };
    format!("--multi-platform={one},{two}")
}

/// A build without a directory for its events, in an environment of its own.
fn command(place: &Place, flags: &[&str]) -> Command {
    let mut command = Command::new(crate::ordinary_user::executable());
    command.arg("build").arg("--context").arg(place.path("context"));
    command.arg("--mirror").arg(format!("oci:{}", base::layout().display())).args(flags);
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name == "PATH"));
    command.env("HEPHY_DATA", place.path("data")).env("DOCKER_CONFIG", place.directory.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(place: &Place, flags: &[&str]) -> Output {
    tokio::task::block_in_place(|| command(place, flags).output().unwrap())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Each platform has a file of its own, and nothing is executed.
fn by_architecture(place: &Place) {
    place.file("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY file-$TARGETARCH /file\n");
    place.file("file-amd64", "amd64").file("file-arm64", "arm64");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_fails_leaves_the_tag_as_it_was() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = Registry::start().await;
    let place = Place::new();
    by_architecture(&place);
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    let config = hephy::registry::server::docker_config(&registry.host(), &token);
    std::fs::write(place.path("config.json"), config).unwrap();
    let to = format!("--destination={}/hello:1", registry.address);
    let flags = ["--driver=local", "--require-native-nodes=false", "--publish-index", &to];
    let (client, repository) = (registry.client(), registry.repository("hello"));
    let tag = Target::Tag("1".parse().unwrap());

    let first = run(&place, &[&flags[..], &[&both(true)]].concat());
    assert!(first.status.success(), "{}", said(&first));
    let index = client.manifest(&repository, &tag).await.unwrap();
    assert_eq!(index.media_type(), &MediaType::ImageIndex);
    assert_eq!(String::from_utf8(first.stdout).unwrap().trim(), index.digest().to_string());
    assert_eq!(client.tags(&repository).await.unwrap().len(), 1);

    std::fs::remove_file(place.path(&format!("context/file-{}", foreign().split_once('/').unwrap().1)))
        .unwrap();
    place.file(&format!("file-{}", Platform::native().architecture()), "changed");
    let failed = run(&place, &[&flags[..], &[&both(true)]].concat());
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(said(&failed).contains(&format!("Built {}", Platform::native())), "{}", said(&failed));
    assert_eq!(client.manifest(&repository, &tag).await.unwrap().digest(), index.digest());

    // The first failure ends it, or the others are built all the same.
    let fast = run(&place, &[&flags[..], &[&both(false)]].concat());
    assert!(fast.status.code() == Some(1) && !said(&fast).contains("Built "), "{}", said(&fast));
    let slow = run(&place, &[&flags[..], &[&both(false), "--fail-fast=false"]].concat());
    assert!(slow.status.code() == Some(1) && said(&slow).contains("Built "), "{}", said(&slow));
    assert_eq!(client.manifest(&repository, &tag).await.unwrap().digest(), index.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_takes_all_platforms_of_one_name_and_a_tar_takes_one() {
    let place = Place::new();
    by_architecture(&place);
    let layout = place.path("layout");
    let to = format!("--oci-layout-path={}", layout.display());
    let flags = ["--require-native-nodes=false", "--no-push", "--destination=registry.invalid/app:1"];
    for _ in 0..2 {
        let output = run(&place, &[&flags[..], &[&both(true), &to]].concat());
        assert!(output.status.success(), "{}", said(&output));
        let index = RawManifest::parse(std::fs::read(layout.join("index.json")).unwrap(), None).unwrap();
        let of = |entry: &hephy::oci::Descriptor| {
            let name = entry.annotations["org.opencontainers.image.ref.name"].clone();
            format!("{name} {}", entry.platform.clone().unwrap())
        };
        let mut entries: Vec<String> = index.as_index().unwrap().manifests.iter().map(of).collect();
        entries.sort();
        assert_eq!(entries, ["registry.invalid/app:1 linux/amd64", "registry.invalid/app:1 linux/arm64"]);
    }
    let tar = format!("--tar-path={}", place.path("x.tar").display());
    let refused = run(&place, &[&flags[..], &[&both(true), &tar]].concat());
    assert!(
        refused.status.code() == Some(2) && said(&refused).contains("--oci-layout-path"),
        "{}",
        said(&refused)
    );
}

fn typed(place: &Place, flags: &[&str], text: &str) -> Output {
    let mut child = command(place, flags).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    tokio::task::block_in_place(|| child.wait_with_output().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_read_once_for_all_platforms() {
    let place = Place::new();
    place.file("a", "a");
    let dockerfile = "FROM scratch\nCOPY a /a\n";
    let flags = ["-f", "-", "--no-push", "--require-native-nodes=false"];
    for more in [&[][..], &["--dry-run"]] {
        let output = typed(&place, &[&flags[..], &[&both(false)], more].concat(), dockerfile);
        assert!(output.status.success(), "{more:?}: {}", said(&output));
    }
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", place.path("context")).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(dockerfile.len() as u64);
    tar.append_data(&mut header, "Dockerfile", dockerfile.as_bytes()).unwrap();
    let tar = tar.into_inner().unwrap();
    let mut command = Command::new(crate::ordinary_user::executable());
    command.args(["build", "--context=-", "--no-push", "--require-native-nodes=false"]).arg(both(false));
    command.env("HEPHY_DATA", place.path("data"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    let output = tokio::task::block_in_place(|| child.wait_with_output().unwrap());
    assert!(output.status.success(), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_the_build_would_and_needs_no_home() {
    let place = Place::new();
    let dry = |dockerfile: &str, flags: &[&str]| {
        place.file("Dockerfile", dockerfile).file("a", "a");
        let mut command = command(&place, &[&["--dry-run", "--no-push"], flags].concat());
        command.env_remove("HEPHY_DATA");
        tokio::task::block_in_place(|| command.output().unwrap())
    };
    let native = dry("FROM busybox:1\nRUN true\n", &[]);
    assert!(native.status.success(), "{}", said(&native));
    assert!(said(&native).contains(&format!("{}: builds natively on this machine", Platform::native())));
    assert!(said(&native).contains("Dockerfile:1: busybox:1: found"), "{}", said(&native));

    let (both, other) = (both(true), ["--require-native-nodes=false"]);
    let copied = "FROM scratch\nCOPY a /a\n";
    let missing = dry(copied, &[&both]);
    assert!(
        missing.status.code() == Some(3) && said(&missing).contains("alone, and not"),
        "{}",
        said(&missing)
    );
    let copied = dry(copied, &[&both, other[0]]);
    assert!(
        copied.status.success() && said(&copied).contains("where nothing of it is executed"),
        "{}",
        said(&copied)
    );
    let run = dry("FROM scratch\nCOPY a /a\nRUN [\"/a\"]\n", &[&both, other[0]]);
    assert!(run.status.code() == Some(3) && said(&run).contains("Dockerfile:3 executes"), "{}", said(&run));
    assert!(!place.path("data").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_a_base_brings_needs_a_machine_of_its_platform() {
    let place = Place::new();
    let layout = place.path("layout");
    place.file("a", "a").file("Dockerfile", "FROM scratch\nCOPY a /a\nONBUILD RUN [\"/a\"]\n");
    let to = format!("--oci-layout-path={}", layout.display());
    let platform = format!("--custom-platform={}", foreign());
    let base =
        run(&place, &[&platform, "--force", "--no-push", "--destination=registry.invalid/base:1", &to]);
    assert!(base.status.success(), "{}", said(&base));
    place.file("Dockerfile", "FROM registry.invalid/base:1\nCOPY a /b\n");
    let mirror = format!("--mirror=oci:{}", layout.display());
    for flags in [&["--dry-run"][..], &[]] {
        let flags =
            [&[platform.as_str(), &mirror, "--no-push", "--require-native-nodes=false"], flags].concat();
        let output = run(&place, &flags);
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        assert!(said(&output).contains("Dockerfile:1 executes a program"), "{}", said(&output));
    }
}

/// A registry that has nothing, and never answers who brings something.
async fn swallowing() -> String {
    let answer = async |method: Method, uri: axum::http::Uri| {
        if uri.path() == "/v2/" {
            return StatusCode::OK;
        }
        if method == Method::GET || method == Method::HEAD {
            return StatusCode::NOT_FOUND;
        }
        std::future::pending().await
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    address.to_string()
}

fn interrupt(child: &Child) {
    let process = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_after_the_build_ends_what_only_follows_it() {
    let place = Place::new();
    place.file("Dockerfile", "FROM scratch\nCOPY a /a\n").file("a", "a");
    let cache = format!("--cache-repo={}/cache", swallowing().await);
    let mut child = command(&place, &["--no-push", &cache]).spawn().unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        let mut digest = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut digest).unwrap();
        let digest: Digest = digest.trim().parse().unwrap();
        let clock = Instant::now();
        interrupt(&child);
        let status = child.wait().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (digest, status, clock.elapsed(), said)
    });
    let (_, status, taken, said) =
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(taken < Duration::from_secs(5), "{taken:?}: {said}");
}
