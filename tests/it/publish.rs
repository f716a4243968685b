//! The publish stage on a real registry.

use hephy::model::PlatformImage;
use hephy::oci::{
    Descriptor, Digest, ImageConfig, Manifest, MediaType, Platform, RawManifest, Repository, Tag, Target,
};
use hephy::publish::{PublishError, Publisher, release_tags};
use hephy::registry::client::{BlobSource, Client};

use crate::registry::{Registry, platform};

/// The beginning of a program for amd64 or arm64.
fn program(architecture: &str) -> Vec<u8> {
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
    program.extend(if architecture == "amd64" { 62_u16 } else { 183 }.to_le_bytes());
    program.resize(4096, 0);
    program
}

/// Pushes an image that says it is for `config`, with a program for `machine` as its entrypoint, behind a link of a lower layer.
async fn push(client: &Client, to: &Repository, config: &str, machine: &str) -> RawManifest {
    let mut base = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    base.append_link(&mut header, "bin", "usr/bin").unwrap();
    let mut top = tar::Builder::new(Vec::new());
    let program = program(machine);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    top.append_data(&mut header, "usr/bin/serve", program.as_slice()).unwrap();
    let mut image = ImageConfig::new(&platform(config));
    image.config.entrypoint = Some(vec!["/bin/serve".to_owned()]);
    let mut layers = Vec::new();
    for tar in [base.into_inner().unwrap(), top.into_inner().unwrap()] {
        image.rootfs.diff_ids.push(Digest::of(&tar));
        let zstd = zstd::encode_all(tar.as_slice(), 3).unwrap();
        layers.push(Descriptor::of(MediaType::LayerTarZstd, &zstd));
        client.push_blob(to, BlobSource::bytes(zstd), &[]).await.unwrap();
    }
    let image = image.to_bytes();
    let manifest =
        RawManifest::image(&Manifest::image(Descriptor::of(MediaType::ImageConfig, &image), layers));
    client.push_blob(to, BlobSource::bytes(image), &[]).await.unwrap();
    client.push_manifest(to, &Target::Digest(manifest.digest()), &manifest).await.unwrap();
    manifest
}

fn built(platform: Platform, manifest: Digest) -> PlatformImage {
    PlatformImage { platform, manifest, size_bytes: 1000, layers: 2, new_layers: 1, steps: vec![] }
}

struct Scene {
    registry: Registry,
    client: Client,
    publisher: Publisher,
}

impl Scene {
    async fn start() -> Self {
        let registry = Registry::start().await;
        let client = registry.client();
        let publisher = Publisher::new(client.clone(), registry.place());
        Self { registry, client, publisher }
    }

    fn repository(&self) -> Repository {
        self.registry.repository("hello")
    }

    async fn image(&self, declared: &str, config: &str, machine: &str) -> PlatformImage {
        let manifest = push(&self.client, &self.repository(), config, machine).await;
        built(platform(declared), manifest.digest())
    }

    async fn refused(&self, images: &[PlatformImage]) -> PublishError {
        self.publisher.publish(&"hello".parse().unwrap(), images).await.unwrap_err()
    }
}

#[tokio::test]
async fn an_index_is_published_by_digest_and_tagged_after() {
    let scene = Scene::start().await;
    let arm64 = scene.image("linux/arm64", "linux/arm64/v8", "arm64").await;
    let amd64 = scene.image("linux/amd64", "linux/amd64", "amd64").await;
    let app = "hello".parse().unwrap();
    let published = scene.publisher.publish(&app, &[arm64.clone(), amd64.clone()]).await.unwrap();
    assert_eq!(published.images, [amd64.clone(), arm64.clone()]);
    assert_eq!((published.repository.as_str(), published.new_layers()), ("hello", 2));
    assert_eq!(scene.client.tags(&scene.repository()).await.unwrap(), []);
    let commit = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
    let tags = release_tags("v4".parse().unwrap(), Some(commit));
    // Again, as after a crash between any two steps.
    for _ in 0..2 {
        let again = scene.publisher.publish(&app, &[amd64.clone(), arm64.clone()]).await.unwrap();
        assert_eq!(again, published);
        scene.publisher.tag(&published, &tags).await.unwrap();
    }
    for tag in tags {
        let target = Target::Tag(tag);
        let index = scene.client.manifest(&scene.repository(), &target).await.unwrap();
        assert_eq!(index.digest(), published.digest);
    }
    let one = scene.publisher.publish(&app, &[amd64]).await.unwrap();
    scene.publisher.tag(&one, &[Tag::latest()]).await.unwrap();
    let index = scene.client.manifest(&scene.repository(), &Target::Tag(Tag::latest())).await.unwrap();
    assert_eq!(index.as_index().unwrap().manifests.len(), 1, "one platform is an index too");
}

#[tokio::test]
async fn an_image_for_another_platform_is_not_published() {
    let scene = Scene::start().await;
    let config = scene.image("linux/arm64", "linux/amd64", "amd64").await;
    let error = scene.refused(&[config]).await;
    assert!(matches!(&error, PublishError::ConfigPlatform { .. }) && error.is_app(), "{error}");
    assert!(error.to_string().contains("`linux/arm64` says that it is for `linux/amd64`"), "{error}");
    let machine = scene.image("linux/arm64", "linux/arm64", "amd64").await;
    let error = scene.refused(&[machine]).await;
    assert!(matches!(&error, PublishError::Machine { .. }) && error.is_app(), "{error}");
    assert!(
        error.to_string().contains("`/bin/serve` in the image for `linux/arm64` is a program for amd64"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_missing_double_or_no_image_is_not_published() {
    let scene = Scene::start().await;
    let missing = scene.refused(&[built(platform("linux/amd64"), Digest::of("absent"))]).await;
    assert!(matches!(missing, PublishError::Missing { .. }) && !missing.is_app(), "{missing}");
    let image = scene.image("linux/amd64", "linux/amd64", "amd64").await;
    let double = scene.refused(&[image.clone(), image.clone()]).await;
    assert!(matches!(double, PublishError::Duplicate(_)), "{double}");
    let published = scene.publisher.publish(&"hello".parse().unwrap(), &[image]).await.unwrap();
    let nested = scene.refused(&[built(platform("linux/amd64"), published.digest)]).await;
    assert!(matches!(nested, PublishError::NotAnImage { .. }), "{nested}");
    assert!(matches!(scene.refused(&[]).await, PublishError::Index(_)));
}
