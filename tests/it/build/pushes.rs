//! Builds between registries: bases from a mirror, images to a repository.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use hephy::oci::{Descriptor, Digest, Target};
use hephy::registry::client::BlobSource;

use super::{Place, base};
use crate::registry::Registry;

/// Puts the busybox of the layout into a registry's mirror.
async fn mirror(registry: &Registry) {
    let client = registry.client();
    let repository = registry.repository("mirror/library/busybox");
    let blob =
        |digest: &Digest| std::fs::read(base::layout().join("blobs/sha256").join(digest.hex())).unwrap();
    let index =
        hephy::oci::RawManifest::parse(std::fs::read(base::layout().join("index.json")).unwrap(), None)
            .unwrap();
    let entry = &index.as_index().unwrap().manifests[0];
    let manifest = hephy::oci::RawManifest::parse(blob(&entry.digest), None).unwrap();
    let image = manifest.as_image().unwrap();
    for Descriptor { digest, .. } in image.layers.iter().chain([&image.config]) {
        client.push_blob(&repository, BlobSource::bytes(blob(digest)), &[]).await.unwrap();
    }
    client.push_manifest(&repository, &Target::Tag("1".parse().unwrap()), &manifest).await.unwrap();
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

/// How many trees the store has.
fn trees(place: &Place) -> usize {
    walkdir::WalkDir::new(place.path("data/layers/trees"))
        .min_depth(2)
        .max_depth(2)
        .into_iter()
        .filter(|entry| entry.as_ref().unwrap().file_type().is_dir())
        .count()
}
