//! The two pipes that an app writes to.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::log::{Lines, LogWriter, Stream};
use crate::sandbox::error::Doing;
use crate::sandbox::{SandboxError, Stdio};

/// What is read from a pipe at once: all that fits into one.
const READ_BYTES: usize = 64 << 10;

/// What is still open of an app's output and error.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    pipes: Vec<OutputPipe>,
}

#[derive(Debug)]
struct OutputPipe {
    pipe: File,
    stream: Stream,
    lines: Lines,
}

impl Outputs {
    /// Makes the pipes, and the streams for the other side.
    pub(super) fn open() -> Result<(Self, Stdio), SandboxError> {
        let (out, out_theirs) = output_pipe()?;
        let (err, err_theirs) = output_pipe()?;
        let open =
            |(pipe, stream): (OwnedFd, _)| OutputPipe { pipe: pipe.into(), stream, lines: Lines::default() };
        let pipes = [(out, Stream::Output), (err, Stream::Error)].map(open).into();
        Ok((Self { pipes }, Stdio::without_input(out_theirs, err_theirs)?))
    }

    /// What to wait on, in the order in which [`Outputs::read`] wants to know what is ready.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pipes.iter().map(|output| output.pipe.as_fd())
    }

    /// Reads once from those that are ready.
    pub(super) fn read(&mut self, ready: &[bool], log: &mut LogWriter) {
        let mut ready = ready.iter().copied();
        self.pipes.retain_mut(|output| !ready.next().unwrap_or(false) || output.read(log));
    }

    /// Reads what is still in the pipes; everything that could write to them has ended.
    pub(super) fn drain(&mut self, log: &mut LogWriter) {
        for mut output in std::mem::take(&mut self.pipes) {
            while output.read(log) && output.is_ready() {}
        }
    }
}

impl OutputPipe {
    /// Reads once; false at the end.
    fn read(&mut self, log: &mut LogWriter) -> bool {
        let mut bytes = vec![0; READ_BYTES];
        match self.pipe.read(&mut bytes) {
            Ok(0) => {
                let rest: Vec<_> = self.lines.finish().into_iter().collect();
                log.append(self.stream, &rest);
                false
            }
            Ok(read) => {
                let lines = self.lines.push(bytes.get(..read).unwrap_or_default());
                log.append(self.stream, &lines);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    fn is_ready(&self) -> bool {
        let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        matches!(nix::poll::poll(&mut fds, PollTimeout::ZERO), Ok(1))
    }
}

/// Our end never blocks: a reader that waits would hold up everything else.
fn output_pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let doing = || "make a pipe for the app's output".to_owned();
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).doing(doing)?;
    nix::fcntl::fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing(doing)?;
    Ok((ours, theirs))
}
