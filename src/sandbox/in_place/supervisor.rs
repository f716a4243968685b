//! The process above a step: it starts the command in its root, reaps and ends what the command leaves behind, and ends
//! everything when the worker is gone.

use std::fs;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid};
use rustix::thread::CapabilitySet;

use crate::sandbox::error::Doing;
use crate::sandbox::init::{self, CAPABILITIES, Program, Report};
use crate::sandbox::{Outcome, SandboxError, Stdio, Step, system};

/// Asks the supervisor to end everything, also when the worker has died; no step has a use for it.
pub(in crate::sandbox) const END: Signal = Signal::SIGPWR;
/// What a step may do: what leaves a `chroot` is not in it, nor what other processes here have and it has not.
const STEP_CAPABILITIES: CapabilitySet =
    CAPABILITIES.difference(CapabilitySet::SYS_CHROOT.union(CapabilitySet::MKNOD));

/// Everything the supervisor needs.
pub(super) struct Start<'a> {
    pub(super) worker: Pid,
    pub(super) root: &'a Path,
    pub(super) step: &'a Step,
    pub(super) stdio: &'a Stdio,
    pub(super) report: OwnedFd,
}

/// Is the supervisor, until the command has ended and nothing of it is left. All signals are blocked when it is called.
pub(super) fn run(start: &Start<'_>) -> ! {
    let ended = match begin(start) {
        Ok(command) => supervise(start, command),
        Err(error) => Err(error),
    };
    // Whatever went wrong, nothing stays.
    let ended = ended.or_else(|error| end_children().and(Err(error)));
    let report = match ended {
        Ok(Some(outcome)) => Report::Ended(outcome),
        // Nobody is to be told.
        Ok(None) => system::leave(0),
        Err(error) => Report::Failed(error.chain()),
    };
    let text = serde_json::to_vec(&report).map_err(io::Error::from);
    let written = text.and_then(|text| {
        let report = start.report.try_clone()?;
        File::from(report).write_all(&text)
    });
    system::leave(i32::from(written.is_err()))
}

fn begin(start: &Start<'_>) -> Result<Pid, SandboxError> {
    let doing = || "bind the step to its worker".to_owned();
    super::adopt_orphans()?;
    nix::sys::prctl::set_pdeathsig(END).doing(doing)?;
    let program = Program::new(start.step)?;
    let supervisor = nix::unistd::getpid();
    let forked = system::fork_into(nix::sched::CloneFlags::empty()).doing(|| "fork".to_owned())?;
    match forked {
        ForkResult::Child => {
            let error = match enter(start.root) {
                Ok(()) => {
                    init::execute(start.step, &program, start.stdio, STEP_CAPABILITIES, Some(supervisor))
                }
                Err(error) => error.into(),
            };
            system::leave(program.status_of(&error, start.report.as_fd()));
        }
        ForkResult::Parent { child } => {
            system::close_all_but(start.report.as_fd())
                .doing(|| "close what the step does not use".to_owned())?;
            // The descriptors of the streams are closed, and their owner never runs again: this process only exits.
            Ok(child)
        }
    }
}

fn enter(root: &Path) -> Result<(), SandboxError> {
    let doing = || "make the image's root the root".to_owned();
    rustix::process::chdir(root).doing(doing)?;
    nix::unistd::chroot(".").doing(doing)?;
    rustix::process::chdir("/").doing(doing)
}

/// Waits for the command, then ends what it left; `None` if it was told to end before that.
fn supervise(start: &Start<'_>, command: Pid) -> Result<Option<Outcome>, SandboxError> {
    let mut outcome = None;
    // The worker may have died before it could be heard of.
    let mut is_told = nix::unistd::getppid() != start.worker;
    loop {
        init::reap(command, &mut outcome)?;
        if is_told || outcome.is_some() {
            end_children()?;
            return Ok(outcome.filter(|_| !is_told));
        }
        match SigSet::all().wait() {
            // The last two: a real-time signal, which has no name and no receiver here.
            Ok(Signal::SIGCHLD) | Err(Errno::EINVAL | Errno::EINTR) => {}
            Ok(END) => is_told = true,
            Ok(signal) => init::pass_on(command, signal)?,
            Err(error) => return Err(error).doing(|| "wait for a signal".to_owned()),
        }
    }
}

/// Kills and reaps every child of this process, and the children that they leave to it, until there is none.
pub(in crate::sandbox) fn end_children() -> Result<(), SandboxError> {
    let doing = || "end what a step left running".to_owned();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(nix::sys::wait::WaitStatus::StillAlive) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).doing(doing),
        }
        for child in children().doing(doing)? {
            match nix::sys::signal::kill(child, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).doing(doing),
            }
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error).doing(doing),
        }
    }
}

fn children() -> io::Result<Vec<Pid>> {
    let own = nix::unistd::getpid().as_raw();
    let processes = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(processes.filter(|pid| parent_of(*pid) == Some(own)).map(Pid::from_raw).collect())
}

/// The fourth field of `stat`; the second is a name in brackets that may hold anything.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_what_containers_have_but_for_two() {
        assert_eq!(STEP_CAPABILITIES.bits(), 0xa804_25fb & !(1 << 18) & !(1 << 27));
    }

    #[test]
    fn a_process_knows_its_children() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert!(children().unwrap().contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
