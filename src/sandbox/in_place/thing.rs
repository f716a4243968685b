//! What is laid into a root, and how it gets there and back.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::placing::magic;
use crate::sandbox::SandboxError;
use crate::sandbox::error::Doing as _;

/// What is laid into a root.
#[derive(Debug)]
pub(super) enum Thing<'a> {
    /// A file with this content.
    File(&'a [u8]),
    /// A file that not everybody may read.
    OwnedFile {
        /// What is in it.
        content: &'a [u8],
        /// Its permissions.
        mode: u32,
        /// Whose it is.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// An empty directory of these permissions.
    Directory(u32),
    /// A copy of a file or tree.
    Copy(&'a Path),
    /// A file or tree itself; it goes back after the step.
    Lent(&'a Path),
}

impl Thing<'_> {
    pub(super) fn is_directory(&self) -> Result<bool, SandboxError> {
        match self {
            Self::File(_) | Self::OwnedFile { .. } => Ok(false),
            Self::Directory(_) => Ok(true),
            Self::Copy(from) | Self::Lent(from) => {
                let metadata = fs::metadata(from).doing(|| format!("read `{}`", from.display()))?;
                Ok(metadata.is_dir())
            }
        }
    }
}

pub(super) fn make(parent: BorrowedFd<'_>, name: &OsStr, thing: &Thing<'_>) -> io::Result<()> {
    let path = magic(parent).join(name);
    match thing {
        Thing::File(content) => {
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
        }
        Thing::OwnedFile { content, mode, uid, gid } => {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(content)?;
            std::os::unix::fs::fchown(&file, Some(*uid), Some(*gid))?;
            file.set_permissions(fs::Permissions::from_mode(*mode))
        }
        Thing::Directory(mode) => {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode))
        }
        Thing::Copy(from) => copy(from, &path, &fs::metadata(from)?),
        Thing::Lent(from) => match fs::rename(from, &path) {
            // On another file system it is copied; what the step writes there is lost with it.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                copy(from, &path, &fs::metadata(from)?)
            }
            result => result,
        },
    }
}

/// What was lent goes back where it came from, unless only its copy was lent or the step removed it.
pub(super) fn give_back(parent: BorrowedFd<'_>, name: &OsStr, back: &Path) -> io::Result<()> {
    if back.symlink_metadata().is_ok() {
        return Ok(());
    }
    match rustix::fs::renameat(parent, name, CWD, back) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => fs::create_dir(back),
        Err(error) => Err(error.into()),
    }
}

/// Copies a tree with its modes, owners and times. `metadata` is what `from` stands for.
fn copy(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()), &entry.metadata()?)?;
        }
    } else if metadata.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else if metadata.is_file() {
        fs::copy(from, to)?;
    } else {
        return Ok(());
    }
    std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() },
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
