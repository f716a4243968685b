//! Bases from Debian's archive: the same from the same archive, and what other tools read.

use std::path::Path;
use std::process::Command;

use hephy::bases::{Assembly, Base, Mirrors, assemble};
use hephy::layers::Compression;
use hephy::oci::{Digest, Platform, Reference};
use hephy::publish::{BaseImage, base_image, push_base, write_layout};
use hephy::registry::client::{Client, ClientConfig};

use crate::registry::Registry;

async fn image(base: &str, platform: &Platform, directory: &Path) -> BaseImage {
    let base: Base = base.parse().unwrap();
    let mirrors = Mirrors::find(None, None).unwrap();
    let assembly = Assembly { base, include: Vec::new(), mirrors, directory: directory.to_owned() };
    let root = assemble(&assembly, platform, &|_| ()).await.unwrap();
    tokio::task::spawn_blocking(move || base_image(&root, Compression::default())).await.unwrap().unwrap()
}

async fn digest_of(base: &str, platform: &Platform) -> Digest {
    let directory = tempfile::tempdir().unwrap();
    let images = [image(base, platform, directory.path()).await];
    let layout = directory.path().join("layout");
    write_layout(&layout, &"busybox".parse().unwrap(), &["latest".parse().unwrap()], &images).unwrap().digest
}

#[tokio::test]
#[ignore = "needs Debian's archive, and a minute"]
async fn busybox_is_the_same_from_the_same_archive_also_for_another_architecture() {
    for platform in ["linux/amd64", "linux/arm64"] {
        let platform = platform.parse().unwrap();
        assert_eq!(digest_of("busybox", &platform).await, digest_of("busybox", &platform).await);
    }
}

#[tokio::test]
#[ignore = "needs Debian's archive, and minutes"]
async fn debian_is_the_same_from_the_same_archive() {
    let platform = Platform::native();
    assert_eq!(digest_of("debian:12-slim", &platform).await, digest_of("debian:12-slim", &platform).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Debian's archive, and a minute"]
async fn skopeo_reads_a_pushed_base_and_another_machine_adds_its_platform() {
    crate::registry::install_tls();
    let registry = Registry::start().await;
    let client = registry.client();
    let reference: Reference = format!("{}/mirror/library/busybox:latest", registry.address).parse().unwrap();
    let tags = ["latest".parse().unwrap()];
    let mut platforms = Vec::new();
    for platform in ["linux/amd64", "linux/arm64"] {
        let directory = tempfile::tempdir().unwrap();
        let images = [image("busybox", &platform.parse().unwrap(), directory.path()).await];
        platforms = push_base(&client, &reference.repository, &tags, &images).await.unwrap().platforms;
    }
    assert_eq!(platforms.len(), 2);
    let anonymous = Client::new(ClientConfig::default());
    let found = anonymous.image(&reference, &"linux/arm64".parse().unwrap()).await.unwrap();
    assert_eq!(found.manifest.as_image().unwrap().layers.len(), 1);
    if Command::new("skopeo").arg("--version").output().is_ok() {
        let shown = Command::new("skopeo")
            .args(["inspect", "--tls-verify=false", &format!("docker://{reference}")])
            .output()
            .unwrap();
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    }
}
