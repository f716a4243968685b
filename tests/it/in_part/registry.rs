//! Registries, and how much comes from them.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hephy::publish::{Access, Place};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::registry::Registry as Ours;

/// A registry.
pub(super) struct Registry {
    pub(super) address: SocketAddr,
    kind: Kind,
}

enum Kind {
    Ours(Box<Ours>),
    Reference { process: Child, _directory: TempDir },
}

impl Registry {
    pub(super) async fn ours() -> Self {
        let ours = Ours::start().await;
        Self { address: ours.address, kind: Kind::Ours(Box::new(ours)) }
    }

    /// Debian's `docker-registry`, or nothing where it is not installed.
    #[expect(clippy::print_stderr, reason = "a test that tries nothing says so")]
    pub(super) fn reference() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let (data, config) = (directory.path().join("data"), directory.path().join("config.yml"));
        let settings = serde_json::json!({
            "version": 0.1,
            "storage": { "filesystem": { "rootdirectory": data } },
            "http": { "addr": "127.0.0.1:0", "secret": "x" },
        });
        std::fs::write(&config, settings.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
        let Ok(mut process) = command.spawn() else {
            eprintln!("docker-registry is not installed: not tried");
            return None;
        };
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let said = lines.find_map(|line| Some(line.ok()?.split_once("listening on ")?.1.to_owned())).unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let address: String =
            said.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
        let kind = Kind::Reference { process, _directory: directory };
        Some(Self { address: address.parse().unwrap(), kind })
    }

    /// Its name for who reaches it at another address.
    pub(super) fn place(&self, address: SocketAddr) -> Place {
        let host = address.to_string().parse().unwrap();
        match &self.kind {
            Kind::Ours(ours) => Place::own(host, ours.server.tokens().clone()),
            Kind::Reference { .. } => {
                let reach = hephy::registry::client::Reach::default();
                Place { host, prefix: None, is_plain: true, access: Access::Open, reach }
            }
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Kind::Reference { process, .. } = &mut self.kind {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// Stands between one server and the registry, and counts what comes from there.
pub(super) struct Counted {
    pub(super) address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Counted {
    pub(super) async fn start(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bytes = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&bytes);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(registry).await.unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&counted)));
            }
        });
        Self { address, bytes }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

async fn pass(client: TcpStream, server: TcpStream, bytes: Arc<AtomicU64>) {
    let ((mut asked, mut answers), (mut answered, mut asks)) = (client.into_split(), server.into_split());
    let ask = async {
        // Either may break off at any time.
        drop(tokio::io::copy(&mut asked, &mut asks).await);
        drop(asks.shutdown().await);
    };
    let answer = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = answered.read(&mut buffer).await {
            bytes.fetch_add(read as u64, Ordering::SeqCst);
            if answers.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
        drop(answers.shutdown().await);
    };
    tokio::join!(ask, answer);
}
