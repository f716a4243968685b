//! Giving a file that was just made its owner, mode, attributes and time.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, UTIME_OMIT};

use super::entries::Entry;
use super::error::{AtPath as _, FileError};
use super::node::{Node, Owner, Xattrs, set_xattrs, xattrs};
use super::owners::{give, give_named, inherit};
use super::root::Root;

/// Whether files get the owners that they should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// They do; the process is root or mapped root.
    #[default]
    Keep,
    /// Everything belongs to the process.
    Ignore,
}

/// What a file is besides its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) owner: Owner,
    pub(super) mtime: i64,
    pub(super) xattrs: Xattrs,
}

impl Attributes {
    pub(super) fn of_entry(entry: &Entry) -> Self {
        Self { mode: entry.mode, owner: entry.owner, mtime: entry.mtime, xattrs: entry.xattrs.clone() }
    }

    /// Those of an open file or directory.
    pub(super) fn of_file(node: &Node, fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { xattrs: xattrs(fd)?, ..Self::of_node(node) })
    }

    /// Those of a file that can have no extended ones.
    pub(super) fn of_node(node: &Node) -> Self {
        Self { mode: node.mode, owner: node.owner, mtime: node.mtime, xattrs: Xattrs::new() }
    }
}

/// Gives an open file or directory its attributes. The order matters: a change of owner takes away setuid and capabilities.
pub(super) fn apply(fd: BorrowedFd<'_>, attributes: &Attributes, owners: Owners) -> io::Result<()> {
    if owners == Owners::Keep {
        give(fd, attributes.owner)?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode))?;
    set_xattrs(fd, &attributes.xattrs)?;
    Ok(rustix::fs::futimens(fd, &times(attributes.mtime))?)
}

/// Gives the root of a new `upper` directory what the root of the layers below has: an overlay shows the upper's.
pub fn match_root(upper: &Root, lowers: &[Root], owners: Owners) -> Result<(), FileError> {
    let root = Path::new("");
    let Some(lower) = lowers.first() else { return Ok(()) };
    let node = Node::of(lower.as_fd()).at("inspect", root)?;
    let attributes = Attributes::of_file(&node, lower.as_fd()).at("read attributes of", root)?;
    inherit(upper.as_fd(), lower.as_fd()).at("set attributes of", root)?;
    apply(upper.as_fd(), &attributes, owners).at("set owner, mode or attributes of", root)
}

/// Gives a symlink or a special file its owner and time.
pub(super) fn apply_link(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    attributes: &Attributes,
    owners: Owners,
) -> io::Result<()> {
    if owners == Owners::Keep {
        give_named(dir, name, attributes.owner)?;
    }
    Ok(rustix::fs::utimensat(dir, name, &times(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Whole seconds as the time of modification; the time of access stays.
pub(super) fn times(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 },
    }
}

/// Copies the content of a file, in the kernel where it can.
pub(super) fn copy_file(from: &mut File, to: &File) -> io::Result<u64> {
    let mut to = to;
    io::copy(from, &mut to)
}
