//! What the engine and its worker say to each other.
//!
//! The worker is the side inside the user namespace: it owns the trees. The engine is the side with the network, the
//! credentials and the cache. Files cross as descriptors beside a message, never as paths of the other side.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::build::mounts::{AgentSocket, CacheRequest, MountRequest};
use crate::build::user::ImageUser;
use crate::layers::{PrunePolicy, Pruned};
use crate::model::Secret;
use crate::oci::Digest;

/// Names a step's changes between the request that made them and those that read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Made(pub(crate) u64);

/// What the engine asks; one at a time.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The first: open the store, whose trees are kept under this name of the id map.
    Begin {
        /// A directory name.
        map: String,
    },
    /// Unpack the layer in the descriptor as a tree, above `lowers`.
    Unpack {
        /// The layer.
        diff_id: Digest,
        /// What is below it, base first.
        lowers: Vec<Digest>,
    },
    /// Unpack the tar in the descriptor: the files of the context, where the worker may not read them in place.
    Context,
    /// Run a command above `lowers`. Descriptors: where its output goes, and the context's directory if a mount says so.
    Run(RunRequest),
    /// Listen on the socket of the descriptor, somewhere that the next step can see it.
    Listen {
        /// Its name for that step.
        socket: AgentSocket,
        /// Its permissions.
        mode: u32,
        /// Whose it is: user and group.
        owner: (u32, u32),
    },
    /// Copy files. Descriptors: the context's directory if `from` says so.
    Copy(CopyRequest),
    /// Make a directory and those above it.
    MakeDirectory {
        /// What is below, base first.
        lowers: Vec<Digest>,
        /// Absolute.
        path: String,
        /// As USER says.
        user: Option<String>,
    },
    /// Hash what a copy would see.
    Hash(CopyRequest),
    /// Write the changes of a step as a tar to the descriptor.
    Diff {
        /// Whose.
        made: Made,
        /// No time is later.
        epoch: Option<i64>,
    },
    /// Write a layer, of which there is a tree, as a tar to the descriptor.
    Pack {
        /// Which.
        diff_id: Digest,
        /// What is below it, base first.
        lowers: Vec<Digest>,
    },
    /// Keep the changes of a step as a tree.
    Commit {
        /// Whose.
        made: Made,
        /// Under this name.
        diff_id: Digest,
        /// How many entries they have.
        entries: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Forget the changes of a step.
    Discard {
        /// Whose.
        made: Made,
    },
    /// Who USER names in an image.
    User {
        /// The image's layers, base first.
        layers: Vec<Digest>,
        /// As USER says.
        user: Option<String>,
    },
    /// Everything committed is on the disk when this is answered.
    Settle,
    /// Remove what the policy does not let stay and nobody uses.
    Prune {
        /// The policy.
        policy: PrunePolicy,
    },
    /// Make a cache mount that is not here of the tar in the descriptor.
    RestoreCache {
        /// Which.
        cache: CacheRequest,
        /// The digest of the tar.
        diff_id: Digest,
        /// How large the tar may be, unpacked.
        max_bytes: u64,
    },
    /// Write a cache mount as a tar to the descriptor, unless somebody uses it: then it is only done.
    SaveCache {
        /// Which.
        name: Digest,
    },
    /// Remove cache mounts, the longest unused first, until they are no larger than this together.
    PruneCaches {
        /// In bytes.
        max_bytes: u64,
    },
}

/// A RUN.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunRequest {
    /// What is below, base first.
    pub(crate) lowers: Vec<Digest>,
    /// The command.
    pub(crate) argv: Vec<String>,
    /// A file that is the command: `argv` names its path.
    pub(crate) script: Option<String>,
    /// Its environment, but for `HOME`.
    pub(crate) environment: BTreeMap<String, String>,
    /// Absolute; made if it is not there.
    pub(crate) directory: String,
    /// As USER says.
    pub(crate) user: Option<String>,
    /// Loopback alone.
    pub(crate) offline: bool,
    /// With every capability of the sandbox.
    pub(crate) privileged: bool,
    /// What it sees besides its image.
    pub(crate) mounts: Vec<MountRequest>,
    /// Variables that are in no key and in no record.
    pub(crate) secrets: BTreeMap<String, Secret<String>>,
    /// Certificates that are trusted as long as it runs, as PEM.
    pub(crate) trusted: Option<String>,
    /// The step's time limit.
    pub(crate) limit_millis: u64,
}

/// A COPY or ADD.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CopyRequest {
    /// What is below the copy, base first.
    pub(crate) lowers: Vec<Digest>,
    /// Where the files are.
    pub(crate) from: CopyFrom,
    /// Patterns inside it.
    pub(crate) sources: Vec<String>,
    /// What was fetched, in the descriptors after the context's.
    pub(crate) fetched: Vec<Fetched>,
    /// Files written in the Dockerfile.
    pub(crate) inline: Vec<InlineContent>,
    /// Absolute; a trailing slash matters.
    pub(crate) destination: String,
    /// As `--chown` says.
    pub(crate) chown: Option<String>,
    /// As `--chmod` says.
    pub(crate) chmod: Option<String>,
    /// As `--exclude` says, each.
    pub(crate) exclude: Vec<String>,
    /// `--parents`.
    pub(crate) parents: bool,
    /// ADD unpacks archives.
    pub(crate) extract: bool,
    /// `created` of files that have no time of their own.
    pub(crate) now: i64,
}

/// What a descriptor of something fetched is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Fetched {
    /// A file of mode 0600.
    File {
        /// Its name in a directory, if its address has one.
        name: Option<String>,
        /// In seconds.
        modified: i64,
        /// If it is an archive, what is in it.
        unpack: bool,
    },
    /// A directory, whose files are copied.
    Directory,
}

/// A file written in the Dockerfile.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InlineContent {
    /// Its name.
    pub(crate) name: String,
    /// What is in it.
    pub(crate) content: String,
}

/// Where copied files are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum CopyFrom {
    /// In the directory of the descriptor, without what the ignore file names.
    ContextDirectory {
        /// The ignore file.
        ignore: Option<IgnoreText>,
    },
    /// In what [`Request::Context`] unpacked, from which ignored files are absent.
    ContextCopy,
    /// In a stage or an image, base first.
    Layers(Vec<Digest>),
}

/// An ignore file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct IgnoreText {
    /// Its name, for errors.
    pub(crate) name: String,
    /// What it says.
    pub(crate) text: Vec<u8>,
}

/// What the worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    /// The worker is ready; how it isolates.
    Ready {
        /// For people.
        isolation: String,
    },
    /// It is done.
    Done,
    /// It is done and has these changes.
    Changed(Made),
    /// The command ended.
    Ran {
        /// How.
        end: RunEnd,
        /// What it changed, if it succeeded.
        made: Option<Made>,
    },
    /// The hash of the sources.
    Hashed(Digest),
    /// The tar is written.
    Diffed {
        /// How many entries; none: nothing changed.
        entries: u64,
        /// How many bytes of content.
        bytes: u64,
    },
    /// Who it is.
    User(ImageUser),
    /// A layer is unpacked.
    Unpacked {
        /// Of its tar.
        bytes: u64,
    },
    /// What was removed.
    Pruned(Pruned),
    /// It could not be done.
    Failed(WorkerFailure),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RunEnd {
    /// With a status.
    Exited(i32),
    /// Before it began: the image has no such program.
    NoProgram,
    /// By a signal.
    Signalled(i32),
    /// With a status, after the kernel has killed for want of memory.
    OutOfMemory {
        /// 128 and the signal's number if it was ended by one.
        status: i32,
        /// What all of the build may use; `None`: the machine had no more.
        limit_bytes: Option<u64>,
    },
    /// It ran into its time limit.
    TimedOut,
    /// The engine went away.
    Cancelled,
}

/// Why the worker could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerFailure {
    /// The pusher can fix it.
    pub(crate) app: bool,
    /// The error and what caused it, outermost first.
    pub(crate) chain: Vec<String>,
}
