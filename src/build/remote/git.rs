//! One commit of a repository as files, by the system's `git`.
//!
//! The repository is a stranger's: no hook, no filter, no configuration of it is obeyed, and only the transports of the
//! list are spoken. A password is in the child's environment, for its one host, and never among its arguments.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, Timespec, Timestamps};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use url::Url;

use super::{GitAddress, GitRemote, Guard, RemoteError};
use crate::model::Secret;
use crate::registry::client::system_bundle_file;

/// The most that is read of what git lists.
const MAX_LIST_BYTES: u64 = 64 << 20;
/// The most that is told of what git complains about.
const MAX_MESSAGE_BYTES: u64 = 4 << 10;

/// Configuration of every child, beside which nothing but the repository's own is read, which is ours.
const SETTINGS: [&str; 11] = [
    "safe.directory=*",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.autocrlf=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
    "init.defaultBranch=main",
    "core.bigFileThreshold=64m",
    "transfer.credentialsInUrl=die",
];

/// What of our environment a child sees: how the network is reached, and what is trusted there.
const ENVIRONMENT: [&str; 10] = [
    "PATH",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "GIT_SSL_CAPATH",
    "SSL_CERT_DIR",
];

/// Who asks a host.
#[derive(Debug, Clone)]
pub(crate) struct GitCredentials {
    pub(crate) user: String,
    pub(crate) password: Secret<String>,
}

/// How a repository is fetched.
#[derive(Debug, Clone, Default)]
pub(crate) struct GitOptions {
    /// For the address's own host, if the address has none itself.
    pub(crate) credentials: Option<GitCredentials>,
    /// Without looking at certificates.
    pub(crate) insecure: bool,
}

/// Fetches commits.
pub(crate) struct Git {
    guard: Guard,
    options: GitOptions,
    /// What is trusted, if that is more than the system has: `git` reads one file.
    bundle: Option<NamedTempFile>,
}

impl Git {
    /// One that believes the system's authorities, and the certificates of `trusted` (PEM), for which it writes to `spool`.
    pub(crate) fn new(
        guard: Guard,
        options: GitOptions,
        trusted: Option<&str>,
        spool: &Path,
    ) -> Result<Self, RemoteError> {
        let bundle = trusted.map(|trusted| write_bundle(trusted, spool)).transpose();
        let bundle = bundle.map_err(RemoteError::io("write the certificates for `git`"))?;
        Ok(Self { guard, options, bundle })
    }

    /// The commit that an address means.
    pub(crate) async fn resolve(&self, address: &GitAddress) -> Result<String, RemoteError> {
        let reference = address.reference.as_deref().unwrap_or("HEAD");
        let commit = if let Some(commit) = &address.commit {
            commit.clone()
        } else if is_commit(reference) {
            reference.to_ascii_lowercase()
        } else {
            let mut command = self.command(address, None).await?;
            // With the pattern also what an annotated tag stands for.
            command.args([
                "ls-remote",
                "--",
                &address.remote.text(),
                reference,
                &format!("{reference}^{{}}"),
            ]);
            let list = run(command, "list the references of", address).await?;
            chosen(&list, reference).ok_or_else(|| RemoteError::NoReference {
                address: address.remote.text(),
                reference: reference.to_owned(),
            })?
        };
        match &address.checksum {
            Some(expected) if !is_beginning(expected, &commit) => Err(RemoteError::Checksum {
                address: address.remote.text(),
                expected: expected.clone(),
                found: commit,
            }),
            _ => Ok(commit),
        }
    }

    /// Puts the files of a commit into the empty directory `into`: 0644 or 0755, with the time of the commit.
    pub(crate) async fn checkout(
        &self,
        address: &GitAddress,
        commit: &str,
        keep_git_dir: bool,
        into: &Path,
    ) -> Result<(), RemoteError> {
        let remote = address.remote.text();
        let step = |arguments: &[&str]| {
            let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
            async move {
                let mut command = self.command(address, Some(into)).await?;
                command.args(arguments);
                run(command, "fetch", address).await
            }
        };
        step(&["init", "-q", "--template=", "."]).await?;
        step(&["remote", "add", "origin", &remote]).await?;
        let reference = address.reference.as_deref().unwrap_or("HEAD");
        let exact = step(&["fetch", "-q", "--depth=1", "--no-tags", "origin", commit]).await;
        if let Err(first) = exact {
            // A server that gives no commit by its name, or not without those before it.
            let by_name =
                if is_commit(reference) { "+refs/heads/*:refs/remotes/origin/*" } else { reference };
            step(&["fetch", "-q", "--no-tags", "origin", by_name]).await.map_err(|_| first)?;
        }
        let present = step(&["cat-file", "-e", &format!("{commit}^{{commit}}")]).await;
        present.map_err(|_| RemoteError::NoReference {
            address: remote.clone(),
            reference: commit.to_owned(),
        })?;
        step(&["checkout", "-q", "--detach", commit]).await?;
        if address.submodules && into.join(".gitmodules").symlink_metadata().is_ok() {
            if self.guard != Guard::Open {
                let reason = "submodules are fetched only by a build with its caller's network: add `?submodules=false`";
                return Err(RemoteError::Forbidden { host: remote, reason });
            }
            step(&["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"]).await?;
        }
        if keep_git_dir {
            // The index again, without what it says of these files on this disk, which is another each time.
            step(&["read-tree", "HEAD"]).await?;
        }
        let time = step(&["show", "-s", "--format=%ct", commit]).await?;
        let time = time.trim().parse().unwrap_or(0);
        let into = into.to_owned();
        let tidied = tokio::task::spawn_blocking(move || tidy(&into, keep_git_dir, time)).await;
        tidied.map_err(std::io::Error::from).flatten().map_err(RemoteError::io("tidy up a checkout"))
    }

    /// `git`, with an environment that is ours alone.
    async fn command(&self, address: &GitAddress, directory: Option<&Path>) -> Result<Command, RemoteError> {
        let mut command = Command::new("git");
        command.env_clear();
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let written = self.bundle.as_ref().map(|bundle| bundle.path().to_owned());
        if let Some(bundle) = written.or_else(named_bundle) {
            command.env("GIT_SSL_CAINFO", bundle);
        }
        command
            .env("LC_ALL", "C")
            .env("HOME", "/nonexistent")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", "https:http:git:ssh")
            .env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
            .current_dir(directory.unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(directory) = directory {
            // A repository above is none of ours.
            command.env("GIT_CEILING_DIRECTORIES", directory.parent().unwrap_or(directory));
        }
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        match &address.remote {
            GitRemote::Scp { .. } => self.reach_by_ssh(&mut command, &address.remote.text())?,
            GitRemote::Url { url, .. } if url.scheme() == "ssh" => {
                self.reach_by_ssh(&mut command, url.as_str())?;
            }
            GitRemote::Url { url, user } => self.reach_by_url(&mut command, url, user.as_ref()).await?,
        }
        Ok(command)
    }

    fn reach_by_ssh(&self, command: &mut Command, remote: &str) -> Result<(), RemoteError> {
        if self.guard != Guard::Open {
            let reason = "by SSH only a build with its caller's network fetches, with its caller's keys";
            return Err(RemoteError::Forbidden { host: remote.to_owned(), reason });
        }
        if let Some(agent) = std::env::var_os("SSH_AUTH_SOCK") {
            command.env("SSH_AUTH_SOCK", agent);
        }
        Ok(())
    }

    async fn reach_by_url(
        &self,
        command: &mut Command,
        url: &Url,
        user: Option<&(String, Secret<String>)>,
    ) -> Result<(), RemoteError> {
        self.guard.check(url)?;
        if self.guard != Guard::Open {
            let host = url.host_str().unwrap_or_default();
            let Some(port) = url.port_or_known_default().filter(|_| url.scheme() != "git") else {
                let reason = "git's own protocol is spoken only by a build with its caller's network";
                return Err(RemoteError::Forbidden { host: host.to_owned(), reason });
            };
            // What was looked at is what is asked, whatever the name means a moment later.
            let addresses = self.guard.addresses(host, port).await?;
            let ips: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            command.args(["-c", &format!("http.curloptResolve={host}:{port}:{}", ips.join(","))]);
            command.args(["-c", "http.followRedirects=false"]);
        }
        if self.options.insecure {
            command.args(["-c", "http.sslVerify=false"]);
        }
        let own = user.map(|(user, password)| (user, password));
        let given = self.options.credentials.as_ref().map(|given| (&given.user, &given.password));
        if let Some((user, password)) = own.or(given)
            && matches!(url.scheme(), "http" | "https")
        {
            let text = format!("{user}:{}", password.reveal());
            let value = base64::engine::general_purpose::STANDARD.encode(text);
            let origin =
                format!("{}://{}", url.scheme(), &url[url::Position::BeforeHost..url::Position::AfterPort]);
            command
                .env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", format!("http.{origin}/.extraHeader"))
                .env("GIT_CONFIG_VALUE_0", format!("Authorization: Basic {value}"));
        }
        Ok(())
    }
}

/// The file of trusted certificates that somebody names.
fn named_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("GIT_SSL_CAINFO").or_else(|| std::env::var_os("SSL_CERT_FILE"));
    named.map(PathBuf::from)
}

/// A file with what is trusted anyway, and with `trusted`.
fn write_bundle(trusted: &str, spool: &Path) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new_in(spool)?;
    if let Some(path) = named_bundle().or_else(|| system_bundle_file().map(Path::to_owned)) {
        io::copy(&mut fs::File::open(path)?, &mut file)?;
    }
    write!(file, "\n{trusted}")?;
    Ok(file)
}

/// Whether a reference is a commit's whole name.
fn is_commit(reference: &str) -> bool {
    matches!(reference.len(), 40 | 64) && reference.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether `expected` is the name of a commit, or enough of its beginning.
fn is_beginning(expected: &str, commit: &str) -> bool {
    expected.len() >= 7 && commit.starts_with(&expected.to_ascii_lowercase())
}

/// The commit of a reference in a list of `git ls-remote`: as it is written, else a branch, else a tag, as checkout prefers.
fn chosen(list: &str, reference: &str) -> Option<String> {
    let lines: Vec<(&str, &str)> = list.lines().filter_map(|line| line.split_once('\t')).collect();
    let find = |name: &str| {
        let one = |name: &str| lines.iter().find(|(_, found)| *found == name).map(|(commit, _)| *commit);
        one(&format!("{name}^{{}}")).or_else(|| one(name))
    };
    let found = find(reference)
        .or_else(|| find(&format!("refs/heads/{reference}")))
        .or_else(|| find(&format!("refs/tags/{reference}")))
        .or_else(|| find(&format!("refs/{reference}")));
    found.filter(|commit| is_commit(commit)).map(str::to_owned)
}

/// A child's process group, which is killed when this is dropped before the child has ended.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended just now; then there is nothing to kill.
            let _gone = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs a child to its end and returns what it prints.
async fn run(mut command: Command, what: &'static str, address: &GitAddress) -> Result<String, RemoteError> {
    let mut child = command.spawn().map_err(RemoteError::io("start `git`"))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err, status) =
        tokio::join!(limited(out, MAX_LIST_BYTES), limited(err, MAX_MESSAGE_BYTES), child.wait());
    group.0 = None;
    if !status.map_err(RemoteError::io("wait for `git`"))?.success() {
        let message: Vec<&str> = err.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let message = message.join("; ").chars().filter(|c| !c.is_control()).take(500).collect();
        return Err(RemoteError::Git { what, address: address.remote.text(), message });
    }
    Ok(out)
}

/// Reads to the end and keeps the beginning.
async fn limited(from: Option<impl AsyncRead + Unpin>, max_bytes: u64) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut bytes = Vec::new();
    // What a child could not say is missing from an error, and nothing else.
    drop((&mut from).take(max_bytes).read_to_end(&mut bytes).await);
    drop(tokio::io::copy(&mut from, &mut tokio::io::sink()).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Removes what is git's own, and gives every file the mode and time that it has for everybody.
fn tidy(root: &Path, keep_git_dir: bool, time: i64) -> std::io::Result<()> {
    if keep_git_dir {
        for name in ["FETCH_HEAD", "logs", "description"] {
            remove(&root.join(".git").join(name))?;
        }
    }
    let mut walk = walkdir::WalkDir::new(root).contents_first(false).into_iter();
    let mut seen = Vec::new();
    while let Some(entry) = walk.next() {
        let entry = entry?;
        if entry.file_name() == ".git" && entry.depth() > 0 && !keep_git_dir {
            if entry.file_type().is_dir() {
                walk.skip_current_dir();
            }
            remove(entry.path())?;
            continue;
        }
        if !entry.file_type().is_symlink() {
            let mode = entry.metadata()?.permissions().mode();
            let mode = if entry.file_type().is_dir() || mode & 0o100 != 0 { 0o755 } else { 0o644 };
            fs::set_permissions(entry.path(), Permissions::from_mode(mode))?;
        }
        seen.push(entry.into_path());
    }
    let time = Timespec { tv_sec: time, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    for path in seen.iter().rev() {
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Address;
    use super::*;

    fn address(text: &str) -> GitAddress {
        match Address::parse(text).unwrap() {
            Some(Address::Git(git)) => *git,
            other => panic!("{other:?}"),
        }
    }

    fn git(guard: Guard) -> Git {
        let credentials =
            GitCredentials { user: "bot".to_owned(), password: Secret::new("t0ken".to_owned()) };
        let options = GitOptions { credentials: Some(credentials), insecure: false };
        Git::new(guard, options, None, Path::new("/nonexistent")).unwrap()
    }

    #[test]
    fn a_branch_is_preferred_to_a_tag_and_an_annotated_tag_is_its_commit() {
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|letter| letter.repeat(40));
        let list = format!(
            "{a}\tHEAD\n{b}\trefs/heads/x\n{c}\trefs/tags/x\n{d}\trefs/tags/v1^{{}}\n{c}\trefs/tags/v1\nnone\trefs/heads/y\n"
        );
        let find = |reference: &str| chosen(&list, reference);
        assert_eq!(find("HEAD"), Some(a));
        assert_eq!(find("x"), Some(b));
        assert_eq!(find("refs/tags/x"), Some(c));
        assert_eq!(find("v1"), Some(d));
        assert_eq!((find("z"), find("y")), (None, None));
    }

    #[tokio::test]
    async fn a_password_is_in_the_environment_for_one_host_and_in_no_argument() {
        let address = address("https://me:s3cret@git.example/r.git");
        let command = git(Guard::Open).command(&address, None).await.unwrap();
        let command = command.as_std();
        let arguments = format!("{:?}", command.get_args().collect::<Vec<_>>());
        assert!(!arguments.contains("s3cret") && !arguments.contains("t0ken"), "{arguments}");
        let env = |name: &str| {
            let found = command.get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value);
            found.map(|value| value.to_string_lossy().into_owned())
        };
        assert_eq!(env("GIT_CONFIG_KEY_0").as_deref(), Some("http.https://git.example/.extraHeader"));
        // me:s3cret
        assert_eq!(env("GIT_CONFIG_VALUE_0").as_deref(), Some("Authorization: Basic bWU6czNjcmV0"));
        assert_eq!(env("GIT_ALLOW_PROTOCOL").as_deref(), Some("https:http:git:ssh"));
    }

    #[tokio::test]
    async fn a_guarded_build_fetches_neither_from_this_machine_nor_with_its_keys() {
        for text in [
            "http://127.0.0.1:1/r.git",
            "https://localhost/r.git",
            "git@example.com:r.git",
            "ssh://h/r",
            "git://93.184.216.34/r",
        ] {
            let refused = git(Guard::Outward).command(&address(text), None).await;
            assert!(matches!(refused, Err(RemoteError::Forbidden { .. })), "{text}");
        }
        let command =
            git(Guard::Outward).command(&address("https://93.184.216.34/r.git"), None).await.unwrap();
        let arguments: Vec<_> =
            command.as_std().get_args().map(|text| text.to_string_lossy().into_owned()).collect();
        assert!(
            arguments.contains(&"http.curloptResolve=93.184.216.34:443:93.184.216.34".to_owned()),
            "{arguments:?}"
        );
    }

    #[test]
    fn a_checksum_is_a_commit_or_enough_of_it() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(is_beginning(commit, commit) && is_beginning("0123456", commit));
        assert!(!is_beginning("012345", commit) && !is_beginning("1123456", commit));
    }
}
