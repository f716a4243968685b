//! A machine with hephy on it: `hephy up` as a process, with real git, ssh and HTTP against it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::ordinary_user::executable;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A Dockerfile that needs no base: busybox is in the context.
pub(crate) const BUSYBOX: &str =
    "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// `hephy up` in a directory of its own.
pub(crate) struct Machine {
    directory: TempDir,
    server: Mutex<Option<Server>>,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
}

struct Server {
    child: Child,
    printed: Arc<Mutex<String>>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { ok: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The command succeeded.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert!(self.ok, "it failed:\n{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The command failed, and said all of `texts` on standard error.
    #[track_caller]
    pub(crate) fn failed_with(self, texts: &[&str]) -> Self {
        assert!(!self.ok, "it succeeded:\n{}\n{}", self.stdout, self.stderr);
        self.says(texts)
    }

    /// Standard error or output has all of `texts`.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(
                self.stderr.contains(text) || self.stdout.contains(text),
                "`{text}` is not in:\n{}\n{}",
                self.stdout,
                self.stderr
            );
        }
        self
    }
}

impl Machine {
    /// Starts hephy, with a key that is the first admin's.
    pub(crate) fn start() -> Self {
        Self::with_flags(&[])
    }

    /// Starts hephy with more flags.
    pub(crate) fn with_flags(flags: &[&str]) -> Self {
        let machine = Self::prepared(flags);
        machine.up();
        machine
    }

    /// Starts hephy with more flags and variables.
    pub(crate) fn with_environment(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut machine = Self::prepared(flags);
        machine.environment = environment.collect();
        machine.up();
        machine
    }

    /// A machine on which hephy is yet to be started.
    pub(crate) fn prepared(flags: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("hephy-it-").tempdir().unwrap();
        // As below a home directory: nobody else walks through.
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let ssh = directory.path().join("home/.ssh");
        fs::create_dir_all(&ssh).unwrap();
        make_key(&ssh.join("id_ed25519"), "admin@test");
        let flags = flags.iter().map(ToString::to_string).collect();
        Self { directory, server: Mutex::new(None), flags, environment: Vec::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Starts the server (again), on the same addresses as before, and returns once it is ready.
    pub(crate) fn up(&self) {
        let operator = self.data().join("operator.json");
        let address =
            |name: &str| if operator.exists() { self.address(name) } else { "127.0.0.1:0".to_owned() };
        let mut command = Command::new(executable());
        command.args([
            "up",
            "--ssh",
            &address("ssh"),
            "--registry",
            &address("registry"),
            "--http",
            &address("http"),
        ]);
        command.args(&self.flags);
        drop(fs::remove_file(&operator));
        let mut child = command
            .env("HEPHY_DATA", self.data())
            .env("HOME", self.path().join("home"))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let printed = Arc::new(Mutex::new(String::new()));
        for stream in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn std::io::Read + Send>,
            Box::new(child.stderr.take().unwrap()),
        ] {
            let printed = Arc::clone(&printed);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    *printed.lock().unwrap() += &(line + "\n");
                }
            });
        }
        *self.server.lock().unwrap() = Some(Server { child, printed });
        eventually("hephy up is ready", || {
            let mut server = self.server.lock().unwrap();
            let server = server.as_mut().unwrap();
            if let Some(status) = server.child.try_wait().unwrap() {
                panic!("hephy up ended with {status}:\n{}", server.printed.lock().unwrap());
            }
            operator.exists()
        });
    }

    /// What `hephy up` has printed.
    pub(crate) fn printed(&self) -> String {
        self.server
            .lock()
            .unwrap()
            .as_ref()
            .map(|server| server.printed.lock().unwrap().clone())
            .unwrap_or_default()
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.server.lock().unwrap().as_ref().unwrap().child.id();
        Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status().unwrap();
    }

    /// Waits for the server to end.
    pub(crate) fn wait(&self) -> std::process::ExitStatus {
        let server = self.server.lock().unwrap().take();
        let mut child = server.unwrap().child;
        let mut status = None;
        eventually("hephy up ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Kills the server, as a power cut would.
    pub(crate) fn kill(&self) {
        self.signal("KILL");
        self.wait();
    }

    /// One of the addresses: `ssh`, `http`, `registry`.
    pub(crate) fn address(&self, name: &str) -> String {
        let text = fs::read(self.data().join("operator.json")).unwrap();
        let operator: serde_json::Value = serde_json::from_slice(&text).unwrap();
        operator[name].as_str().unwrap().to_owned()
    }

    fn port(&self, name: &str) -> String {
        self.address(name).rsplit_once(':').unwrap().1.to_owned()
    }

    /// `ssh://hephy@…/app.git`.
    pub(crate) fn remote(&self, app: &str) -> String {
        format!("ssh://hephy@{}/{app}.git", self.address("ssh"))
    }

    /// The `ssh` command with a key of this machine, as git takes it.
    pub(crate) fn ssh_command(&self, key: &str) -> String {
        let ssh = self.path().join("home/.ssh");
        format!(
            "ssh -F /dev/null -i {} -o IdentitiesOnly=yes -o IdentityAgent=none -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={}",
            ssh.join(key).display(),
            self.path().join("known_hosts").display()
        )
    }

    /// Makes another key, and returns its name.
    pub(crate) fn key(&self, name: &str) -> String {
        make_key(&self.path().join("home/.ssh").join(name), name);
        name.to_owned()
    }

    /// Runs a verb over SSH with the admin's key.
    pub(crate) fn verb(&self, words: &str) -> Ran {
        self.verb_as("id_ed25519", words)
    }

    /// Runs a verb over SSH with a key.
    pub(crate) fn verb_as(&self, key: &str, words: &str) -> Ran {
        let ssh = self.ssh_command(key);
        let line = format!("{ssh} -p {} hephy@127.0.0.1 -- {words}", self.port("ssh"));
        let mut command = Command::new("sh");
        Ran::of(command.arg("-c").arg(line).stdin(Stdio::null()).output().unwrap())
    }

    /// A command of the program, as on this machine's command line.
    pub(crate) fn hephy(&self, words: &[&str]) -> Ran {
        let mut command = Command::new(executable());
        command.args(words).env("HEPHY_DATA", self.data()).env("HOME", self.path().join("home"));
        Ran::of(command.current_dir(self.path()).stdin(Stdio::null()).output().unwrap())
    }

    /// A repository with `files` in one commit on `main`.
    pub(crate) fn repository(&self, name: &str, files: &[(&str, &str)]) -> Repository<'_> {
        let path = self.path().join("repositories").join(name);
        fs::create_dir_all(&path).unwrap();
        let repository = Repository { machine: self, path, key: "id_ed25519".to_owned() };
        repository.git(&["init", "-q", "-b", "main"]).succeeded();
        repository.git(&["remote", "add", "deis", &self.remote(name)]).succeeded();
        repository.commit(files);
        repository
    }

    /// A repository whose app is busybox's web server with `page`.
    pub(crate) fn web(&self, name: &str, page: &str) -> Repository<'_> {
        let dockerfile = format!(
            "{BUSYBOX}COPY www /www\nEXPOSE 8000\nCMD [\"/bin/sh\", \"-c\", \"exec httpd -f -p $PORT -h /www\"]\n"
        );
        let repository = self.repository(name, &[("Dockerfile", &dockerfile), ("www/index.html", page)]);
        repository.add_busybox();
        repository
    }

    /// Asks an app for `path`: status and body. `Err`: no answer.
    pub(crate) fn get(&self, app: &str, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address("http"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {app}.localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        status.map(|status| (status, body.to_owned())).ok_or_else(|| std::io::Error::other("no answer"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.server.lock().unwrap().is_none() && std::thread::panicking() {
            return;
        }
        if self.server.lock().unwrap().is_none() {
            self.up();
        }
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "a failed test shows it")]
            let () = eprintln!("hephy up printed:\n{}", self.printed());
        }
        let apps = self.hephy(&["apps", "--format", "json"]).stdout;
        let apps: Vec<serde_json::Value> = serde_json::from_str(&apps).unwrap_or_default();
        for app in apps {
            let name = app["name"].as_str().unwrap_or_default();
            self.hephy(&["apps", "destroy", "-a", name, "--confirm", name]);
        }
        self.signal("TERM");
        self.signal("TERM");
        if let Some(mut server) = self.server.lock().unwrap().take() {
            drop(server.child.wait());
        }
    }
}

/// A git repository that is pushed to a machine.
pub(crate) struct Repository<'a> {
    machine: &'a Machine,
    pub(crate) path: PathBuf,
    pub(crate) key: String,
}

impl Repository<'_> {
    /// Runs git here, with this repository's key.
    pub(crate) fn git(&self, words: &[&str]) -> Ran {
        Ran::of(self.command(words).output().unwrap())
    }

    /// The git command, not run yet.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org"])
            .args(words)
            .current_dir(&self.path)
            .env("GIT_SSH_COMMAND", self.machine.ssh_command(&self.key))
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", self.machine.path().join("home"))
            .stdin(Stdio::null());
        command
    }

    /// Writes files and commits everything.
    pub(crate) fn commit(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = self.path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        self.git(&["add", "-A"]).succeeded();
        self.git(&["commit", "-q", "--allow-empty", "-m", "change"]).succeeded();
    }

    /// Puts the static busybox of the test machine into the repository.
    pub(crate) fn add_busybox(&self) {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        fs::copy(
            busybox.ok_or("busybox-static is not installed: run `scripts/setup tests`").unwrap(),
            self.path.join("busybox"),
        )
        .unwrap();
        self.commit(&[]);
    }

    /// `git push deis main`.
    pub(crate) fn push(&self) -> Ran {
        self.git(&["push", "deis", "main"])
    }

    /// The commit that `name` is.
    pub(crate) fn rev(&self, name: &str) -> String {
        self.git(&["rev-parse", name]).succeeded().stdout.trim().to_owned()
    }
}

pub(crate) fn make_key(path: &Path, comment: &str) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Waits until `done`, and fails the test if it never is.
#[track_caller]
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "it did not happen that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
