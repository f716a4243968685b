//! Running programs of strangers: build steps, and the apps themselves.
//!
//! A *worker* is a re-exec of our own binary with one thread, which enters a user namespace and keeps it for its life;
//! in it a [`Sandbox`] opens roots over layer trees and runs [`Step`]s in them. The process that starts a worker is never
//! in the namespaces and never forks: it may have threads, credentials and a network.
//!
//! What a step must not reach, and what stops it: the host's files (`pivot_root`, a mount namespace of its own), the
//! host's settings (its root is nobody outside, `/proc/sys` is read-only), other processes (a pid namespace), the host's
//! loopback (a network namespace that belongs to somebody else), more memory or processes than it is given (control
//! groups), and a life after its caller's (the kernel ends the tree with the first process, and that one with the worker).

pub mod app;
pub mod cgroup;
mod error;
mod ids;
mod in_place;
mod init;
pub mod ladder;
mod mount_points;
mod network;
mod overlay;
pub mod preflight;
mod protocol;
mod root;
mod running;
mod spawn;
mod step;
pub mod steps;
mod system;
mod userns;
pub mod worker;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use cgroup::{Limits, MemoryKills};
pub use error::SandboxError;
pub use ids::IdMap;
pub use in_place::InPlaceSandbox;
pub use network::{ADDRESS, NetworkMode};
pub use protocol::{Channel, MAX_FDS, MAX_FRAME_BYTES, ProtocolError, Received};
pub use running::Running;
pub use spawn::{Killer, TIDY, Worker, WorkerSpec};
pub use step::{Access, Mount, MountSource, Outcome, Stdio, Step, StepNetwork, UserIds};
pub use userns::UsernsSandbox;

/// The hidden subcommand that a worker is started by.
pub const WORKER_COMMAND: &str = "__sandbox";
/// The hidden subcommand that the holder of an app process is started by.
pub const INIT_COMMAND: &str = "__init";

/// How strictly a sandbox is kept apart from what is around it, the strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// User, mount and pid namespaces.
    Userns,
    /// None: a directory of this container is the root.
    InPlace,
}

/// A place where steps are run in roots made of layers.
///
/// The order is `open`, then any number of `start`, each waited for before the next, then `changes`, then `close`.
pub trait Sandbox: std::fmt::Debug {
    /// How strict it is.
    fn isolation(&self) -> Isolation;

    /// Makes a root of layers that can be read and written at [`Root::path`].
    fn open(&mut self, spec: &RootSpec) -> Result<Root, SandboxError>;

    /// Starts a step in a root.
    fn start(&mut self, root: &mut Root, step: &Step, stdio: Stdio) -> Result<Running, SandboxError>;

    /// Says where to look for what differs from the layers, after removing what running took.
    ///
    /// Not everything there has changed; everything that has changed is there.
    fn changes(&mut self, root: &mut Root) -> Result<Changes, SandboxError>;

    /// Takes the root apart. What [`Changes`] named stays and is the caller's.
    fn close(&mut self, root: Root) -> Result<(), SandboxError>;
}

/// What a root is made of; paths are relative to the worker's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootSpec {
    /// Trees, the base first; none for an empty root.
    pub lowers: Vec<PathBuf>,
    /// Where changes are to be written; made if absent.
    pub upper: PathBuf,
    /// An empty directory on the file system of `upper`; made if absent.
    pub work: PathBuf,
    /// Where the root is to be seen; made if absent. [`Isolation::InPlace`] expects what `lowers` show together to be
    /// there already, as plain files that nothing else shares.
    pub mount_point: PathBuf,
}

/// An open root.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    upper: PathBuf,
    made: Vec<mount_points::Made>,
    /// What [`Isolation::InPlace`] has of it.
    plain: Option<in_place::Plain>,
}

impl Root {
    /// The root's files, as the worker sees them.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Where to look for what a root's steps changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Changes {
    /// In this upper directory of an overlay, with the kernel's marks of deletion.
    Upper {
        /// The upper.
        directory: PathBuf,
    },
    /// In the whole root, at whatever changed its status since then.
    Scan {
        /// Seconds and nanoseconds of the file system's clock.
        since: (i64, i64),
    },
}
