//! `git` as a child: an environment and a configuration that are ours alone, limits, and a sure end.

use std::io;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// The most that is kept of what a child says on its standard error.
const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// Configuration of every child. Nothing else is read: no system file, no user's, and the repository's is ours.
const SETTINGS: [&str; 10] = [
    // Whoever owns the directory: no configuration in it is obeyed that we did not write.
    "safe.directory=*",
    "core.hooksPath=/dev/null",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
    // Bounds of memory: of blobs larger than this, none is held whole.
    "core.bigFileThreshold=64m",
    "core.packedGitLimit=256m",
    "core.packedGitWindowSize=16m",
    "core.deltaBaseCacheLimit=64m",
    "pack.windowMemory=64m",
];

/// `git <command>`, in the repository of `git_dir`.
pub(super) fn git(git_dir: &Path, command: &str) -> Command {
    let mut child = Command::new("git");
    child.env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        child.env("PATH", path);
    }
    child
        .env("LC_ALL", "C")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_DIR", git_dir)
        .current_dir(git_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Its own group, so that the children of git end with it.
        .process_group(0)
        .kill_on_drop(true);
    for setting in SETTINGS {
        child.args(["-c", setting]);
    }
    child.arg(command);
    child
}

/// A path as git reads it in `GIT_ALTERNATE_OBJECT_DIRECTORIES`, where `:` separates.
pub(super) fn quoted_alternate(path: &str) -> String {
    let mut quoted = String::from("\"");
    for c in path.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// A running child whose process group is killed when this is dropped before the child has ended.
pub(super) struct Group {
    pub(super) child: Child,
    group: Option<Pid>,
}

impl Group {
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, group })
    }

    /// Bounds what the child may allocate; before it is given any input, so there is nothing to win the race for.
    pub(super) fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        let pid = self.group.and_then(|group| rustix::process::Pid::from_raw(group.as_raw()));
        if pid.is_some() {
            let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
            prlimit(pid, Resource::As, limit)?;
        }
        Ok(())
    }

    pub(super) async fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        let status = self.child.wait().await?;
        self.group = None;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // It may have ended just now; then there is nothing to kill.
            let _gone = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Reads to the end and keeps the beginning.
pub(super) async fn drain<R: AsyncRead + Unpin>(
    reader: &mut R,
    max_bytes: usize,
    mut seen: impl FnMut(&[u8]),
) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = reader.read(&mut buffer).await?;
        let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) else { return Ok(kept) };
        seen(data);
        let room = max_bytes.saturating_sub(kept.len());
        kept.extend_from_slice(data.get(..room).unwrap_or(data));
    }
}

/// What a child said on its standard error, in one line for people.
pub(super) async fn message<R: AsyncRead + Unpin>(
    stderr: &mut R,
    seen: impl FnMut(&[u8]),
) -> io::Result<String> {
    let said = drain(stderr, MAX_MESSAGE_BYTES, seen).await?;
    let said = String::from_utf8_lossy(&said).replace('\0', "");
    let fatal = said.lines().find_map(|line| line.strip_prefix("fatal: "));
    let error = said.lines().find_map(|line| line.strip_prefix("error: "));
    let line = match (error, fatal) {
        // `error:` names the object, `fatal:` only says what git was doing.
        (Some(error), Some(fatal)) if fatal.starts_with("fsck error") => error,
        (error, fatal) => fatal.or(error).or_else(|| said.lines().last()).unwrap_or_default(),
    };
    Ok(line.chars().filter(|c| !c.is_control()).take(300).collect())
}
