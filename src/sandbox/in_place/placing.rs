//! What mounts do, mostly without mounts: things laid into a root for a step, and taken out after it.
//!
//! What is in the way is moved aside and comes back; the directory around keeps its time. Paths are walked a component at
//! a time and stay in the root, whatever links the image has.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::thing::{Thing, give_back, make};
use crate::sandbox::SandboxError;
use crate::sandbox::error::Doing;

/// As many links as the kernel itself follows.
const MAX_LINKS: usize = 40;

/// Everything that lies in a root for a step.
#[derive(Debug)]
pub(super) struct Placing {
    /// Where what is in the way waits, on the root's file system.
    aside: OwnedFd,
    placed: Vec<Placed>,
    count: u32,
}

/// One name in the root that is not the image's.
#[derive(Debug)]
struct Placed {
    parent: OwnedFd,
    name: OsString,
    what: What,
    /// The parent's time, before and after the name was made.
    before: Timespec,
    after: Timespec,
}

#[derive(Debug)]
enum What {
    /// A directory on the way; what a step put into it stays.
    Way,
    /// The thing itself.
    Thing {
        /// The name under which what was in the way waits.
        hidden: Option<OsString>,
        /// Where the thing goes after the step.
        back: Option<PathBuf>,
    },
    /// A mount over an empty file.
    Mount,
}

impl Placing {
    pub(super) fn new(work: &Path) -> Result<Self, SandboxError> {
        let aside = work.join("aside");
        let doing = || format!("make the directory `{}`", aside.display());
        match fs::create_dir(&aside) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error).doing(doing)?,
            _ => {}
        }
        Ok(Self { aside: open_dir(CWD, aside.as_os_str()).doing(doing)?, placed: Vec::new(), count: 0 })
    }

    /// Lays a thing into `root` at `target`, or where that links to.
    pub(super) fn put(&mut self, root: &Path, target: &Path, thing: &Thing<'_>) -> Result<(), SandboxError> {
        let place = self.locate(root, target, true)?;
        self.put_at(&place, target, thing)
    }

    /// Lays an empty directory into `root` at `target`, which must be no link.
    pub(super) fn put_directory(
        &mut self,
        root: &Path,
        target: &Path,
        mode: u32,
    ) -> Result<OwnedFd, SandboxError> {
        let (parent, name) = self.locate(root, target, false)?;
        let place = (parent, name);
        self.put_at(&place, target, &Thing::Directory(mode))?;
        open_dir(&place.0, &place.1).doing(|| format!("open `{}` in the root", target.display()))
    }

    /// Binds a file of the container to a name that nothing has.
    pub(super) fn bind(&mut self, parent: BorrowedFd<'_>, name: &str, source: &Path) -> io::Result<()> {
        let before = modified(parent)?;
        let target = magic(parent).join(name);
        fs::OpenOptions::new().write(true).create_new(true).open(&target)?;
        // Remembered before it is there: the file goes also if the mount fails.
        let copy = parent.try_clone_to_owned()?;
        self.placed.push(Placed {
            parent: copy,
            name: name.into(),
            what: What::Mount,
            before,
            after: before,
        });
        Ok(rustix::mount::mount_bind(source, &target)?)
    }

    fn put_at(
        &mut self,
        (parent, name): &(OwnedFd, OsString),
        target: &Path,
        thing: &Thing<'_>,
    ) -> Result<(), SandboxError> {
        let doing = || format!("lay something over `{}`", target.display());
        let is_directory = thing.is_directory()?;
        let before = modified(parent.as_fd()).doing(doing)?;
        let hidden = self.hide(parent.as_fd(), name, target, is_directory)?;
        let back = match thing {
            Thing::Lent(from) => Some((*from).to_owned()),
            _ => None,
        };
        // Remembered before it is there: what is in the way comes back also if the rest fails.
        let copy = parent.try_clone().doing(doing)?;
        let what = What::Thing { hidden, back };
        self.placed.push(Placed { parent: copy, name: name.clone(), what, before, after: before });
        make(parent.as_fd(), name, thing).doing(doing)?;
        set_modified(parent.as_fd(), before).doing(doing)
    }

    /// Takes everything out again, the last first.
    pub(super) fn take_out(&mut self) -> Result<(), SandboxError> {
        let mut result = Ok(());
        while let Some(placed) = self.placed.pop() {
            let taken = self.take_one_out(&placed).doing(|| {
                format!("take what a step was lent out of its root, at `{}`", placed.name.display())
            });
            result = result.and(taken);
        }
        result
    }

    fn take_one_out(&self, placed: &Placed) -> io::Result<()> {
        let Placed { parent, name, what, before, after } = placed;
        let now = modified(parent.as_fd())?;
        let restored = match what {
            What::Way => match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                // It is the step's own now, and so is the time at which it was made.
                Err(Errno::NOTEMPTY | Errno::EXIST) if now == *before => *after,
                Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => now,
                Err(error) => return Err(error.into()),
            },
            What::Mount => {
                let target = magic(parent.as_fd()).join(name);
                match rustix::mount::unmount(&target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                    // None was made.
                    Ok(()) | Err(Errno::INVAL | Errno::NOENT | Errno::PERM) => {}
                    Err(error) => return Err(error.into()),
                }
                remove(parent.as_fd(), name)?;
                now
            }
            What::Thing { hidden, back } => {
                if let Some(back) = back {
                    give_back(parent.as_fd(), name, back)?;
                }
                remove(parent.as_fd(), name)?;
                if let Some(hidden) = hidden {
                    match rustix::fs::renameat(&self.aside, hidden, parent, name) {
                        // The step removed the directory around it.
                        Err(Errno::NOENT) => remove(self.aside.as_fd(), hidden)?,
                        result => result?,
                    }
                }
                now
            }
        };
        Ok(set_modified(parent.as_fd(), restored)?)
    }

    /// Moves away what is at a name.
    fn hide(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        target: &Path,
        is_directory: bool,
    ) -> Result<Option<OsString>, SandboxError> {
        let doing = || format!("move `{}` aside", target.display());
        let found = match kind_at(parent, name) {
            Err(Errno::NOENT) => return Ok(None),
            found => found.doing(doing)?,
        };
        if (found == FileType::Directory) != is_directory {
            let why = if is_directory { "is not a directory" } else { "is a directory, not a file" };
            return Err(SandboxError::Root { path: target.to_owned(), why: why.to_owned() });
        }
        self.count += 1;
        let hidden = OsString::from(self.count.to_string());
        rustix::fs::renameat(parent, name, &self.aside, &hidden).doing(doing)?;
        Ok(Some(hidden))
    }

    /// The directory and name that `target` stands for in the root. Links on the way are followed inside the root, the last
    /// one too if `follow_last`; directories that are missing are made.
    fn locate(
        &mut self,
        root: &Path,
        target: &Path,
        follow_last: bool,
    ) -> Result<(OwnedFd, OsString), SandboxError> {
        let doing = || format!("find `{}` in the root", target.display());
        let mut stack = vec![open_dir(CWD, root.as_os_str()).doing(doing)?];
        let mut rest = components(target);
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            let Some(here) = stack.last() else { break };
            if name == ".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let is_last = rest.is_empty();
            match kind_at(here.as_fd(), &name) {
                Ok(FileType::Symlink) if !is_last || follow_last => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP).doing(doing);
                    }
                    let link = rustix::fs::readlinkat(here, &name, Vec::new()).doing(doing)?;
                    let link = PathBuf::from(OsString::from_vec(link.into_bytes()));
                    if link.is_absolute() {
                        stack.truncate(1);
                    }
                    for component in components(&link).into_iter().rev() {
                        rest.push_front(component);
                    }
                    continue;
                }
                Ok(_) => {}
                Err(Errno::NOENT) if is_last => {}
                Err(Errno::NOENT) => self.make_way(here.as_fd(), &name).doing(doing)?,
                Err(error) => return Err(error).doing(doing),
            }
            if is_last {
                let parent = stack.pop().ok_or(Errno::NOENT).doing(doing)?;
                return Ok((parent, name));
            }
            let next = open_dir(here, &name).doing(doing)?;
            stack.push(next);
        }
        let why = "does not end in a name".to_owned();
        Err(SandboxError::Root { path: target.to_owned(), why })
    }

    fn make_way(&mut self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let before = modified(parent)?;
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
        let after = modified(parent)?;
        set_modified(parent, before)?;
        let (parent, name) = (parent.try_clone_to_owned()?, name.to_owned());
        self.placed.push(Placed { parent, name, what: What::Way, before, after });
        Ok(())
    }
}

fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // The standard library follows no link in it.
        Err(Errno::ISDIR | Errno::PERM) => fs::remove_dir_all(magic(parent).join(name)),
        Err(error) => Err(error.into()),
    }
}

fn kind_at(parent: BorrowedFd<'_>, name: &OsStr) -> Result<FileType, Errno> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

fn open_dir(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn modified(directory: BorrowedFd<'_>) -> io::Result<Timespec> {
    let stat = rustix::fs::fstat(directory)?;
    let nanoseconds = stat.st_mtime_nsec.try_into().map_err(io::Error::other)?;
    Ok(Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds })
}

fn set_modified(directory: BorrowedFd<'_>, time: Timespec) -> Result<(), Errno> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    rustix::fs::futimens(directory, &Timestamps { last_access: omit, last_modification: time })
}

/// A name for an open directory that the standard library takes.
pub(super) fn magic(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
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
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::time::{Duration, SystemTime};

    use rustix::mount::MountPropagationFlags;

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf, Placing) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let placing = Placing::new(directory.path()).unwrap();
        (directory, root, placing)
    }

    #[test]
    fn what_is_in_the_way_comes_back_and_the_parent_keeps_its_time() {
        let (_directory, root, mut placing) = place();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("etc/hosts"), "the image's").unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        fs::File::open(root.join("etc")).unwrap().set_modified(long_ago).unwrap();
        placing.put(&root, Path::new("/etc/hosts"), &Thing::File(b"ours")).unwrap();
        placing.put(&root, Path::new("/etc/a/b"), &Thing::Directory(0o700)).unwrap();
        assert_eq!(fs::read(root.join("etc/hosts")).unwrap(), b"ours");
        assert!(root.join("etc/a/b").is_dir());
        placing.take_out().unwrap();
        assert_eq!(fs::read(root.join("etc/hosts")).unwrap(), b"the image's");
        assert!(!root.join("etc/a").exists());
        assert_eq!(fs::metadata(root.join("etc")).unwrap().modified().unwrap(), long_ago);
    }

    #[test]
    fn links_stay_in_the_root() {
        let (directory, root, mut placing) = place();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("etc")).unwrap();
        symlink("../../../outside", root.join("up")).unwrap();
        placing.put(&root, Path::new("/etc/hosts"), &Thing::File(b"x")).unwrap();
        placing.put(&root, Path::new("/up/hosts"), &Thing::File(b"x")).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        placing.take_out().unwrap();
        let mut left: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["etc", "up"]);
        symlink("/etc", root.join("proc")).unwrap();
        let refused = placing.put_directory(&root, Path::new("/proc"), 0o755);
        assert!(matches!(refused, Err(SandboxError::Root { .. })), "{refused:?}");
    }

    #[test]
    fn what_was_lent_goes_back_with_what_a_step_wrote() {
        let (directory, root, mut placing) = place();
        let cache = directory.path().join("cache");
        fs::create_dir(&cache).unwrap();
        placing.put(&root, Path::new("/cache"), &Thing::Lent(&cache)).unwrap();
        assert!(!cache.exists());
        fs::write(root.join("cache/kept"), "x").unwrap();
        placing.take_out().unwrap();
        assert!(cache.join("kept").exists() && !root.join("cache").exists());
        placing.put(&root, Path::new("/cache"), &Thing::Copy(&cache)).unwrap();
        fs::write(root.join("cache/lost"), "x").unwrap();
        placing.take_out().unwrap();
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
    }

    #[test]
    fn what_was_bound_is_there_until_it_is_taken_out() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // Of this thread alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let (_directory, root, mut placing) = place();
        let dev = placing.put_directory(&root, Path::new("/dev"), 0o755).unwrap();
        placing.bind(dev.as_fd(), "null", Path::new("/dev/null")).unwrap();
        placing.bind(dev.as_fd(), "lost", Path::new("/dev/there-is-none")).unwrap_err();
        let bound = fs::metadata(root.join("dev/null")).unwrap();
        assert_eq!(bound.rdev(), rustix::fs::makedev(1, 3));
        placing.take_out().unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    #[test]
    fn a_step_that_removes_what_it_was_lent_harms_nothing() {
        let (directory, root, mut placing) = place();
        let cache = directory.path().join("cache");
        fs::create_dir(&cache).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("etc/hosts"), "the image's").unwrap();
        placing.put(&root, Path::new("/cache"), &Thing::Lent(&cache)).unwrap();
        placing.put(&root, Path::new("/etc/hosts"), &Thing::File(b"ours")).unwrap();
        fs::remove_dir(root.join("cache")).unwrap();
        fs::remove_dir_all(root.join("etc")).unwrap();
        placing.take_out().unwrap();
        assert!(cache.is_dir() && !root.join("etc").exists());
    }
}
