//! What the trees below show together, without mounting them: the rules of overlay for whiteouts and opaque
//! directories, one name at a time.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::error::{AtPath as _, FileError};
use super::node::{Node, OPAQUE_XATTR, open_dir, xattr};
use super::root::Root;

/// The trees below, topmost first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lowers<'a>(pub(super) &'a [Root]);

/// What a name below stands for.
#[derive(Debug, Default)]
pub(super) struct Below {
    /// The tree that has it, and what it is there; `None` if nothing shows.
    pub(super) found: Option<(usize, Node)>,
    /// If a directory shows: the trees whose directories it is merged from, topmost first.
    pub(super) merged: Vec<usize>,
}

impl<'a> Lowers<'a> {
    pub(super) fn tree(self, index: usize) -> Option<&'a Root> {
        self.0.get(index)
    }

    /// The root directory.
    pub(super) fn root(self) -> Result<Below, FileError> {
        let all: Vec<usize> = (0..self.0.len()).collect();
        self.look(&all, Path::new(""))
    }

    /// `name` in the directory `dir`, which is merged from `merged`. Every directory of `dir` was found by this
    /// function, so that it is a real one in each of those trees.
    pub(super) fn child(self, merged: &[usize], dir: &Path, name: &OsStr) -> Result<Below, FileError> {
        self.look(merged, &dir.join(name))
    }

    /// What `path` stands for, not following symlinks.
    pub(super) fn find(self, path: &Path) -> Result<Below, FileError> {
        let mut below = self.root()?;
        let mut at = PathBuf::new();
        for name in path {
            below = self.child(&below.merged, &at, name)?;
            at.push(name);
        }
        Ok(below)
    }

    fn look(self, merged: &[usize], path: &Path) -> Result<Below, FileError> {
        let mut below = Below::default();
        for (order, &index) in merged.iter().enumerate() {
            let Some(tree) = self.tree(index) else { continue };
            let Some(node) = Node::at(tree.as_fd(), path).at("inspect", path)? else { continue };
            if node.is_whiteout() || (below.found.is_some() && !node.is_directory()) {
                break;
            }
            below.found.get_or_insert((index, node));
            if !node.is_directory() {
                break;
            }
            below.merged.push(index);
            if order + 1 < merged.len() && is_opaque(tree, path)? {
                break;
            }
        }
        Ok(below)
    }
}

/// Whether the directory `path` of `tree` hides what is below it.
pub(super) fn is_opaque(tree: &Root, path: &Path) -> Result<bool, FileError> {
    let dir = open_dir(tree.as_fd(), path).at("open directory", path)?;
    let mark = xattr(std::os::fd::AsFd::as_fd(&dir), OPAQUE_XATTR).at("read attributes of", path)?;
    Ok(mark.as_deref() == Some(b"y"))
}
