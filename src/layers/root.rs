//! The one function that finds a path of an image, a context or a tar: no symlink and no `..` leads out.
//!
//! The kernel does it (`openat2` with `RESOLVE_IN_ROOT`) where it can. Where it cannot (before 5.6, under
//! qemu's user mode), [`super::walk`] opens one component at a time. Both give the same answers to the same suite.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::{AtPath as _, FileError};
use super::node::{Kind, Node, Owner, open_read};
use super::walk;

/// Why a path in a root could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something else than a regular file where one is needed.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Larger than what is read into memory.
    #[error("`{}` has {size} bytes, more than the {max_bytes} that are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// A path that names no file of its own.
    #[error("`{}` does not end in a name", .0.display())]
    NoName(PathBuf),
}

impl RootError {
    /// Whether the reason is that the path does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::File(error) if error.is_not_found())
    }
}

/// A directory that paths are resolved in as if it were `/`.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    /// The kernel resolves; otherwise the walk does.
    kernel: bool,
}

impl Root {
    /// Opens the directory at `dir`, a path of the host.
    pub fn open(dir: &Path) -> Result<Self, RootError> {
        Ok(Self::from_fd(open_root(dir)?))
    }

    /// Opens the directory at `dir` and resolves without `openat2`.
    pub fn open_walking(dir: &Path) -> Result<Self, RootError> {
        Ok(Self { dir: open_root(dir)?, kernel: false })
    }

    /// The root whose directory is already open (not with `O_PATH`).
    #[must_use]
    pub fn from_fd(dir: OwnedFd) -> Self {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let probe = rustix::fs::openat2(&dir, ".", flags, Mode::empty(), ResolveFlags::IN_ROOT);
        Self { dir, kernel: probe.is_ok() }
    }

    /// The directory itself.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Finds `path`, following every symlink inside the root; the result is opened with `O_PATH`.
    pub fn resolve(&self, path: &Path) -> Result<OwnedFd, RootError> {
        Ok(self.open_with(path, OFlags::PATH).at("find", path)?)
    }

    /// Finds the directory that `path` is in, following symlinks up to there; the last component is only named.
    pub fn resolve_parent(&self, path: &Path) -> Result<(OwnedFd, OsString), RootError> {
        let clean = walk::clean(path);
        let Some((parent, name)) = clean.rsplit_once_component() else {
            return Err(RootError::NoName(path.to_owned()));
        };
        let parent = self.open_with(Path::new(parent), OFlags::PATH | OFlags::DIRECTORY).at("find", path)?;
        Ok((parent, name.to_owned()))
    }

    /// Opens the regular file at `path` for reading, following symlinks inside the root.
    ///
    /// A device, pipe or socket is refused before it is opened, since opening one can have effects.
    pub fn open_file(&self, path: &Path) -> Result<File, RootError> {
        let found = Node::of(self.resolve(path)?).at("inspect", path)?;
        if found.kind != Kind::File {
            return Err(RootError::NotAFile(path.to_owned()));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.open_with(path, flags).at("open", path)?;
        let opened = Node::of(&file).at("inspect", path)?;
        if opened.inode == found.inode { Ok(file.into()) } else { Err(RootError::NotAFile(path.to_owned())) }
    }

    /// Opens for reading the regular file at `path` that was `found` there: with one step fewer than [`Self::open_file`].
    pub(super) fn open_found(&self, path: &Path, found: &Node) -> Result<File, RootError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.open_with(path, flags).at("open", path)?;
        let node = Node::of(&file).at("inspect", path)?;
        let is_same = (node.kind, node.inode) == (Kind::File, found.inode);
        if is_same { Ok(file.into()) } else { Err(RootError::NotAFile(path.to_owned())) }
    }

    /// The content of the file at `path`, if there is one, up to `max_bytes`.
    pub fn read(&self, path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, RootError> {
        let file = match self.open_file(path) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut content = Vec::new();
        file.take(max_bytes.saturating_add(1)).read_to_end(&mut content).at("read", path)?;
        let size = content.len() as u64;
        if size > max_bytes {
            return Err(RootError::TooLarge { path: path.to_owned(), size, max_bytes });
        }
        Ok(Some(content))
    }

    /// Makes the directory `path` and those above it, following symlinks inside the root, also dangling ones.
    ///
    /// Gives each directory it makes `mode` whatever the umask, and `owner`; those that exist stay as they are.
    /// Returns the ones it made, relative to the root, outermost first.
    pub fn create_dirs(
        &self,
        path: &Path,
        mode: u32,
        owner: Option<Owner>,
    ) -> Result<Vec<PathBuf>, RootError> {
        let create = walk::Create { mode, owner };
        let walked = walk::walk(self.as_fd(), path.as_os_str(), Some(create));
        let walked = walked.at("create directory", path)?;
        let node = Node::of(walked.fd(self.as_fd())).at("inspect", path)?;
        if !node.is_directory() {
            Err(io::Error::from(io::ErrorKind::NotADirectory)).at("create directory", path)?;
        }
        Ok(walked.created)
    }

    /// Makes an empty file at `path` if nothing is there, for something to be mounted over it; the directories
    /// above must exist. Returns its path relative to the root if it made it.
    pub fn create_file(&self, path: &Path, mode: u32) -> Result<Option<PathBuf>, RootError> {
        let (parent, name) = self.resolve_parent(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(mode)) {
            Ok(file) => {
                rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).at("create", path)?;
                Ok(Some(self.canonical_parent(path)?.join(name)))
            }
            Err(Errno::EXIST) => Ok(None),
            Err(errno) => Ok(Err(errno).at("create", path)?),
        }
    }

    /// The directory that `path` is in, without symlinks or `..`, relative to the root.
    pub fn canonical_parent(&self, path: &Path) -> Result<PathBuf, RootError> {
        let clean = walk::clean(path);
        let (parent, _) = clean.rsplit_once_component().ok_or_else(|| RootError::NoName(path.to_owned()))?;
        let walked = walk::walk(self.as_fd(), parent, None).at("find", path)?;
        Ok(walked.path())
    }

    /// `path` without symlinks or `..`, relative to the root; it must exist.
    pub fn canonical(&self, path: &Path) -> Result<PathBuf, RootError> {
        let walked = walk::walk(self.as_fd(), path.as_os_str(), None).at("find", path)?;
        Ok(walked.path())
    }

    /// Opens the directory at `path` as a root of its own (a build context's subdirectory).
    pub fn subroot(&self, path: &Path) -> Result<Self, RootError> {
        let dir = self.open_with(path, OFlags::RDONLY | OFlags::DIRECTORY).at("open directory", path)?;
        Ok(Self { dir, kernel: self.kernel })
    }

    /// The directory itself, without the root.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.dir
    }

    /// Another handle on the same directory.
    pub fn try_clone(&self) -> Result<Self, RootError> {
        Ok(Self { dir: self.dir.try_clone().at("open", "/")?, kernel: self.kernel })
    }

    fn open_with(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let clean = walk::clean(path);
        let flags = flags | OFlags::CLOEXEC;
        if !self.kernel {
            return walk::walk(self.as_fd(), clean.as_os_str(), None)?.reopen(self.as_fd(), flags);
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let text = if clean.as_os_str().is_empty() { OsStr::new(".") } else { clean.as_os_str() };
        // EAGAIN: something was renamed meanwhile and `..` could not be proved to stay inside.
        for _ in 0..128 {
            match rustix::fs::openat2(&self.dir, text, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                result => return Ok(result?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Opens `path` for reading where every directory above the last component is already known to be one.
    pub(super) fn open_known(&self, path: &Path) -> Result<OwnedFd, FileError> {
        open_read(self.as_fd(), path).at("open", path)
    }
}

fn open_root(dir: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).at("open directory", dir)
}

/// Removes `name` in `dir`, with all that is below if it is a directory; never follows a symlink.
pub(super) fn remove(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let child = super::node::open_dir(dir, name)?;
    remove_content(child.as_fd())?;
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Removes everything in `dir`.
pub(super) fn remove_content(dir: BorrowedFd<'_>) -> io::Result<()> {
    super::node::names(dir)?.iter().try_for_each(|name| remove(dir, name))
}

/// Splitting off the last component of a cleaned path.
trait LastComponent {
    fn rsplit_once_component(&self) -> Option<(&OsStr, &OsStr)>;
}

impl LastComponent for OsString {
    fn rsplit_once_component(&self) -> Option<(&OsStr, &OsStr)> {
        let bytes = self.as_bytes();
        let at = bytes.iter().rposition(|&byte| byte == b'/');
        let (parent, name) = match at {
            Some(at) => (&bytes[..at], &bytes[at + 1..]),
            None => (&bytes[..0], bytes),
        };
        if name.is_empty() || name == b".." {
            None
        } else {
            Some((OsStr::from_bytes(parent), OsStr::from_bytes(name)))
        }
    }
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
