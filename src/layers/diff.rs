//! What a step changed: the upper directory says where to look, the trees below say what was there.
//!
//! The cost follows the upper, not the base. Replaced (opaque) directories are reported as what they lost and
//! gained, so that the answer is the same however the change was recorded.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::error::{AtPath as _, FileError};
use super::lowers::{Below, Lowers, is_opaque};
use super::node::{Kind, Node, Xattrs, is_whiteout_name, names, open_dir, open_read, read_link, xattrs};
use super::root::Root;
use super::tar::clamped;

/// Why a difference could not be found.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A name that would mean a deletion in the layer.
    #[error("`{}` can be in no image: names beginning with `.wh.` mean deletions in layers", .0.display())]
    WhiteoutName(PathBuf),
}

/// What to compare.
#[derive(Debug, Clone, Copy)]
pub struct DiffInput<'a> {
    /// The upper directory of the overlay that the step ran on.
    pub upper: &'a Root,
    /// The trees of the layers below, topmost first.
    pub lowers: &'a [Root],
    /// Mount points and other paths that are in no layer, relative to the root; nor is what is below them.
    pub ignore: &'a [PathBuf],
    /// `SOURCE_DATE_EPOCH`, if the layer will say no later time.
    pub epoch: Option<i64>,
}

/// What differs, and what does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    /// What a layer says.
    pub changes: Vec<Change>,
    /// What is as below but for a time after the epoch, which no layer says: the files are to get the time that is below.
    pub late: Vec<Change>,
}

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Nothing was there.
    Added,
    /// Something else was there.
    Modified,
    /// It is gone.
    Deleted,
    /// A directory that did not change, above one that did.
    Parent,
}

/// One path that differs, as it is in the upper directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Relative to the root; empty for the root itself.
    pub path: PathBuf,
    /// How it differs.
    pub kind: ChangeKind,
    /// What is there now; `None` if it is deleted.
    pub(super) node: Option<Node>,
    /// An earlier change that is another name of the same file.
    pub(super) hardlink: Option<PathBuf>,
}

/// Finds what differs from the base, and leaves aside what is late.
pub fn diff(input: &DiffInput<'_>) -> Result<Vec<Change>, DiffError> {
    Ok(differences(input)?.changes)
}

/// Finds what differs from the base in type, mode, owner, size, link target, attributes, content or whole-second mtime, as a
/// layer says it, and the directories above that. Parents come before what they hold; the order is that of the names' bytes.
///
/// Not changes: a file that was opened for writing and not written, a new name of a file below, a directory's mtime where
/// an ignored path was made or removed in it, sockets.
pub fn differences(input: &DiffInput<'_>) -> Result<Differences, DiffError> {
    let mut differ = Differ {
        upper: input.upper,
        lowers: Lowers(input.lowers),
        ignore: input.ignore,
        epoch: input.epoch,
        changes: Vec::new(),
        late: Vec::new(),
        inodes: HashMap::new(),
    };
    let below = differ.lowers.root()?;
    if let Some(root) = differ.root_change(&below)? {
        differ.changes.push(root);
    }
    let opaque = is_opaque(input.upper, Path::new(""))?;
    differ.directory(Path::new(""), &below, opaque)?;
    Ok(Differences { changes: differ.changes, late: differ.late })
}

struct Differ<'a> {
    upper: &'a Root,
    lowers: Lowers<'a>,
    ignore: &'a [PathBuf],
    epoch: Option<i64>,
    changes: Vec<Change>,
    late: Vec<Change>,
    /// The first change of each file that has several names.
    inodes: HashMap<(u64, u64), PathBuf>,
}

impl Differ<'_> {
    /// The root changes by its mode, owner or attributes alone: its time is no business of a layer.
    fn root_change(&self, below: &Below) -> Result<Option<Change>, DiffError> {
        let path = Path::new("");
        let node = Node::of(self.upper.as_fd()).at("inspect", path)?;
        let same = match below.found {
            Some((tree, old)) => self.same_attributes(path, &node, tree, &old)?,
            None => node.mode == 0o755 && node.owner == super::Owner::ROOT,
        };
        let change =
            Change { path: PathBuf::new(), kind: ChangeKind::Modified, node: Some(node), hardlink: None };
        Ok(if same { None } else { Some(change) })
    }

    /// The changes in the directory `path` of the upper, over what the trees below have there. `opaque`: nothing of
    /// that shows through.
    fn directory(&mut self, path: &Path, below: &Below, opaque: bool) -> Result<(), DiffError> {
        let dir = open_dir(self.upper.as_fd(), path).at("open directory", path)?;
        let mut all = names(&dir).at("list", path)?;
        if opaque {
            all.extend(self.hidden(path, below)?);
            all.sort_unstable();
            all.dedup();
        }
        drop(dir);
        for name in all {
            let child = path.join(&name);
            if self.ignore.contains(&child) {
                continue;
            }
            let old = if below.merged.is_empty() {
                Below::default()
            } else {
                self.lowers.child(&below.merged, path, &name)?
            };
            match Node::at(self.upper.as_fd(), &child).at("inspect", &child)? {
                Some(node) if !node.is_whiteout() => self.present(child, &name, node, &old, opaque)?,
                _ => self.deleted(child, &old),
            }
        }
        Ok(())
    }

    /// The names that show below in a directory that was replaced.
    fn hidden(&self, path: &Path, below: &Below) -> Result<Vec<std::ffi::OsString>, DiffError> {
        let mut hidden = Vec::new();
        for &index in &below.merged {
            let Some(tree) = self.lowers.tree(index) else { continue };
            let dir = open_dir(tree.as_fd(), path).at("open directory", path)?;
            hidden.extend(names(dir).at("list", path)?);
        }
        Ok(hidden)
    }

    fn deleted(&mut self, path: PathBuf, old: &Below) {
        if old.found.is_some_and(|(_, old)| old.kind != Kind::Socket) {
            self.changes.push(Change { path, kind: ChangeKind::Deleted, node: None, hardlink: None });
        }
    }

    fn present(
        &mut self,
        path: PathBuf,
        name: &OsStr,
        node: Node,
        old: &Below,
        opaque: bool,
    ) -> Result<(), DiffError> {
        if node.kind == Kind::Socket {
            return Ok(());
        }
        if is_whiteout_name(name) {
            return Err(DiffError::WhiteoutName(path));
        }
        let kind = match old.found {
            None => ChangeKind::Added,
            Some((tree, old)) if self.same(&path, &node, tree, &old)? => {
                if self.is_late(&node, &old) {
                    let (path, kind) = (path.clone(), ChangeKind::Parent);
                    self.late.push(Change { path, kind, node: Some(node), hardlink: None });
                }
                ChangeKind::Parent
            }
            Some(_) => ChangeKind::Modified,
        };
        if node.is_directory() {
            return self.present_directory(&path, node, kind, old, opaque);
        }
        if kind == ChangeKind::Parent {
            return Ok(());
        }
        let mut hardlink = None;
        if node.links > 1 {
            hardlink = self.inodes.get(&node.inode).cloned();
            self.inodes.entry(node.inode).or_insert_with(|| path.clone());
        }
        self.changes.push(Change { path, kind, node: Some(node), hardlink });
        Ok(())
    }

    fn present_directory(
        &mut self,
        path: &Path,
        node: Node,
        kind: ChangeKind,
        old: &Below,
        opaque: bool,
    ) -> Result<(), DiffError> {
        let opaque = opaque || is_opaque(self.upper, path)?;
        let before = self.changes.len();
        self.changes.push(Change { path: path.to_owned(), kind, node: Some(node), hardlink: None });
        self.directory(path, old, opaque)?;
        if kind == ChangeKind::Parent && self.changes.len() == before + 1 {
            self.changes.pop();
        }
        Ok(())
    }

    fn same(&self, path: &Path, new: &Node, tree: usize, old: &Node) -> Result<bool, DiffError> {
        if (new.kind, new.size, new.rdev) != (old.kind, old.size, old.rdev) {
            return Ok(false);
        }
        let holds_ignored = || self.ignore.iter().any(|ignored| ignored.parent() == Some(path));
        let is_same_time = new.mtime == old.mtime || self.is_late(new, old);
        if !(is_same_time || new.is_directory() && holds_ignored()) {
            return Ok(false);
        }
        if !self.same_attributes(path, new, tree, old)? {
            return Ok(false);
        }
        let Some(tree) = self.lowers.tree(tree) else { return Ok(false) };
        match new.kind {
            Kind::File => Ok(same_content(path, self.upper, tree)?),
            Kind::Symlink => {
                let new = read_link(self.upper.as_fd(), path).at("read symlink", path)?;
                Ok(new == read_link(tree.as_fd(), path).at("read symlink", path)?)
            }
            _ => Ok(true),
        }
    }

    /// Whether a time differs, and the layer would not say it.
    fn is_late(&self, new: &Node, old: &Node) -> bool {
        new.mtime != old.mtime && clamped(new.mtime, self.epoch) == old.mtime
    }

    fn same_attributes(&self, path: &Path, new: &Node, tree: usize, old: &Node) -> Result<bool, DiffError> {
        if (new.mode, new.owner) != (old.mode, old.owner) {
            return Ok(false);
        }
        let Some(tree) = self.lowers.tree(tree) else { return Ok(false) };
        Ok(xattrs_of(self.upper, path, new)? == xattrs_of(tree, path, old)?)
    }
}

/// The attributes that a layer keeps of `path`, each of whose parents is a real directory.
pub(super) fn xattrs_of(tree: &Root, path: &Path, node: &Node) -> Result<Xattrs, FileError> {
    if !matches!(node.kind, Kind::File | Kind::Directory) {
        return Ok(Xattrs::new());
    }
    let fd = open_read(tree.as_fd(), path).at("open", path)?;
    xattrs(fd.as_fd()).at("read attributes of", path)
}

fn same_content(path: &Path, one: &Root, other: &Root) -> Result<bool, FileError> {
    let open = |tree: &Root| tree.open_known(path).map(std::fs::File::from);
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        (&mut one).take(1 << 16).read_to_end(&mut left).at("read", path)?;
        (&mut other).take(1 << 16).read_to_end(&mut right).at("read", path)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
