//! Collecting what is old, too much, or left over, and never what is in use.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::trees::{TreeRecord, record_of, remove_path};
use super::usage::{files, is_abandoned};
use super::{FileError, LayerStore, StoreError};
use crate::layers::error::AtPath as _;

/// What may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrunePolicy {
    /// Bytes of trees and blobs together; the longest unused go first.
    pub max_bytes: Option<u64>,
    /// Time since the last use.
    pub max_age: Option<Duration>,
    /// Whether the same counts for cache mounts, by themselves.
    #[serde(default)]
    pub mounts: bool,
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pruned {
    /// Unpacked layers.
    pub trees: u64,
    /// Compressed layers.
    pub blobs: u64,
    /// Records of steps and of what layers were compressed to.
    pub records: u64,
    /// Bytes of trees and blobs.
    pub bytes: u64,
    /// Bytes of cache mounts.
    #[serde(default)]
    pub mount_bytes: u64,
}

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stored {
    /// Unpacked layers.
    pub trees: u64,
    /// Their bytes, with a block for each entry.
    pub tree_bytes: u64,
    /// Compressed layers.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Cache mounts.
    #[serde(default)]
    pub mounts: u64,
    /// Their bytes, when each was last let go.
    #[serde(default)]
    pub mount_bytes: u64,
}

/// What is made aside and has no lock yet is not touched so soon.
const YOUNG: Duration = Duration::from_hours(1);

struct Item {
    path: PathBuf,
    tree: bool,
    bytes: u64,
    used: SystemTime,
}

impl LayerStore {
    /// What there is, of this id map.
    pub fn stored(&self) -> Result<Stored, StoreError> {
        let mut stored = Stored::default();
        for (_, record) in self.records()? {
            let Some(record) = record.filter(|record| self.trusts(record)) else { continue };
            stored.trees += 1;
            stored.tree_bytes += bytes_on_disk(&record);
        }
        for path in files(&self.path("blobs/sha256"))? {
            stored.blobs += 1;
            stored.blob_bytes += path.metadata().map_or(0, |found| found.len());
        }
        (stored.mounts, stored.mount_bytes) = self.stored_caches()?;
        Ok(stored)
    }

    /// Removes what `policy` does not let stay and nobody uses.
    ///
    /// Inside the user namespace, where trees have mapped owners: outside, an ordinary user cannot remove them.
    pub fn prune(&self, policy: &PrunePolicy) -> Result<Pruned, StoreError> {
        let now = SystemTime::now();
        let mut pruned = Pruned::default();
        // Trees are moved away under the lock, which is quick, and removed after it.
        let trash = self.stage()?;
        {
            let _exclusive = self.lock(FlockOperation::LockExclusive)?;
            let used = self.in_use()?;
            let mut number = 0;
            for item in self.chosen(policy, now, &used)? {
                if item.tree {
                    number += 1;
                    // The record first: without it the tree is none.
                    remove_if_there(&record_of(&item.path))?;
                    let aside = trash.work().join(number.to_string());
                    std::fs::rename(&item.path, &aside).at("remove", &item.path)?;
                    pruned.trees += 1;
                } else {
                    remove_if_there(&item.path)?;
                    pruned.blobs += 1;
                }
                pruned.bytes += item.bytes;
            }
            pruned.records = self.prune_records(policy, now)?;
        }
        if policy.mounts {
            pruned.mount_bytes = self.prune_caches(policy.max_bytes.unwrap_or(u64::MAX), policy.max_age)?;
        }
        self.prune_left_over(now)?;
        Ok(pruned)
    }

    /// Trees and blobs to be removed.
    fn chosen(
        &self,
        policy: &PrunePolicy,
        now: SystemTime,
        used: &BTreeSet<String>,
    ) -> Result<Vec<Item>, StoreError> {
        let (mut chosen, mut free, mut total) = (Vec::new(), Vec::new(), 0);
        for (path, record) in self.records()? {
            match record.filter(|record| self.trusts(record)) {
                Some(record) => {
                    let used = modified(&record_of(&path), now);
                    let bytes = bytes_on_disk(&record);
                    free.push(Item { path, tree: true, bytes, used });
                }
                None => chosen.push(Item { path, tree: true, bytes: 0, used: now }),
            }
        }
        for path in files(&self.path("blobs/sha256"))? {
            let bytes = path.metadata().map_or(0, |found| found.len());
            let used = modified(&path, now);
            free.push(Item { path, tree: false, bytes, used });
        }
        total += free.iter().map(|item| item.bytes).sum::<u64>();
        free.retain(|item| {
            item.path.file_name().and_then(|name| name.to_str()).is_some_and(|name| !used.contains(name))
        });
        free.sort_by_key(|item| item.used);
        for item in free {
            let old = policy.max_age.is_some_and(|age| age_of(item.used, now) > age);
            if old || policy.max_bytes.is_some_and(|max_bytes| total > max_bytes) {
                total = total.saturating_sub(item.bytes);
                chosen.push(item);
            }
        }
        Ok(chosen)
    }

    fn prune_records(&self, policy: &PrunePolicy, now: SystemTime) -> Result<u64, StoreError> {
        let Some(max_age) = policy.max_age else { return Ok(0) };
        let mut removed = 0;
        for dir in ["steps", "records", "contents"] {
            for path in files(&self.path(dir))? {
                if age_of(modified(&path, now), now) > max_age {
                    remove_if_there(&path)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Removes what processes that are gone had begun.
    fn prune_left_over(&self, now: SystemTime) -> Result<(), StoreError> {
        for path in files(&self.path("tmp"))? {
            let lock = path.join("lock");
            let left =
                if lock.exists() { is_abandoned(&lock)? } else { age_of(modified(&path, now), now) > YOUNG };
            if left {
                remove_path(&path).at("remove", &path)?;
            }
        }
        Ok(())
    }
}

/// A file takes a block, however small.
const fn bytes_on_disk(record: &TreeRecord) -> u64 {
    record.info.bytes + record.info.entries * 4096
}

fn modified(path: &Path, otherwise: SystemTime) -> SystemTime {
    path.symlink_metadata().and_then(|found| found.modified()).unwrap_or(otherwise)
}

fn age_of(used: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(used).unwrap_or_default()
}

fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}
