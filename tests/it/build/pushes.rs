//! Builds between registries: bases from a mirror, images to a repository.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use hephy::build::{BuildEvent, BuildResult, Outcome, StepState};
use hephy::oci::{Descriptor, Digest, Repository, Target};
use hephy::registry::client::{BlobSource, Client};

use super::{Place, base};
use crate::registry::Registry;

/// Puts the busybox of the layout into a registry's mirror.
pub(super) async fn mirror(registry: &Registry) {
    mirror_as(registry, "mirror/library/busybox").await;
}

/// The same under another name.
pub(super) async fn mirror_as(registry: &Registry, name: &str) {
    push_layout(&registry.client(), &registry.repository(name)).await;
}

/// Puts the busybox of the layout into a repository, as `1`.
pub(crate) async fn push_layout(client: &Client, repository: &Repository) {
    let blob =
        |digest: &Digest| std::fs::read(base::layout().join("blobs/sha256").join(digest.hex())).unwrap();
    let index =
        hephy::oci::RawManifest::parse(std::fs::read(base::layout().join("index.json")).unwrap(), None)
            .unwrap();
    let entry = &index.as_index().unwrap().manifests[0];
    let manifest = hephy::oci::RawManifest::parse(blob(&entry.digest), None).unwrap();
    let image = manifest.as_image().unwrap();
    for Descriptor { digest, .. } in image.layers.iter().chain([&image.config]) {
        client.push_blob(repository, BlobSource::bytes(blob(digest)), &[]).await.unwrap();
    }
    client.push_manifest(repository, &Target::Tag("1".parse().unwrap()), &manifest).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_comes_from_the_mirror_and_the_image_goes_to_its_repository() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = Registry::start().await;
    mirror(&registry).await;
    let place = Place::new();
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    let config = hephy::registry::server::docker_config(&registry.host(), &token);
    let build = |dockerfile: &str| {
        let mirror = format!("{}/mirror", registry.address);
        let mut command = place.command_with(&mirror, dockerfile, &["--docker-config-stdin"]);
        command.arg("--destination").arg(format!("{}/hello:v1", registry.address));
        command.stdin(Stdio::piped());
        let mut engine = command.spawn().unwrap();
        engine.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
        let output = engine.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?} {:?}", place.events());
    };
    let client = registry.client();
    let repository = registry.repository("hello");
    // Nothing of the base is needed: its layer is mounted from the mirror.
    tokio::task::block_in_place(|| build("FROM busybox:1\nENV A=1\n"));
    assert!(!std::fs::exists(place.path("data/layers/trees")).unwrap() || trees(&place) == 0);
    let first = client.manifest(&repository, &Target::Tag("v1".parse().unwrap())).await.unwrap();
    assert_eq!(first.as_image().unwrap().layers.len(), 1);
    tokio::task::block_in_place(|| build("FROM busybox:1\nRUN echo hi > /x\n"));
    let second = client.manifest(&repository, &Target::Tag("v1".parse().unwrap())).await.unwrap();
    let layers = &second.as_image().unwrap().layers;
    assert_eq!((layers.len(), &layers[0]), (2, &first.as_image().unwrap().layers[0]));
    for layer in layers {
        assert!(client.has_blob(&repository, &layer.digest).await.unwrap());
    }
    assert_eq!(trees(&place), 2);
}

/// A build by a machine that has nothing but the registry; what it printed goes to the caller.
pub(super) fn on_a_fresh_machine(
    registry: &Registry,
    config: &str,
    dockerfile: &str,
    flags: &[&str],
) -> Place {
    let place = Place::new();
    place.file("a", "a");
    build_on(&place, registry, config, dockerfile, flags);
    place
}

/// A build by a machine that may have built before.
fn build_on(place: &Place, registry: &Registry, config: &str, dockerfile: &str, flags: &[&str]) {
    let mirror = format!("{}/mirror", registry.address);
    let mut command = place.command_with(&mirror, dockerfile, &["--docker-config-stdin"]);
    command.arg("--destination").arg(format!("{}/hello:v1", registry.address)).args(flags);
    let mut engine = command.stdin(Stdio::piped()).spawn().unwrap();
    engine.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    let output = engine.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?} {:?}", place.events());
}

fn ends(place: &Place) -> Vec<&'static str> {
    let end = |event: &BuildEvent| match event {
        BuildEvent::Step { state: StepState::Cached, .. } => Some("cached"),
        BuildEvent::Step { state: StepState::Done { .. }, .. } => Some("done"),
        _ => None,
    };
    place.events().iter().filter_map(end).collect()
}

fn image_of(place: &Place) -> String {
    match BuildResult::read(&place.path("build/result.json")).unwrap().unwrap().outcome {
        Outcome::Built { image, .. } => image.manifest.to_string(),
        Outcome::Failed(failure) => panic!("{failure:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_that_another_machine_has_run_come_from_the_cache_repository() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = Registry::start().await;
    mirror(&registry).await;
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    let config = hephy::registry::server::docker_config(&registry.host(), &token);
    let cache = format!("{}/hello/cache", registry.address);
    let dockerfile = "FROM busybox:1 AS builder\nCOPY a /a\nRUN cat /a > /b; true\nRUN true\n\
        FROM busybox:1\nCOPY --from=builder /b /b\nRUN echo c > /c\n";
    tokio::task::block_in_place(|| {
        let first = on_a_fresh_machine(&registry, &config, dockerfile, &["--cache-repo", &cache]);
        assert_eq!(ends(&first), ["cached", "done", "done", "done", "cached", "done", "done"]);

        let second = on_a_fresh_machine(&registry, &config, dockerfile, &["--cache-repo", &cache]);
        assert_eq!(ends(&second), ["cached"; 7]);
        assert_eq!(trees(&second), 0, "nothing was fetched and unpacked");
        assert_eq!(image_of(&second), image_of(&first));

        // A step after those that are known has the files that they made.
        let more = format!("{dockerfile}RUN test \"$(cat /b /c)\" = ac && echo d > /d\n");
        let third = on_a_fresh_machine(&registry, &config, &more, &["--cache-repo", &cache]);
        assert_eq!(
            ends(&third),
            ["cached", "cached", "cached", "cached", "cached", "cached", "cached", "done"]
        );

        let old = ["--cache-repo", &cache, "--cache-ttl", "0s"];
        let fourth = on_a_fresh_machine(&registry, &config, dockerfile, &old);
        assert_eq!(ends(&fourth), ends(&first), "what is too old does not count");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_that_were_known_here_are_left_in_the_cache_repository_too() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = Registry::start().await;
    mirror(&registry).await;
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    let config = hephy::registry::server::docker_config(&registry.host(), &token);
    let cache = format!("{}/hello/cache", registry.address);
    let flags = ["--cache-repo", cache.as_str()];
    let dockerfile = "FROM busybox:1 AS one\nRUN echo 1 > /1\nFROM busybox:1\nCOPY a /a\nRUN true\nCOPY --from=one /1 /1\n";
    tokio::task::block_in_place(|| {
        let first = on_a_fresh_machine(&registry, &config, dockerfile, &[]);
        assert!(!ends(&first)[1..].iter().all(|end| *end == "cached"));
        build_on(&first, &registry, &config, dockerfile, &flags);
        assert!(ends(&first).iter().all(|end| *end == "cached"), "{:?}", ends(&first));
        let other = on_a_fresh_machine(&registry, &config, dockerfile, &flags);
        assert!(ends(&other).iter().all(|end| *end == "cached"), "{:?}", ends(&other));
        assert_eq!(image_of(&other), image_of(&first));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_reached_is_told_once_and_fails_no_build() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = Registry::start().await;
    mirror(&registry).await;
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    let config = hephy::registry::server::docker_config(&registry.host(), &token);
    let others = format!("{}/somebody-elses", registry.address);
    let dockerfile = "FROM busybox:1\nRUN echo 1 > /a\nRUN echo 2 > /b\n";
    let place = tokio::task::block_in_place(|| {
        on_a_fresh_machine(&registry, &config, dockerfile, &["--cache-repo", &others])
    });
    let is_told = |event: &BuildEvent| matches!(event, BuildEvent::Note { text } if text.contains("somebody-elses` cannot be"));
    assert_eq!(place.events().iter().filter(|event| is_told(event)).count(), 1, "{:?}", place.events());
}

/// How many trees the store has.
fn trees(place: &Place) -> usize {
    walkdir::WalkDir::new(place.path("data/layers/trees"))
        .min_depth(2)
        .max_depth(2)
        .into_iter()
        .filter(|entry| entry.as_ref().unwrap().file_type().is_dir())
        .count()
}
