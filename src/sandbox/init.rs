//! The first process of a step's pid namespace: it builds the root, starts the command, passes signals on and reaps
//! what the command leaves behind. When it ends, the kernel ends everything else in the namespace.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::error::Doing;
use super::network::NetworkFiles;
use super::{Outcome, SandboxError, Stdio, Step, StepNetwork, root, system};

/// What root in a container may do, as every container runtime has it.
pub(super) const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);
/// The directories of a step without a `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Asks the first process to wait for all processes instead of the command alone; no command has a use for it.
pub(super) const LINGER: Signal = Signal::SIGPWR;

/// What the first process tells the worker before it ends.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The command ran.
    Ended(Outcome),
    /// It could not be started, and why.
    Failed(String),
}

/// Everything the first process needs.
pub(super) struct Start<'a> {
    pub(super) root: &'a Path,
    pub(super) step: &'a Step,
    pub(super) files: &'a NetworkFiles,
    pub(super) stdio: Stdio,
    pub(super) report: OwnedFd,
}

/// Is the first process, until the command has ended. All signals are blocked when it is called.
pub(super) fn run(start: Start<'_>) -> ! {
    let mut report = File::from(start.report);
    let ended = match begin(start.root, start.step, start.files, start.stdio, report.as_fd()) {
        Ok(Some(command)) => reap_until(command).map(Report::Ended),
        // The worker has gone: nobody is to be told.
        Ok(None) => system::leave(0),
        Err(error) => Err(error),
    };
    let ended = ended.unwrap_or_else(|error| Report::Failed(error.chain()));
    let written =
        serde_json::to_vec(&ended).map_err(io::Error::from).and_then(|text| report.write_all(&text));
    system::leave(i32::from(written.is_err()))
}

fn begin(
    root: &Path,
    step: &Step,
    files: &NetworkFiles,
    stdio: Stdio,
    report: BorrowedFd<'_>,
) -> Result<Option<Pid>, SandboxError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "bind the step to its worker".to_owned())?;
    // The worker may have died before that.
    if has_no_reader(report) {
        return Ok(None);
    }
    if step.network == StepNetwork::None {
        super::network::configure()?;
    }
    nix::unistd::sethostname(&step.hostname).doing(|| format!("set the host name `{}`", step.hostname))?;
    root::enter(root, step, files)?;
    let program = Program::new(step)?;
    let forked = system::fork_into(nix::sched::CloneFlags::empty()).doing(|| "fork".to_owned())?;
    let command = match forked {
        ForkResult::Child => {
            let error = execute(step, &program, &stdio, CAPABILITIES, None);
            // The pipe is the first process's too; one of the two writes.
            system::leave(program.status_of(&error, report));
        }
        ForkResult::Parent { child } => child,
    };
    drop(stdio);
    system::close_all_but(report).doing(|| "close what the step does not use".to_owned())?;
    Ok(Some(command))
}

fn has_no_reader(pipe: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::POLLOUT)];
    let polled = nix::poll::poll(&mut fds, PollTimeout::ZERO);
    polled.is_err()
        || fds.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLERR)))
}

/// Waits for the command; whatever else ends is reaped, whatever else is asked is passed on to the command.
fn reap_until(command: Pid) -> Result<Outcome, SandboxError> {
    let mut outcome = None;
    let mut linger = false;
    loop {
        match SigSet::all().wait() {
            // The last two: a real-time signal, which has no name and no receiver here.
            Ok(Signal::SIGCHLD) | Err(Errno::EINVAL | Errno::EINTR) => {}
            Ok(LINGER) => linger = true,
            Ok(signal) => pass_on(command, signal)?,
            Err(error) => return Err(error).doing(|| "wait for a signal".to_owned()),
        }
        let any_left = reap(command, &mut outcome)?;
        // The kernel hands out signals by number, not in the order sent: the wish to linger may still wait behind the
        // signal that has just ended the command.
        linger = linger || system::is_pending(LINGER);
        if let Some(outcome) = outcome
            && !(linger && any_left)
        {
            return Ok(outcome);
        }
    }
}

/// To the command's whole group: a shell that runs it as its child passes nothing on.
pub(super) fn pass_on(command: Pid, signal: Signal) -> Result<(), SandboxError> {
    let sent = match nix::sys::signal::killpg(command, signal) {
        // It has not made its group yet.
        Err(Errno::ESRCH) => nix::sys::signal::kill(command, signal),
        other => other,
    };
    match sent {
        // It may have ended a moment ago; then its end is the next thing heard.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).doing(|| format!("pass on {signal}")),
    }
}

/// Reaps what has ended; tells whether any child is left.
pub(super) fn reap(command: Pid, outcome: &mut Option<Outcome>) -> Result<bool, SandboxError> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == command => *outcome = Some(Outcome::Exited(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                *outcome = Some(Outcome::Signalled(signal as i32));
            }
            Ok(WaitStatus::StillAlive) => return Ok(true),
            Err(Errno::ECHILD) => return Ok(false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).doing(|| "wait for a process".to_owned()),
        }
    }
}

/// The command in the form the kernel takes it, made while errors can still be told.
pub(super) struct Program {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    pub(super) fn new(step: &Step) -> Result<Self, SandboxError> {
        let name = step.argv.first().filter(|name| !name.is_empty()).ok_or_else(|| SandboxError::Root {
            path: step.directory.clone(),
            why: "was given an empty command to run".to_owned(),
        })?;
        let environment: Result<_, _> =
            step.environment.iter().map(|(name, value)| c_string(&format!("{name}={value}"))).collect();
        let argv: Result<_, _> = step.argv.iter().map(|argument| c_string(argument)).collect();
        let candidates: Result<_, _> = candidates(name, step).iter().map(|path| c_string(path)).collect();
        Ok(Self { candidates: candidates?, argv: argv?, environment: environment? })
    }

    /// What a shell would exit with; anything else than a missing or unusable program is our failure.
    pub(super) fn status_of(&self, error: &ExecuteError, report: BorrowedFd<'_>) -> i32 {
        match error {
            ExecuteError::Exec(Errno::ENOENT | Errno::ENOTDIR) => 127,
            ExecuteError::Exec(Errno::EACCES | Errno::ENOEXEC | Errno::EPERM | Errno::EISDIR) => 126,
            ExecuteError::Exec(error) => {
                let name = self.argv.first().map(|name| name.to_string_lossy()).unwrap_or_default();
                tell(report, format!("failed to execute `{name}`: {error}"))
            }
            ExecuteError::Before(error) => tell(report, error.chain()),
        }
    }
}

/// Tells of a failure; a status that is never looked at, since the first report is the one that is read.
fn tell(report: BorrowedFd<'_>, why: String) -> i32 {
    let text = serde_json::to_vec(&Report::Failed(why)).unwrap_or_default();
    i32::from(rustix::io::write(report, &text).is_err())
}

fn candidates(name: &str, step: &Step) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = step.environment.iter().rev().find(|(name, _)| name == "PATH");
    let path = path.map_or(DEFAULT_PATH, |(_, path)| path.as_str());
    path.split(':')
        .map(|directory| if directory.is_empty() { "." } else { directory })
        .map(|directory| format!("{directory}/{name}"))
        .collect()
}

fn c_string(text: &str) -> Result<CString, SandboxError> {
    CString::new(text)
        .map_err(io::Error::other)
        .doing(|| format!("pass on {text:?}, which contains a zero byte,"))
}

pub(super) enum ExecuteError {
    Before(SandboxError),
    Exec(Errno),
}

impl From<SandboxError> for ExecuteError {
    fn from(error: SandboxError) -> Self {
        Self::Before(error)
    }
}

/// Becomes the command; only failure returns. With a `parent` the command dies with it.
pub(super) fn execute(
    step: &Step,
    program: &Program,
    stdio: &Stdio,
    capabilities: CapabilitySet,
    parent: Option<Pid>,
) -> ExecuteError {
    match become_the_step(step, stdio, capabilities).and_then(|()| parent.map_or(Ok(()), die_with)) {
        Ok(()) => ExecuteError::Exec(program.exec()),
        Err(error) => error.into(),
    }
}

impl Program {
    fn exec(&self) -> Errno {
        let argv: Vec<_> = self.argv.iter().map(CString::as_c_str).collect();
        let environment: Vec<_> = self.environment.iter().map(CString::as_c_str).collect();
        let mut worst = Errno::ENOENT;
        for candidate in &self.candidates {
            let Err(error) = nix::unistd::execve(candidate, &argv, &environment);
            match error {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => worst = error,
                _ => return error,
            }
        }
        worst
    }
}

/// Streams, limits, directory and rights, in the order in which each still may be changed.
fn become_the_step(step: &Step, stdio: &Stdio, capabilities: CapabilitySet) -> Result<(), SandboxError> {
    nix::unistd::setsid().doing(|| "start a session".to_owned())?;
    let streams = || "set up the standard streams".to_owned();
    nix::unistd::dup2_stdin(&stdio.stdin).doing(streams)?;
    nix::unistd::dup2_stdout(&stdio.stdout).doing(streams)?;
    nix::unistd::dup2_stderr(&stdio.stderr).doing(streams)?;
    system::close_all_on_exec().doing(streams)?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    limit_resources()?;
    give_streams(step, stdio);
    rustix::process::chdir(&step.directory)
        .doing(|| format!("enter the working directory `{}`", step.directory.display()))?;
    if !step.privileged {
        drop_capabilities(capabilities)?;
    }
    take_ids(step)?;
    if step.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().doing(|| "give up new privileges".to_owned())?;
    }
    system::reset_signals().doing(|| "reset signals".to_owned())
}

/// Programs open `/dev/stdout` and `/dev/stderr` again by name, which takes rights to the pipe itself. A pipe that belongs
/// to nobody in the sandbox stays as it is.
fn give_streams(step: &Step, stdio: &Stdio) {
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        if !system::is_pipe(stream.as_fd()) {
            continue;
        }
        let (uid, gid) = (Uid::from_raw(step.user.uid), Gid::from_raw(step.user.gid));
        if let Err(error) = nix::unistd::fchown(stream, Some(uid), Some(gid)) {
            tracing::debug!(%error, "a stream of the step cannot be opened by name");
        }
    }
}

/// No core files; as many open files as usual at first, and as many as we may have if it asks.
fn limit_resources() -> Result<(), SandboxError> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let doing = || "limit resources".to_owned();
    setrlimit(Resource::RLIMIT_CORE, 0, 0).doing(doing)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).doing(doing)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard).doing(doing)
}

/// Root keeps what the bounding set keeps, since its exec takes everything that is in it.
fn drop_capabilities(kept: CapabilitySet) -> Result<(), SandboxError> {
    let doing = || "give up capabilities".to_owned();
    rustix::thread::clear_ambient_capability_set().doing(doing)?;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error).doing(doing),
        }
    }
    Ok(())
}

/// After the change of ids, which clears it.
fn die_with(parent: Pid) -> Result<(), SandboxError> {
    let doing = || "bind the command to its supervisor".to_owned();
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).doing(doing)?;
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(Errno::ESRCH).doing(doing) }
}

fn take_ids(step: &Step) -> Result<(), SandboxError> {
    let doing =
        || format!("become user {}:{} (is it in the sandbox's range of ids?)", step.user.uid, step.user.gid);
    let groups: Vec<_> = step.user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(step.user.uid), Gid::from_raw(step.user.gid));
    nix::unistd::setgroups(&groups).doing(doing)?;
    nix::unistd::setresgid(gid, gid, gid).doing(doing)?;
    nix::unistd::setresuid(uid, uid, uid).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_in_the_steps_own_path() {
        let environment = vec![("PATH".to_owned(), "/a::/b".to_owned())];
        let step = Step { environment, ..Step::default() };
        assert_eq!(candidates("make", &step), ["/a/make", "./make", "/b/make"]);
        assert_eq!(candidates("./make", &step), ["./make"]);
    }

    #[test]
    fn a_zero_byte_in_an_argument_is_an_error() {
        let step = Step { argv: vec!["a\0b".to_owned()], ..Step::default() };
        assert!(Program::new(&step).is_err());
    }
}
