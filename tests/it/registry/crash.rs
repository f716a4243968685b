//! Our server killed, or out of disk, in the middle of an upload.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hephy::oci::Digest;
use hephy::registry::client::BlobSource;
use hephy::registry::server::{Server, ServerConfig, TokenIssuer};
use tokio::io::AsyncWriteExt as _;

use super::{Registry, client, install_tls};

const DIRECTORY: &str = "HEPHY_TEST_REGISTRY";

/// Not a test: the server that the tests below run as a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is started by the tests that need a server process"]
async fn a_server_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let server = Server::open(ServerConfig::new(directory)).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening {}", listener.local_addr().unwrap());
    server.serve(listener, tokio_util::sync::CancellationToken::new()).await.unwrap();
}

pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Process {
    pub(crate) fn start(directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "registry::crash::a_server_process", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address =
            lines.map_while(Result::ok).find_map(|line| Some(line.split_once("listening ")?.1.to_owned()));
        Self { child, address: address.unwrap() }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_an_upload_has_no_blob_that_lies_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let server = Process::start(directory.path());
    let token = TokenIssuer::open(directory.path()).unwrap().for_server(Duration::from_hours(1));
    install_tls();
    let http = reqwest::Client::new();
    let start =
        http.post(format!("http://{}/v2/hello/blobs/uploads/", server.address)).bearer_auth(token.reveal());
    let location = start.send().await.unwrap().headers()["location"].to_str().unwrap().to_owned();
    let content = vec![5; 8_000_000];
    let digest = Digest::of(&content);
    let mut stream = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let head = format!(
        "PUT {location}?digest={digest} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        server.address,
        token.reveal(),
        content.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&content[..6_000_000]).await.unwrap();
    let uploads = directory.path().join("repositories/hello/_uploads");
    // Some of it is on the disk before the server dies.
    for _ in 0..2000 {
        let sizes =
            std::fs::read_dir(&uploads).unwrap().flatten().map(|entry| entry.metadata().unwrap().len());
        if sizes.sum::<u64>() > 1_000_000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.kill();
    assert_eq!(std::fs::read_dir(directory.path().join("blobs/sha256")).unwrap().count(), 0);
    let registry = Registry::start_in(directory, |config| config).await;
    let client = registry.client();
    let hello = registry.repository("hello");
    assert!(!client.has_blob(&hello, &digest).await.unwrap());
    client.push_blob(&hello, BlobSource::bytes(content), &[]).await.unwrap();
    assert!(client.has_blob(&hello, &digest).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_leaves_nothing_half_written() {
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let size = Some("size=3m");
    let none = nix::mount::MsFlags::empty();
    if nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), none, size).is_err() {
        eprintln!("not root: a small file system cannot be mounted, not tried");
        return;
    }
    let unmount = Unmount(small.clone());
    let registry = Registry::start_in(tempfile::tempdir_in(&small).unwrap(), |config| config).await;
    let (client, hello) = (registry.client(), registry.repository("hello"));
    let large = vec![1; 5_000_000];
    let error = client.push_blob(&hello, BlobSource::bytes(large.clone()), &[]).await.unwrap_err();
    assert!(error.to_string().contains("the registry's disk is full"), "{error}");
    assert!(!client.has_blob(&hello, &Digest::of(&large)).await.unwrap());
    assert!(registry.files("blobs").is_empty() && registry.files("repositories").is_empty());
    client.push_blob(&hello, BlobSource::bytes(vec![2; 1_000_000]), &[]).await.unwrap();
    drop(registry.stop().await);
    drop(unmount);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// `VmHWM` of a process in MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: run it alone"]
async fn pushing_and_pulling_500_mb_takes_little_memory_on_each_side() {
    let directory = tempfile::tempdir().unwrap();
    let server = Process::start(directory.path());
    let token = TokenIssuer::open(directory.path()).unwrap().for_server(Duration::from_hours(1));
    let file = directory.path().join("layer");
    let mut content = Vec::with_capacity(500_000_000);
    let mut state = 1_u64;
    while content.len() < 500_000_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        content.extend_from_slice(&state.to_le_bytes());
    }
    let (digest, size) = (Digest::of(&content), content.len() as u64);
    std::fs::write(&file, content).unwrap();
    // The peak so far is that of making the file.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let credential =
        hephy::registry::client::Credential::Basic { username: "hephy".to_owned(), password: token };
    let host = server.address.parse().unwrap();
    let client = client(hephy::registry::client::Credentials::none().with(&host, credential));
    let repository = format!("{}/hello", server.address).parse().unwrap();
    let started = std::time::Instant::now();
    client.push_blob(&repository, BlobSource::file(&file, digest, size), &[]).await.unwrap();
    let pushed = started.elapsed();
    let started = std::time::Instant::now();
    let descriptor = hephy::oci::Descriptor::new(hephy::oci::MediaType::LayerTar, digest, size);
    let mut sink = tokio::fs::File::create(directory.path().join("pulled")).await.unwrap();
    client.pull_blob(&repository, &descriptor, &mut sink).await.unwrap();
    let pulled = started.elapsed();
    let (own, servers) = (peak_mib(std::process::id()), peak_mib(server.child.id()));
    println!("push {pushed:.2?}, pull {pulled:.2?}; peak client {own} MiB, server {servers} MiB");
    server.kill();
    assert!(own <= 64 && servers <= 64, "client {own} MiB, server {servers} MiB");
}
