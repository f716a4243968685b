//! A step that runs.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::PidfdFlags;

use super::error::Doing;
use super::in_place::{END, end_children};
use super::init::{LINGER, Report};
use super::{Outcome, SandboxError};

/// The longest report of a first process: an error with its causes.
const MAX_REPORT_BYTES: u64 = 64 << 10;

/// How long a supervisor has to end what it supervises.
const SUPERVISOR_ENDS_WITHIN: u16 = 5_000;

/// What ends the processes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The kernel, when the first one ends.
    Namespace,
    /// The first one; if it could not, this process, to which they come.
    Supervised,
}

/// A started step. When it is dropped, all its processes are killed.
#[derive(Debug)]
pub struct Running {
    first: Pid,
    pidfd: OwnedFd,
    report: OwnedFd,
    reaped: bool,
    ending: Ending,
}

impl Running {
    pub(super) fn new(first: Pid, report: OwnedFd, ending: Ending) -> Result<Self, SandboxError> {
        let doing = || "watch the step".to_owned();
        let pid = rustix::process::Pid::from_raw(first.as_raw()).ok_or(Errno::ESRCH).doing(doing)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).doing(doing)?;
        Ok(Self { first, pidfd, report, reaped: false, ending })
    }

    /// Waits until the command has ended and nothing of it is left.
    ///
    /// Everything is killed after `limit`, and when the other end of the socket `hangup` is closed.
    pub fn wait(
        self,
        limit: Option<Duration>,
        hangup: Option<BorrowedFd<'_>>,
    ) -> Result<Outcome, SandboxError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let timeout = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => PollTimeout::NONE,
                Some(Duration::ZERO) => return self.abandon(Outcome::TimedOut),
                // One more millisecond, so that the deadline is not just ahead when the kernel rounds down.
                Some(left) => {
                    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
                }
            };
            let mut fds = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            fds.extend(hangup.map(|socket| PollFd::new(socket, PollFlags::empty())));
            match nix::poll::poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).doing(|| "wait for the step".to_owned()),
            }
            let happened = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
            let over = fds.first().is_some_and(happened);
            let hung_up = fds.get(1).is_some_and(happened);
            if over {
                return self.finish();
            }
            if hung_up {
                return self.abandon(Outcome::Cancelled);
            }
        }
    }

    /// Ends a step that is over: when [`AsFd::as_fd`] is readable this does not block.
    pub fn finish(mut self) -> Result<Outcome, SandboxError> {
        let status = self.reap()?;
        let mut text = Vec::new();
        let report = File::from(self.report.try_clone().doing(|| "read the step's report".to_owned())?);
        report.take(MAX_REPORT_BYTES).read_to_end(&mut text).doing(|| "read the step's report".to_owned())?;
        // The first report counts: a command that could not be executed has said why before it ended.
        let first = serde_json::Deserializer::from_slice(&text).into_iter().next();
        match (first, status) {
            (Some(Ok(Report::Ended(outcome))), _) => Ok(outcome),
            (Some(Ok(Report::Failed(why))), _) => Err(SandboxError::Reported(why)),
            (_, WaitStatus::Signaled(_, signal, _)) => Ok(Outcome::Signalled(signal as i32)),
            _ => Err(SandboxError::Reported("the step's first process ended without a report".to_owned())),
        }
    }

    /// Sends a signal to the command.
    pub fn signal(&self, signal: i32) -> Result<(), SandboxError> {
        let doing = || format!("send signal {signal} to the step");
        let signal = Signal::try_from(signal).doing(doing)?;
        if signal == Signal::SIGKILL {
            return self.kill();
        }
        nix::sys::signal::kill(self.first, signal).doing(doing)
    }

    /// From now on the step is over when all its processes are, not when the command is: for a command that is asked to
    /// end, and leaves children that still do what they were doing.
    pub fn linger(&self) -> Result<(), SandboxError> {
        nix::sys::signal::kill(self.first, LINGER)
            .doing(|| "ask the step to wait for its processes".to_owned())
    }

    /// Kills everything in the step.
    pub fn kill(&self) -> Result<(), SandboxError> {
        let signal = match self.ending {
            Ending::Namespace => Signal::SIGKILL,
            // It has to outlive what it ends: this process may be killed at the same moment.
            Ending::Supervised => END,
        };
        nix::sys::signal::kill(self.first, signal).doing(|| "kill the step".to_owned())
    }

    fn abandon(mut self, outcome: Outcome) -> Result<Outcome, SandboxError> {
        self.kill()?;
        self.reap()?;
        Ok(outcome)
    }

    /// A supervisor that a step has stopped does not end by itself.
    fn insist(&self) -> Result<(), SandboxError> {
        let doing = || "wait for the step's supervisor".to_owned();
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, SUPERVISOR_ENDS_WITHIN) {
            Ok(0) => nix::sys::signal::kill(self.first, Signal::SIGKILL).doing(doing),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).doing(doing),
        }
    }

    fn reap(&mut self) -> Result<WaitStatus, SandboxError> {
        if self.ending == Ending::Supervised {
            self.insist()?;
        }
        loop {
            match waitpid(self.first, None) {
                Err(Errno::EINTR) => {}
                other => {
                    self.reaped = true;
                    if self.ending == Ending::Supervised {
                        end_children()?;
                    }
                    return other.doing(|| "wait for the step".to_owned());
                }
            }
        }
    }
}

/// Readable when the step is over.
impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped
            && let Err(error) = self.kill().and_then(|()| self.reap())
        {
            tracing::warn!(error = %error.chain(), "an abandoned step could not be ended");
        }
    }
}
