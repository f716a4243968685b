//! What is run in a root, and how it ended: plain values that travel between processes.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SandboxError;
use super::error::Doing;
use crate::model::Secret;

/// A command in a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The program and its arguments; a name without `/` is looked for in the step's own `PATH`.
    pub argv: Vec<String>,
    /// The whole environment, nothing is added.
    pub environment: Vec<(String, String)>,
    /// The working directory; it must exist in the root.
    pub directory: PathBuf,
    /// Who runs it.
    pub user: UserIds,
    /// The host name inside.
    pub hostname: String,
    /// Mounts beyond the usual ones, in order.
    pub mounts: Vec<Mount>,
    /// Which network it sees.
    pub network: StepNetwork,
    /// Whether set-user-id programs (`sudo`) are without effect.
    pub no_new_privileges: bool,
    /// Whether its root has every capability of the sandbox, and nothing of `/proc` is hidden from it: it may mount,
    /// and make namespaces where the kernel lets it. The sandbox's own ids are still all that it has.
    #[serde(default)]
    pub privileged: bool,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            argv: Vec::new(),
            environment: Vec::new(),
            directory: PathBuf::from("/"),
            user: UserIds::default(),
            hostname: "hephy".to_owned(),
            mounts: Vec::new(),
            network: StepNetwork::Workers,
            no_new_privileges: false,
            privileged: false,
        }
    }
}

/// The ids of a process inside the sandbox; the default is root's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserIds {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The network of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepNetwork {
    /// What the worker was started with.
    Workers,
    /// A loopback of its own and nothing else.
    None,
}

/// A mount for one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where, in the root, links followed; made if absent and then removed after the step. A mount that is to be seen
    /// inside another one comes after it.
    pub target: PathBuf,
    /// What.
    pub source: MountSource,
    /// Whether it can be written.
    pub access: Access,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum MountSource {
    /// An empty directory in memory.
    Tmpfs {
        /// Its largest size.
        max_bytes: Option<u64>,
        /// Its permissions.
        mode: u32,
    },
    /// A file or directory that the worker sees, by a path relative to the worker's directory. A directory gets an
    /// empty place for each later mount inside it, also if the step may not write to it.
    Bind {
        /// The file or directory.
        source: PathBuf,
    },
    /// A file in memory, which this step alone sees.
    File {
        /// What is in it.
        content: Secret<Vec<u8>>,
        /// Its permissions.
        mode: u32,
        /// Whose it is.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// Whether a mount can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read and write.
    ReadWrite,
    /// Read only.
    ReadOnly,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// With an exit status: 127 when the program is not there, 126 when it cannot be executed.
    Exited(i32),
    /// By a signal; 9 also when the kernel ended the whole tree for its memory.
    Signalled(i32),
    /// It took longer than it may.
    TimedOut,
    /// Whoever asked for it has gone.
    Cancelled,
}

/// The three standard streams of a step.
#[derive(Debug)]
pub struct Stdio {
    /// Read by the step.
    pub stdin: OwnedFd,
    /// Written by the step.
    pub stdout: OwnedFd,
    /// Written by the step.
    pub stderr: OwnedFd,
}

impl Stdio {
    /// An empty input, and two outputs.
    pub fn without_input(stdout: OwnedFd, stderr: OwnedFd) -> Result<Self, SandboxError> {
        let stdin = File::open("/dev/null").doing(|| "open `/dev/null`".to_owned())?.into();
        Ok(Self { stdin, stdout, stderr })
    }

    /// An empty input, and both outputs into one.
    pub fn merged(output: BorrowedFd<'_>) -> Result<Self, SandboxError> {
        let copy = || output.try_clone_to_owned().doing(|| "copy a file descriptor".to_owned());
        Self::without_input(copy()?, copy()?)
    }
}
