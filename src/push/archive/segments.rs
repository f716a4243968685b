//! What is new of a running log, every few seconds, as one more layer.
//!
//! It is in the background, so that a registry that is slow or away is in the way of no build.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Archive, ArchiveError, Extent, LAST, MAX_SEGMENTS};
use crate::model::{Build, Chain};
use crate::oci::Descriptor;
use crate::push::log::Written;

/// How long one addition may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much shorter than the build so far the pause after an addition is.
const SHARE: u32 = 10;

/// The layers of a log that is being written.
#[derive(Debug)]
pub(in crate::push) struct Segments {
    archive: Archive,
    build: Build,
    log: PathBuf,
    written: watch::Receiver<Written>,
    kept: Mutex<Kept>,
}

/// What the registry has.
#[derive(Debug, Default)]
struct Kept {
    layers: Vec<Descriptor>,
    written: Written,
}

impl Segments {
    /// Of a log of which nothing is listed yet: what a server before this one listed is replaced.
    pub(in crate::push) fn new(
        archive: Archive,
        build: Build,
        log: PathBuf,
        written: watch::Receiver<Written>,
    ) -> Self {
        Self { archive, build, log, written, kept: Mutex::default() }
    }

    /// Adds what is new.
    ///
    /// # Cancel safety
    /// What was not added is with the next call.
    pub(in crate::push) async fn push(&self) -> Result<(), ArchiveError> {
        let mut kept = self.kept.lock().await;
        let written = *self.written.borrow();
        if written == kept.written {
            return Ok(());
        }
        let (mut layers, from) = if kept.layers.len() < MAX_SEGMENTS {
            (kept.layers.clone(), kept.written.bytes)
        } else {
            (Vec::new(), 0)
        };
        let mut layer = self.archive.push(&self.build, &self.log, (from, written.bytes)).await?;
        layer.annotations.insert(LAST.to_owned(), written.number.to_string());
        layers.push(layer);
        self.archive.list(&self.build, layers.clone(), Extent::SoFar).await?;
        *kept = Kept { layers, written };
        Ok(())
    }

    async fn keep_up(&self, ended: CancellationToken) {
        let (began, mut written) = (Instant::now(), self.written.clone());
        let (mut kept, mut is_told) = (Written::default(), false);
        loop {
            let pause = (began.elapsed() / SHARE).clamp(self.archive.interval, self.archive.longest);
            let next = async {
                let is_written = written.wait_for(|written| *written != kept).await.is_ok();
                tokio::time::sleep(pause).await;
                is_written
            };
            // At the end another call adds what is left.
            if ended.run_until_cancelled(next).await != Some(true) {
                return;
            }
            let now = *self.written.borrow();
            let error = match tokio::time::timeout(PATIENCE, self.push()).await {
                Ok(Ok(())) => {
                    kept = now;
                    continue;
                }
                Ok(Err(error)) => Chain(&error).to_string(),
                Err(elapsed) => elapsed.to_string(),
            };
            if !std::mem::replace(&mut is_told, true) {
                let (app, build) = (&self.build.app, self.build.number);
                tracing::warn!(%app, %build, error, "other servers do not see the lines of a running build");
            }
        }
    }
}

/// Adds what is new to the layers of a log, until it is dropped.
#[derive(Debug)]
pub(in crate::push) struct Uploading {
    segments: Arc<Segments>,
    ended: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Uploading {
    pub(in crate::push) fn start(segments: Segments) -> Self {
        let (segments, ended) = (Arc::new(segments), CancellationToken::new());
        let task = tokio::spawn({
            let (segments, ended) = (Arc::clone(&segments), ended.clone());
            async move { segments.keep_up(ended).await }
        });
        Self { segments, ended, task: AbortOnDropHandle::new(task) }
    }

    pub(in crate::push) fn segments(&self) -> Arc<Segments> {
        Arc::clone(&self.segments)
    }

    /// Returns once nothing is added any more: what is on its way would come after what is put then.
    pub(in crate::push) async fn end(self) {
        self.ended.cancel();
        // An error means that the task is gone: ended, too.
        drop(self.task.await);
    }
}
