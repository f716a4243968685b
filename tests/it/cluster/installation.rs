//! hephy on the cluster, installed as its chart's readers do.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{Setting, chart, helm, kubectl};
use crate::machine::{PATIENCE, Ran, eventually, make_key};

/// The chart's default.
const SSH_PORT: u16 = 30022;
const ROUTER_PORT: u16 = 30080;
const RELEASE: &str = "hephy";

/// An installation in the namespace `hephy`; one at a time on a cluster.
pub(crate) struct Installation {
    directory: TempDir,
    release: &'static str,
    node: String,
    way: Way,
}

/// How it is installed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With the registry that the tests have, over whatever is there.
    Usual,
    /// As the README says, with hephy's own registry.
    Documented,
}

impl Installation {
    /// `helm upgrade --install` with more values, until it is ready, on a cluster where nothing of hephy is left.
    pub(crate) fn install(values: &[&str]) -> Self {
        let installation = Self::prepare(Way::Usual);
        installation.upgrade(values).succeeded();
        installation
    }

    /// The installation of the README, where not even the kinds of hephy's records are left.
    pub(crate) fn install_as_documented() -> Self {
        let installation = Self::prepare(Way::Documented);
        let kinds = ["apps", "builds", "releases", "users"].map(|kind| format!("{kind}.hephy.dev"));
        let kinds = kinds.each_ref().map(String::as_str);
        kubectl(&[&["delete", "crd", "--ignore-not-found"], &kinds[..]].concat()).succeeded();
        let claim = ["delete", "pvc", "hephy-data", "-n", "hephy", "--ignore-not-found", "--timeout=60s"];
        kubectl(&claim).succeeded();
        installation.upgrade(&[]).succeeded();
        installation
    }

    fn prepare(way: Way) -> Self {
        let directory = tempfile::Builder::new().prefix("hephy-cluster-").tempdir().unwrap();
        let installation = Self { directory, release: RELEASE, node: Setting::read().node, way };
        make_key(&installation.path().join("id_ed25519"), "ada@test");
        drop(helm(&["uninstall", installation.release, "-n", "hephy", "--ignore-not-found", "--wait"]));
        let left =
            ["delete", "namespace", "hephy-builds", "hephy-apps", "--ignore-not-found", "--timeout=120s"];
        kubectl(&left).succeeded();
        installation
    }

    /// `helm upgrade --install` again.
    pub(crate) fn upgrade(&self, values: &[&str]) -> Ran {
        let set: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
        self.upgrade_with(&set)
    }

    /// The same with more of helm's words.
    pub(crate) fn upgrade_with(&self, more: &[&str]) -> Ran {
        let setting = Setting::read();
        let (repository, tag) = setting.image.rsplit_once(':').unwrap();
        let key = self.path().join("id_ed25519.pub");
        let chart = chart();
        let mut words =
            ["upgrade", "--install", self.release, chart.to_str().unwrap(), "-n", "hephy"].to_vec();
        words.extend(["--create-namespace", "--wait", "--timeout", "180s", "--set-file"]);
        let keys = format!("adminKeys={}", key.display());
        let (image, tag) = (format!("image.repository={repository}"), format!("image.tag={tag}"));
        words.extend([&keys, "--set", &image, "--set", &tag, "--set", "image.pullPolicy=Always"]);
        let registry = format!("registry.url={}", setting.registry);
        if self.way == Way::Usual {
            words.extend(["--take-ownership", "--set", &registry, "--set", "registry.insecure=true"]);
        }
        words.extend(more);
        let ran = helm(&words);
        if ran.ok {
            // Ready is what the pods are; each node's proxy learns of it a moment later.
            eventually("the node port leads to a server", || {
                TcpStream::connect((self.node.as_str(), SSH_PORT)).is_ok()
            });
        }
        ran
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Stops hephy; the apps and their records stay.
    pub(crate) fn uninstall(&self) {
        helm(&["uninstall", self.release, "-n", "hephy", "--wait", "--timeout", "120s"]).succeeded();
    }

    /// Runs a verb over SSH.
    pub(crate) fn verb(&self, words: &str) -> Ran {
        self.verb_as("id_ed25519", words)
    }

    /// Runs a verb over SSH with a key; it is made if there is none.
    pub(crate) fn verb_as(&self, key: &str, words: &str) -> Ran {
        let path = self.path().join(key);
        if !path.exists() {
            make_key(&path, key);
        }
        let mut command = Command::new("sh");
        let ssh = self.ssh_command_with(&path);
        let line = format!("{ssh} -p {SSH_PORT} hephy@{} -- {words}", self.node);
        Ran::of(command.arg("-c").arg(line).stdin(Stdio::null()).output().unwrap())
    }

    pub(crate) fn ssh_command(&self) -> String {
        self.ssh_command_with(&self.path().join("id_ed25519"))
    }

    fn ssh_command_with(&self, key: &Path) -> String {
        format!(
            "ssh -F /dev/null -i {} -o IdentitiesOnly=yes -o IdentityAgent=none -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={}",
            key.display(),
            self.path().join("known_hosts").display()
        )
    }

    /// A repository with `files` in one commit on `main`.
    pub(crate) fn repository(&self, app: &str, files: &[(&str, &str)]) -> Repository<'_> {
        let path = self.path().join("repositories").join(app);
        fs::create_dir_all(&path).unwrap();
        let repository = Repository { installation: self, path };
        repository.git(&["init", "-q", "-b", "main"]).succeeded();
        let remote = format!("ssh://hephy@{}:{SSH_PORT}/{app}.git", self.node);
        repository.git(&["remote", "add", "deis", &remote]).succeeded();
        repository.commit(files);
        repository
    }

    /// A repository whose app is busybox's web server with `page`.
    pub(crate) fn web(&self, app: &str, page: &str) -> Repository<'_> {
        let dockerfile = "FROM busybox\nRUN uname -m > /machine\nCOPY www /www\nRUN cp /machine /www/machine\nEXPOSE 8000\nCMD exec httpd -f -p $PORT -h /www\n";
        self.repository(app, &[("Dockerfile", dockerfile), ("www/index.html", page)])
    }

    /// Asks an app for `path` through hephy's router: status and body. `Err`: no answer.
    pub(crate) fn get(&self, app: &str, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect((self.node.as_str(), ROUTER_PORT))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {app}.hephy.local\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        status.map(|status| (status, body.to_owned())).ok_or_else(|| std::io::Error::other("no answer"))
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs =
                kubectl(&["logs", "-n", "hephy", "-l", "app.kubernetes.io/name=hephy", "--tail", "200"]);
            let pods = kubectl(&["get", "pods,jobs", "-A", "-o", "wide"]);
            #[expect(clippy::print_stderr, reason = "a failed test shows it")]
            let () = eprintln!("{}\n{}\n{}", pods.stdout, logs.stdout, logs.stderr);
        }
    }
}

/// A git repository that is pushed to the cluster.
pub(crate) struct Repository<'a> {
    installation: &'a Installation,
    pub(crate) path: PathBuf,
}

impl Repository<'_> {
    /// Runs git here.
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
            .env("GIT_SSH_COMMAND", self.installation.ssh_command())
            .env("GIT_TERMINAL_PROMPT", "0")
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

    /// `git push deis main`.
    pub(crate) fn push(&self) -> Ran {
        self.git(&["push", "deis", "main"])
    }
}
