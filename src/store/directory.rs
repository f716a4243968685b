//! Objects as files: `<directory>/<kinds>/<name>.json`, the JSON byte for byte.
//!
//! A version is the digest of the document, so the file is the document and nothing else. One process owns the
//! directory (a lock file says so), which makes a mutex enough for the compare in compare-and-swap. A write goes
//! to a file aside that is synced and renamed, so a crash or a full disk leaves the document that was there.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::model::store::Document;
use crate::model::{Kind, ObjectName, Store, StoreError, Version};
use crate::oci::Digest;

/// The largest document that is read, in bytes.
const MAX_DOCUMENT_BYTES: u64 = 16 * 1024 * 1024;

/// A store in a directory. Clones share it.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    writing: Mutex<()>,
    writes: watch::Sender<u64>,
    _lock: File,
}

/// Why a directory cannot be a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("`{0}` is in use by another `hephy up`: stop that one, or give another directory with `--data`")]
    InUse(PathBuf),
    /// The system said no.
    #[error("cannot make `{path}` the store")]
    Io {
        /// The path at fault.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DirectoryStore {
    /// Opens the store in `directory`, making it if it is not there, for this process alone.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        for kind in Kind::ALL {
            let path = directory.join(kind.plural());
            fs::create_dir_all(&path).map_err(failed(&path))?;
            remove_leftovers(&path).map_err(failed(&path))?;
        }
        restrict(directory).map_err(failed(directory))?;
        let path = directory.join("lock");
        let lock = File::create(&path).map_err(failed(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(directory.to_owned())),
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
        }
        let writes = watch::Sender::new(0);
        let writing = Mutex::new(());
        Ok(Self {
            shared: Arc::new(Shared { directory: directory.to_owned(), writing, writes, _lock: lock }),
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        match tokio::task::spawn_blocking(move || work(&shared)).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Secrets live here: nobody else may read it.
fn restrict(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
}

/// Removes what a crash left of writes that never happened.
fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "aside") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn version_of(json: &[u8]) -> Version {
    Version(Digest::of(json).hex())
}

impl Shared {
    fn path(&self, kind: Kind, name: &ObjectName) -> PathBuf {
        self.directory.join(kind.plural()).join(format!("{name}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, kind: Kind, name: &ObjectName) -> Result<Option<Document>, StoreError> {
        match read_limited(&self.path(kind, name)) {
            Ok(json) => Ok(Some(Document { version: version_of(&json), json })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { doing: "read", kind, name: name.to_string(), source }),
        }
    }

    fn list(&self, kind: Kind, prefix: &str) -> Result<Vec<(ObjectName, Document)>, StoreError> {
        let failed = |source| StoreError::Io { doing: "list", kind, name: prefix.to_owned(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(self.directory.join(kind.plural())).map_err(failed)? {
            let file_name = entry.map_err(failed)?.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(".json"));
            names.extend(name.filter(|name| name.starts_with(prefix)).map(|name| ObjectName::of(&name)));
        }
        names.sort();
        let mut documents = Vec::with_capacity(names.len());
        for name in names {
            if let Some(document) = self.read(kind, &name)? {
                documents.push((name, document));
            }
        }
        Ok(documents)
    }

    fn check(&self, kind: Kind, name: &ObjectName, read: &Version) -> Result<(), StoreError> {
        match self.read(kind, name)? {
            None => Err(StoreError::Missing { kind, name: name.clone() }),
            Some(document) if document.version != *read => {
                Err(StoreError::Conflict { kind, name: name.clone() })
            }
            Some(_) => Ok(()),
        }
    }

    fn write(&self, kind: Kind, name: &ObjectName, json: &[u8]) -> Result<Version, StoreError> {
        let path = self.path(kind, name);
        write_whole(&path, json).map_err(|source| StoreError::Io {
            doing: "write",
            kind,
            name: name.to_string(),
            source,
        })?;
        self.writes.send_modify(|count| *count += 1);
        Ok(version_of(json))
    }
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut json = Vec::new();
    File::open(path)?.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut json)?;
    if json.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(io::Error::other("the document is larger than 16 MiB"));
    }
    Ok(json)
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("aside");
    let written = File::create(&aside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&aside, path)) {
        // The first error is the one to tell; an aside file left behind is removed at the next start.
        drop(fs::remove_file(&aside));
        return Err(error);
    }
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[async_trait]
impl Store for DirectoryStore {
    async fn get(&self, kind: Kind, name: &ObjectName) -> Result<Option<Document>, StoreError> {
        let name = name.clone();
        self.blocking(move |shared| shared.read(kind, &name)).await
    }

    async fn list(&self, kind: Kind, prefix: &str) -> Result<Vec<(ObjectName, Document)>, StoreError> {
        let prefix = prefix.to_owned();
        self.blocking(move |shared| shared.list(kind, &prefix)).await
    }

    async fn create(&self, kind: Kind, name: &ObjectName, json: Vec<u8>) -> Result<Version, StoreError> {
        let name = name.clone();
        self.blocking(move |shared| {
            let _writing = shared.lock();
            if shared.read(kind, &name)?.is_some() {
                return Err(StoreError::Exists { kind, name });
            }
            shared.write(kind, &name, &json)
        })
        .await
    }

    async fn replace(
        &self,
        kind: Kind,
        name: &ObjectName,
        read: &Version,
        json: Vec<u8>,
    ) -> Result<Version, StoreError> {
        let (name, read) = (name.clone(), read.clone());
        self.blocking(move |shared| {
            let _writing = shared.lock();
            shared.check(kind, &name, &read)?;
            shared.write(kind, &name, &json)
        })
        .await
    }

    async fn delete(&self, kind: Kind, name: &ObjectName, read: &Version) -> Result<(), StoreError> {
        let (name, read) = (name.clone(), read.clone());
        self.blocking(move |shared| {
            let _writing = shared.lock();
            shared.check(kind, &name, &read)?;
            let path = shared.path(kind, &name);
            let removed = fs::remove_file(&path).and_then(|()| sync_parent(&path));
            removed.map_err(|source| StoreError::Io {
                doing: "remove",
                kind,
                name: name.to_string(),
                source,
            })?;
            shared.writes.send_modify(|count| *count += 1);
            Ok(())
        })
        .await
    }

    async fn changed(&self, kind: Kind, name: &ObjectName, read: &Version) -> Result<(), StoreError> {
        let mut writes = self.shared.writes.subscribe();
        loop {
            writes.mark_unchanged();
            match self.get(kind, name).await? {
                Some(document) if document.version == *read => {}
                _ => return Ok(()),
            }
            // The sender is ours, so this ends only by a write.
            drop(writes.changed().await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_belongs_to_one_process_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        assert!(matches!(DirectoryStore::open(directory.path()), Err(OpenError::InUse(_))));
        drop(store);
        DirectoryStore::open(directory.path()).unwrap();
    }

    #[tokio::test]
    async fn what_a_crash_left_aside_is_no_document() {
        let directory = tempfile::tempdir().unwrap();
        drop(DirectoryStore::open(directory.path()).unwrap());
        fs::write(directory.path().join("apps/hello.aside"), "{").unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        assert_eq!(store.list(Kind::App, "").await.unwrap(), []);
        assert!(!directory.path().join("apps/hello.aside").exists());
    }

    #[tokio::test]
    async fn the_file_is_the_document_byte_for_byte() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path()).unwrap();
        store.create(Kind::App, &ObjectName::of(&"hello"), b"{ }\n".to_vec()).await.unwrap();
        assert_eq!(fs::read(directory.path().join("apps/hello.json")).unwrap(), b"{ }\n");
    }
}
