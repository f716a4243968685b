//! A root file system as plain files, where there is no overlay: layers are laid over one another in one directory, and
//! what a step may have changed is gathered into an upper directory such as an overlay would have made.
//!
//! Gathering takes one walk that reads no content: a file that was written, renamed or linked has a new time of status
//! change, which nobody can set; a directory that was moved has one too, and is not the directory that was there before.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::error::{AtPath as _, FileError};
use super::lowers::{Below, Lowers, is_opaque};
use super::node::{Kind, Node, names, open_dir, open_read, read_link, xattrs};
use super::place::{Attributes, Owners, apply, apply_link, copy_file};
use super::root::{Root, remove};
use super::unpack::{make_whiteout, set_opaque};

/// How the files of a layer come into a plain root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaidFiles {
    /// As copies, for a root whose files are written to. A file with several names becomes several files, as it would
    /// on an overlay by being written.
    Copied,
    /// As further names of the tree's own files, for a root where files are only read, removed and added.
    Linked,
}

/// Where changes are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// At every file.
    Everywhere,
    /// In directories where names came or went: for a step that writes to no file that was there.
    WhereNamesChanged,
}

/// A directory with a root file system in it.
#[derive(Debug)]
pub struct PlainRoot {
    root: Root,
    files: LaidFiles,
    /// The inode of every directory when the root was last known.
    directories: BTreeMap<PathBuf, u64>,
    /// Names that are one file in a layer are files of their own here.
    parted: bool,
}

impl PlainRoot {
    /// A root in an empty directory.
    #[must_use]
    pub fn new(root: Root, files: LaidFiles) -> Self {
        Self { root, files, directories: BTreeMap::new(), parted: false }
    }

    /// The files.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// How its files are shared.
    #[must_use]
    pub fn files(&self) -> LaidFiles {
        self.files
    }

    /// Whether every two names that are one file in the layers are one here too, as far as is known.
    #[must_use]
    pub fn keeps_links(&self) -> bool {
        !self.parted
    }

    /// Lays a layer's tree over what is there.
    ///
    /// # Errors
    /// After an error the root is neither of the two, and is to be removed.
    pub fn lay(&mut self, tree: &Root) -> Result<(), FileError> {
        let is_fresh = self.directories.is_empty();
        self.lay_directory(tree, Path::new(""), is_fresh)
    }

    /// `is_fresh`: nothing is in the directory yet.
    fn lay_directory(&mut self, tree: &Root, path: &Path, is_fresh: bool) -> Result<(), FileError> {
        let from = open_dir(tree.as_fd(), path).at("open directory", path)?;
        let to = open_dir(self.root.as_fd(), path).at("open directory", path)?;
        self.directories.insert(path.to_owned(), Node::of(&to).at("inspect", path)?.inode.1);
        let mut directories = Vec::new();
        for name in names(&from).at("list", path)? {
            let child = path.join(&name);
            let Some(node) = Node::at(from.as_fd(), &name).at("inspect", &child)? else { continue };
            let there = if is_fresh { None } else { Node::at(to.as_fd(), &name).at("inspect", &child)? };
            let stays = node.is_directory()
                && there.is_some_and(|there| there.is_directory())
                && !is_opaque(tree, &child)?;
            if there.is_some() && !stays {
                remove(to.as_fd(), &name).at("replace", &child)?;
            }
            if node.is_whiteout() {
                continue;
            }
            if !node.is_directory() {
                self.lay_file((from.as_fd(), to.as_fd()), &name, &child, &node)?;
                continue;
            }
            if !stays {
                let mode = Mode::from_raw_mode(0o700);
                rustix::fs::mkdirat(&to, &name, mode).at("create directory", &child)?;
            }
            directories.push((child, !stays));
        }
        drop((from, to));
        for (child, is_fresh) in directories {
            self.lay_directory(tree, &child, is_fresh)?;
        }
        // Last, since filling a directory changes its time.
        copy_directory(tree, &self.root, path, is_fresh)
    }

    fn lay_file(
        &mut self,
        (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
        name: &OsStr,
        path: &Path,
        node: &Node,
    ) -> Result<(), FileError> {
        if self.files == LaidFiles::Linked && node.kind == Kind::File {
            match rustix::fs::linkat(from, name, to, name, AtFlags::empty()) {
                // More names than the file system counts.
                Err(Errno::MLINK) => {}
                result => return result.at("create hard link", path),
            }
        }
        self.parted |= node.kind == Kind::File && node.links > 1;
        copy_node((from, name), (to, name), path, node)
    }

    /// Copies everything that may differ from `lowers` (topmost first) since that moment of the file system's clock into the
    /// empty directory `upper`, with whiteouts for what is gone; what is equal in fact may be there too.
    ///
    /// Afterwards no two names of a root of copies are the same file.
    pub fn gather(
        &mut self,
        since: (i64, i64),
        look: Look,
        lowers: &[Root],
        upper: &Root,
    ) -> Result<(), FileError> {
        let mut gatherer = Gatherer {
            plain: self,
            since,
            look,
            lowers: Lowers(lowers),
            upper,
            found: BTreeMap::new(),
            made: BTreeSet::new(),
            inodes: HashMap::new(),
            linked: Vec::new(),
        };
        gatherer.directory(Path::new(""), false)?;
        if look == Look::WhereNamesChanged {
            self.directories.keys().try_for_each(|path| gatherer.known_directory(path))?;
        }
        for path in gatherer.made.iter().rev() {
            copy_directory(&gatherer.plain.root, upper, path, true)?;
        }
        let (found, linked) = (gatherer.found, gatherer.linked);
        self.directories = found;
        if self.files == LaidFiles::Copied {
            self.parted |= !linked.is_empty();
            linked.iter().try_for_each(|path| self.split(path))?;
        }
        Ok(())
    }

    /// Makes a name that shares its file with another a file of its own.
    fn split(&self, path: &Path) -> Result<(), FileError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let dir = open_dir(self.root.as_fd(), parent).at("open directory", parent)?;
        let stat = rustix::fs::fstat(&dir).at("inspect", parent)?;
        let Some(node) = Node::at(dir.as_fd(), name).at("inspect", path)? else { return Ok(()) };
        let aside = OsString::from(format!(".hephy-split-{}", node.inode.1));
        copy_node((dir.as_fd(), name), (dir.as_fd(), &aside), path, &node)?;
        rustix::fs::renameat(&dir, &aside, &dir, name).at("replace", path)?;
        let nanoseconds = stat.st_mtime_nsec.try_into().unwrap_or_default();
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds },
        };
        rustix::fs::futimens(&dir, &times).at("set time of", parent)
    }
}

struct Gatherer<'a> {
    plain: &'a PlainRoot,
    since: (i64, i64),
    look: Look,
    lowers: Lowers<'a>,
    upper: &'a Root,
    /// The inodes of directories as they are now.
    found: BTreeMap<PathBuf, u64>,
    /// The directories in the upper.
    made: BTreeSet<PathBuf>,
    /// The first name of each file that has several.
    inodes: HashMap<u64, PathBuf>,
    /// The other names.
    linked: Vec<PathBuf>,
}

impl Gatherer<'_> {
    /// A directory that was there before, unless it has been looked at.
    fn known_directory(&mut self, path: &Path) -> Result<(), FileError> {
        if self.found.contains_key(path) {
            return Ok(());
        }
        match rustix::fs::statat(self.plain.root.as_fd(), path, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(errno) => Err(errno).at("inspect", path),
            Ok(stat) if self.is_changed(&stat) => {
                if Node::new(&stat).is_directory() {
                    self.directory(path, false)
                } else {
                    Ok(())
                }
            }
            Ok(stat) => {
                self.found.insert(path.to_owned(), stat.st_ino);
                Ok(())
            }
        }
    }

    /// `all`: everything in the directory is new here, whatever its times say.
    fn directory(&mut self, path: &Path, all: bool) -> Result<(), FileError> {
        let dir = open_dir(self.plain.root.as_fd(), path).at("open directory", path)?;
        let stat = rustix::fs::fstat(&dir).at("inspect", path)?;
        self.found.insert(path.to_owned(), stat.st_ino);
        let below = match all {
            true => None,
            false if self.is_changed(&stat) => self.below(path, stat.st_ino)?,
            // As in every directory of a base, nearly always.
            false => Some(Below::default()),
        };
        let all = below.is_none();
        let is_touched = all || self.made.contains(path);
        if !is_touched && self.look == Look::WhereNamesChanged {
            return Ok(());
        }
        if all {
            self.make_directory(path)?;
        }
        let mut directories = Vec::new();
        let mut present = HashSet::new();
        for entry in Dir::read_from(&dir).at("list", path)? {
            let entry = entry.at("list", path)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                directories.push(path.join(name));
            } else {
                let stat = match rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => continue,
                    stat => stat.at("inspect", path.join(name))?,
                };
                let node = Node::new(&stat);
                // It can be in no layer: what was there before is gone.
                if node.is_whiteout() {
                    continue;
                }
                if node.is_directory() {
                    directories.push(path.join(name));
                } else if all || self.is_changed(&stat) {
                    self.take(dir.as_fd(), name, path.join(name), &node)?;
                }
            }
            if is_touched && !all {
                present.insert(name.to_owned());
            }
        }
        drop(dir);
        if let Some(below) = below {
            self.whiteouts(path, &below.merged, &present)?;
        }
        directories.iter().try_for_each(|child| {
            let is_known = || self.plain.directories.contains_key(child);
            if !all && self.look == Look::WhereNamesChanged && is_known() {
                return Ok(());
            }
            self.directory(child, all)
        })
    }

    /// What shows below at a directory that has changed; nothing if it is not the one that was there before. Makes it in
    /// the upper.
    fn below(&mut self, path: &Path, inode: u64) -> Result<Option<Below>, FileError> {
        self.make_directory(path)?;
        let below = self.lowers.find(path)?;
        let is_known = self.plain.directories.get(path) == Some(&inode);
        let was_directory = below.found.is_some_and(|(_, node)| node.is_directory());
        if path.as_os_str().is_empty() || (is_known && was_directory) {
            return Ok(Some(below));
        }
        let made = open_dir(self.upper.as_fd(), path).at("open directory", path)?;
        set_opaque(made.as_fd()).at("mark opaque", path)?;
        Ok(None)
    }

    fn is_changed(&self, stat: &Stat) -> bool {
        let nanoseconds = i64::try_from(stat.st_ctime_nsec).unwrap_or_default();
        (stat.st_ctime, nanoseconds) >= self.since
    }

    /// Marks what shows below in a directory and is not there any more.
    fn whiteouts(&self, path: &Path, merged: &[usize], present: &HashSet<OsString>) -> Result<(), FileError> {
        let mut gone = BTreeSet::new();
        for &index in merged {
            let Some(tree) = self.lowers.tree(index) else { continue };
            let dir = open_dir(tree.as_fd(), path).at("open directory", path)?;
            gone.extend(names(dir).at("list", path)?.into_iter().filter(|name| !present.contains(name)));
        }
        if gone.is_empty() {
            return Ok(());
        }
        let upper = open_dir(self.upper.as_fd(), path).at("open directory", path)?;
        for name in gone {
            if self.lowers.child(merged, path, &name)?.found.is_some() {
                make_whiteout(upper.as_fd(), &name).at("make whiteout", path.join(&name))?;
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: PathBuf,
        node: &Node,
    ) -> Result<(), FileError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        self.make_directory(parent)?;
        let to = open_dir(self.upper.as_fd(), parent).at("open directory", parent)?;
        if node.kind == Kind::File && node.links > 1 {
            if let Some(first) = self.inodes.get(&node.inode.1) {
                rustix::fs::linkat(self.upper.as_fd(), first, &to, name, AtFlags::empty())
                    .at("create hard link", &path)?;
                self.linked.push(path);
                return Ok(());
            }
            self.inodes.insert(node.inode.1, path.clone());
        }
        copy_node((dir, name), (to.as_fd(), name), &path, &node.owned(dir, Path::new(name)))
    }

    /// Makes a directory of the upper, and those above it; they get their attributes in the end.
    fn make_directory(&mut self, path: &Path) -> Result<(), FileError> {
        if self.made.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make_directory(parent)?;
            let mode = Mode::from_raw_mode(0o700);
            rustix::fs::mkdirat(self.upper.as_fd(), path, mode).at("create directory", path)?;
        }
        self.made.insert(path.to_owned());
        Ok(())
    }
}

/// Gives the directory `path` of `to` what it has in `from`. `is_fresh`: it was made here and has no attributes yet.
fn copy_directory(from: &Root, to: &Root, path: &Path, is_fresh: bool) -> Result<(), FileError> {
    let from = open_dir(from.as_fd(), path).at("open directory", path)?;
    let to = open_dir(to.as_fd(), path).at("open directory", path)?;
    let node = Node::of(&from).at("inspect", path)?;
    let attributes = Attributes::of_file(&node, from.as_fd()).at("read attributes of", path)?;
    if !is_fresh {
        for name in xattrs(to.as_fd()).at("read attributes of", path)?.into_keys() {
            if !attributes.xattrs.contains_key(&name) {
                rustix::fs::fremovexattr(&to, name.as_c_str()).at("remove attributes of", path)?;
            }
        }
    }
    apply(to.as_fd(), &attributes, Owners::Keep).at("set owner, mode or attributes of", path)
}

/// Copies something that is not a directory; `path` is for errors.
fn copy_node(
    (from, name): (BorrowedFd<'_>, &OsStr),
    (to, to_name): (BorrowedFd<'_>, &OsStr),
    path: &Path,
    node: &Node,
) -> Result<(), FileError> {
    match node.kind {
        Kind::File => {
            let mut content = File::from(open_read(from, name).at("open", path)?);
            let attributes = Attributes::of_file(node, content.as_fd()).at("read attributes of", path)?;
            let file = File::from(create(to, to_name).at("create", path)?);
            if node.size > 0 {
                copy_file(&mut content, &file).at("copy", path)?;
            }
            apply(file.as_fd(), &attributes, Owners::Keep).at("set owner, mode or attributes of", path)
        }
        Kind::Symlink => {
            let target = read_link(from, name).at("read symlink", path)?;
            rustix::fs::symlinkat(target, to, to_name).at("create symlink", path)?;
            apply_link(to, to_name, &Attributes::of_node(node), Owners::Keep).at("set owner of", path)
        }
        Kind::Directory | Kind::Socket => Ok(()),
        Kind::CharDevice => copy_special(FileType::CharacterDevice, (to, to_name), path, node),
        Kind::BlockDevice => copy_special(FileType::BlockDevice, (to, to_name), path, node),
        Kind::Fifo => copy_special(FileType::Fifo, (to, to_name), path, node),
    }
}

fn copy_special(
    kind: FileType,
    (to, name): (BorrowedFd<'_>, &OsStr),
    path: &Path,
    node: &Node,
) -> Result<(), FileError> {
    let mode = Mode::from_raw_mode(node.mode);
    rustix::fs::mknodat(to, name, kind, mode, node.rdev).at("create device", path)?;
    apply_link(to, name, &Attributes::of_node(node), Owners::Keep).at("set owner of", path)?;
    rustix::fs::chmodat(to, name, mode, AtFlags::empty()).at("set mode of", path)
}

fn create(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?)
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;
