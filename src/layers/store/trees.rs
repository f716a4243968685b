//! Unpacked layers: made aside, then named.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{FileError, LayerStore, StoreError, lock_file, read_json, touch};
use crate::layers::error::AtPath as _;
use crate::layers::root::remove;
use crate::oci::Digest;

/// What is known of a tree besides its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TreeInfo {
    /// Entries of the layer.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
}

/// Says that a tree is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreeRecord {
    pub(super) info: TreeInfo,
    /// The boot that it was made in: while it lasts, what was written is what is read.
    pub(super) boot: String,
    /// It is on the disk, and outlasts the boot.
    pub(super) settled: bool,
}

/// A tree that is being made. What is not committed is removed.
#[derive(Debug)]
pub struct Staged {
    dir: PathBuf,
    tree: PathBuf,
    work: PathBuf,
    /// Held as long as the directory is in use.
    _lock: File,
}

impl Staged {
    /// The directory that is to become the tree; also the upper directory of an overlay.
    #[must_use]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The empty directory beside it that an overlay needs as its work directory.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What cannot be removed here (files of mapped owners) is found by the next prune.
        drop(remove_path(&self.dir));
    }
}

/// Held by whoever makes a layer, so that others wait for it and do not make it again.
#[derive(Debug)]
pub struct LayerLock {
    _file: File,
}

impl LayerStore {
    /// A new place for a tree, on the disk of the store.
    pub fn stage(&self) -> Result<Staged, StoreError> {
        let tmp = self.path("tmp");
        let dir = tempfile::Builder::new()
            .prefix("stage-")
            .tempdir_in(super::anchored(&tmp))
            .at("create directory in", &tmp)?;
        let lock = lock_file(&dir.path().join("lock"), FlockOperation::LockExclusive)?;
        let dir = dir.keep();
        let (tree, work) = (dir.join("tree"), dir.join("work"));
        let staged = Staged { dir, tree, work, _lock: lock };
        std::fs::DirBuilder::new().mode(0o700).create(&staged.work).at("create directory", &staged.work)?;
        std::fs::create_dir(&staged.tree).at("create directory", &staged.tree)?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&staged.tree, mode).at("set mode of", &staged.tree)?;
        Ok(staged)
    }

    /// Makes what was staged the tree of `diff_id`. If there is one already, that one stays, since they are equal.
    ///
    /// Guarantees: whoever looks sees no tree or all of it, also if this process or the machine stops here.
    #[expect(clippy::needless_pass_by_value, reason = "what is staged is committed once")]
    pub fn commit_tree(
        &self,
        staged: Staged,
        diff_id: &Digest,
        info: TreeInfo,
    ) -> Result<PathBuf, StoreError> {
        let shared = self.lock(FlockOperation::LockShared)?;
        let one = lock_file(
            &self.path("locks").join(format!("commit-{}", diff_id.hex())),
            FlockOperation::LockExclusive,
        )?;
        let path = self.inner.trees.join(diff_id.hex());
        if self.is_complete(&path)? {
            return Ok(path);
        }
        // Left by a crash between the two steps below, or from before another boot: not to be trusted.
        if path.symlink_metadata().is_ok() {
            let aside = staged.dir.join("replaced");
            std::fs::rename(&path, &aside).at("replace", &path)?;
        }
        std::fs::rename(&staged.tree, &path).at("commit", &path)?;
        let record = TreeRecord { info, boot: self.inner.boot.clone(), settled: false };
        self.write_json(&record_of(&path), &record)?;
        drop((one, shared));
        Ok(path)
    }

    /// Waits until nobody else makes the layer, and keeps others waiting until the lock is dropped.
    pub fn lock_layer(&self, diff_id: &Digest) -> Result<LayerLock, StoreError> {
        let path = self.path("locks").join(format!("make-{}", diff_id.hex()));
        Ok(LayerLock { _file: lock_file(&path, FlockOperation::LockExclusive)? })
    }

    /// The tree of `diff_id`, for whoever holds or pins it already; see [`Lease::tree`](super::Lease::tree).
    pub fn tree(&self, diff_id: &Digest) -> Result<Option<PathBuf>, StoreError> {
        let path = self.inner.trees.join(diff_id.hex());
        if !self.is_complete(&path)? {
            return Ok(None);
        }
        touch(&record_of(&path));
        Ok(Some(path))
    }

    /// Waits until all that was committed is on the disk, and marks it so.
    pub fn settle(&self) -> Result<(), StoreError> {
        let mut unsettled = Vec::new();
        for (path, record) in self.records()? {
            if let Some(record) = record.filter(|record| !record.settled && record.boot == self.inner.boot) {
                unsettled.push((path, record));
            }
        }
        if unsettled.is_empty() {
            return Ok(());
        }
        let dir = File::open(&self.inner.trees).at("open directory", &self.inner.trees)?;
        rustix::fs::syncfs(dir.as_fd()).at("sync", &self.inner.trees)?;
        let _shared = self.lock(FlockOperation::LockShared)?;
        for (path, record) in unsettled {
            if self.is_complete(&path)? {
                self.write_json(&record_of(&path), &TreeRecord { settled: true, ..record })?;
            }
        }
        Ok(())
    }

    pub(super) fn is_complete(&self, tree: &Path) -> Result<bool, FileError> {
        let record = read_json::<TreeRecord>(&record_of(tree))?;
        Ok(record.is_some_and(|record| self.trusts(&record)) && tree.is_dir())
    }

    pub(super) fn trusts(&self, record: &TreeRecord) -> bool {
        record.settled || record.boot == self.inner.boot
    }

    /// Every tree of this id map, with its record if it has one.
    pub(super) fn records(&self) -> Result<Vec<(PathBuf, Option<TreeRecord>)>, FileError> {
        let dir = &self.inner.trees;
        let mut records = Vec::new();
        for entry in std::fs::read_dir(dir).at("list", dir)? {
            let path = entry.at("list", dir)?.path();
            if path.extension().is_none() {
                records.push((path.clone(), read_json(&record_of(&path))?));
            }
        }
        Ok(records)
    }
}

pub(super) fn record_of(tree: &Path) -> PathBuf {
    tree.with_extension("json")
}

/// Removes a file or a directory with all that is in it.
pub(super) fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    remove(File::open(parent)?.as_fd(), name)
}
