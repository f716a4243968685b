//! A root file system as plain files, where there is no overlay: layers are laid over one another in one directory, and
//! what a step may have changed is gathered into an upper directory such as an overlay would have made.
//!
//! Gathering takes one walk that reads no content: a file that was written, renamed or linked has a new time of status
//! change, which nobody can set; a directory that was moved has one too, and is not the directory that was there before.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::error::{AtPath as _, FileError};
use super::lowers::{Lowers, is_opaque};
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

/// A directory with a root file system in it.
#[derive(Debug)]
pub struct PlainRoot {
    root: Root,
    files: LaidFiles,
    /// The inode of every directory when the root was last known, by a hash of its path.
    directories: HashMap<u64, u64>,
    hasher: RandomState,
}

impl PlainRoot {
    /// A root in an empty directory.
    #[must_use]
    pub fn new(root: Root, files: LaidFiles) -> Self {
        Self { root, files, directories: HashMap::new(), hasher: RandomState::new() }
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
        self.note(path, Node::of(&to).at("inspect", path)?.inode.1);
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
        &self,
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
        copy_node((from, name), (to, name), path, node)
    }

    /// Copies everything that may differ from `lowers` (topmost first) since that moment of the file system's clock into the
    /// empty directory `upper`, with whiteouts for what is gone; what is equal in fact may be there too.
    ///
    /// Afterwards no two names of a root of copies are the same file.
    pub fn gather(&mut self, since: (i64, i64), lowers: &[Root], upper: &Root) -> Result<(), FileError> {
        let mut gatherer = Gatherer {
            plain: self,
            since,
            lowers: Lowers(lowers),
            upper,
            found: HashMap::new(),
            made: BTreeSet::new(),
            inodes: HashMap::new(),
            linked: Vec::new(),
        };
        gatherer.directory(Path::new(""), false)?;
        for path in gatherer.made.iter().rev() {
            copy_directory(&gatherer.plain.root, upper, path, true)?;
        }
        let (found, linked) = (gatherer.found, gatherer.linked);
        self.directories = found;
        if self.files == LaidFiles::Copied {
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
        let aside = OsString::from(format!(".hephy-split-{}", self.hasher.hash_one(path)));
        copy_node((dir.as_fd(), name), (dir.as_fd(), &aside), path, &node)?;
        rustix::fs::renameat(&dir, &aside, &dir, name).at("replace", path)?;
        let nanoseconds = stat.st_mtime_nsec.try_into().unwrap_or_default();
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds },
        };
        rustix::fs::futimens(&dir, &times).at("set time of", parent)
    }

    fn note(&mut self, path: &Path, inode: u64) {
        self.directories.insert(self.hasher.hash_one(path), inode);
    }
}

struct Gatherer<'a> {
    plain: &'a PlainRoot,
    since: (i64, i64),
    lowers: Lowers<'a>,
    upper: &'a Root,
    /// The inodes of directories as they are now.
    found: HashMap<u64, u64>,
    /// The directories in the upper.
    made: BTreeSet<PathBuf>,
    /// The first name of each file that has several.
    inodes: HashMap<u64, PathBuf>,
    /// The other names.
    linked: Vec<PathBuf>,
}

impl Gatherer<'_> {
    /// `all`: everything in the directory is new here, whatever its times say.
    fn directory(&mut self, path: &Path, all: bool) -> Result<(), FileError> {
        let dir = open_dir(self.plain.root.as_fd(), path).at("open directory", path)?;
        let stat = rustix::fs::fstat(&dir).at("inspect", path)?;
        let hash = self.plain.hasher.hash_one(path);
        self.found.insert(hash, stat.st_ino);
        let is_touched = all || self.is_changed(&stat);
        let mut all = all;
        let mut below = None;
        if is_touched {
            self.make_directory(path)?;
            if !all {
                let found = self.lowers.find(path)?;
                let is_known = self.plain.directories.get(&hash) == Some(&stat.st_ino);
                let was_directory = found.found.is_some_and(|(_, node)| node.is_directory());
                if path.as_os_str().is_empty() || (is_known && was_directory) {
                    below = Some(found);
                } else {
                    all = true;
                    let made = open_dir(self.upper.as_fd(), path).at("open directory", path)?;
                    set_opaque(made.as_fd()).at("mark opaque", path)?;
                }
            }
        }
        let mut directories = Vec::new();
        let mut present = HashSet::new();
        for name in names(&dir).at("list", path)? {
            let child = path.join(&name);
            let stat = match rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat.at("inspect", &child)?,
            };
            let node = Node::new(&stat);
            // Neither can be in a layer: what was there before is gone.
            if node.is_whiteout() {
                continue;
            }
            if node.is_directory() {
                directories.push(child);
            } else if all || self.is_changed(&stat) {
                self.take(dir.as_fd(), &name, child, &node)?;
            }
            if below.is_some() {
                present.insert(name);
            }
        }
        drop(dir);
        if let Some(below) = below {
            self.whiteouts(path, &below.merged, &present)?;
        }
        directories.iter().try_for_each(|child| self.directory(child, all))
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
        copy_node((dir, name), (to.as_fd(), name), &path, node)
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
