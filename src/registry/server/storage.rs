//! The registry's files.
//!
//! ```text
//! token.key                                  the key of the tokens
//! lock                                       held by the one server
//! tmp/                                       what is being written; emptied at start
//! blobs/sha256/<hex>                         content, of all repositories
//! repositories/<name>/_blobs/<hex>           this repository has this blob
//!                     _manifests/<hex>       … and this manifest; holds its media type
//!                     _tags/<tag>            holds a digest
//!                     _referrers/<hex>/<hex> the second refers to the first; holds a descriptor
//!                     _uploads/<id>          an upload as far as it has come
//! ```
//! No part of a repository's name begins with `_`, so no repository is inside another's directories. Every file but an
//! upload is written aside, synced and renamed: it is there whole or not at all.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;

use super::route::UploadId;
use crate::oci::{Descriptor, Digest, MAX_MANIFEST_BYTES, MediaType, RawManifest, RepositoryName, Tag};

/// The directory of a registry. All of its functions block.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    root: PathBuf,
}

impl Storage {
    /// Makes what is missing, and drops what was being written when the last server ended.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let storage = Self { root: root.to_owned() };
        for directory in ["blobs/sha256", "repositories"] {
            create_dir_durable(&root.join(directory))?;
        }
        let tmp = storage.tmp();
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => create_dir_durable(&tmp)?,
        }
        Ok(storage)
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(super) fn repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    pub(super) fn repository(&self, name: &RepositoryName) -> PathBuf {
        self.repositories().join(name.as_str())
    }

    pub(super) fn blob_links(&self, name: &RepositoryName) -> PathBuf {
        self.repository(name).join("_blobs")
    }

    pub(super) fn manifest_links(&self, name: &RepositoryName) -> PathBuf {
        self.repository(name).join("_manifests")
    }

    pub(super) fn tags(&self, name: &RepositoryName) -> PathBuf {
        self.repository(name).join("_tags")
    }

    pub(super) fn referrers(&self, name: &RepositoryName, subject: &Digest) -> PathBuf {
        self.repository(name).join("_referrers").join(subject.hex())
    }

    pub(super) fn uploads(&self, name: &RepositoryName) -> PathBuf {
        self.repository(name).join("_uploads")
    }

    pub(super) fn upload(&self, name: &RepositoryName, id: &UploadId) -> PathBuf {
        self.uploads(name).join(id.as_str())
    }

    /// The size of a blob that the repository has.
    pub(super) fn blob_size(&self, name: &RepositoryName, digest: &Digest) -> io::Result<Option<u64>> {
        if !self.blob_links(name).join(digest.hex()).try_exists()? {
            return Ok(None);
        }
        Ok(optional(fs::metadata(self.blob(digest)))?.map(|metadata| metadata.len()))
    }

    /// Gives the repository a blob that is stored, and marks it as used just now.
    pub(super) fn link_blob(&self, name: &RepositoryName, digest: &Digest) -> io::Result<()> {
        let directory = self.blob_links(name);
        create_dir_durable(&directory)?;
        let link = File::create(directory.join(digest.hex()))?;
        link.set_modified(SystemTime::now())?;
        sync_dir(&directory)
    }

    /// Marks a blob as used just now, so that garbage collection leaves it to whoever looked.
    pub(super) fn touch_blob(&self, name: &RepositoryName, digest: &Digest) -> io::Result<()> {
        match optional(File::options().write(true).open(self.blob_links(name).join(digest.hex())))? {
            Some(link) => link.set_modified(SystemTime::now()),
            None => Ok(()),
        }
    }

    /// Makes the finished file at `path`, whose content has this digest, a blob of the repository.
    pub(super) fn adopt_blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        path: &Path,
        file: &File,
    ) -> io::Result<()> {
        let blob = self.blob(digest);
        if blob.try_exists()? {
            fs::remove_file(path)?;
        } else {
            // By the descriptor that wrote it, which is told of everything that went wrong in writing it.
            file.sync_all()?;
            fs::rename(path, &blob)?;
            sync_dir(&self.blobs())?;
        }
        self.link_blob(name, digest)
    }

    /// The manifest of a digest that the repository has.
    pub(super) fn manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> io::Result<Option<(MediaType, Bytes)>> {
        let Some(media_type) = optional(fs::read_to_string(self.manifest_links(name).join(digest.hex())))?
        else {
            return Ok(None);
        };
        let Some(metadata) = optional(fs::metadata(self.blob(digest)))? else { return Ok(None) };
        if metadata.len() > MAX_MANIFEST_BYTES as u64 {
            return Err(io::Error::other("a stored manifest is too large"));
        }
        Ok(Some((MediaType::from(media_type), fs::read(self.blob(digest))?.into())))
    }

    /// Whether the repository has the manifest, and how long it is.
    pub(super) fn manifest_size(&self, name: &RepositoryName, digest: &Digest) -> io::Result<Option<u64>> {
        if !self.manifest_links(name).join(digest.hex()).try_exists()? {
            return Ok(None);
        }
        Ok(optional(fs::metadata(self.blob(digest)))?.map(|metadata| metadata.len()))
    }

    /// Stores a manifest, then what leads to it: its entry, its subject's referrer, its tag.
    pub(super) fn put_manifest(
        &self,
        name: &RepositoryName,
        manifest: &RawManifest,
        referrer: Option<&Descriptor>,
        tag: Option<&Tag>,
    ) -> io::Result<()> {
        let digest = manifest.digest();
        if !self.blob(&digest).try_exists()? {
            self.write(&self.blob(&digest), manifest.bytes())?;
        }
        self.write(&self.manifest_links(name).join(digest.hex()), manifest.media_type().as_str().as_bytes())?;
        if let (Some(subject), Some(referrer)) = (manifest.subject(), referrer) {
            let path = self.referrers(name, &subject.digest).join(digest.hex());
            self.write(&path, &serde_json::to_vec(referrer)?)?;
        }
        tag.map_or(Ok(()), |tag| {
            self.write(&self.tags(name).join(tag.as_str()), digest.to_string().as_bytes())
        })
    }

    /// What a tag names.
    pub(super) fn tag(&self, name: &RepositoryName, tag: &Tag) -> io::Result<Option<Digest>> {
        let text = optional(fs::read_to_string(self.tags(name).join(tag.as_str())))?;
        text.map(|text| text.parse().map_err(io::Error::other)).transpose()
    }

    /// The names in a directory of ours, sorted; none if it is not there.
    pub(super) fn names_in(directory: &Path) -> io::Result<Vec<String>> {
        let Some(entries) = optional(fs::read_dir(directory))? else { return Ok(Vec::new()) };
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Writes a small file whole or not at all.
    pub(super) fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut aside = tempfile::NamedTempFile::new_in(self.tmp())?;
        aside.write_all(content)?;
        aside.as_file().sync_all()?;
        let directory = path.parent().unwrap_or(&self.root);
        create_dir_durable(directory)?;
        aside.persist(path).map_err(|error| error.error)?;
        sync_dir(directory)
    }
}

/// `None` for what is not there.
pub(super) fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes a directory and its parents, each synced into its own.
fn create_dir_durable(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let Some(parent) = directory.parent() else { return Ok(()) };
    create_dir_durable(parent)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(parent),
    }
}
