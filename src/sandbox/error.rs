//! What can go wrong between a process and the kernel, said with what was being done.

use std::io;
use std::path::PathBuf;

use super::protocol::ProtocolError;

/// A failure of the sandbox itself; a step that fails is an [`Outcome`](super::Outcome), not an error.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A system call failed.
    #[error("failed to {doing}")]
    System {
        /// What was being done, in the infinitive.
        doing: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The host offers no user ids for a sandbox.
    #[error("no user ids for a sandbox: {why}; {next}")]
    Ids {
        /// What is missing.
        why: String,
        /// The command or change that provides it.
        next: String,
    },
    /// `newuidmap`, `newgidmap` or `slirp4netns` failed.
    #[error("`{program}` failed: {output}")]
    Program {
        /// The program.
        program: &'static str,
        /// The end of what it wrote.
        output: String,
    },
    /// The overlay could not be mounted.
    #[error("failed to mount an overlay of {lowers} layers with upper `{}`{hint}", upper.display())]
    Overlay {
        /// The number of lower trees.
        lowers: usize,
        /// The upper directory.
        upper: PathBuf,
        /// What usually causes this, when it is known.
        hint: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The image's file system is such that nothing can run in it.
    #[error("cannot run in this root: `{}` {why}", path.display())]
    Root {
        /// The path in the root.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// This isolation cannot do what is asked.
    #[error("{what} is not possible here: {why}")]
    Lacking {
        /// What was asked.
        what: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// Neither rung can be stood on.
    #[error("RUN cannot be isolated here; user namespaces: {}; in place: {in_place}", .userns.chain())]
    NoIsolation {
        /// Why not in a user namespace.
        userns: Box<Self>,
        /// Why not in place.
        in_place: String,
    },
    /// An overlay cannot be made of directories on an overlay.
    #[error("`{}` is on an overlay file system, as a container's own files are; put it on a volume (`--data`)", data.display())]
    OnOverlay {
        /// The data directory.
        data: PathBuf,
    },
    /// The other process of the sandbox reported a failure.
    #[error("the sandbox reported: {0}")]
    Reported(String),
    /// The worker ended without an answer.
    #[error("the sandbox's worker ended unexpectedly ({0})")]
    WorkerGone(String),
    /// The conversation with the worker broke.
    #[error("failed to talk to the sandbox's worker")]
    Protocol(#[from] ProtocolError),
    /// A file of ours holds what we would not have written.
    #[error("`{}` is damaged: {why}; remove it to have it made anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        why: String,
    },
}

impl SandboxError {
    /// The error with its causes, on one line: what crosses a process boundary.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next: Option<&dyn std::error::Error> = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}

/// Says what was being done when a system call failed.
pub(super) trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, SandboxError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::System { doing: doing(), source: source.into() })
    }
}
