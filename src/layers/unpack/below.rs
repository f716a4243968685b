//! What the layers below have where a layer is unpacked.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use super::{UnpackError, Unpacker, create_file};
use crate::layers::error::AtPath as _;
use crate::layers::lowers::Lowers;
use crate::layers::node::{Kind, Owner};
use crate::layers::owners::inherit;
use crate::layers::place::{Attributes, apply, copy_file};
use crate::layers::root::RootError;

impl Unpacker<'_> {
    /// What the layers below have for the directory `path`, or what one gets that nobody described.
    pub(super) fn attributes_below(&self, path: &Path) -> Result<Attributes, UnpackError> {
        let lowers = Lowers(self.options.lowers);
        match lowers.find(path)?.found {
            Some((index, node)) if node.is_directory() => {
                let tree = lowers.tree(index).ok_or_else(|| RootError::NoName(path.to_owned()))?;
                let dir = tree.open_known(path)?;
                Ok(Attributes::of_file(&node, dir.as_fd()).at("read attributes of", path)?)
            }
            _ => Ok(Attributes { mode: 0o755, owner: Owner::ROOT, mtime: 0, xattrs: BTreeMap::new() }),
        }
    }

    /// Gives the directory `path`, which was just made, what is noted of symlinks in the one below that it stands for.
    pub(super) fn inherit(&mut self, path: &Path) -> Result<(), UnpackError> {
        let Some(tree) = self.merged_below(path)?.first().and_then(|&index| self.options.lowers.get(index))
        else {
            return Ok(());
        };
        let below = tree.open_known(path)?;
        let made = self.root.open_known(path)?;
        Ok(inherit(made.as_fd(), below.as_fd()).at("set attributes of", path)?)
    }

    /// The trees below that have the directory `path`, as it shows, topmost first.
    fn merged_below(&mut self, path: &Path) -> Result<Vec<usize>, UnpackError> {
        if self.options.lowers.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(merged) = self.merged.get(path) {
            return Ok(merged.clone());
        }
        let lowers = Lowers(self.options.lowers);
        let merged = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                let above = self.merged_below(parent)?;
                lowers.child(&above, parent, name)?.merged
            }
            _ => lowers.root()?.merged,
        };
        self.merged.insert(path.to_owned(), merged.clone());
        Ok(merged)
    }

    /// A hard link to a file that only a layer below has is a copy of it, as writing it would be.
    pub(super) fn link_below(
        &self,
        path: &Path,
        name: &OsStr,
        dir: BorrowedFd<'_>,
        target: &Path,
    ) -> Result<bool, UnpackError> {
        let lowers = Lowers(self.options.lowers);
        let Some((index, node)) = lowers.find(target)?.found.filter(|(_, node)| node.kind == Kind::File)
        else {
            return Ok(false);
        };
        let Some(tree) = lowers.tree(index) else { return Ok(false) };
        let mut from = File::from(tree.open_known(target)?);
        let attributes = Attributes::of_file(&node, from.as_fd()).at("read attributes of", target)?;
        let to = File::from(create_file(dir, name).at("create", path)?);
        copy_file(&mut from, &to).at("write", path)?;
        apply(to.as_fd(), &attributes, self.options.owners).at("set owner, mode or attributes of", path)?;
        Ok(true)
    }
}
