//! Our client and our server.

use std::time::{Duration, SystemTime};

use hephy::model::Secret;
use hephy::oci::{Descriptor, Digest, Manifest, MediaType, RawManifest, Reference, Tag, Target};
use hephy::registry::client::{BlobSource, ClientError, Credentials, Transfer};
use hephy::registry::server::{Keep, Scope, Server, ServerConfig, ServerError, docker_config};

use super::{Registry, anonymous, client, install_tls, platform, push_image, push_index};

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn an_index_is_pushed_and_pulled_for_each_platform() {
    let registry = Registry::start().await;
    let (client, app) = (registry.client(), registry.repository("hello"));
    let index = push_index(&client, &app, "v1").await;
    let reference: Reference = format!("{app}:v1").parse().unwrap();
    let anonymous = anonymous();
    for name in ["linux/amd64", "linux/arm64/v8"] {
        let image = anonymous.image(&reference, &platform(name)).await.unwrap();
        assert_eq!(image.top, index);
        let manifest = image.manifest.as_image().unwrap();
        let (config, _) = anonymous.image_config(&app, manifest).await.unwrap();
        assert_eq!(config.platform().unwrap(), platform(name));
        let layer = anonymous.blob(&app, &manifest.layers[0], 1000).await.unwrap();
        assert_eq!(Digest::of(&layer), manifest.layers[0].digest);
    }
    let error = anonymous.image(&reference, &platform("linux/riscv64")).await.unwrap_err();
    assert!(matches!(error, ClientError::Index { .. }), "{error}");
    let head = anonymous.head_manifest(&app, &reference.target()).await.unwrap();
    assert_eq!(head, Some(index.descriptor()));
    assert_eq!(anonymous.tags(&app).await.unwrap(), ["v1".parse::<Tag>().unwrap()]);
    assert_eq!(anonymous.tags(&registry.repository("other")).await.unwrap(), []);
    assert!(anonymous.find_manifest(&app, &"v2".parse().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_blob_is_sent_once_and_mounted_after() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (mirror, app) = (registry.repository("mirror/library/debian"), registry.repository("hello"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(file.path(), &content).unwrap();
    let digest = Digest::of(&content);
    let source = || BlobSource::file(file.path(), digest, content.len() as u64);
    assert_eq!(client.push_blob(&mirror, source(), &[]).await.unwrap(), Transfer::Uploaded);
    assert_eq!(client.push_blob(&mirror, source(), &[]).await.unwrap(), Transfer::Existed);
    let from = [registry.repository("nowhere").name, mirror.name.clone()];
    assert_eq!(client.push_blob(&app, source(), &from).await.unwrap(), Transfer::Mounted);
    assert!(client.mount_blob(&registry.repository("third"), &digest, &from).await.unwrap());
    assert!(!client.mount_blob(&app, &Digest::of("absent"), &from).await.unwrap());
    let mut pulled = Vec::new();
    let descriptor = Descriptor::new(MediaType::LayerTar, digest, content.len() as u64);
    client.pull_blob(&app, &descriptor, &mut pulled).await.unwrap();
    assert_eq!(pulled, content);
    assert_eq!(registry.files("blobs").len(), 1);
    let uploads = registry.files("repositories").into_iter().filter(|name| name.contains("_uploads")).count();
    assert_eq!(uploads, 0, "an upload was left open");
}

#[tokio::test]
async fn writing_takes_a_token_for_that_repository() {
    let registry = Registry::start().await;
    let (app, other) = (registry.repository("hello"), registry.repository("other"));
    let tokens = registry.server.tokens();
    let blob = || BlobSource::bytes("blob");
    let denied = anonymous().push_blob(&app, blob(), &[]).await.unwrap_err();
    assert!(denied.is_denied(), "{denied}");
    assert!(denied.to_string().contains("hephy registry token"), "{denied}");
    let build = registry.client_with(&tokens.for_build(&"hello".parse().unwrap(), HOUR));
    let denied = build.push_blob(&other, blob(), &[]).await.unwrap_err();
    assert!(denied.is_denied(), "{denied}");
    let mirror = registry.repository("mirror/library/debian");
    assert!(build.push_blob(&mirror, blob(), &[]).await.unwrap_err().is_denied());
    for own in [&app, &registry.repository("hello/cache")] {
        let image = push_image(&build, own, &platform("linux/amd64"), b"layer").await;
        let delete = build.delete_manifest(own, &Target::Digest(image.digest())).await.unwrap_err();
        assert!(delete.is_denied(), "{delete}");
    }
    let user = tokens.for_user(&"ada".parse().unwrap(), &["hello".parse().unwrap()], HOUR);
    let image = push_image(&registry.client_with(&user), &app, &platform("linux/arm64"), b"layer").await;
    registry.client_with(&user).delete_manifest(&app, &Target::Digest(image.digest())).await.unwrap();
    let ended = tokens.issue("ada", &["*:pull,push".parse::<Scope>().unwrap()], Duration::ZERO);
    assert!(registry.client_with(&ended).push_blob(&app, blob(), &[]).await.unwrap_err().is_denied());
}

#[tokio::test]
async fn a_cache_is_read_by_its_app_alone() {
    let registry = Registry::start().await;
    let cache = registry.repository("hello/cache");
    let image = push_image(&registry.client(), &cache, &platform("linux/amd64"), b"secret stage").await;
    let target = Target::Digest(image.digest());
    let tokens = registry.server.tokens();
    let own = registry.client_with(&tokens.for_build(&"hello".parse().unwrap(), HOUR));
    assert!(own.manifest(&cache, &target).await.is_ok());
    let other = registry.client_with(&tokens.for_build(&"other".parse().unwrap(), HOUR));
    assert!(other.manifest(&cache, &target).await.unwrap_err().is_denied());
    assert!(anonymous().manifest(&cache, &target).await.unwrap_err().is_denied());
    // Nor through a mount into a repository of one's own.
    let layer = image.as_image().unwrap().layers[0].digest;
    assert!(
        !other
            .mount_blob(&registry.repository("other"), &layer, std::slice::from_ref(&cache.name))
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn the_config_json_that_is_given_to_a_build_works() {
    let registry = Registry::start().await;
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), HOUR);
    let text = docker_config(&registry.host(), &token);
    let client = client(Credentials::docker_config_json(&text).unwrap());
    push_image(&client, &registry.repository("hello"), &platform("linux/amd64"), b"layer").await;
    let bearer = format!(r#"{{"auths":{{"{}":{{"registrytoken":"{}"}}}}}}"#, registry.host(), token.reveal());
    let client = super::client(Credentials::docker_config_json(&bearer).unwrap());
    push_image(&client, &registry.repository("hello"), &platform("linux/arm64"), b"layer").await;
}

#[tokio::test]
async fn a_token_that_ends_is_renewed_in_mid_flight() {
    // A server with another key refuses what the first one issued, as a server refuses what has ended.
    let registry = Registry::start().await;
    let app = registry.repository("hello");
    let client = registry.client();
    push_image(&client, &app, &platform("linux/amd64"), b"one").await;
    let narrow = registry.server.tokens().issue("x", &["hello:pull".parse::<Scope>().unwrap()], HOUR);
    install_tls();
    let status = reqwest::Client::new()
        .post(registry.url("/v2/hello/blobs/uploads/"))
        .bearer_auth(narrow.reveal())
        .send()
        .await
        .unwrap();
    assert_eq!(status.status(), 401);
    let challenge = status.headers()["www-authenticate"].to_str().unwrap();
    assert!(
        challenge.contains("repository:hello:pull,push") && challenge.contains("insufficient_scope"),
        "{challenge}"
    );
}

#[tokio::test]
async fn manifests_name_only_what_is_there() {
    let registry = Registry::start().await;
    let (client, app) = (registry.client(), registry.repository("hello"));
    let config = Descriptor::of(MediaType::ImageConfig, b"{}");
    let manifest = RawManifest::image(&Manifest::image(config.clone(), vec![]));
    let error = client.push_manifest(&app, &"v1".parse().unwrap(), &manifest).await.unwrap_err();
    assert!(error.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
    client.push_blob(&app, BlobSource::bytes("{}"), &[]).await.unwrap();
    let lying = RawManifest::image(&Manifest::image(Descriptor { size: 3, ..config }, vec![]));
    let error = client.push_manifest(&app, &"v1".parse().unwrap(), &lying).await.unwrap_err();
    assert!(error.to_string().contains("SIZE_INVALID"), "{error}");
    client.push_manifest(&app, &"v1".parse().unwrap(), &manifest).await.unwrap();
    // What one repository has is not had by another.
    let error = client.push_manifest(&registry.repository("other"), &"v1".parse().unwrap(), &manifest).await;
    assert!(error.unwrap_err().to_string().contains("MANIFEST_BLOB_UNKNOWN"));
}

#[tokio::test]
async fn referrers_are_listed_and_filtered() {
    let registry = Registry::start().await;
    let (client, app) = (registry.client(), registry.repository("hello"));
    let image = push_image(&client, &app, &platform("linux/amd64"), b"layer").await;
    client.push_blob(&app, BlobSource::bytes("{}"), &[]).await.unwrap();
    let mut digests = Vec::new();
    for kind in ["application/x.sbom", "application/x.signature"] {
        let empty = Descriptor::of(MediaType::Empty, b"{}");
        let mut manifest = Manifest::image(empty.clone(), vec![empty]);
        manifest.artifact_type = Some(MediaType::from(kind));
        manifest.subject = Some(image.descriptor());
        manifest.annotations.insert("a".to_owned(), kind.to_owned());
        let manifest = RawManifest::image(&manifest);
        client.push_manifest(&app, &Target::Digest(manifest.digest()), &manifest).await.unwrap();
        digests.push(manifest.digest());
    }
    install_tls();
    let get = async |query: &str| {
        let url = registry.url(&format!("/v2/hello/referrers/{}{query}", image.digest()));
        let response = reqwest::get(url).await.unwrap();
        let filtered = response.headers().get("oci-filters-applied").is_some();
        let next = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let raw = RawManifest::parse(response.bytes().await.unwrap(), None).unwrap();
        (raw.as_index().unwrap().manifests.clone(), filtered, next)
    };
    let (all, filtered, _) = get("").await;
    assert_eq!((all.len(), filtered), (2, false));
    let (signatures, filtered, _) = get("?artifactType=application/x.signature").await;
    assert_eq!((signatures.len(), filtered), (1, true));
    assert_eq!(signatures[0].digest, digests[1]);
    assert_eq!(signatures[0].annotations["a"], "application/x.signature");
    let (first, _, next) = get("?n=1").await;
    assert_eq!(first.len(), 1);
    assert!(next.unwrap().contains("last="));
    client.delete_manifest(&app, &Target::Digest(digests[0])).await.unwrap();
    assert_eq!(get("").await.0.len(), 1);
}

#[tokio::test]
async fn tags_come_in_pages() {
    let registry = Registry::start().await;
    let (client, app) = (registry.client(), registry.repository("hello"));
    let image = push_image(&client, &app, &platform("linux/amd64"), b"layer").await;
    for tag in ["b", "a", "c"] {
        client.push_manifest(&app, &tag.parse().unwrap(), &image).await.unwrap();
    }
    let page = reqwest::get(registry.url("/v2/hello/tags/list?n=2")).await.unwrap();
    assert_eq!(page.headers()["link"], "</v2/hello/tags/list?n=2&last=b>; rel=\"next\"");
    assert_eq!(page.text().await.unwrap(), r#"{"name":"hello","tags":["a","b"]}"#);
    let texts: Vec<String> = client.tags(&app).await.unwrap().into_iter().map(String::from).collect();
    assert_eq!(texts, ["a", "b", "c"]);
    client.delete_manifest(&app, &"b".parse().unwrap()).await.unwrap();
    assert!(client.find_manifest(&app, &"b".parse().unwrap()).await.unwrap().is_none());
    assert!(client.find_manifest(&app, &"a".parse().unwrap()).await.unwrap().is_some());
}

#[tokio::test]
async fn the_child_of_an_index_is_not_deleted_before_it() {
    let registry = Registry::start().await;
    let (client, app) = (registry.client(), registry.repository("hello"));
    let index = push_index(&client, &app, "v1").await;
    let child = Target::Digest(index.as_index().unwrap().manifests[0].digest);
    let error = client.delete_manifest(&app, &child).await.unwrap_err();
    assert!(error.to_string().contains("is part of index"), "{error}");
    client.delete_manifest(&app, &Target::Digest(index.digest())).await.unwrap();
    client.delete_manifest(&app, &child).await.unwrap();
    assert!(client.tags(&app).await.unwrap().is_empty());
}

#[tokio::test]
async fn garbage_goes_and_releases_stay() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (app, mirror) = (registry.repository("hello"), registry.repository("mirror/library/debian"));
    let old = push_index(&client, &app, "v1").await;
    let kept = push_index(&client, &app, "v2").await;
    let own = push_image(&client, &app, &platform("linux/amd64"), b"pushed by a user").await;
    client.push_manifest(&app, &"mine".parse().unwrap(), &own).await.unwrap();
    let base = push_index(&client, &mirror, "12").await;
    client.push_blob(&app, BlobSource::bytes("never used"), &[]).await.unwrap();
    let releases = [kept.digest()].into();
    let young = Keep { releases, grace: HOUR, cache_age: HOUR };
    assert_eq!(registry.server.collect_garbage(&young).await.unwrap().blobs, 0, "younger than the grace");
    for file in registry.files("") {
        let file = std::fs::File::options().write(true).open(registry.directory.path().join(file)).unwrap();
        file.set_modified(SystemTime::now() - 2 * HOUR).unwrap();
    }
    let collected = registry.server.collect_garbage(&young).await.unwrap();
    // The old index, its two images, their configs and layers (one config is another's too), and the unused blob.
    assert_eq!(collected.manifests, 3);
    assert!(collected.blobs >= 6, "{collected:?}");
    assert!(client.find_manifest(&app, &Target::Digest(old.digest())).await.unwrap().is_none());
    assert!(!client.has_blob(&app, &Digest::of("never used")).await.unwrap());
    for (repository, index) in [(&app, &kept), (&mirror, &base)] {
        for child in &index.as_index().unwrap().manifests {
            let image = client.manifest(repository, &Target::Digest(child.digest)).await.unwrap();
            client.blob(repository, &image.as_image().unwrap().layers[0], 1000).await.unwrap();
        }
    }
    assert!(client.find_manifest(&app, &"mine".parse().unwrap()).await.unwrap().is_some());
    assert_eq!(registry.server.collect_garbage(&young).await.unwrap().manifests, 0);
}

#[tokio::test]
async fn a_directory_has_one_server() {
    let registry = Registry::start().await;
    let second = Server::open(ServerConfig::new(registry.directory.path())).await;
    assert!(matches!(second, Err(ServerError::Locked(_))));
}

#[tokio::test]
async fn credentials_are_asked_for_also_by_those_that_may_read() {
    let registry = Registry::start().await;
    install_tls();
    let base = reqwest::get(registry.url("/v2/")).await.unwrap();
    assert_eq!(base.status(), 401);
    let expected = format!("Bearer realm=\"http://{}/token\",service=\"hephy registry\"", registry.address);
    assert_eq!(base.headers()["www-authenticate"], expected.as_str());
    let http = reqwest::Client::new();
    let login = http
        .get(registry.url("/v2/"))
        .basic_auth("anyone", Some(registry.token().reveal()))
        .send()
        .await
        .unwrap();
    assert_eq!(login.status(), 200);
    let wrong = http
        .get(registry.url("/token"))
        .basic_auth("hephy", Some(&Secret::new("x").reveal()))
        .send()
        .await
        .unwrap();
    assert_eq!(wrong.status(), 401);
}
