//! One file as the system describes it, and its extended attributes.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::known::Stamp;
use super::owners;

/// Numeric user and group of a file, as seen where the code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// 0:0.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

/// What kind of file a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// What `stat` says of a file, without what changes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(super) mode: u32,
    pub(super) owner: Owner,
    /// Bytes of a file's content or a link's target; 0 for everything else.
    pub(super) size: u64,
    /// Whole seconds.
    pub(super) mtime: i64,
    pub(super) rdev: u64,
    pub(super) links: u64,
    pub(super) inode: (u64, u64),
}

impl Node {
    /// Describes `name` in `dir` without following it; `None` if there is none.
    pub(super) fn at(dir: BorrowedFd<'_>, name: impl AsRef<Path>) -> io::Result<Option<Self>> {
        Ok(Self::at_stamped(dir, name)?.map(|(node, _)| node))
    }

    /// The same, and what tells when the file changes.
    pub(super) fn at_stamped(
        dir: BorrowedFd<'_>,
        name: impl AsRef<Path>,
    ) -> io::Result<Option<(Self, Stamp)>> {
        match rustix::fs::statat(dir, relative(name.as_ref()), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((Self::new(&stat).owned(dir, name.as_ref()), Stamp::of(&stat)))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Describes an open file, and what tells when it changes.
    pub(super) fn of_stamped(fd: impl AsFd) -> io::Result<(Self, Stamp)> {
        let stat = rustix::fs::fstat(fd.as_fd())?;
        let node = Self::new(&stat);
        Ok((Self { owner: owners::of_open(fd.as_fd(), node.owner), ..node }, Stamp::of(&stat)))
    }

    /// Describes an open file; of one that is opened with `O_PATH` the owner is the one whom the system knows.
    pub(super) fn of(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self::of_stamped(fd)?.0)
    }

    /// The same file, `name` in `dir`, with the owner that is noted of it.
    pub(super) fn owned(self, dir: BorrowedFd<'_>, name: &Path) -> Self {
        Self { owner: owners::of_named(dir, name, self.kind, self.owner), ..self }
    }

    /// What the system says.
    pub(super) fn new(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => Kind::File,
        };
        let sized = matches!(kind, Kind::File | Kind::Symlink);
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            owner: Owner { uid: stat.st_uid, gid: stat.st_gid },
            size: if sized { u64::try_from(stat.st_size).unwrap_or_default() } else { 0 },
            mtime: stat.st_mtime,
            rdev: if device { stat.st_rdev } else { 0 },
            links: nlink(stat),
            inode: (stat.st_dev, stat.st_ino),
        }
    }

    /// Whether this says "deleted": a character device 0/0, as on an overlay; or a socket, which is in no layer, where the
    /// trees themselves are on an overlay and such a device cannot be made.
    pub(super) fn is_whiteout(&self) -> bool {
        (self.kind == Kind::CharDevice && self.rdev == 0) || self.kind == Kind::Socket
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

// `st_nlink` is u64 on x86-64 and u32 elsewhere.
#[expect(clippy::allow_attributes, reason = "the conversion is useless on some architectures only")]
#[allow(clippy::useless_conversion, reason = "u32 on arm64")]
fn nlink(stat: &Stat) -> u64 {
    stat.st_nlink.into()
}

/// `path` as the system wants it relative to a directory fd: never empty, never absolute.
pub(super) fn relative(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// The names in a directory, sorted by their bytes.
pub(super) fn names(dir: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens `path` below `dir` for reading without following a symlink in its last component, and never waiting.
pub(super) fn open_read(dir: BorrowedFd<'_>, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, relative(path.as_ref()), flags, Mode::empty())?)
}

/// Opens the directory `path` below `dir`, not following a symlink in its last component.
pub(super) fn open_dir(dir: BorrowedFd<'_>, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, relative(path.as_ref()), flags, Mode::empty())?)
}

/// The target of the symlink `path` below `dir`.
pub(super) fn read_link(dir: BorrowedFd<'_>, path: impl AsRef<Path>) -> io::Result<OsString> {
    let target = rustix::fs::readlinkat(dir, path.as_ref(), Vec::new())?;
    Ok(OsString::from_vec(target.into_bytes()))
}

/// Extended attributes by name.
pub(super) type Xattrs = BTreeMap<CString, Vec<u8>>;

/// Whether `name` belongs to overlay itself or to us, and so to no layer.
fn is_private(name: &[u8]) -> bool {
    name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.") || owners::is_note(name)
}

/// The attributes that belong to a layer: none of overlay's own or of ours, of the host's security labels, or of its ACL-less defaults.
///
/// Only files and directories have such attributes: the kernel allows `user.` on nothing else, and capabilities on
/// files alone.
pub(super) fn xattrs(fd: impl AsFd) -> io::Result<Xattrs> {
    let mut found = Xattrs::new();
    for name in xattr_names(fd.as_fd())? {
        let bytes = name.to_bytes();
        if is_private(bytes) || bytes == b"security.selinux" || bytes == b"security.ima" {
            continue;
        }
        if let Some(value) = xattr(fd.as_fd(), &name)? {
            found.insert(name, value);
        }
    }
    Ok(found)
}

/// The names of all attributes.
pub(super) fn xattr_names(fd: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    // Nearly every file has none, and then one call without a buffer says so.
    let mut list = match rustix::fs::flistxattr_query(fd) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(size) => vec![0; size + 256],
        Err(errno) => return Err(errno.into()),
    };
    let size = rustix::fs::flistxattr(fd, &mut list[..])?;
    list.truncate(size);
    Ok(list
        .split_inclusive(|&byte| byte == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .map(CStr::to_owned)
        .collect())
}

/// The value of one attribute; `None` if the file does not have it.
pub(super) fn xattr(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut short = [0; 64];
    match rustix::fs::fgetxattr(fd, name, &mut short[..]) {
        Ok(size) => Ok(Some(short[..size].to_vec())),
        Err(Errno::RANGE) => {
            // 64 KiB is the kernel's own limit (XATTR_SIZE_MAX).
            let mut value = vec![0; 1 << 16];
            let size = rustix::fs::fgetxattr(fd, name, &mut value[..])?;
            value.truncate(size);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives a file attributes, leaving out those that the kernel does not let this process or this file have.
pub(super) fn set_xattrs(fd: impl AsFd, xattrs: &Xattrs) -> io::Result<()> {
    for (name, value) in xattrs {
        if is_private(name.to_bytes()) {
            continue;
        }
        match rustix::fs::fsetxattr(fd.as_fd(), name.as_c_str(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether `name` is one that a layer's tar uses to say that something is deleted.
pub(super) fn is_whiteout_name(name: &OsStr) -> bool {
    name.as_bytes().starts_with(WHITEOUT_PREFIX.as_bytes())
}

/// `.wh.x` deletes `x` (OCI image-spec, `layer.md` "Whiteouts").
pub(super) const WHITEOUT_PREFIX: &str = ".wh.";
/// `.wh..wh..opq` hides everything that lower layers have in its directory.
pub(super) const OPAQUE_NAME: &str = ".wh..wh..opq";
/// What overlay (`userxattr`) marks such a directory with.
pub(super) const OPAQUE_XATTR: &CStr = c"user.overlay.opaque";
