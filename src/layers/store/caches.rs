//! Directories that live from build to build: what `RUN --mount=type=cache` writes to.
//!
//! `caches/<map>/<name>-<number>` is one, with a `.lock` beside it that its users hold and a `.json` that says how large
//! it was when it was last let go. A name is a digest, so that no text of a Dockerfile is ever a path.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::trees::remove_path;
use super::{FileError, LayerStore, Staged, StoreError, lock_file, read_json, touch};
use crate::layers::error::AtPath as _;
use crate::oci::Digest;

/// How many directories one name may have, for uses that share with nobody.
const MAX_PRIVATE: u32 = 32;

/// What users of one name do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheSharing {
    /// They use one directory at once.
    Shared,
    /// Each has a directory that nobody else uses meanwhile.
    Private,
    /// The second waits for the first.
    Locked,
}

/// A directory in use: it is not removed, nor used against its sharing, as long as this lives.
#[derive(Debug)]
pub struct CacheDirectory {
    path: PathBuf,
    _lock: File,
}

impl CacheDirectory {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What is known of a directory that nobody uses.
#[derive(Debug, Default, Serialize, Deserialize)]
struct CacheRecord {
    bytes: u64,
}

impl LayerStore {
    /// The directory of `name`; if there is none, `fill` is given what becomes it.
    ///
    /// Waits where `sharing` says so. Guarantees: whoever uses a directory sees it filled.
    pub fn cache_directory<E: From<StoreError>>(
        &self,
        name: &Digest,
        sharing: CacheSharing,
        fill: impl FnOnce(&Staged) -> Result<(), E>,
    ) -> Result<CacheDirectory, E> {
        let directory = self.locked_cache(name, sharing)?;
        if directory.path.is_dir() {
            touch_record(&directory.path);
            return Ok(directory);
        }
        // Of several that share it, one makes it.
        let _making = lock_file(&directory.path.with_extension("making"), FlockOperation::LockExclusive)
            .map_err(StoreError::from)?;
        if !directory.path.is_dir() {
            let staged = self.stage()?;
            fill(&staged)?;
            let record = record_of(&directory.path);
            self.write_json(&record, &CacheRecord::default())?;
            std::fs::rename(staged.tree(), &directory.path)
                .at("make", &directory.path)
                .map_err(StoreError::from)?;
        }
        Ok(directory)
    }

    /// Whether there is a directory of `name`.
    #[must_use]
    pub fn has_cache(&self, name: &Digest) -> bool {
        self.cache_path(name, 0).is_dir()
    }

    /// The directory that uses of `name` come back to, if there is one and nobody uses it.
    pub fn idle_cache(&self, name: &Digest) -> Result<Option<CacheDirectory>, StoreError> {
        let path = self.cache_path(name, 0);
        if !path.is_dir() {
            return Ok(None);
        }
        let lock = lasting_lock(&path.with_extension("lock"), FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock.filter(|_| path.is_dir()).map(|lock| CacheDirectory { path, _lock: lock }))
    }

    fn cache_path(&self, name: &Digest, number: u32) -> PathBuf {
        self.caches().join(format!("{}-{number}", name.hex()))
    }

    fn locked_cache(&self, name: &Digest, sharing: CacheSharing) -> Result<CacheDirectory, StoreError> {
        let path = |number: u32| self.cache_path(name, number);
        let at = |number: u32, operation| -> Result<Option<CacheDirectory>, FileError> {
            let path = path(number);
            Ok(lasting_lock(&path.with_extension("lock"), operation)?
                .map(|lock| CacheDirectory { path, _lock: lock }))
        };
        if sharing == CacheSharing::Private {
            for number in 0..MAX_PRIVATE {
                if let Some(directory) = at(number, FlockOperation::NonBlockingLockExclusive)? {
                    return Ok(directory);
                }
            }
        }
        let operation = match sharing {
            CacheSharing::Shared => FlockOperation::LockShared,
            CacheSharing::Private | CacheSharing::Locked => FlockOperation::LockExclusive,
        };
        let waited = at(0, operation)?;
        Ok(waited.ok_or_else(|| io::Error::from(Errno::WOULDBLOCK)).at("lock", path(0))?)
    }

    fn caches(&self) -> PathBuf {
        self.path("caches").join(self.inner.trees.file_name().unwrap_or_default())
    }

    /// Notes how large a directory is that this process has just used.
    pub fn measure_cache(&self, directory: &Path) -> Result<(), StoreError> {
        let bytes = size_of_files(directory);
        self.write_json(&record_of(directory), &CacheRecord { bytes })
    }

    /// Removes cache directories that nobody uses, the longest unused first, until all together have no more than
    /// `max_bytes`, and those unused for `max_age`. Returns how many bytes went.
    ///
    /// Inside the user namespace, as [`LayerStore::prune`].
    pub fn prune_caches(&self, max_bytes: u64, max_age: Option<Duration>) -> Result<u64, StoreError> {
        let now = SystemTime::now();
        let mut found = Vec::new();
        for path in super::usage::files(&self.caches())? {
            if path.extension().is_none() {
                let record = record_of(&path);
                let used = record.symlink_metadata().and_then(|found| found.modified()).unwrap_or(now);
                let bytes = read_json::<CacheRecord>(&record)?.unwrap_or_default().bytes;
                found.push((used, bytes, path));
            }
        }
        found.sort();
        let mut total: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        let mut gone = 0;
        for (used, bytes, path) in found {
            let old = max_age.is_some_and(|age| now.duration_since(used).unwrap_or_default() > age);
            // The size of one that was never let go is not known.
            if (total > max_bytes || max_bytes == 0 || old) && self.remove_cache(&path)? {
                total = total.saturating_sub(bytes);
                gone += bytes;
            }
        }
        Ok(gone)
    }

    /// How many cache directories there are, and how large they were when they were let go.
    pub(super) fn stored_caches(&self) -> Result<(u64, u64), StoreError> {
        let (mut count, mut bytes) = (0, 0);
        for path in super::usage::files(&self.caches())? {
            if path.extension().is_none() {
                count += 1;
                bytes += read_json::<CacheRecord>(&record_of(&path))?.unwrap_or_default().bytes;
            }
        }
        Ok((count, bytes))
    }

    /// Removes a directory, unless somebody uses it.
    fn remove_cache(&self, path: &Path) -> Result<bool, StoreError> {
        let lock = path.with_extension("lock");
        let Some(_held) = lasting_lock(&lock, FlockOperation::NonBlockingLockExclusive)? else {
            return Ok(false);
        };
        // Moved away first: a crash leaves it all or not at all.
        let trash = self.stage()?;
        let aside = trash.work().join("cache");
        std::fs::rename(path, &aside).at("remove", path)?;
        for beside in [record_of(path), path.with_extension("making"), lock] {
            match std::fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(error).at("remove", &beside)?;
                }
                _ => {}
            }
        }
        remove_path(&aside).at("remove", path)?;
        Ok(true)
    }
}

fn record_of(directory: &Path) -> PathBuf {
    directory.with_extension("json")
}

fn touch_record(directory: &Path) {
    touch(&record_of(directory));
}

/// Locks a file that its holder may remove: a lock on a file that is there no more is none. None: somebody holds it.
fn lasting_lock(path: &Path, operation: FlockOperation) -> Result<Option<File>, FileError> {
    loop {
        let file = match lock_file(path, operation) {
            Err(error) if error.source.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        };
        let ours = file.metadata().at("inspect", path)?;
        match path.symlink_metadata() {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(Some(file)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("inspect", path),
            _ => {}
        }
    }
}

/// The space that files take; what changes meanwhile is counted or not.
fn size_of_files(directory: &Path) -> u64 {
    let entries = walkdir::WalkDir::new(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn store() -> (tempfile::TempDir, LayerStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path(), "map", None).unwrap();
        (directory, store)
    }

    fn take(store: &LayerStore, name: &str, sharing: CacheSharing) -> CacheDirectory {
        let nothing = |_: &Staged| Ok::<_, StoreError>(());
        store.cache_directory(&Digest::of(name), sharing, nothing).unwrap()
    }

    #[test]
    fn a_directory_is_filled_once_and_stays() {
        let (_keep, store) = store();
        let fill = |staged: &Staged| {
            std::fs::write(staged.tree().join("seed"), "1").unwrap();
            Ok::<_, StoreError>(())
        };
        let name = Digest::of("x");
        let first = store.cache_directory(&name, CacheSharing::Shared, fill).unwrap();
        std::fs::write(first.path().join("seed"), "2").unwrap();
        let second = store.cache_directory(&name, CacheSharing::Shared, fill).unwrap();
        assert_eq!(first.path(), second.path());
        assert_eq!(std::fs::read_to_string(second.path().join("seed")).unwrap(), "2");
    }

    #[test]
    fn private_uses_meet_in_no_directory_and_come_back_to_the_first() {
        let (_keep, store) = store();
        let first = take(&store, "x", CacheSharing::Private);
        let second = take(&store, "x", CacheSharing::Private);
        assert_ne!(first.path(), second.path());
        let path = first.path().to_owned();
        drop((first, second));
        assert_eq!(take(&store, "x", CacheSharing::Private).path(), path);
    }

    #[test]
    fn only_a_directory_that_nobody_uses_is_idle() {
        let (_keep, store) = store();
        let name = Digest::of("x");
        assert!(!store.has_cache(&name) && store.idle_cache(&name).unwrap().is_none());
        let used = take(&store, "x", CacheSharing::Shared);
        assert!(store.has_cache(&name) && store.idle_cache(&name).unwrap().is_none());
        let path = used.path().to_owned();
        drop(used);
        assert_eq!(store.idle_cache(&name).unwrap().unwrap().path(), path);
    }

    #[test]
    fn a_locked_directory_is_waited_for() {
        let (_keep, store) = store();
        let first = take(&store, "x", CacheSharing::Locked);
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let (store, sender) = (&store, &sender);
            scope.spawn(move || {
                let second = take(store, "x", CacheSharing::Locked);
                sender.send("second").unwrap();
                drop(second);
            });
            sender.send("first").unwrap();
            drop(first);
        });
        assert_eq!((receiver.recv().unwrap(), receiver.recv().unwrap()), ("first", "second"));
    }

    #[test]
    fn the_longest_unused_goes_first_and_what_is_used_stays() {
        let (_keep, store) = store();
        for (name, age) in [("old", 300), ("used", 200), ("young", 100)] {
            let directory = take(&store, name, CacheSharing::Shared);
            std::fs::write(directory.path().join("f"), vec![1; 100_000]).unwrap();
            store.measure_cache(directory.path()).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            let record = File::options().append(true).open(record_of(directory.path())).unwrap();
            record.set_modified(time).unwrap();
        }
        let used = take(&store, "used", CacheSharing::Shared);
        let left = || {
            let names = ["old", "used", "young"];
            names.map(|name| store.caches().join(format!("{}-0", Digest::of(name).hex())).exists())
        };
        assert!(store.prune_caches(250_000, None).unwrap() >= 100_000);
        assert_eq!(left(), [false, true, true]);
        store.prune_caches(0, None).unwrap();
        assert_eq!(left(), [false, true, false]);
        drop(used);
        assert_eq!(take(&store, "old", CacheSharing::Shared).path().read_dir().unwrap().count(), 0);
    }
}
