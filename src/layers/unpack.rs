//! A tar becomes files: a layer becomes a tree that overlay can use as a lower, an archive of `ADD` is laid over
//! what is there. Nothing is ever written through a symlink that leads out, and nothing existing is written to.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::entries::{ArchiveError, Entries, Entry, EntryKind, Limits};
use super::error::{AtPath as _, FileError};
use super::node::{Kind, Node, OPAQUE_NAME, OPAQUE_XATTR, WHITEOUT_PREFIX, is_whiteout_name};
use super::place::{Attributes, Owners, apply, apply_link};
use super::root::{Root, RootError, remove};
use super::sniff::{Hashing, sniff};
use crate::oci::Digest;

mod below;

/// Why a tar could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The tar itself.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A path could not be resolved.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Not what its digest says.
    #[error(
        "the layer's uncompressed bytes are {found}, and the image says {expected}: the image is damaged"
    )]
    DiffId {
        /// What the image config says.
        expected: Digest,
        /// What was read.
        found: Digest,
    },
    /// A hard link to nothing.
    #[error("entry `{}` is a hard link to `{}`, which is not there", path.display(), target.display())]
    Hardlink {
        /// The link.
        path: PathBuf,
        /// What it should be another name of.
        target: PathBuf,
    },
}

/// How to unpack.
#[derive(Debug, Clone, Copy)]
pub struct UnpackOptions<'a> {
    /// Whether owners are set.
    pub owners: Owners,
    /// How much is accepted.
    pub limits: Limits,
    /// The trees of the layers below, topmost first: a directory that the layer uses without naming it gets their
    /// mode and owner.
    pub lowers: &'a [Root],
}

impl Default for UnpackOptions<'_> {
    fn default() -> Self {
        Self { owners: Owners::Keep, limits: Limits::default(), lowers: &[] }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Of the uncompressed tar.
    pub diff_id: Digest,
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Device nodes that this process may not make (no user namespace allows them).
    pub skipped: Vec<PathBuf>,
}

/// Unpacks the layer `tar` (compressed or not) into the empty directory `tree`, as an overlay lower.
///
/// Whiteouts become 0/0 character devices and opaque directories get `user.overlay.opaque`. Overlay's own attributes in
/// the tar are dropped: a layer cannot forge them.
///
/// # Errors
/// After an error the tree is incomplete, and is to be removed.
pub fn unpack_layer(
    tar: impl Read,
    tree: &Root,
    diff_id: Option<&Digest>,
    options: &UnpackOptions<'_>,
) -> Result<Unpacked, UnpackError> {
    let plain = Hashing::new(sniff(tar).map_err(ArchiveError::Read)?);
    let mut unpacker = Unpacker::new(tree, options, Onto::EmptyTree);
    unpacker.prepare_root()?;
    let plain = unpacker.run(Entries::new(plain, options.limits))?;
    let found = plain.digest();
    if let Some(&expected) = diff_id.filter(|expected| **expected != found) {
        return Err(UnpackError::DiffId { expected, found });
    }
    Ok(Unpacked {
        diff_id: found,
        entries: unpacker.entries,
        bytes: unpacker.bytes,
        skipped: unpacker.skipped,
    })
}

/// Unpacks an uncompressed archive over the directory `dest`, as `ADD` does; `attributes` may change what an entry asks
/// for. Returns entries and bytes.
pub(super) fn unpack_archive(
    tar: impl Read,
    dest: &Root,
    options: &UnpackOptions<'_>,
    attributes: Adjust<'_>,
) -> Result<(u64, u64), UnpackError> {
    let mut unpacker = Unpacker::new(dest, options, Onto::Files);
    unpacker.adjust = Some(attributes);
    unpacker.run(Entries::new(tar, options.limits))?;
    Ok((unpacker.entries, unpacker.bytes))
}

/// Unpacks an archive (compressed or not) that is no layer into a directory, for this process to read: owners are nobody's
/// business. Returns how many entries it had.
pub fn unpack_files(tar: impl Read, into: &Root) -> Result<u64, UnpackError> {
    let plain = sniff(tar).map_err(ArchiveError::Read)?;
    let options = UnpackOptions { owners: Owners::Ignore, ..UnpackOptions::default() };
    let mut unpacker = Unpacker::new(into, &options, Onto::Files);
    unpacker.run(Entries::new(plain, options.limits))?;
    Ok(unpacker.entries)
}

/// Changes what an entry asks for.
pub(super) type Adjust<'a> = &'a dyn Fn(&mut Attributes, Kind);

/// What the entries land on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Onto {
    /// A layer: names that begin with `.wh.` delete.
    EmptyTree,
    /// An archive over what an image has.
    Files,
}

struct Unpacker<'a> {
    root: &'a Root,
    options: &'a UnpackOptions<'a>,
    onto: Onto,
    adjust: Option<Adjust<'a>>,
    /// The directory of the entry before, since the next is mostly in it too.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Attributes of directories, given at the end: filling a directory changes its mtime, and needs its mode.
    directories: BTreeMap<PathBuf, Attributes>,
    /// Of directories: the trees below whose directories show at their place.
    merged: HashMap<PathBuf, Vec<usize>>,
    buffer: Vec<u8>,
    entries: u64,
    bytes: u64,
    skipped: Vec<PathBuf>,
}

impl<'a> Unpacker<'a> {
    fn new(root: &'a Root, options: &'a UnpackOptions<'a>, onto: Onto) -> Self {
        Self {
            root,
            options,
            onto,
            adjust: None,
            parent: None,
            directories: BTreeMap::new(),
            merged: HashMap::new(),
            buffer: vec![0; 1 << 17],
            entries: 0,
            bytes: 0,
            skipped: Vec::new(),
        }
    }

    /// Gives the tree's own directory what the layers below have, and no inherited group.
    fn prepare_root(&mut self) -> Result<(), UnpackError> {
        rustix::fs::fchmod(self.root.as_fd(), Mode::from_raw_mode(0o755)).at("prepare", "/")?;
        self.inherit(Path::new(""))?;
        let attributes = self.attributes_below(Path::new(""))?;
        self.directories.insert(PathBuf::new(), attributes);
        Ok(())
    }

    fn run<R: Read>(&mut self, mut entries: Entries<R>) -> Result<R, UnpackError> {
        while let Some(entry) = entries.next_entry()? {
            self.entries += 1;
            self.entry(entry, &mut entries)?;
        }
        self.finish_directories()?;
        Ok(entries.finish()?)
    }

    fn entry<R: Read>(&mut self, entry: Entry, entries: &mut Entries<R>) -> Result<(), UnpackError> {
        let Some(name) = entry.path.file_name().map(OsStr::to_owned) else {
            // The archive's root. ADD leaves its destination as it is.
            if self.onto == Onto::EmptyTree && entry.kind == EntryKind::Directory {
                self.directories.insert(PathBuf::new(), Attributes::of_entry(&entry));
            }
            return Ok(());
        };
        let (path, dir) = self.parent_of(&entry.path)?;
        let path = path.join(&name);
        let result = if is_whiteout_name(&name) {
            self.whiteout(&path, dir.as_fd(), &name)
        } else {
            self.place(entry, &path, &name, dir.as_fd(), entries)
        };
        // What was replaced may have been the directory that the next entry is in.
        let parent = path.parent().map(Path::to_owned).unwrap_or_default();
        if self.parent.is_none() {
            self.parent = Some((parent, dir));
        }
        result
    }

    /// The directory that `path` belongs in, made if the archive did not name it, and its path without symlinks.
    fn parent_of(&mut self, path: &Path) -> Result<(PathBuf, OwnedFd), UnpackError> {
        let wanted = path.parent().unwrap_or(Path::new(""));
        if let Some((path, dir)) = self.parent.take_if(|(path, _)| path == wanted) {
            return Ok((path, dir));
        }
        self.parent = None;
        let made = self.root.create_dirs(wanted, 0o755, None)?;
        for made in made {
            self.inherit(&made)?;
            let mut attributes = self.attributes_below(&made)?;
            self.adjusted(&mut attributes, Kind::Directory);
            self.directories.insert(made, attributes);
        }
        let path = self.root.canonical(wanted)?;
        Ok((path, self.root.subroot(wanted)?.into_fd()))
    }

    fn adjusted(&self, attributes: &mut Attributes, kind: Kind) {
        if let Some(adjust) = self.adjust {
            adjust(attributes, kind);
        }
    }

    fn whiteout(&mut self, path: &Path, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), UnpackError> {
        let refused = |reason| {
            let name = path.display().to_string();
            Err(UnpackError::Archive(ArchiveError::Refused { name, reason }))
        };
        if self.onto == Onto::Files {
            return refused("names beginning with `.wh.` mean deletions in layers and can be in no image");
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        if name == OPAQUE_NAME {
            return Ok(set_opaque(dir).at("mark opaque", parent)?);
        }
        let hidden = OsStr::from_bytes(name.as_bytes().get(WHITEOUT_PREFIX.len()..).unwrap_or_default());
        if hidden.as_bytes().starts_with(WHITEOUT_PREFIX.as_bytes()) {
            return Ok(()); // `.wh..wh.aufs` and its like: another store's notes.
        }
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return refused("it deletes no name");
        }
        let path = parent.join(hidden);
        match Node::at(dir, hidden).at("inspect", &path)? {
            // A whiteout hides what is below, never what its own layer has.
            Some(node) if node.is_directory() => {
                let made = super::node::open_dir(dir, hidden).at("open directory", &path)?;
                Ok(set_opaque(made.as_fd()).at("mark opaque", &path)?)
            }
            Some(_) => Ok(()),
            None => Ok(make_whiteout(dir, hidden).at("make whiteout", &path)?),
        }
    }

    fn place<R: Read>(
        &mut self,
        entry: Entry,
        path: &Path,
        name: &OsStr,
        dir: BorrowedFd<'_>,
        entries: &mut Entries<R>,
    ) -> Result<(), UnpackError> {
        let hides = self.clear(&entry.kind, path, name, dir)?;
        let mut attributes = Attributes::of_entry(&entry);
        let keep = self.options.owners;
        match entry.kind {
            EntryKind::Directory => {
                self.adjusted(&mut attributes, Kind::Directory);
                self.directory(path, name, dir, hides)?;
                self.directories.insert(path.to_owned(), attributes);
            }
            EntryKind::File => {
                self.adjusted(&mut attributes, Kind::File);
                let file = create_file(dir, name).at("create", path)?;
                self.content(&file, path, entries)?;
                apply(file.as_fd(), &attributes, keep).at("set owner, mode or attributes of", path)?;
            }
            EntryKind::Symlink(target) => {
                self.adjusted(&mut attributes, Kind::Symlink);
                rustix::fs::symlinkat(target.as_os_str(), dir, name).at("create symlink", path)?;
                apply_link(dir, name, &attributes, keep).at("set owner of", path)?;
            }
            EntryKind::Hardlink(target) => self.hardlink(path, name, dir, target)?,
            EntryKind::CharDevice(..) | EntryKind::BlockDevice(..) | EntryKind::Fifo => {
                self.adjusted(&mut attributes, Kind::Fifo);
                self.special(&entry.kind, path, name, dir, &attributes)?;
            }
        }
        Ok(())
    }

    /// Removes what is at the place of an entry, unless both are directories. Says whether a whiteout was there.
    fn clear(
        &mut self,
        kind: &EntryKind,
        path: &Path,
        name: &OsStr,
        dir: BorrowedFd<'_>,
    ) -> Result<bool, UnpackError> {
        let Some(node) = Node::at(dir, name).at("inspect", path)? else { return Ok(false) };
        if node.is_directory() && *kind == EntryKind::Directory {
            return Ok(false);
        }
        if node.is_directory() && self.onto == Onto::Files {
            let reason = "a directory is at its place";
            return Err(ArchiveError::Refused { name: path.display().to_string(), reason }.into());
        }
        if node.is_directory() {
            self.directories.retain(|known, _| !known.starts_with(path));
        }
        // A hard link to itself must not remove the only name.
        if let EntryKind::Hardlink(target) = kind
            && target == path
        {
            return Ok(false);
        }
        remove(dir, name).at("replace", path)?;
        Ok(node.is_whiteout())
    }

    fn directory(
        &mut self,
        path: &Path,
        name: &OsStr,
        dir: BorrowedFd<'_>,
        hides: bool,
    ) -> Result<(), UnpackError> {
        match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700)) {
            Ok(()) if !hides => self.inherit(path)?,
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => Err(errno).at("create directory", path)?,
        }
        if hides && self.onto == Onto::EmptyTree {
            let made = super::node::open_dir(dir, name).at("open directory", path)?;
            set_opaque(made.as_fd()).at("mark opaque", path)?;
        }
        Ok(())
    }

    fn content<R: Read>(
        &mut self,
        file: &OwnedFd,
        path: &Path,
        entries: &mut Entries<R>,
    ) -> Result<(), UnpackError> {
        loop {
            let count = entries.read_content(&mut self.buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.bytes += count as u64;
            let mut rest = &self.buffer[..count];
            while !rest.is_empty() {
                let written = rustix::io::write(file, rest).at("write", path)?;
                rest = &rest[written..];
            }
        }
    }

    fn hardlink(
        &mut self,
        path: &Path,
        name: &OsStr,
        dir: BorrowedFd<'_>,
        target: PathBuf,
    ) -> Result<(), UnpackError> {
        if target == path {
            return Ok(());
        }
        let found = match self.root.resolve_parent(&target) {
            Ok((from, target_name)) => {
                match rustix::fs::linkat(&from, &target_name, dir, name, AtFlags::empty()) {
                    Ok(()) => true,
                    Err(Errno::NOENT) => false,
                    Err(errno) => Err(errno).at("create hard link", path)?,
                }
            }
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error.into()),
        };
        if found || self.link_below(path, name, dir, &target)? {
            return Ok(());
        }
        Err(UnpackError::Hardlink { path: path.to_owned(), target })
    }

    fn special(
        &mut self,
        kind: &EntryKind,
        path: &Path,
        name: &OsStr,
        dir: BorrowedFd<'_>,
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        // A device is made nowhere, since no user namespace may make one: the same archive is the same tree wherever it is unpacked.
        if *kind != EntryKind::Fifo {
            self.skipped.push(path.to_owned());
            return Ok(());
        }
        rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::from_raw_mode(attributes.mode), 0)
            .at("create pipe", path)?;
        apply_link(dir, name, attributes, self.options.owners).at("set owner of", path)?;
        // Not through a symlink: this process has just made it, and nobody else writes here.
        Ok(rustix::fs::chmodat(dir, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())
            .at("set mode of", path)?)
    }

    /// Gives the directories their attributes, the innermost first.
    fn finish_directories(&mut self) -> Result<(), UnpackError> {
        for (path, attributes) in std::mem::take(&mut self.directories).into_iter().rev() {
            let dir = self.root.subroot(&path)?;
            apply(dir.as_fd(), &attributes, self.options.owners)
                .at("set owner, mode or attributes of", &path)?;
        }
        Ok(())
    }
}

fn create_file(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
}

pub(super) fn set_opaque(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsetxattr(dir, OPAQUE_XATTR, b"y", rustix::fs::XattrFlags::empty())
}

/// Makes overlay's whiteout, which needs no privilege (Linux 5.8). On an overlay nobody may, nor is it then used with one.
pub(super) fn make_whiteout(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Errno::PERM) => rustix::fs::mknodat(dir, name, FileType::Socket, Mode::empty(), 0),
        result => result,
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
