//! Why the worker could not do what it was asked for.

use std::path::PathBuf;

use crate::build::user::UserError;
use crate::layers;
use crate::oci::Digest;
use crate::sandbox::SandboxError;

/// Why a request could not be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("failed to use the layer store")]
    Store(#[from] layers::StoreError),
    #[error("failed to open a directory of the image")]
    Root(#[from] layers::RootError),
    #[error("failed to prepare a step's directory")]
    Prepare(#[from] layers::FileError),
    #[error("failed to unpack the layer {0}")]
    Unpack(Digest, #[source] layers::UnpackError),
    #[error("failed to unpack the context")]
    Context(#[source] layers::UnpackError),
    #[error(transparent)]
    Copy(#[from] layers::CopyError),
    #[error(transparent)]
    Mode(#[from] layers::ModeError),
    #[error("failed to find the step's changes")]
    Diff(#[from] layers::DiffError),
    #[error("failed to write the step's layer")]
    Tar(#[from] layers::TarError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error("failed to read the ignore file")]
    Ignore(#[from] crate::dockerfile::IgnoreError),
    #[error("a pattern of `{flag}` is wrong: {reason}")]
    Pattern { flag: &'static str, reason: String },
    #[error("`--chown={0}` names an account, and nothing below this copy has accounts: give numbers")]
    LinkedOwner(String),
    #[error("failed to write the script of RUN")]
    Script(#[source] std::io::Error),
    #[error("failed to make the socket of an SSH agent")]
    Agent(#[source] std::io::Error),
    #[error("failed to add certificates to the image's bundle for a step")]
    Trust(#[source] std::io::Error),
    #[error(
        "the step has made `{}` a store that cannot be read, so that the certificates of `--ca-bundle` cannot be taken out again: leave it JKS, or PKCS#12 without a password",
        .0.display()
    )]
    KeyStore(PathBuf),
    #[error(
        "the step has changed `{}`, which had the system's certificates for its time, since the image's own store cannot be read: have one there that is JKS with the password `changeit`, or PKCS#12 without a password, before the step",
        .0.display()
    )]
    LockedKeyStore(PathBuf),
    #[error(
        "`{}` is larger than {max_bytes} bytes, so that the certificates of `--ca-bundle` cannot be added to it or taken out of it",
        path.display()
    )]
    TrustTooLarge { path: PathBuf, max_bytes: u64 },
    #[error("failed to make a cache mount")]
    Cache(#[source] std::io::Error),
    #[error("the layer {0} is not in the store")]
    NoTree(Digest),
    #[error("the engine sent a request without its descriptor, or out of order")]
    Protocol,
}

impl WorkerError {
    /// Whether the pusher can fix it.
    pub(in crate::build) fn is_app(&self) -> bool {
        let is_theirs = match self {
            // Of the image or of the isolation, not of the machine.
            Self::Sandbox(error) => {
                matches!(error, SandboxError::Root { .. } | SandboxError::Lacking { .. })
            }
            other => matches!(
                other,
                Self::Copy(_)
                    | Self::User(_)
                    | Self::Mode(_)
                    | Self::Ignore(_)
                    | Self::Pattern { .. }
                    | Self::LinkedOwner(_)
                    | Self::KeyStore(_)
                    | Self::LockedKeyStore(_)
                    | Self::TrustTooLarge { .. }
            ),
        };
        (is_theirs && !is_disk_full(self)) || has_too_many_owners(self)
    }
}

/// Whether an error is that there is no room, which is nobody's who wrote a Dockerfile.
fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    io_errors(error).any(|error| matches!(error.kind(), StorageFull | QuotaExceeded))
}

/// Whether an error is of the owners that an image has, wherever they come to a disk.
fn has_too_many_owners(error: &(dyn std::error::Error + 'static)) -> bool {
    io_errors(error).any(layers::TooManyOwners::is_in)
}

/// The system's part in an error.
fn io_errors<'a>(error: &'a (dyn std::error::Error + 'static)) -> impl Iterator<Item = &'a std::io::Error> {
    std::iter::successors(Some(error), |error| error.source()).filter_map(|error| error.downcast_ref())
}
