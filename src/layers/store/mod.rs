//! The layers on disk, shared by every build and app that uses the same directory.
//!
//! ```text
//! trees/<map>/<diff id>        unpacked, as overlay lowers, owners as the id map has them
//! trees/<map>/<diff id>.json   says that the tree is complete; without it there is no tree
//! blobs/sha256/<digest>        compressed layers
//! records/<diff id>-gzip6.json which blob a layer was compressed to
//! steps/<key>                  what the cache keeps of a step
//! contents/<directory>         what is known of the files of a context
//! caches/<map>/<name>-<number> directories that live from build to build
//! leases/ pins/ locks/ tmp/    who uses what, and what is being made
//! ```
//! Everything appears by a rename. A tree is not synced to the disk when it is committed, which would wait for
//! every other writer of the disk: its record names the boot, and after another boot it counts only if it was
//! settled. Every path is relative to the directory given to [`LayerStore::open`], so that a process which reaches it by a
//! descriptor alone can use it.

mod blobs;
mod caches;
mod prune;
mod trees;
mod usage;

use std::fs::{File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, Gid, Mode, OFlags, Uid};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{AtPath as _, FileError};
use super::known::KnownContents;
use super::node::Owner;
use crate::oci::Digest;

pub use blobs::BlobWriter;
pub use caches::{CacheDirectory, CacheSharing};
pub use prune::{PrunePolicy, Pruned, Stored};
pub use trees::{LayerLock, Staged, TreeInfo};
pub use usage::Lease;

/// The most that a record, a step's record or a lease may hold.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Why the store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A name that cannot be a file's.
    #[error("`{0}` cannot be a name in the layer store: use letters, digits, `.`, `_` and `-`")]
    Name(String),
    /// A record that is too large to be kept.
    #[error("a record of {0} bytes is too large for the layer store")]
    RecordSize(usize),
    /// A record that does not become JSON.
    #[error("cannot write the record of a layer")]
    Record(#[source] serde_json::Error),
}

/// A directory of layers.
#[derive(Debug, Clone)]
pub struct LayerStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    trees: PathBuf,
    /// Which boot of the machine this is.
    boot: String,
}

impl LayerStore {
    /// Opens the store in `dir`, making what is missing.
    ///
    /// `map` names the id map of this process's trees: trees of one map are of no use under another. `writer` is who
    /// will make trees, if that is not this process: root outside, before a worker inside is started.
    pub fn open(dir: &Path, map: &str, writer: Option<Owner>) -> Result<Self, StoreError> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::open_in_boot(dir, map, writer, boot.trim())
    }

    fn open_in_boot(dir: &Path, map: &str, writer: Option<Owner>, boot: &str) -> Result<Self, StoreError> {
        check_name(map)?;
        let trees = dir.join("trees").join(map);
        for part in [
            "",
            "trees",
            "blobs",
            "blobs/sha256",
            "records",
            "steps",
            "contents",
            "caches",
            "leases",
            "pins",
            "locks",
            "tmp",
        ] {
            make_dir(&dir.join(part), writer)?;
        }
        make_dir(&trees, writer)?;
        make_dir(&dir.join("caches").join(map), writer)?;
        Ok(Self { inner: Arc::new(Inner { dir: dir.to_owned(), trees, boot: boot.to_owned() }) })
    }

    /// Keeps what a step's cache says under `key`, in place of what was there.
    pub fn put_step(&self, key: &Digest, record: &[u8]) -> Result<(), StoreError> {
        self.write(&self.path("steps").join(key.hex()), record)
    }

    /// What is kept under `key`.
    pub fn step(&self, key: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path("steps").join(key.hex());
        let record = read(&path)?;
        if record.is_some() {
            touch(&path);
        }
        Ok(record)
    }

    /// What is known of the content of the files in a directory.
    #[must_use]
    pub fn known_contents(&self, directory: BorrowedFd<'_>) -> KnownContents {
        KnownContents::of(directory, &self.path("contents"))
    }

    fn path(&self, part: &str) -> PathBuf {
        self.inner.dir.join(part)
    }

    /// Taken shared while something is looked up or committed, exclusively while something is removed.
    fn lock(&self, operation: FlockOperation) -> Result<File, StoreError> {
        Ok(lock_file(&self.path("locks/store"), operation)?)
    }

    /// Writes a small file whole or not at all.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        if content.len() as u64 > MAX_RECORD_BYTES {
            return Err(StoreError::RecordSize(content.len()));
        }
        let tmp = self.path("tmp");
        let mut file = tempfile::Builder::new()
            .prefix("record-")
            .tempfile_in(anchored(&tmp))
            .at("create file in", &tmp)?;
        file.write_all(content).at("write", path)?;
        file.as_file().set_permissions(Permissions::from_mode(0o644)).at("write", path)?;
        file.persist(path).map_err(|error| error.error).at("write", path)?;
        Ok(())
    }

    fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
        self.write(path, &serde_json::to_vec(value).map_err(StoreError::Record)?)
    }
}

/// A path for `tempfile`, which makes a relative one absolute and would then walk down from the root: a worker reaches the
/// store by its working directory alone.
fn anchored(path: &Path) -> PathBuf {
    if path.is_relative() { Path::new("/proc/self/cwd").join(path) } else { path.to_owned() }
}

/// The content of a small file, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let mut content = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_RECORD_BYTES).read_to_end(&mut content).at("read", path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at("read", path),
    };
    Ok(Some(content))
}

/// A record, or nothing if it is absent or damaged: then what it describes does not exist.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    Ok(read(path)?.and_then(|content| serde_json::from_slice(&content).ok()))
}

/// Notes that a file was used. Another user's file cannot be touched, and then it is only collected earlier.
fn touch(path: &Path) {
    let now = std::time::SystemTime::now();
    drop(File::options().append(true).open(path).and_then(|file| file.set_modified(now)));
}

fn make_dir(path: &Path, writer: Option<Owner>) -> Result<(), FileError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path).at("create", path)?;
        }
        result => result.at("create directory", path)?,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).at("open directory", path)?;
    let node = super::node::Node::of(&dir).at("inspect", path)?;
    if let Some(writer) = writer.filter(|writer| *writer != node.owner) {
        let (uid, gid) = (Uid::from_raw(writer.uid), Gid::from_raw(writer.gid));
        rustix::fs::fchown(&dir, Some(uid), Some(gid)).at("set owner of", path)?;
    }
    // Not more than the directories above allow, and the mapped root must pass.
    let owner = rustix::process::geteuid();
    if node.mode != 0o755 && (owner.is_root() || owner.as_raw() == node.owner.uid) {
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755)).at("set mode of", path)?;
    }
    Ok(())
}

/// Opens and locks a file that is made if need be. The lock ends with the file, or with the process.
fn lock_file(path: &Path, operation: FlockOperation) -> Result<File, FileError> {
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).at("open", path)?;
    // Whatever the umask, everyone who reaches the store may lock. The file may be another user's already.
    let _ = rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644));
    loop {
        match rustix::fs::flock(&file, operation) {
            Err(rustix::io::Errno::INTR) => {}
            result => {
                result.at("lock", path)?;
                return Ok(file.into());
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.starts_with('.') || name.len() > 200 || !name.bytes().all(good) {
        return Err(StoreError::Name(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
