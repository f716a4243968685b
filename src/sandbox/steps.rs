//! The worker body that does nothing but what a [`Sandbox`] does: for app processes, and to try an implementation.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Changes, Outcome, Received, Root, RootSpec, Sandbox, SandboxError, Stdio, Step, worker};

/// The name of this body.
pub const BODY: &str = "steps";

/// What the body is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Open the root; one at a time.
    Open(RootSpec),
    /// Run a step to its end; with the three streams.
    Run {
        /// The step.
        step: Step,
        /// The time it may take.
        limit: Option<Duration>,
    },
    /// Where to look for changes.
    Changes,
    /// Close the root.
    Close,
    /// Remove directories below the worker's own.
    Remove(Vec<PathBuf>),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// The step ended.
    Ended(Outcome),
    /// Where to look.
    Changes(Changes),
    /// The sandbox failed.
    Failed(String),
}

/// Serves requests until the other side hangs up.
#[must_use]
pub fn main() -> ExitCode {
    match worker::enter().and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever started this has been told, or has gone.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(entered: worker::Entered) -> Result<(), SandboxError> {
    let worker::Entered { mut channel, mut sandbox } = entered;
    let mut open = None;
    while let Some(Received { message, fds }) = channel.receive()? {
        let answer = answer(&mut *sandbox, &mut open, message, fds, channel.as_fd());
        channel.send(&answer.unwrap_or_else(|error| Answer::Failed(error.chain())), &[])?;
    }
    open.map_or(Ok(()), |root| sandbox.close(root))
}

fn answer(
    sandbox: &mut dyn Sandbox,
    open: &mut Option<Root>,
    request: Request,
    fds: Vec<OwnedFd>,
    hangup: std::os::fd::BorrowedFd<'_>,
) -> Result<Answer, SandboxError> {
    let none_open = || SandboxError::Reported("no root is open".to_owned());
    match request {
        Request::Open(_) if open.is_some() => Err(SandboxError::Reported("a root is open".to_owned())),
        Request::Open(spec) => {
            *open = Some(sandbox.open(&spec)?);
            Ok(Answer::Done)
        }
        Request::Run { step, limit } => {
            let root = open.as_mut().ok_or_else(none_open)?;
            let running = sandbox.start(root, &step, stdio(fds)?)?;
            Ok(Answer::Ended(running.wait(limit, Some(hangup))?))
        }
        Request::Changes => Ok(Answer::Changes(sandbox.changes(open.as_mut().ok_or_else(none_open)?)?)),
        Request::Close => {
            sandbox.close(open.take().ok_or_else(none_open)?)?;
            Ok(Answer::Done)
        }
        Request::Remove(directories) => {
            for directory in directories {
                remove(&directory)?;
            }
            Ok(Answer::Done)
        }
    }
}

/// The streams of a step from the descriptors of its request.
pub(super) fn stdio(fds: Vec<OwnedFd>) -> Result<Stdio, SandboxError> {
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|fds| SandboxError::Reported(format!("{} streams instead of 3", fds.len())))?;
    Ok(Stdio { stdin, stdout, stderr })
}

/// Removes a tree of the sandbox's; absent is removed.
pub(super) fn remove(directory: &std::path::Path) -> Result<(), SandboxError> {
    use super::error::Doing;
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("remove `{}`", directory.display()))
        }
        _ => Ok(()),
    }
}
