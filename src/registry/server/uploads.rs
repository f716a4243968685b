//! Uploads under way: as long as they are open, what they have and the sum of it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use super::ServerConfig;
use super::refusal::Refusal;
use super::route::UploadId;
use super::storage::{Storage, optional};
use crate::oci::{Digest, RepositoryName};

/// How much is gathered before it is written.
const PIECE_BYTES: usize = 1024 * 1024;
/// How long a client may send nothing.
const BODY_IDLE: Duration = Duration::from_mins(1);

/// All open uploads.
#[derive(Debug)]
pub(super) struct Uploads {
    storage: Storage,
    max_blob_bytes: u64,
    max_open: usize,
    idle: Duration,
    open: Mutex<HashMap<UploadId, Arc<Upload>>>,
}

/// One upload.
#[derive(Debug)]
pub(super) struct Upload {
    repository: RepositoryName,
    id: UploadId,
    /// One request at a time.
    turn: tokio::sync::Mutex<()>,
    /// Held while a piece is written, also when the request is gone.
    part: Mutex<Part>,
}

#[derive(Debug)]
struct Part {
    file: File,
    size: u64,
    sum: Sha256,
}

impl Uploads {
    pub(super) fn new(storage: Storage, config: &ServerConfig) -> Self {
        Self {
            storage,
            max_blob_bytes: config.max_blob_bytes,
            max_open: config.max_uploads,
            idle: config.upload_idle,
            open: Mutex::default(),
        }
    }

    /// Starts an upload. Blocks.
    pub(super) fn start(&self, repository: &RepositoryName) -> Result<Arc<Upload>, Refusal> {
        if lock(&self.open).len() >= self.max_open {
            let message = format!("{} uploads are open, which is the most: try again", self.max_open);
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
                .with("retry-after", "5"));
        }
        let id = UploadId::random();
        fs::create_dir_all(self.storage.uploads(repository))?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.storage.upload(repository, &id))?;
        Ok(self.keep(repository, id, Part { file, size: 0, sum: Sha256::new() }))
    }

    /// An upload by its name; one from before a restart is read again for its sum. Blocks.
    pub(super) fn find(&self, repository: &RepositoryName, id: &UploadId) -> Result<Arc<Upload>, Refusal> {
        let unknown = || {
            Refusal::missing(
                "BLOB_UPLOAD_UNKNOWN",
                "no such upload: it was finished, cancelled or has expired",
            )
        };
        if let Some(upload) = lock(&self.open).get(id) {
            return if upload.repository == *repository { Ok(upload.clone()) } else { Err(unknown()) };
        }
        let path = self.storage.upload(repository, id);
        let file = optional(File::options().read(true).write(true).open(path))?.ok_or_else(unknown)?;
        let (mut size, mut sum, mut buffer) = (0, Sha256::new(), vec![0; PIECE_BYTES]);
        loop {
            let read = (&file).read(&mut buffer)?;
            if read == 0 {
                break;
            }
            sum.update(&buffer[..read]);
            size += read as u64;
        }
        Ok(self.keep(repository, id.clone(), Part { file, size, sum }))
    }

    /// Of two requests that found the same upload at once, both get that of the first.
    fn keep(&self, repository: &RepositoryName, id: UploadId, part: Part) -> Arc<Upload> {
        let mut open = lock(&self.open);
        let entry = open.entry(id.clone()).or_insert_with(|| {
            let (turn, part) = (tokio::sync::Mutex::default(), Mutex::new(part));
            Arc::new(Upload { repository: repository.clone(), id, turn, part })
        });
        entry.clone()
    }

    /// Ends an upload and drops what it has. Blocks.
    pub(super) fn remove(&self, upload: &Upload) -> io::Result<()> {
        lock(&self.open).remove(&upload.id);
        optional(fs::remove_file(self.storage.upload(&upload.repository, &upload.id))).map(drop)
    }

    /// Stores what an upload has as the blob it should be, and ends it. Blocks.
    pub(super) fn commit(&self, upload: &Upload, expected: &Digest) -> Result<u64, Refusal> {
        let part = lock(&upload.part);
        let (actual, size) = (Digest::from_sha256(part.sum.clone().finalize().into()), part.size);
        if actual != *expected {
            self.remove(upload)?;
            let message = format!("{size} bytes with digest `{actual}` were uploaded, not `{expected}`");
            return Err(Refusal::bad("DIGEST_INVALID", message));
        }
        let path = self.storage.upload(&upload.repository, &upload.id);
        let stored = self.storage.adopt_blob(&upload.repository, expected, &path, &part.file);
        let removed = self.remove(upload);
        stored.and(removed)?;
        Ok(size)
    }

    /// Drops uploads that nobody has written to for too long. Blocks.
    pub(super) fn expire(&self) -> io::Result<u64> {
        let mut expired = 0;
        for name in super::garbage::repositories(&self.storage)? {
            for text in Storage::names_in(&self.storage.uploads(&name))? {
                let Some(id) = UploadId::parse(&text) else { continue };
                let path = self.storage.upload(&name, &id);
                let Some(metadata) = optional(fs::metadata(&path))? else { continue };
                let age = SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default();
                if age >= self.idle {
                    lock(&self.open).remove(&id);
                    optional(fs::remove_file(path))?;
                    expired += 1;
                }
            }
        }
        Ok(expired)
    }

    /// Appends a request's body to an upload.
    ///
    /// What has arrived when the body breaks off stays if `partial` says so (a chunk can be resumed), and is taken back otherwise.
    pub(super) async fn append(
        &self,
        upload: &Arc<Upload>,
        body: Body,
        partial: Partial,
    ) -> Result<(), Refusal> {
        let Ok(_turn) = upload.turn.try_lock() else {
            let message = "another request is writing to this upload";
            return Err(Refusal::new(StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID", message));
        };
        let before = {
            let part = lock(&upload.part);
            (part.size, part.sum.clone())
        };
        let result = self.append_body(upload, body).await;
        let Err(refusal) = result else { return Ok(()) };
        if refusal.status == StatusCode::INSUFFICIENT_STORAGE
            || refusal.status == StatusCode::PAYLOAD_TOO_LARGE
        {
            self.remove(upload)?;
        } else if matches!(partial, Partial::Dropped) {
            let mut part = lock(&upload.part);
            part.file.set_len(before.0)?;
            (part.size, part.sum) = before;
        }
        Err(refusal)
    }

    /// Writes one piece while the next arrives: at most two are in memory.
    async fn append_body(&self, upload: &Arc<Upload>, body: Body) -> Result<(), Refusal> {
        let mut frames = body.into_data_stream();
        let mut writing: Option<JoinHandle<Result<(), Refusal>>> = None;
        loop {
            let piece = next_piece(&mut frames).await;
            if let Some(writing) = writing.take() {
                written(writing.await)?;
            }
            let (frames_of_piece, end) = match piece {
                Ok(piece) => piece,
                Err((piece, refusal)) => {
                    self.write(upload, piece).await?;
                    return Err(refusal);
                }
            };
            if end {
                return self.write(upload, frames_of_piece).await;
            }
            let (upload, max) = (upload.clone(), self.max_blob_bytes);
            writing =
                Some(tokio::task::spawn_blocking(move || lock(&upload.part).write(&frames_of_piece, max)));
        }
    }

    async fn write(&self, upload: &Arc<Upload>, piece: Vec<Bytes>) -> Result<(), Refusal> {
        let (upload, max) = (upload.clone(), self.max_blob_bytes);
        written(tokio::task::spawn_blocking(move || lock(&upload.part).write(&piece, max)).await)
    }
}

/// What becomes of the part of a body that has arrived when the rest does not.
#[derive(Debug, Clone, Copy)]
pub(super) enum Partial {
    Kept,
    Dropped,
}

impl Upload {
    pub(super) const fn id(&self) -> &UploadId {
        &self.id
    }

    pub(super) fn size(&self) -> u64 {
        lock(&self.part).size
    }
}

impl Part {
    fn write(&mut self, piece: &[Bytes], max_blob_bytes: u64) -> Result<(), Refusal> {
        for frame in piece {
            if self.size + frame.len() as u64 > max_blob_bytes {
                let message = format!("blobs may have {max_blob_bytes} bytes");
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message));
            }
            if let Err(error) = self.file.write_all_at(frame, self.size) {
                self.file.set_len(self.size)?;
                return Err(error.into());
            }
            self.sum.update(frame);
            self.size += frame.len() as u64;
        }
        Ok(())
    }
}

/// The next frames of a body, about a piece of them, and whether they are the last.
async fn next_piece(
    frames: &mut axum::body::BodyDataStream,
) -> Result<(Vec<Bytes>, bool), (Vec<Bytes>, Refusal)> {
    let (mut piece, mut bytes) = (Vec::new(), 0);
    while bytes < PIECE_BYTES {
        match tokio::time::timeout(BODY_IDLE, frames.next()).await {
            Ok(Some(Ok(frame))) => {
                bytes += frame.len();
                piece.push(frame);
            }
            Ok(None) => return Ok((piece, true)),
            Ok(Some(Err(_))) => {
                return Err((
                    piece,
                    Refusal::bad("BLOB_UPLOAD_INVALID", "the connection broke before the end of the body"),
                ));
            }
            Err(_) => {
                let message = format!("nothing came for {}", humantime::format_duration(BODY_IDLE));
                return Err((
                    piece,
                    Refusal::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", message),
                ));
            }
        }
    }
    Ok((piece, false))
}

fn written(result: Result<Result<(), Refusal>, tokio::task::JoinError>) -> Result<(), Refusal> {
    result.map_err(|error| Refusal::from(io::Error::other(error)))?
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
