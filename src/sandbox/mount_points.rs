//! Finding and making mount points in a root that somebody else wrote.
//!
//! An image may have a link where a mount belongs (`/etc/resolv.conf` often is one, `/proc -> /etc` is an attack). All
//! paths are resolved by the kernel as if the root were `/`; what had to be made is remembered, and removed with its
//! parent's time put back, so that no layer contains it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::SandboxError;
use super::error::Doing;

/// As many links as the kernel itself follows.
const MAX_LINKS: usize = 40;

/// What is to be at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory itself, no link to one.
    Directory,
    /// A directory, or a link to where one is or could be.
    LinkedDirectory,
    /// A file, or a link to where one is or could be.
    File,
}

/// Something that was made in a root.
#[derive(Debug)]
pub(super) struct Made {
    /// Free of links.
    parent: PathBuf,
    name: OsString,
    kind: Kind,
    before: Timespec,
    after: Timespec,
}

/// Opens a root for the functions below.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd, SandboxError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).doing(|| format!("open `{}`", path.display()))
}

/// Opens a mount point in a root; `None` when nothing is there.
pub(super) fn find(root: BorrowedFd<'_>, target: &Path, kind: Kind) -> Result<Option<OwnedFd>, SandboxError> {
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    if kind == Kind::Directory {
        flags |= OFlags::NOFOLLOW;
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = match rustix::fs::openat2(root, relative(target), flags, Mode::empty(), resolve) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).doing(|| format!("resolve `{}` in the root", target.display())),
    };
    let kind_found = kind_of(&rustix::fs::fstat(&found).doing(|| format!("read `{}`", target.display()))?);
    let is_file = kind == Kind::File;
    if is_file != (kind_found == FileType::Directory) && kind_found != FileType::Symlink {
        return Ok(Some(found));
    }
    let wanted = if is_file { "is a directory, not a file" } else { "is not a directory" };
    Err(SandboxError::Root { path: target.to_owned(), why: wanted.to_owned() })
}

/// Makes a mount point if it is not there, and remembers in `made` what that took.
pub(super) fn ensure(
    root: BorrowedFd<'_>,
    target: &Path,
    kind: Kind,
    made: &mut Vec<Made>,
) -> Result<(), SandboxError> {
    if find(root, target, kind)?.is_some() {
        return Ok(());
    }
    let doing = || format!("make the mount point `{}`", target.display());
    let mut rest: VecDeque<OsString> = components(target);
    let mut here = PathBuf::new();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let parent = open_directory(root, &here).doing(doing)?;
        match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if kind_of(&stat) == FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP).doing(doing);
                }
                let link = rustix::fs::readlinkat(&parent, &name, Vec::new()).doing(doing)?;
                let link = PathBuf::from(OsString::from_vec(link.into_bytes()));
                if link.is_absolute() {
                    here = PathBuf::new();
                }
                for component in components(&link).into_iter().rev() {
                    rest.push_front(component);
                }
            }
            Ok(_) => here.push(name),
            Err(Errno::NOENT) => {
                let kind = if rest.is_empty() { kind } else { Kind::Directory };
                made.push(make(parent.as_fd(), &here, &name, kind).doing(doing)?);
                here.push(name);
            }
            Err(error) => return Err(error).doing(doing),
        }
    }
    Ok(())
}

/// Removes what was made, last first. What a step has put something into stays.
pub(super) fn remove(root: BorrowedFd<'_>, made: &mut Vec<Made>) -> Result<(), SandboxError> {
    while let Some(item) = made.pop() {
        remove_one(root, &item)
            .doing(|| format!("remove the mount point `{}`", item.parent.join(&item.name).display()))?;
    }
    Ok(())
}

fn make(parent: BorrowedFd<'_>, path: &Path, name: &OsString, kind: Kind) -> io::Result<Made> {
    let before = modified(parent)?;
    match kind {
        Kind::Directory | Kind::LinkedDirectory => {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
        }
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            drop(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    Ok(Made { parent: path.to_owned(), name: name.clone(), kind, before, after: modified(parent)? })
}

fn remove_one(root: BorrowedFd<'_>, item: &Made) -> io::Result<()> {
    let parent = match open_directory(root, &item.parent) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other?,
    };
    let now = modified(parent.as_fd())?;
    let removed = match item.kind {
        Kind::Directory | Kind::LinkedDirectory => {
            rustix::fs::unlinkat(&parent, &item.name, AtFlags::REMOVEDIR)
        }
        Kind::File => match rustix::fs::statat(&parent, &item.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if kind_of(&stat) == FileType::RegularFile && stat.st_size == 0 => {
                rustix::fs::unlinkat(&parent, &item.name, AtFlags::empty())
            }
            Ok(_) => return Ok(()),
            Err(error) => Err(error),
        },
    };
    match removed {
        Ok(()) => {}
        Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR | Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    // When nobody else changed the parent meanwhile, it has not changed at all.
    let restored =
        if (now.tv_sec, now.tv_nsec) == (item.after.tv_sec, item.after.tv_nsec) { item.before } else { now };
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    rustix::fs::futimens(&parent, &Timestamps { last_access: omit, last_modification: restored })?;
    Ok(())
}

fn open_directory(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, relative(path), flags, Mode::empty(), resolve)
}

fn modified(directory: BorrowedFd<'_>) -> io::Result<Timespec> {
    let stat = rustix::fs::fstat(directory)?;
    let nanoseconds = stat.st_mtime_nsec.try_into().map_err(io::Error::other)?;
    Ok(Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds })
}

fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn relative(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn what_was_made_is_removed_and_the_parents_keep_their_time() {
        let root = tempfile::tempdir().unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        fs::create_dir(root.path().join("etc")).unwrap();
        for directory in ["etc", ""] {
            fs::File::open(root.path().join(directory)).unwrap().set_modified(long_ago).unwrap();
        }
        let fd = open_root(root.path()).unwrap();
        let mut made = Vec::new();
        ensure(fd.as_fd(), Path::new("/etc/hosts"), Kind::File, &mut made).unwrap();
        ensure(fd.as_fd(), Path::new("/etc/hostname"), Kind::File, &mut made).unwrap();
        ensure(fd.as_fd(), Path::new("/a/b/c"), Kind::Directory, &mut made).unwrap();
        assert!(root.path().join("a/b/c").is_dir() && root.path().join("etc/hosts").is_file());
        remove(fd.as_fd(), &mut made).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        for directory in ["etc", ""] {
            let metadata = fs::metadata(root.path().join(directory)).unwrap();
            assert_eq!(metadata.modified().unwrap(), long_ago);
        }
    }

    #[test]
    fn a_link_out_of_the_root_stays_in_it() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink(outside.path().join("x"), root.path().join("etc/resolv.conf")).unwrap();
        symlink("../../../../run/deep/hosts", root.path().join("etc/hosts")).unwrap();
        let fd = open_root(root.path()).unwrap();
        let mut made = Vec::new();
        ensure(fd.as_fd(), Path::new("/etc/resolv.conf"), Kind::File, &mut made).unwrap();
        ensure(fd.as_fd(), Path::new("/etc/hosts"), Kind::File, &mut made).unwrap();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(root.path().join("run/deep/hosts").is_file());
        assert!(find(fd.as_fd(), Path::new("/etc/resolv.conf"), Kind::File).unwrap().is_some());
        remove(fd.as_fd(), &mut made).unwrap();
        assert!(!root.path().join("run").exists());
    }

    #[test]
    fn a_link_where_a_directory_belongs_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink("etc", root.path().join("proc")).unwrap();
        let fd = open_root(root.path()).unwrap();
        let found = find(fd.as_fd(), Path::new("/proc"), Kind::Directory);
        assert!(matches!(found, Err(SandboxError::Root { .. })), "{found:?}");
        assert!(find(fd.as_fd(), Path::new("/proc"), Kind::LinkedDirectory).unwrap().is_some());
    }

    #[test]
    fn links_that_go_round_are_refused() {
        let root = tempfile::tempdir().unwrap();
        symlink("b", root.path().join("a")).unwrap();
        symlink("a", root.path().join("b")).unwrap();
        let fd = open_root(root.path()).unwrap();
        assert!(ensure(fd.as_fd(), Path::new("/a"), Kind::File, &mut Vec::new()).is_err());
    }

    #[test]
    fn what_a_step_wrote_into_a_mount_point_stays() {
        let root = tempfile::tempdir().unwrap();
        let fd = open_root(root.path()).unwrap();
        let mut made = Vec::new();
        ensure(fd.as_fd(), Path::new("/cache"), Kind::Directory, &mut made).unwrap();
        fs::write(root.path().join("cache/kept"), "x").unwrap();
        remove(fd.as_fd(), &mut made).unwrap();
        assert!(root.path().join("cache/kept").exists());
    }
}
