//! Our client against the reference registry (distribution), with TLS, HTTP/2 and passwords, where somebody built it.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use hephy::model::Secret;
use hephy::oci::{Digest, Host, Repository};
use hephy::registry::client::{BlobSource, Client, ClientConfig, Credential, Credentials, Reach, Transfer};

use super::tls::certificate;
use super::{platform, push_index};

/// `ada`, `U*U`: from the test vectors of crypt_blowfish.
const HTPASSWD: &str = "ada:$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n";

struct Reference {
    process: Child,
    host: Host,
    _directory: tempfile::TempDir,
}

impl Drop for Reference {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Reference {
    #[expect(clippy::print_stderr, reason = "a test that tries nothing says so")]
    fn start() -> Option<Self> {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let program = home.join(".cache/hephy-tools/bin/registry");
        if !program.is_file() {
            eprintln!("the reference registry is not built: not tried");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("htpasswd"), HTPASSWD).unwrap();
        let config = serde_json::json!({
            "version": 0.1,
            "log": { "level": "info", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": at("data") } },
            "http": {
                "addr": "127.0.0.1:0", "secret": "x",
                "tls": { "certificate": certificate("server.pem"), "key": certificate("server.key") },
            },
            "auth": { "htpasswd": { "realm": "test", "path": at("htpasswd") } },
        });
        std::fs::write(at("config.yml"), config.to_string()).unwrap();
        let mut command = Command::new(program);
        command.args(["serve", &at("config.yml")]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.env("OTEL_TRACES_EXPORTER", "none").spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let listening = lines.find_map(|line| Some(line.ok()?.split_once("listening on ")?.1.to_owned()));
        let listening = listening.unwrap();
        // What it says later is not looked at, and must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        let address: String =
            listening.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
        Some(Self { process, host: address.parse().unwrap(), _directory: directory })
    }

    fn client(&self, password: &str) -> Client {
        super::install_tls();
        let credential =
            Credential::Basic { username: "ada".to_owned(), password: Secret::new(password.to_owned()) };
        let mut reach = Reach::default();
        reach.trust(Some(self.host.clone()), &certificate("authority.pem")).unwrap();
        let credentials = Credentials::none().with(&self.host, credential);
        Client::new(ClientConfig { credentials, reach, ..ClientConfig::default() })
    }

    fn repository(&self, name: &str) -> Repository {
        Repository { host: self.host.clone(), name: name.parse().unwrap() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_registry_takes_what_we_push_and_gives_it_back() {
    let Some(registry) = tokio::task::block_in_place(Reference::start) else { return };
    let (client, hello, other) =
        (registry.client("U*U"), registry.repository("hello"), registry.repository("team/other"));
    let index = push_index(&client, &hello, "v1").await;
    let found = client.manifest(&hello, &"v1".parse().unwrap()).await.unwrap();
    assert_eq!(found.bytes(), index.bytes());
    let image = client.image(&hello.with(&"v1".parse().unwrap()), &platform("linux/arm64")).await.unwrap();
    let layer = &image.manifest.as_image().unwrap().layers[0];
    assert_eq!(client.blob(&hello, layer, 100).await.unwrap(), &b"layer of v1 for linux/arm64"[..]);
    let from = [hello.name.clone()];
    let blob = BlobSource::bytes(&b"layer of v1 for linux/arm64"[..]);
    assert_eq!(client.push_blob(&other, blob.clone(), &from).await.unwrap(), Transfer::Mounted);
    assert_eq!(client.push_blob(&other, blob, &from).await.unwrap(), Transfer::Existed);
    // Large ones, several at once.
    let large = |seed: u32| (0..2_000_000_u32).flat_map(|n| (n ^ seed).to_le_bytes()).collect::<Vec<u8>>();
    let pushes = (1..=4).map(|seed| client.push_blob(&other, BlobSource::bytes(large(seed)), &[]));
    for sent in futures::future::join_all(pushes).await {
        assert_eq!(sent.unwrap(), Transfer::Uploaded);
    }
    assert!(client.has_blob(&other, &Digest::of(large(3))).await.unwrap());
    let refused = registry.client("wrong").tags(&hello).await.unwrap_err();
    assert!(refused.is_denied(), "{refused}");
    assert!(!format!("{refused} {refused:?}").contains("wrong"), "{refused:?}");
}
