//! A server for one repository that decides as a test says, and a client with a home of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hephy::git::{self, Limits, ReceiveError, Received, Refs, Repository, Verdict};
use hephy::model::{CommitId, RefName};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

/// Decides about one ref.
type Policy = Box<dyn Fn(&git::Command) -> Verdict + Send + Sync>;

/// What the server has seen.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) refs: Refs,
    /// Of the last push.
    pub(super) options: Vec<String>,
    pub(super) atomic: bool,
    /// How each connection ended.
    pub(super) outcomes: Vec<Result<&'static str, ReceiveError>>,
}

pub(super) struct Server {
    pub(super) url: String,
    pub(super) port: u16,
    pub(super) repository: Repository,
    pub(super) seen: Arc<Mutex<Seen>>,
    _home: TempDir,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::with(Limits::default(), |_| Verdict::Accepted).await
    }

    pub(super) async fn with(
        limits: Limits,
        policy: impl Fn(&git::Command) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        let home = TempDir::new().unwrap();
        let repository = Repository::open_or_create(&home.path().join("app: \"one\".git")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Seen>>::default();
        let policy: Arc<Policy> = Arc::new(Box::new(policy));
        let (owned, shared) = (repository.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (repository, seen, limits) = (owned.clone(), Arc::clone(&shared), limits.clone());
                let policy = Arc::clone(&policy);
                tokio::spawn(async move { serve(stream, &repository, &seen, &limits, &policy).await });
            }
        });
        let url = format!("git://127.0.0.1:{port}/app");
        Self { url, port, repository, seen, _home: home }
    }

    pub(super) fn refs(&self) -> Vec<String> {
        self.seen.lock().unwrap().refs.keys().map(ToString::to_string).collect()
    }

    pub(super) fn branch(&self, branch: &str) -> Option<CommitId> {
        self.seen.lock().unwrap().refs.get(&RefName::branch(branch).unwrap()).copied()
    }

    /// How the last push ended, once it has.
    pub(super) async fn outcome(&self) -> Result<&'static str, ReceiveError> {
        loop {
            if let Some(outcome) = self.seen.lock().unwrap().outcomes.pop() {
                return outcome;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Quarantines that are there.
    pub(super) fn quarantines(&self) -> usize {
        let objects = std::fs::read_dir(self.repository.path().join("objects")).unwrap().flatten();
        objects.filter(|entry| entry.file_name().to_string_lossy().starts_with("incoming-")).count()
    }

    /// The objects that are stored are whole.
    pub(super) fn fsck(&self) {
        let mut fsck = Command::new("git");
        fsck.args(["-c", "safe.directory=*", "fsck", "--full", "--strict"])
            .current_dir(self.repository.path());
        let output = fsck.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

async fn serve(
    mut stream: TcpStream,
    repository: &Repository,
    seen: &Mutex<Seen>,
    limits: &Limits,
    policy: &Policy,
) {
    let request = git_request(&mut stream).await;
    let (mut reader, writer) = stream.split();
    let refs = seen.lock().unwrap().refs.clone();
    if request.starts_with("git-upload-pack ") {
        let protocol = request.split('\0').find(|part| part.starts_with("version="));
        let head = RefName::branch("main").unwrap();
        let idle = Duration::from_mins(1);
        let shown = git::Shown { refs: &refs, head: &head, protocol, idle };
        git::upload_pack(repository, shown, reader, writer).await.unwrap();
        return;
    }
    let outcome = match git::receive_pack(repository, &refs, limits, &mut reader, writer).await {
        Ok(Received::Nothing(..)) => Ok("nothing"),
        Ok(Received::Refused) => Ok("refused"),
        Ok(Received::Push(push, mut reporter)) => {
            reporter.progress("-----> received\n").await.unwrap();
            reporter.keepalive().await.unwrap();
            let verdicts: Vec<_> = push.commands.iter().map(|c| (c.name.clone(), policy(c))).collect();
            let all = verdicts.iter().all(|(_, verdict)| *verdict == Verdict::Accepted);
            let tips: Vec<_> = push.commands.iter().filter_map(|command| command.new).collect();
            push.quarantine.migrate(&tips).unwrap();
            {
                let mut seen = seen.lock().unwrap();
                seen.options = push.options;
                seen.atomic = push.atomic;
                for (command, (_, verdict)) in push.commands.into_iter().zip(&verdicts) {
                    match (verdict, command.new) {
                        (Verdict::Refused(_), _) => {}
                        _ if push.atomic && !all => {}
                        (Verdict::Accepted, Some(new)) => drop(seen.refs.insert(command.name, new)),
                        (Verdict::Accepted, None) => drop(seen.refs.remove(&command.name)),
                    }
                }
            }
            reporter
                .finish(verdicts)
                .await
                .map(|_| "push")
                .map_err(|error| ReceiveError::ClientGone(Some(error)))
        }
        Err(error) => Err(error),
    };
    seen.lock().unwrap().outcomes.push(outcome);
}

/// `git-receive-pack /app\0host=…\0`, as a packet.
pub(crate) async fn git_request(stream: &mut TcpStream) -> String {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.unwrap();
    let length = usize::from_str_radix(std::str::from_utf8(&length).unwrap(), 16).unwrap();
    let mut request = vec![0; length - 4];
    stream.read_exact(&mut request).await.unwrap();
    String::from_utf8(request).unwrap()
}

/// A working copy.
pub(crate) struct Client {
    pub(crate) path: PathBuf,
    home: TempDir,
}

impl Client {
    /// An empty repository on `main`, with the server as remote `deis`.
    pub(super) fn new(server: &Server) -> Self {
        Self::of(&server.url)
    }

    /// The same with this remote.
    pub(crate) fn of(url: &str) -> Self {
        let home = TempDir::new().unwrap();
        let path = home.path().join("work");
        std::fs::create_dir(&path).unwrap();
        let client = Self { path, home };
        client.git(&["init", "-q", "-b", "main"]);
        client.git(&["remote", "add", "deis", url]);
        client
    }

    /// A clone made with `arguments`.
    pub(crate) async fn clone_from(url: &str, arguments: &[&str]) -> Self {
        let home = TempDir::new().unwrap();
        let client = Self { path: home.path().to_owned(), home };
        client.git_async(&[&["clone", "-q"], arguments, &[url, "work"]].concat()).await;
        let path = client.home.path().join("work");
        Self { path, ..client }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().args(arguments).current_dir(&self.path);
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ada").env(format!("GIT_{who}_EMAIL"), "ada@example.org");
            command.env(format!("GIT_{who}_DATE"), "1700000000 +0100");
        }
        command
    }

    /// Runs git, which must succeed, and returns what it wrote.
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs git against the server, which needs this thread.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    pub(crate) async fn git_async(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "git {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs git, which must fail, and returns what it said.
    pub(crate) async fn git_fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "git {arguments:?} succeeded: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub(crate) fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        let path: &Path = &self.path.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits a file, and returns the commit.
    pub(crate) fn commit(&self, file: &str, content: impl AsRef<[u8]>) -> CommitId {
        self.write(file, content);
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", &format!("Change {file}")]);
        self.id("HEAD")
    }

    pub(crate) fn id(&self, revision: &str) -> CommitId {
        self.git(&["rev-parse", revision]).parse().unwrap()
    }
}
