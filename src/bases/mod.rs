//! Base images from Debian's archive, for machines that reach no registry: root file systems made by `mmdebstrap`,
//! the same bytes from the same state of the archive.
//!
//! A tar and what an image of it should say is all that is made here; it becomes an image elsewhere.

mod archive;
mod assemble;
mod busybox;
mod debian;
mod missing;

use std::path::PathBuf;

use crate::oci::{Platform, PlatformError};

pub use archive::{Mirrors, MirrorsError};
pub use assemble::{Assembly, RootFilesystem, assemble, can_assemble};
pub use debian::{Base, BaseNameError, PackageName, PackageNameError};
pub use missing::how_to_get;

/// Why a base could not be assembled.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// A program that is needed is not there.
    #[error("`{program}` is not installed, and bases are made with it: apt-get install {package}")]
    Program {
        /// The program.
        program: &'static str,
        /// What brings it.
        package: &'static str,
    },
    /// This machine runs no programs of the platform.
    #[error(
        "this machine runs no {platform} programs, which installing packages for it needs: apt-get install qemu-user-static binfmt-support"
    )]
    NotRunnable {
        /// The platform.
        platform: Platform,
    },
    /// Debian has no such architecture.
    #[error("Debian has no architecture for {0}")]
    Architecture(Platform),
    /// The archive's keys are not there.
    #[error("`{}` is missing, and Debian's archive is checked with it: apt-get install debian-archive-keyring", .0.display())]
    Keyring(PathBuf),
    /// Which mirrors to use could not be found out.
    #[error(transparent)]
    Mirrors(#[from] MirrorsError),
    /// The archive does not answer.
    #[error("cannot read `{url}`: {reason}; give a mirror that has it with --mirror and --security-mirror")]
    Release {
        /// What was asked for.
        url: String,
        /// The last thing that the program said.
        reason: String,
    },
    /// The archive's index has no date.
    #[error("`{0}` has no date that can be read")]
    ReleaseDate(String),
    /// A program failed.
    #[error("`{program}` failed ({status}):\n{output}")]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: String,
        /// Its last lines.
        output: String,
    },
    /// A file or program could not be used.
    #[error("cannot {action} `{}`", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The package of busybox is not what it was.
    #[error("the package busybox-static has no {0}")]
    Busybox(&'static str),
    /// Packages make no sense in this base.
    #[error("busybox takes no packages: use --include with a debian base")]
    BusyboxInclude,
    /// A word that names no platform.
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

impl BaseError {
    fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
