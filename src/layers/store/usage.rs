//! Who uses which layers: builds hold a lease, which ends with their process; running apps are pinned until they are unpinned.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::{FileError, LayerStore, StoreError, check_name, read, read_json};
use crate::layers::error::AtPath as _;
use crate::oci::Digest;

/// Keeps the layers and blobs that it holds from being removed, as long as it lives.
#[derive(Debug)]
pub struct Lease {
    store: LayerStore,
    file: NamedTempFile,
    held: Mutex<Held>,
}

/// What a lease holds already: it is neither looked up nor written again.
#[derive(Debug, Default)]
struct Held {
    digests: BTreeSet<Digest>,
    trees: BTreeMap<Digest, PathBuf>,
}

impl Lease {
    /// The tree of `diff_id`, which stays as long as this lease.
    pub fn tree(&self, diff_id: &Digest) -> Result<Option<PathBuf>, StoreError> {
        if let Some(tree) = self.held().trees.get(diff_id) {
            return Ok(Some(tree.clone()));
        }
        let _shared = self.store.lock(FlockOperation::LockShared)?;
        let tree = self.store.tree(diff_id)?;
        if let Some(tree) = &tree {
            self.note(diff_id)?;
            self.held().trees.insert(*diff_id, tree.clone());
        }
        Ok(tree)
    }

    /// Holds the layer or blob of this digest, there already or about to be committed.
    pub fn hold(&self, digest: &Digest) -> Result<(), StoreError> {
        let _shared = self.store.lock(FlockOperation::LockShared)?;
        Ok(self.note(digest)?)
    }

    fn note(&self, digest: &Digest) -> Result<(), FileError> {
        if self.held().digests.contains(digest) {
            return Ok(());
        }
        let line = format!("{}\n", digest.hex());
        self.file.as_file().write_all(line.as_bytes()).at("write", self.file.path())?;
        self.held().digests.insert(*digest);
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LayerStore {
    /// A lease for one build.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        let dir = self.path("leases");
        let _shared = self.lock(FlockOperation::LockShared)?;
        let mut named = tempfile::Builder::new();
        let file = named.prefix("lease-").tempfile_in(super::anchored(&dir)).at("create file in", &dir)?;
        rustix::fs::fchmod(file.as_file(), rustix::fs::Mode::from_raw_mode(0o644))
            .at("create", file.path())?;
        rustix::fs::flock(file.as_file(), FlockOperation::LockExclusive).at("lock", file.path())?;
        Ok(Lease { store: self.clone(), file, held: Mutex::default() })
    }

    /// Keeps `layers` for `name`, whatever happens to this process, in place of what was kept for it.
    pub fn pin(&self, name: &str, layers: &[Digest]) -> Result<(), StoreError> {
        let path = self.pin_path(name)?;
        let _shared = self.lock(FlockOperation::LockShared)?;
        self.write_json(&path, &layers)
    }

    /// Keeps nothing for `name` any more.
    pub fn unpin(&self, name: &str) -> Result<(), StoreError> {
        let path = self.pin_path(name)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Ok(Err(error).at("remove", &path)?),
            _ => Ok(()),
        }
    }

    fn pin_path(&self, name: &str) -> Result<PathBuf, StoreError> {
        check_name(name)?;
        Ok(self.path("pins").join(format!("{name}.json")))
    }

    /// Removes the leases of processes that were killed. Others do it too, in time; they are small.
    pub fn forget_the_dead(&self) -> Result<(), StoreError> {
        let _exclusive = self.lock(FlockOperation::LockExclusive)?;
        for path in files(&self.path("leases"))? {
            if is_abandoned(&path)? {
                std::fs::remove_file(&path).at("remove", &path)?;
            }
        }
        Ok(())
    }

    /// The hexadecimal digits of every digest in use. Removes the leases of processes that are gone.
    pub(super) fn in_use(&self) -> Result<BTreeSet<String>, StoreError> {
        let mut used = BTreeSet::new();
        for path in files(&self.path("leases"))? {
            if is_abandoned(&path)? {
                std::fs::remove_file(&path).at("remove", &path)?;
                continue;
            }
            let lines = read(&path)?.unwrap_or_default();
            used.extend(String::from_utf8_lossy(&lines).lines().map(str::to_owned));
        }
        for path in files(&self.path("pins"))? {
            let layers: Vec<Digest> = read_json(&path)?.unwrap_or_default();
            used.extend(layers.iter().map(Digest::hex));
        }
        Ok(used)
    }
}

/// Whether nobody holds the lock on a file that its user keeps locked.
pub(super) fn is_abandoned(path: &Path) -> Result<bool, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).at("open", path),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno).at("lock", path),
    }
}

pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = std::fs::read_dir(dir).at("list", dir)?;
    entries.map(|entry| entry.map(|entry| entry.path()).at("list", dir)).collect()
}
