//! Starting a holder that outlives its starter.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::ForkResult;

use super::control::socket_path;
use super::{AppSpec, Control, holder};
use crate::sandbox::error::Doing;
use crate::sandbox::{INIT_COMMAND, SandboxError, system};

/// The file with what the holder is to run.
const SPEC: &str = "spec.json";
/// The file that the holder holds a lock on.
const LOCK: &str = "holder";
/// What a holder says when its socket answers.
const READY: &[u8] = b"ready";
/// A specification is arguments and environment.
const MAX_SPEC_BYTES: u64 = 16 << 20;

/// Starts a holder for `spec` and waits until its socket answers.
///
/// It does not die with this process. Its own failures from then on are in its log and status.
pub fn launch(executable: &Path, spec: &AppSpec) -> Result<Control, SandboxError> {
    let directory = &spec.directory;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.doing(|| format!("make the directory `{}`", directory.display()))?;
    write_spec(spec)?;
    let (ready, ready_theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).doing(|| "make a pipe".to_owned())?;
    let mut command = Command::new(executable);
    command
        .arg(INIT_COMMAND)
        .arg(directory)
        .current_dir("/")
        .env_clear()
        // For `newuidmap` and `slirp4netns`.
        .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
        .stdin(Stdio::null())
        .stdout(Stdio::from(ready_theirs))
        .stderr(Stdio::null());
    let doing = || format!("start `{} {INIT_COMMAND}`", executable.display());
    // The process that is started ends at once; its child is the holder.
    let status = command.status();
    drop(command);
    status.doing(doing)?;
    let mut said = Vec::new();
    File::from(ready).take(MAX_SPEC_BYTES).read_to_end(&mut said).doing(doing)?;
    if said == READY {
        return Ok(Control::at(directory));
    }
    let why = if said.is_empty() { "it ended at once".into() } else { String::from_utf8_lossy(&said) };
    Err(SandboxError::Reported(format!("the holder of the app process could not start: {why}")))
}

/// The body of `hephy __init DIRECTORY`.
#[must_use]
pub fn init_main(directory: Option<PathBuf>) -> ExitCode {
    let Some(directory) = directory else {
        return ExitCode::from(2);
    };
    // One fork is enough to be nobody's child: the session is new, and no terminal is ever opened.
    if nix::unistd::setsid().is_err() {
        return ExitCode::FAILURE;
    }
    match system::fork_into(nix::sched::CloneFlags::empty()) {
        Ok(ForkResult::Parent { .. }) => ExitCode::SUCCESS,
        Ok(ForkResult::Child) => hold(&directory),
        Err(_) => ExitCode::FAILURE,
    }
}

fn hold(directory: &Path) -> ExitCode {
    let prepared = prepare(directory);
    let said = match &prepared {
        Ok(_) => io::stdout().write_all(READY),
        Err(error) => io::stdout().write_all(error.chain().as_bytes()),
    };
    let said = said.and_then(|()| io::stdout().flush()).and_then(|()| leave_stdout());
    match (prepared, said) {
        (Ok(prepared), Ok(())) => {
            holder::run(prepared.spec, &prepared.listener);
            drop(prepared.lock);
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}

/// The starter waits for its end.
fn leave_stdout() -> io::Result<()> {
    Ok(nix::unistd::dup2_stdout(File::open("/dev/null")?)?)
}

struct Prepared {
    spec: AppSpec,
    listener: UnixListener,
    lock: Flock<File>,
}

fn prepare(directory: &Path) -> Result<Prepared, SandboxError> {
    let path = directory.join(SPEC);
    let doing = || format!("read `{}`", path.display());
    let mut text = Vec::new();
    File::open(&path).doing(doing)?.take(MAX_SPEC_BYTES).read_to_end(&mut text).doing(doing)?;
    let spec = serde_json::from_slice(&text)
        .map_err(|error| SandboxError::Damaged { path: path.clone(), why: error.to_string() })?;
    let lock = directory.join(LOCK);
    let file = File::create(&lock).doing(|| format!("make `{}`", lock.display()))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .doing(|| format!("take `{}`, which another holder has,", lock.display()))?;
    let doing = || format!("listen in `{}`", directory.display());
    let handle = OwnedFd::from(File::open(directory).doing(doing)?);
    let socket = socket_path(&handle);
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).doing(doing),
        _ => {}
    }
    let listener = UnixListener::bind(&socket);
    // The name above goes through the handle, which is open until here.
    drop(handle);
    Ok(Prepared { spec, listener: listener.doing(doing)?, lock })
}

/// Written aside and renamed: a holder never reads half of it. It may contain an app's secrets.
fn write_spec(spec: &AppSpec) -> Result<(), SandboxError> {
    let path = spec.directory.join(SPEC);
    let doing = || format!("write `{}`", path.display());
    let mut aside = tempfile::NamedTempFile::new_in(&spec.directory).doing(doing)?;
    serde_json::to_writer(&mut aside, spec).map_err(io::Error::from).doing(doing)?;
    aside.persist(&path).map_err(|error| error.error).doing(doing)?;
    Ok(())
}
