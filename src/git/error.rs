//! What can go wrong.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a repository, a quarantine or an object could not be used.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// A file of the repository.
    #[error("failed to {doing} `{path}`")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// libgit2 takes paths as text.
    #[error("the path `{0}` is not UTF-8, which git repositories of hephy need")]
    NotUtf8(PathBuf),
    /// The object directory could not be opened.
    #[error("failed to open a git object directory")]
    Open(#[source] git2::Error),
    /// An object is not there, or is damaged.
    #[error("failed to read the git object {id}")]
    Read {
        /// Its id.
        id: String,
        /// Why.
        source: git2::Error,
    },
    /// An object is of another kind than where it is named says.
    #[error("the git object {id} is a {found}, where a {expected} is expected")]
    Kind {
        /// Its id.
        id: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// An object is not what its kind says.
    #[error("the git object {id} is malformed: {what}")]
    Malformed {
        /// Its id.
        id: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An object is larger than what is taken into memory.
    #[error("the git object {id} has {bytes} bytes, more than the {max_bytes} allowed here")]
    TooLarge {
        /// Its id.
        id: String,
        /// Its size.
        bytes: usize,
        /// The most that is taken.
        max_bytes: usize,
    },
    /// A tree with more files or directories than are taken.
    #[error(
        "the commit has more than {0} files, or directories nested too deep; remove generated files from the repository"
    )]
    TooManyFiles(u64),
    /// The files of a tree are more than are taken.
    #[error(
        "the files of the commit have more than {0} bytes; remove large generated files from the repository"
    )]
    TooManyBytes(u64),
    /// A commit that no push brought completely.
    #[error("the push lacks the object {0}; run `git fsck` in your clone, then push again")]
    Incomplete(String),
    /// A commit that stands on history which a full clone thinks is here.
    #[error(
        "the push lacks the object {0}, which is older than the shallow clone that was pushed here before; push from a new clone made with `git clone --depth=1`"
    )]
    BeyondShallow(String),
    /// A child process of git failed.
    #[error("`git {command}` failed ({status}): {message}")]
    Child {
        /// Its first argument.
        command: &'static str,
        /// How it ended.
        status: String,
        /// The last that it said.
        message: String,
    },
    /// A pack that is elsewhere has an index that is none.
    #[error("the index of `{pack}` is not one: {what}")]
    Index {
        /// Which.
        pack: String,
        /// What is wrong.
        what: &'static str,
    },
    /// What is in a pack that is elsewhere cannot be had.
    #[error("failed to bring objects of `{pack}` from where it is kept")]
    Distant {
        /// Which.
        pack: String,
        /// Why.
        source: super::FetchError,
    },
    /// A blocking task ended early: the server is stopping.
    #[error("the task was stopped")]
    Stopped,
}

impl GitError {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.into(), source }
    }
}

/// Why a push was not received. Whatever could be told to the client has been told.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The client closed the connection, or it broke.
    #[error("the client is gone")]
    ClientGone(#[source] Option<io::Error>),
    /// The client speaks something else.
    #[error("the client broke the protocol: {0}")]
    Protocol(String),
    /// The client sent nothing for too long.
    #[error("the client sent nothing for {0:?}")]
    Stalled(Duration),
    /// A repository with ids of another length.
    #[error(
        "this repository uses SHA-256 object ids, and only SHA-1 repositories can be pushed: make one with `git init --object-format=sha1` and import the history by `git fast-export` and `git fast-import`"
    )]
    Sha256,
    /// More than is taken.
    #[error("{0}")]
    Limit(String),
    /// `git index-pack` refused the pack.
    #[error("the pack was refused: {0}")]
    Pack(String),
    /// The pack builds on objects that are not here, which the client was told not to do.
    #[error(
        "this server has the repository in part, and your client sent differences from the rest: push again in a minute, when the server has all of it"
    )]
    Thin,
    /// Indexing took too long.
    #[error("the pack was not indexed within {0:?}")]
    Slow(Duration),
    /// The objects are not complete.
    #[error("the pushed objects were refused")]
    Objects(#[source] GitError),
    /// Our own repository failed.
    #[error("failed to store the push")]
    Storage(#[source] GitError),
}

impl ReceiveError {
    /// What the client is told, if it is there.
    pub(super) fn for_the_client(&self) -> Option<String> {
        match self {
            Self::ClientGone(_) => None,
            Self::Objects(error) => Some(error.to_string()),
            Self::Storage(_) => Some("the server failed to store the objects; its log says why".to_owned()),
            error => Some(error.to_string()),
        }
    }

    /// Whether the client went away: nothing to log.
    #[must_use]
    pub const fn is_client_gone(&self) -> bool {
        matches!(self, Self::ClientGone(_))
    }
}

/// Why a fetch did not end well. What the client could be told, `git upload-pack` told it.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The client closed the connection, or it broke.
    #[error("the client is gone")]
    ClientGone(#[source] io::Error),
    /// The view of the refs could not be made, or git not started.
    #[error("failed to serve the repository")]
    Storage(#[source] GitError),
    /// git failed.
    #[error("`git upload-pack` failed ({status}): {message}")]
    Child {
        /// How it ended.
        status: String,
        /// The last that it said.
        message: String,
    },
}
