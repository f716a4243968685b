//! Compressed layers, and which layer became which blob.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tempfile::NamedTempFile;

use super::{LayerStore, StoreError, read_json, touch};
use crate::layers::compress::{Compressed, Compression};
use crate::layers::error::AtPath as _;
use crate::oci::Digest;

/// A blob that is being written. What is not committed is removed.
#[derive(Debug)]
pub struct BlobWriter {
    file: NamedTempFile,
}

impl BlobWriter {
    /// Where it is being written, for writers that open it themselves.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file, for reading it back or for another handle.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.as_file()
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LayerStore {
    /// A new blob.
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        let tmp = self.path("tmp");
        let file = tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(super::anchored(&tmp))
            .at("create file in", &tmp)?;
        Ok(BlobWriter { file })
    }

    /// Keeps a blob that was compressed here, and that it is the layer's.
    pub fn commit_blob(&self, blob: BlobWriter, compressed: &Compressed) -> Result<PathBuf, StoreError> {
        let path = self.commit_pulled_blob(blob, &compressed.digest)?;
        self.record_compressed(compressed)?;
        Ok(path)
    }

    /// Keeps a blob whose bytes are known to be those of `digest`. Returns once it is on the disk.
    pub fn commit_pulled_blob(&self, blob: BlobWriter, digest: &Digest) -> Result<PathBuf, StoreError> {
        let path = self.blob_path(digest);
        blob.file.as_file().set_permissions(Permissions::from_mode(0o644)).at("write", &path)?;
        blob.file.as_file().sync_data().at("sync", &path)?;
        let _shared = self.lock(FlockOperation::LockShared)?;
        blob.file.persist(&path).map_err(|error| error.error).at("commit", &path)?;
        Ok(path)
    }

    /// Notes that a layer is in a blob, if that was learned otherwise than by compressing it.
    pub fn record_compressed(&self, compressed: &Compressed) -> Result<(), StoreError> {
        self.write_json(&self.compressed_path(&compressed.diff_id, compressed.compression), compressed)
    }

    /// The blob of `digest`.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.blob_path(digest);
        touch(&path);
        Some(path).filter(|path| path.is_file())
    }

    /// What the layer was compressed to, if its blob is still here.
    #[must_use]
    pub fn compressed(&self, diff_id: &Digest, compression: Compression) -> Option<Compressed> {
        let record: Compressed = read_json(&self.compressed_path(diff_id, compression)).ok().flatten()?;
        let blob = self.blob(&record.digest)?;
        Some(record).filter(|record| blob.metadata().is_ok_and(|found| found.len() == record.size))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path("blobs/sha256").join(digest.hex())
    }

    fn compressed_path(&self, diff_id: &Digest, compression: Compression) -> PathBuf {
        let level = match compression {
            Compression::None => String::new(),
            Compression::Gzip { level } => level.to_string(),
            Compression::Zstd { level } => level.to_string(),
        };
        self.path("records").join(format!("{}-{compression}{level}.json", diff_id.hex()))
    }
}
