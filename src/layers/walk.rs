//! Resolution inside a root without the kernel's help: one component at a time, each opened with
//! `O_NOFOLLOW|O_PATH`, `..` going back to the directory that was open before.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::node::{Kind, Node, Owner, open_dir};
use super::owners::give;

/// As many symlinks as the kernel follows in one path (`MAXSYMLINKS`).
const MAX_SYMLINKS: usize = 40;
/// Deeper than any path the kernel takes (`PATH_MAX` / 2): a chain of links cannot make the walk hold more.
const MAX_DEPTH: usize = 512;

/// What directories that are missing are made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Create {
    pub(super) mode: u32,
    /// Without one a directory belongs to this process, and to the group of a setgid directory above it, as from `mkdir`.
    pub(super) owner: Option<Owner>,
}

/// Where a walk ended: the open components from the root down.
pub(super) struct Walked {
    stack: Vec<(OsString, OwnedFd)>,
    /// The directories made on the way.
    pub(super) created: Vec<PathBuf>,
}

impl Walked {
    /// What was found, opened with `O_PATH`.
    pub(super) fn fd<'a>(&'a self, root: BorrowedFd<'a>) -> BorrowedFd<'a> {
        self.stack.last().map_or(root, |(_, fd)| fd.as_fd())
    }

    /// Its path without symlinks, relative to the root.
    pub(super) fn path(&self) -> PathBuf {
        self.stack.iter().map(|(name, _)| name).collect()
    }

    /// What was found, opened again with `flags`.
    pub(super) fn reopen(mut self, root: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
        let Some((name, fd)) = self.stack.pop() else {
            return Ok(rustix::fs::openat(root, ".", flags, Mode::empty())?);
        };
        if flags == OFlags::PATH | OFlags::CLOEXEC {
            return Ok(fd);
        }
        let parent = self.fd(root);
        Ok(rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW, Mode::empty())?)
    }
}

/// `path` without a leading or doubled `/` and without `.`: what both resolutions are given.
pub(super) fn clean(path: &Path) -> OsString {
    let parts: Vec<&[u8]> = components(path.as_os_str()).collect();
    OsString::from_vec(parts.join(&b'/'))
}

fn components(path: &OsStr) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.as_bytes().split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// Finds `path` in `root`, making the directories that are missing if `create` says with what.
pub(super) fn walk(root: BorrowedFd<'_>, path: &OsStr, create: Option<Create>) -> io::Result<Walked> {
    let mut pending: VecDeque<OsString> =
        components(path).map(|part| OsStr::from_bytes(part).to_owned()).collect();
    let mut walked = Walked { stack: Vec::new(), created: Vec::new() };
    let mut symlinks = 0;
    while let Some(name) = pending.pop_front() {
        let here = walked.fd(root);
        if !walked.stack.is_empty() && !Node::of(here)?.is_directory() {
            return Err(Errno::NOTDIR.into());
        }
        if name == ".." {
            walked.stack.pop();
            continue;
        }
        let fd = match open_component(here, &name) {
            Err(Errno::NOENT) if create.is_some() => {
                let made = create.map_or(Err(Errno::NOENT.into()), |create| make(here, &name, create))?;
                walked.created.push(walked.path().join(&name));
                made
            }
            result => result?,
        };
        if Node::of(&fd)?.kind != Kind::Symlink {
            walked.stack.push((name, fd));
            if walked.stack.len() > MAX_DEPTH {
                return Err(Errno::NAMETOOLONG.into());
            }
            continue;
        }
        symlinks += 1;
        if symlinks > MAX_SYMLINKS {
            return Err(Errno::LOOP.into());
        }
        let target = super::node::read_link(fd.as_fd(), "")?;
        if target.as_bytes().starts_with(b"/") {
            walked.stack.clear();
        }
        for part in components(&target).rev() {
            pending.push_front(OsStr::from_bytes(part).to_owned());
        }
    }
    Ok(walked)
}

fn open_component(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn make(dir: BorrowedFd<'_>, name: &OsStr, create: Create) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700))?;
    let made = open_dir(dir, name)?;
    if let Some(owner) = create.owner {
        give(made.as_fd(), owner)?;
    }
    let inherited = match create.owner {
        None => Node::of(&made).map_or(0, |node| node.mode & 0o2000),
        Some(_) => 0,
    };
    rustix::fs::fchmod(&made, Mode::from_raw_mode(create.mode | inherited))?;
    Ok(open_component(dir, name)?)
}
