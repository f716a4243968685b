//! Sends a verb to the server by the system's `ssh`.
//!
//! The server is the one that `--server` names, else the one of the git remote `deis`, else the one that runs on this
//! machine from the default data directory, whose operator key it reads there. The words are those that were
//! typed; each is quoted, and the server splits them without a shell.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use crate::config::server::HostPort;
use crate::model::AppName;

/// Where a verb is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The user name of the SSH login; the key says who it is.
    login: String,
    server: HostPort,
    /// The operator's files, on the machine of the server.
    operator: Option<Operator>,
}

/// What `hephy up` leaves in its data directory for the command line on the same machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operator {
    /// Where the server listens for SSH.
    pub(crate) ssh: String,
    /// Where the apps answer.
    pub(crate) http: String,
    /// Where images are pulled from.
    pub(crate) registry: String,
    /// Where health and metrics are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<String>,
    /// Where profiles are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pprof: Option<String>,
    /// A key that the server takes for an admin's.
    pub(crate) key: PathBuf,
    /// The server's host key, in the format of `known_hosts`.
    pub(crate) known_hosts: PathBuf,
}

impl Operator {
    /// The file in the data directory.
    pub(crate) const FILE: &str = "operator.json";

    /// Reads the file; `None` where no server was started, or it is another user's.
    pub(crate) fn read(data: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(data.join(Self::FILE)).ok()?).ok()
    }
}

/// Why a verb cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    /// A git remote that is no SSH address.
    #[error(
        "the git remote `deis` is `{0}`, which is not ssh://USER@HOST:PORT/APP.git: mend it with `git remote set-url deis …`"
    )]
    NotSsh(String),
    /// Nothing names a server.
    #[error(
        "no server: run this in a repository with a git remote `deis`, give `--server HOST:PORT`, or start one with `hephy up` (one with `--data DIRECTORY` is found by HEPHY_DATA=DIRECTORY)"
    )]
    NoServer,
    /// No OpenSSH.
    #[error("cannot run `ssh`: install it with `sudo apt-get install -y openssh-client`")]
    NoSsh(#[source] io::Error),
}

/// What the git remote `deis` of the repository here says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    destination: Destination,
    /// The app.
    pub(crate) app: Option<AppName>,
}

impl Remote {
    /// Reads the remote; `None` outside a repository, or without such a remote.
    pub(crate) fn of_repository(name: &str) -> Result<Option<Self>, RemoteError> {
        let output = Command::new("git")
            .args(["remote", "get-url", "--push", "--", name])
            .stderr(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => {
                Self::parse(String::from_utf8_lossy(&output.stdout).trim()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// `ssh://hephy@host:2222/app.git`, or git's short `hephy@host:app.git`.
    fn parse(url: &str) -> Result<Self, RemoteError> {
        let error = || RemoteError::NotSsh(url.to_owned());
        let (authority, path) = if let Some(rest) = url.strip_prefix("ssh://") {
            rest.split_once('/').ok_or_else(error)?
        } else {
            let (authority, path) = url.split_once(':').ok_or_else(error)?;
            if authority.contains('/') || path.starts_with("//") {
                return Err(error());
            }
            (authority, path)
        };
        let (login, host) = authority.split_once('@').unwrap_or(("hephy", authority));
        let has_port =
            url.starts_with("ssh://") && host.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
        let server = if has_port { host.to_owned() } else { format!("{host}:22") };
        let name = path.trim_matches('/').trim_end_matches(".git");
        let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if login.is_empty() || login.starts_with('-') || !login.bytes().all(good) {
            return Err(error());
        }
        let destination = Destination {
            login: login.to_owned(),
            server: server.parse().map_err(|_| error())?,
            operator: None,
        };
        Ok(Self { destination, app: name.parse().ok() })
    }
}

impl Destination {
    /// Chooses where to send: what was given, what the remote says, what runs here.
    pub(crate) fn choose(
        given: Option<HostPort>,
        remote: Option<Remote>,
        data: Option<&Path>,
    ) -> Result<Self, RemoteError> {
        if let Some(server) = given {
            return Ok(Self { login: "hephy".to_owned(), server, operator: None });
        }
        if let Some(remote) = remote {
            return Ok(remote.destination);
        }
        data.and_then(Self::of_data_directory).ok_or(RemoteError::NoServer)
    }

    fn of_data_directory(data: &Path) -> Option<Self> {
        let operator = Operator::read(data)?;
        Some(Self {
            login: "operator".to_owned(),
            server: operator.ssh.parse().ok()?,
            operator: Some(operator),
        })
    }

    /// `ssh`, or what the user gives git in its place: what reaches the server for a push does so for a verb.
    fn ssh(&self) -> Command {
        let given = std::env::var("GIT_SSH_COMMAND").ok().filter(|given| !given.trim().is_empty());
        let Some(given) = given.filter(|_| self.operator.is_none()) else { return Command::new("ssh") };
        // As git does: the command is one line of the shell, and what it is given are words.
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{given} \"$@\"")).arg("ssh");
        command
    }

    /// The `ssh` command that runs `words` on the server.
    fn command(&self, words: &[String], terminal: bool) -> Command {
        let mut command = self.ssh();
        command.arg(if terminal { "-t" } else { "-T" }).args(["-o", "LogLevel=ERROR"]);
        if let Some(operator) = &self.operator {
            let option = |name: &str, path: &Path| {
                let mut option = OsString::from(format!("{name}="));
                option.push(path);
                option
            };
            command.args(["-F", "/dev/null", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]);
            command.arg("-o").arg(option("IdentityFile", &operator.key));
            command.arg("-o").arg(option("UserKnownHostsFile", &operator.known_hosts));
        }
        command.args(["-p", &self.server.port.to_string(), "-l", &self.login, "--", &self.server.host]);
        command.arg(words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "));
        command
    }

    /// Becomes `ssh`: standard input, output, signals and exit code are its own from here on.
    pub(crate) fn exec(&self, words: &[String]) -> RemoteError {
        RemoteError::NoSsh(self.command(words, false).exec())
    }

    /// Runs `words` on the server with `input` as standard input.
    pub(crate) fn run_with_input(&self, words: &[String], input: &str) -> Result<ExitCode, RemoteError> {
        use io::Write as _;
        let mut child =
            self.command(words, false).stdin(Stdio::piped()).spawn().map_err(RemoteError::NoSsh)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A server that answers without reading closes the pipe: its answer counts.
            drop(stdin.write_all(input.as_bytes()));
        }
        let status = child.wait().map_err(RemoteError::NoSsh)?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
    }
}

/// Quotes a word for the server's splitter, which knows single quotes.
fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@,+%#".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(url: &str) -> (String, Option<String>) {
        let remote = Remote::parse(url).unwrap();
        let destination = remote.destination;
        (format!("{}@{}", destination.login, destination.server), remote.app.map(String::from))
    }

    #[test]
    fn the_remote_names_server_and_app() {
        let hello = Some("hello".to_owned());
        assert_eq!(
            remote("ssh://hephy@127.0.0.1:2222/hello.git"),
            ("hephy@127.0.0.1:2222".into(), hello.clone())
        );
        assert_eq!(remote("git@example.org:hello"), ("git@example.org:22".into(), hello.clone()));
        assert_eq!(remote("ssh://example.org/hello.git"), ("hephy@example.org:22".into(), hello.clone()));
        assert_eq!(remote("ssh://hephy@[::1]:2222/hello"), ("hephy@[::1]:2222".into(), hello));
    }

    #[test]
    fn a_remote_that_would_be_an_option_or_is_no_ssh_is_refused() {
        for url in [
            "https://example.org/hello",
            "/srv/hello.git",
            "ssh://-oProxyCommand=x@h/a",
            "ssh://h@-oX/a",
            "file:///x",
        ] {
            assert!(Remote::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn words_are_quoted_so_that_they_arrive_whole() {
        assert_eq!(quote("web=2"), "web=2");
        assert_eq!(quote("A=it's $HOME"), r"'A=it'\''s $HOME'");
        assert_eq!(quote(""), "''");
    }
}
