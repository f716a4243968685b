//! Other people's clients against our server, where they are installed.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use hephy::oci::{Descriptor, Digest, ImageConfig, Index, Manifest, MediaType, RawManifest, Target};
use hephy::registry::client::BlobSource;
use tempfile::TempDir;

use super::{Registry, platform, push_index};

/// A tool with a home of its own, or nothing where it is not installed.
struct Tool {
    program: PathBuf,
    home: TempDir,
}

impl Tool {
    /// `skopeo` and `podman` are there in CI; `crane` where somebody built it.
    #[expect(clippy::print_stderr, reason = "a test that tries nothing says so")]
    fn find(name: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let cache = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/hephy-tools/bin"));
        let mut directories = std::env::split_paths(&path).chain(cache);
        let program = directories.find_map(|dir| Some(dir.join(name)).filter(|program| program.is_file()));
        if program.is_none() {
            eprintln!("{name} is not installed: not tried");
        }
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("auth.json"), "{}").unwrap();
        Some(Self { program: program?, home })
    }

    async fn run(&self, arguments: &[&str], input: Option<&str>) -> Output {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("HOME", self.home.path()).env("XDG_RUNTIME_DIR", self.home.path());
        command.env("REGISTRY_AUTH_FILE", self.home.path().join("auth.json"));
        command.env("DOCKER_CONFIG", self.home.path()).current_dir(self.home.path());
        let file = self.home.path().join("stdin");
        std::fs::write(&file, input.unwrap_or_default()).unwrap();
        command.stdin(std::fs::File::open(&file).unwrap());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Runs what must succeed; its output.
    async fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, None).await
    }

    async fn ok_with(&self, arguments: &[&str], input: Option<&str>) -> String {
        let output = self.run(arguments, input).await;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs what must fail; its errors.
    async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, None).await;
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_without_a_token_and_writes_with_one() {
    let Some(skopeo) = Tool::find("skopeo") else { return };
    let registry = Registry::start().await;
    let index = push_index(&registry.client(), &registry.repository("hello"), "v1").await;
    let at = |path: &str| format!("docker://{}/{path}", registry.address);
    let (source, copy) = (at("hello:v1"), at("other:v1"));
    let raw = skopeo.ok(&["inspect", "--tls-verify=false", "--raw", &source]).await;
    assert_eq!(Digest::of(&raw), index.digest());
    let inspected = skopeo.ok(&["inspect", "--tls-verify=false", "--override-arch=arm64", &source]).await;
    assert!(inspected.contains("\"Architecture\": \"arm64\""), "{inspected}");
    skopeo.ok(&["copy", "-q", "--all", "--src-tls-verify=false", &source, "oci:layout:v1"]).await;
    let without = ["copy", "-q", "--all", "--dest-tls-verify=false", "oci:layout:v1", &copy];
    let refused = skopeo.fails(&without).await;
    assert!(refused.contains("hephy registry token"), "{refused}");
    let token = registry.server.tokens().for_user(
        &"ada".parse().unwrap(),
        &["other".parse().unwrap()],
        Duration::from_mins(5),
    );
    let credentials = format!("hephy:{}", token.reveal());
    let with =
        ["copy", "-q", "--all", "--dest-tls-verify=false", "--dest-creds", &credentials, "oci:layout:v1"];
    skopeo.ok(&[&with[..], &[&copy]].concat()).await;
    let pushed =
        registry.client().manifest(&registry.repository("other"), &"v1".parse().unwrap()).await.unwrap();
    assert_eq!(pushed, index);
    let elsewhere = at("hello:v2");
    let refused = skopeo.fails(&[&with[..], &[&elsewhere]].concat()).await;
    assert!(refused.contains("does not allow push in `hello`"), "{refused}");
    // Between two repositories, blobs are mounted.
    let bearer = ["copy", "-q", "--all", "--src-tls-verify=false", "--dest-tls-verify=false"];
    let server = registry.token();
    let bearer = [&bearer[..], &["--dest-registry-token", server.reveal(), &source, &elsewhere]].concat();
    skopeo.ok(&bearer).await;
    let tags = skopeo.ok(&["list-tags", "--tls-verify=false", &at("hello")]).await;
    assert!(tags.contains("\"v1\"") && tags.contains("\"v2\""), "{tags}");
    let deleted = ["delete", "--tls-verify=false", "--creds", &credentials, &copy];
    skopeo.ok(&deleted).await;
    let gone =
        registry.client().find_manifest(&registry.repository("other"), &Target::Digest(index.digest())).await;
    assert!(gone.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_logs_in_pulls_and_pushes() {
    let Some(podman) = Tool::find("podman") else { return };
    let registry = Registry::start().await;
    push_real_index(&registry).await;
    let root = podman.home.path().join("storage").display().to_string();
    let runroot = podman.home.path().join("run").display().to_string();
    let base = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
    let command = |rest: &[&'static str]| rest.to_vec();
    let (address, source) = (registry.address.to_string(), format!("{}/hello:v1", registry.address));
    let pull = [&base[..], &command(&["pull", "-q", "--tls-verify=false"]), &[&source]].concat();
    podman.ok(&pull).await;
    let target = format!("{}/other:v1", registry.address);
    let push = [&base[..], &command(&["push", "-q", "--tls-verify=false"]), &[&source, &target]].concat();
    podman.fails(&push).await;
    let login = command(&["login", "--tls-verify=false", "--username", "hephy", "--password-stdin"]);
    let login = [&base[..], &login, &[&address]].concat();
    let wrong = podman.run(&login, Some("wrong")).await;
    assert!(!wrong.status.success());
    let token = registry.server.tokens().for_user(
        &"ada".parse().unwrap(),
        &["other".parse().unwrap()],
        Duration::from_mins(5),
    );
    podman.ok_with(&login, Some(token.reveal())).await;
    podman.ok(&push).await;
    let pushed =
        registry.client().manifest(&registry.repository("other"), &"v1".parse().unwrap()).await.unwrap();
    assert!(pushed.as_image().is_some());
}

/// An index of images with a compressed layer, which these tools unpack.
async fn push_real_index(registry: &Registry) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "hello.txt", &b"hello"[..]).unwrap();
    let layer = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layer).unwrap();
    let gzip = gzip.finish().unwrap();
    let (client, app) = (registry.client(), registry.repository("hello"));
    let mut children = Vec::new();
    for name in ["linux/amd64", "linux/arm64"] {
        let mut config = ImageConfig::new(&platform(name));
        config.rootfs.diff_ids.push(Digest::of(&layer));
        let config = config.to_bytes();
        let layers = vec![Descriptor::of(MediaType::LayerTarGzip, &gzip)];
        let manifest = Manifest::image(Descriptor::of(MediaType::ImageConfig, &config), layers);
        let manifest = RawManifest::image(&manifest);
        for blob in [config, gzip.clone().into()] {
            client.push_blob(&app, BlobSource::bytes(blob), &[]).await.unwrap();
        }
        client.push_manifest(&app, &Target::Digest(manifest.digest()), &manifest).await.unwrap();
        children.push((platform(name), manifest.descriptor()));
    }
    let index = RawManifest::index(&Index::of_platforms(children).unwrap());
    client.push_manifest(&app, &"v1".parse().unwrap(), &index).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_logs_in_copies_validates_and_deletes() {
    let Some(crane) = Tool::find("crane") else { return };
    let registry = Registry::start().await;
    push_real_index(&registry).await;
    let (address, source) = (registry.address.to_string(), format!("{}/hello:v1", registry.address));
    let index =
        registry.client().manifest(&registry.repository("hello"), &"v1".parse().unwrap()).await.unwrap();
    assert_eq!(crane.ok(&["digest", &source]).await.trim(), index.digest().to_string());
    crane.ok(&["validate", "--remote", &source]).await;
    assert!(crane.ok(&["config", "--platform", "linux/arm64", &source]).await.contains("arm64"));
    let copy = format!("{}/other:v1", registry.address);
    crane.fails(&["copy", &source, &copy]).await;
    let tokens = registry.server.tokens();
    let token = tokens.for_user(&"ada".parse().unwrap(), &["other".parse().unwrap()], Duration::from_mins(5));
    crane
        .ok_with(&["auth", "login", &address, "-u", "hephy", "--password-stdin"], Some(token.reveal()))
        .await;
    crane.ok(&["copy", &source, &copy]).await;
    crane.ok(&["tag", &copy, "v2"]).await;
    assert_eq!(crane.ok(&["ls", &format!("{}/other", registry.address)]).await, "v1\nv2\n");
    crane.ok(&["pull", "--format", "oci", &copy, "layout"]).await;
    crane.ok(&["push", "--index", "layout", &format!("{}/other/nested:v3", registry.address)]).await;
    crane.ok(&["delete", &format!("{}/other@{}", registry.address, index.digest())]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_specifications_own_conformance_test_passes() {
    let Some(conformance) = Tool::find("oci-conformance") else { return };
    let registry = Registry::start().await;
    let settings = [
        ("OCI_REGISTRY", registry.address.to_string()),
        ("OCI_TLS", "disabled".to_owned()),
        ("OCI_USERNAME", "hephy".to_owned()),
        ("OCI_PASSWORD", registry.token().reveal().clone()),
        ("OCI_API_BLOBS_DIGEST_HEADER", "true".to_owned()),
        ("OCI_API_BLOBS_UPLOAD_CANCEL", "true".to_owned()),
        ("OCI_API_MANIFESTS_DIGEST_HEADER", "true".to_owned()),
        // Digests here are sha256.
        ("OCI_DATA_SHA512", "false".to_owned()),
    ];
    let mut command = Command::new(&conformance.program);
    command.envs(settings).current_dir(conformance.home.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the conformance test failed");
}
