//! The SSH receiver against stock OpenSSH and git.

mod authentication;
mod git;
mod hostile;
mod measure;
mod protocol;
mod sessions;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hephy::model::{AppName, PublicKey};
use hephy::receive::{
    Command, Directory, DirectoryError, Gone, Handler, HostKey, KnownKey, Limits, Server, Session,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// The users of a test.
#[derive(Default)]
struct Users {
    keys: Mutex<Vec<(PublicKey, KnownKey)>>,
    broken: bool,
}

#[async_trait]
impl Directory for Users {
    async fn user_of(&self, key: &PublicKey) -> Result<Option<KnownKey>, DirectoryError> {
        if self.broken {
            return Err(DirectoryError("the disk is gone".into()));
        }
        let keys = self.keys.lock().unwrap();
        Ok(keys.iter().find(|(known, _)| known == key).map(|(_, who)| who.clone()))
    }

    fn how_to_add(&self, keys: &[PublicKey]) -> Vec<String> {
        keys.iter().map(|key| format!("Add it: echo '{key}' | hephy keys add -")).collect()
    }
}

/// Does what the tests ask for, and reports how clients went and which git services they asked for.
struct Verbs {
    gone: mpsc::UnboundedSender<Gone>,
    started: mpsc::UnboundedSender<String>,
    repositories: PathBuf,
    own_refs: Mutex<hephy::git::Refs>,
}

#[async_trait]
impl Handler for Verbs {
    async fn run(&self, session: Session) -> u8 {
        let command = session.command.clone();
        self.started.send(format!("{command:?}")).unwrap();
        match command {
            Command::ReceivePack(app) if app.as_str().starts_with("own") => {
                protocol::receive(&self.repositories, &self.own_refs, &self.gone, &app, session).await
            }
            Command::UploadPack(app) if app.as_str().starts_with("own") => {
                protocol::upload(&self.repositories, &self.own_refs, &app, session).await
            }
            Command::ReceivePack(app) => self.git("receive-pack", &app, session).await,
            Command::UploadPack(app) => self.git("upload-pack", &app, session).await,
            Command::Greeting => {
                let Session { mut stdout, user, .. } = session;
                stdout.write_all(format!("Hello {user}.\nThis is hephy.\n").as_bytes()).await.unwrap();
                0
            }
            Command::Verb(words) => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                self.verb(&words, session).await
            }
        }
    }
}

impl Verbs {
    async fn verb(&self, words: &[&str], mut session: Session) -> u8 {
        match words {
            ["words", rest @ ..] => {
                session.stdout.write_all(format!("{rest:?}").as_bytes()).await.unwrap();
                0
            }
            ["who"] => {
                let Session { user, key_name, login, environment, terminal, .. } = &session;
                let columns = terminal.as_ref().map(|terminal| terminal.columns);
                let text = format!("{user} {key_name} {login} {:?} {columns:?}\n", environment.git_protocol);
                session.stdout.write_all(text.as_bytes()).await.unwrap();
                0
            }
            ["cat"] => {
                tokio::io::copy_buf(&mut session.stdin, &mut session.stdout).await.unwrap();
                0
            }
            ["count"] => {
                let mut bytes = 0;
                let mut buffer = vec![0; 1 << 16];
                loop {
                    let read = session.stdin.read(&mut buffer).await.unwrap();
                    if read == 0 {
                        break;
                    }
                    bytes = continues(bytes, &buffer[..read]);
                }
                session.stdout.write_all(bytes.to_string().as_bytes()).await.unwrap();
                0
            }
            ["pattern", bytes] => {
                let mut left = bytes.parse().unwrap();
                while left > 0 {
                    let part = usize::min(left, PATTERN.len());
                    session.stdout.write_all(&PATTERN[..part]).await.unwrap();
                    left -= part;
                }
                0
            }
            ["lines", count] => {
                for line in 0..count.parse::<u32>().unwrap() {
                    session.stdout.write_all(format!("{line}\n").as_bytes()).await.unwrap();
                    session.stderr.write_all(format!("e{line}\n").as_bytes()).await.unwrap();
                }
                7
            }
            ["wait"] => {
                drop(session.stdin);
                let gone = session.closed.wait().await;
                self.gone.send(gone).unwrap();
                3
            }
            ["hold"] => {
                session.closed.wait().await;
                1
            }
            ["silent", ms] => {
                tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await;
                session.stdout.write_all(b"still here\n").await.unwrap();
                0
            }
            ["break"] => panic!("asked to"),
            other => panic!("no verb {other:?}"),
        }
    }

    /// Lets stock git serve, as sshd would.
    async fn git(&self, service: &str, app: &AppName, session: Session) -> u8 {
        let Session { mut stdin, mut stdout, mut stderr, environment, closed, .. } = session;
        let repository = self.repositories.join(format!("{app}.git"));
        let mut command = tokio::process::Command::new("git");
        command
            .arg(service)
            .arg(repository)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.envs(environment.git_protocol.map(|version| ("GIT_PROTOCOL", version))).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut errors = child.stderr.take().unwrap();
        let feeding = tokio::spawn(async move { tokio::io::copy_buf(&mut stdin, &mut input).await });
        let work = async {
            let copies = tokio::join!(
                tokio::io::copy(&mut output, &mut stdout),
                tokio::io::copy(&mut errors, &mut stderr)
            );
            drop(copies);
            child.wait().await.unwrap().code().unwrap_or(1)
        };
        let code = tokio::select! {
            code = work => code,
            gone = closed.wait() => {
                self.gone.send(gone).unwrap();
                1
            }
        };
        feeding.abort();
        u8::try_from(code).unwrap()
    }
}

/// A running receiver and what a client of it needs.
struct Receiver {
    address: SocketAddr,
    gone: mpsc::UnboundedReceiver<Gone>,
    started: mpsc::UnboundedReceiver<String>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    home: TempDir,
}

/// One key that is known, and the default limits.
async fn receiver() -> Receiver {
    receiver_with(Limits::default(), &["known"]).await
}

async fn receiver_with(limits: Limits, known: &[&str]) -> Receiver {
    let home = tempfile::tempdir().unwrap();
    let users = Users::default();
    for name in known {
        let key = make_key(home.path(), name, &["-t", "ed25519"]);
        let who = KnownKey { user: "ada".parse().unwrap(), key_name: (*name).to_owned() };
        users.keys.lock().unwrap().push((key, who));
    }
    serve(home, users, limits).await
}

async fn serve(home: TempDir, users: Users, limits: Limits) -> Receiver {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let host_key = HostKey::open(&home.path().join("host_key")).unwrap();
    let known_host = format!("[127.0.0.1]:{} {}\n", address.port(), host_key.public_key());
    std::fs::write(home.path().join("known_hosts"), known_host).unwrap();
    let (gone_sender, gone) = mpsc::unbounded_channel();
    let (started_sender, started) = mpsc::unbounded_channel();
    let repositories = home.path().join("repositories");
    let own_refs = Mutex::default();
    let verbs = Verbs { gone: gone_sender, started: started_sender, repositories, own_refs };
    let server = Server::new(&host_key, Arc::new(users), Arc::new(verbs), limits);
    let stop = CancellationToken::new();
    let task = tokio::spawn(server.serve(listener, stop.clone(), Duration::from_secs(5)));
    Receiver { address, gone, started, stop, task, home }
}

/// Makes a key pair in a directory.
fn make_key(directory: &Path, name: &str, options: &[&str]) -> PublicKey {
    let path = directory.join(name);
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-C", &format!("{name} comment"), "-f"])
        .arg(&path)
        .args(options)
        .status()
        .unwrap();
    assert!(made.success());
    PublicKey::parse_file(&std::fs::read_to_string(path.with_extension("pub")).unwrap()).unwrap()
}

impl Receiver {
    fn ssh_options(&self, keys: &[&str]) -> Vec<String> {
        let known_hosts = self.home.path().join("known_hosts");
        let mut options: Vec<String> =
            ["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o"]
                .map(str::to_owned)
                .into();
        options.push(format!("UserKnownHostsFile={}", known_hosts.display()));
        options.extend(["-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"].map(str::to_owned));
        if keys.is_empty() {
            options.extend(["-o", "IdentityFile=none"].map(str::to_owned));
        }
        for key in keys {
            options.extend(["-i".to_owned(), self.home.path().join(key).display().to_string()]);
        }
        options
    }

    /// An `ssh` that offers these keys, with these further options.
    fn ssh_as(&self, keys: &[&str], options: &[&str], command: &[&str]) -> tokio::process::Command {
        let mut ssh = tokio::process::Command::new("ssh");
        ssh.args(self.ssh_options(keys)).args(options);
        ssh.args(["-p", &self.address.port().to_string(), "hephy@127.0.0.1"]).args(command);
        ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        ssh
    }

    fn ssh(&self, command: &[&str]) -> tokio::process::Command {
        self.ssh_as(&["known"], &[], command)
    }

    /// A `git` in a directory that pushes with this key.
    fn git(&self, keys: &[&str], directory: &Path, arguments: &[&str]) -> tokio::process::Command {
        let mut git = tokio::process::Command::new("git");
        let ssh = format!("ssh {}", self.ssh_options(keys).join(" "));
        git.arg("-C").arg(directory).args([
            "-c",
            "user.name=ada",
            "-c",
            "user.email=ada@localhost",
            "-c",
            "gc.auto=0",
        ]);
        git.args(arguments)
            .env("GIT_SSH_COMMAND", ssh)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", self.home.path());
        git.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        git
    }

    fn remote(&self, app: &str) -> String {
        format!("ssh://hephy@{}/{app}.git", self.address)
    }

    /// Waits until a command runs at the server.
    async fn running(&mut self) {
        tokio::time::timeout(PATIENCE, self.started.recv()).await.unwrap().unwrap();
    }

    /// How the next client goes, within the time that is promised.
    async fn goes_within(&mut self, limit: Duration) -> Gone {
        tokio::time::timeout(limit, self.gone.recv()).await.unwrap().unwrap()
    }
}

/// Runs to the end.
async fn output(mut command: tokio::process::Command) -> Output {
    tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is sent and compared: its length is no power of two, so nothing that is lost or doubled fits again.
static PATTERN: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..65_537_u32).map(|number| (number * 7 % 251) as u8).collect());

/// Compares what follows so many bytes of repeated [`PATTERN`]; returns how many bytes there are now.
fn continues(mut at: usize, mut part: &[u8]) -> usize {
    while !part.is_empty() {
        let expected = &PATTERN[at % PATTERN.len()..];
        let both = expected.len().min(part.len());
        assert!(part[..both] == expected[..both], "at {at}");
        at += both;
        part = &part[both..];
    }
    at
}

/// Reads a stream of the server's to its end.
async fn read_all(mut stream: tokio::net::TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap();
    drop(read);
    bytes
}
