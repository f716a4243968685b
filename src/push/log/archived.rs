//! Logs that are also in the archive: kept there, and read back where another server wrote them.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::{LogReader, LogWriter, Logs};
use crate::model::{Build, Chain, LogLine};
use crate::push::archive::{Archive, ArchiveError, Extent};

/// How long a build that has ended waits for the last addition to its log.
const ADDITION_PATIENCE: Duration = Duration::from_secs(10);

/// How long a build that has ended waits for its log to be in the archive.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a build that goes on waits for the beginning of its log.
const BEGINNING_PATIENCE: Duration = Duration::from_secs(15);

/// The file beside a log that says that it has all lines of the build.
const WHOLE: &str = "whole";

/// A running log that another server writes, as far as it is in the archive.
#[derive(Debug)]
pub(in crate::push) struct Mirror {
    archive: Archive,
    build: Build,
    directory: TempDir,
    last: u64,
    reader: Option<LogReader>,
}

impl Logs {
    /// Puts the log of a build that ends into the archive, now or as soon as that can be. A log that is not there stops no
    /// build; the operator is told.
    pub async fn keep(&self, build: &Build, log: &mut LogWriter) {
        let (Some(archive), Some(uploading)) = (&self.archive, log.uploading.take()) else { return };
        let file = self.file(build);
        // An addition that stalls is given up; all of the log has time of its own.
        let _ended = tokio::time::timeout(ADDITION_PATIENCE, uploading.end()).await;
        let Err(error) = put(archive, build, &file).await else { return };
        tracing::error!(app = %build.app, build = %build.number, error, "a build's log is not in the registry");
        // Ends with the process: where its disk stays, the log is here then, and else what was added while the build ran.
        let (archive, build, turns) = (archive.clone(), build.clone(), Arc::clone(&self.late));
        tokio::spawn(async move { put_late(&archive, &build, &file, &turns).await }.in_current_span());
    }

    /// Gets the log of a build that has ended from the archive, unless it is here whole: what is here may end where
    /// another server went on.
    pub async fn fetch(&self, build: &Build) -> Result<(), ArchiveError> {
        let Some(archive) = &self.archive else { return Ok(()) };
        let log = self.file(build);
        let whole = log.with_extension(WHOLE);
        if build.outcome.is_some() && !tokio::fs::try_exists(&whole).await? && !self.is_written(build) {
            let found = self.bring(archive, build).await?;
            // What is only so far there is the end of a server's that was killed, and perhaps not yet all.
            if found != Some(Extent::SoFar) && tokio::fs::try_exists(&log).await? {
                tokio::fs::write(whole, b"").await?;
            }
        }
        Ok(())
    }

    /// Gets what another server wrote of a log that this one is to go on with. Where that cannot be had, the log goes on from
    /// what is here; the operator is told.
    pub async fn take_up(&self, build: &Build) {
        let Some(archive) = &self.archive else { return };
        let error = match tokio::time::timeout(BEGINNING_PATIENCE, self.bring(archive, build)).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => Chain(&error).to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        tracing::error!(app = %build.app, build = %build.number, error, "the beginning of a build's log cannot be fetched");
    }

    /// The log of a build that another server drives, after line `after`; none where logs are kept nowhere else.
    pub(in crate::push) async fn mirror(&self, build: &Build, after: u64) -> io::Result<Option<Mirror>> {
        let Some(archive) = &self.archive else { return Ok(None) };
        let directory = arriving(&self.build_directory(build)).await?;
        let (archive, build) = (archive.clone(), build.clone());
        Ok(Some(Mirror { archive, build, directory, last: after, reader: None }))
    }

    /// Takes what the archive has of a log in place of what is here, unless this goes on from there.
    async fn bring(&self, archive: &Archive, build: &Build) -> Result<Option<Extent>, ArchiveError> {
        let log = self.file(build);
        let arriving = arriving(&self.build_directory(build)).await?;
        let arrived = arriving.path().join("log");
        let mut last = 0;
        let found = archive.bring(build, &mut last, &arrived).await;
        if last > 0 && (matches!(found, Ok(Some(Extent::Whole))) || !goes_on(&log, &arrived).await?) {
            tokio::fs::rename(&arrived, &log).await?;
        }
        found
    }
}

impl Mirror {
    /// Looks for lines that are new in the archive. Not cancel safe.
    pub(in crate::push) async fn look(&mut self) -> Result<(), ArchiveError> {
        let file = self.directory.path().join("log");
        self.archive.bring(&self.build, &mut self.last, &file).await.map(drop)
    }

    /// The next line of what was found. Not cancel safe.
    pub(in crate::push) async fn next(&mut self) -> io::Result<Option<LogLine>> {
        if self.reader.is_none() {
            self.reader = LogReader::open(&self.directory.path().join("log")).await?;
        }
        match &mut self.reader {
            Some(reader) => reader.next_written().await,
            None => Ok(None),
        }
    }
}

/// Puts the log of a build that has ended into the archive, or says why not.
async fn put(archive: &Archive, build: &Build, file: &Path) -> Result<(), String> {
    match tokio::time::timeout(ARCHIVE_PATIENCE, archive.put(build, file)).await {
        Ok(Ok(())) => {
            // Where this is lacking, the log is looked for in the archive again.
            drop(tokio::fs::write(file.with_extension(WHOLE), b"").await);
            Ok(())
        }
        Ok(Err(error)) => Err(Chain(&error).to_string()),
        Err(elapsed) => Err(elapsed.to_string()),
    }
}

/// Puts a log into the archive that could not be put before, once that can be: one after the other, and less and less often.
async fn put_late(archive: &Archive, build: &Build, file: &Path, turns: &Semaphore) {
    for pause in archive.pauses() {
        tokio::time::sleep(pause).await;
        let _turn = turns.acquire().await;
        // The app may have been destroyed meanwhile.
        if !tokio::fs::try_exists(file).await.unwrap_or(true) {
            return;
        }
        if put(archive, build, file).await.is_ok() {
            tracing::info!(app = %build.app, build = %build.number, "a build's log is in the registry now");
            return;
        }
    }
    tracing::error!(app = %build.app, build = %build.number, "a build's log will not be in the registry");
}

/// A directory for what comes, beside the log.
async fn arriving(directory: &Path) -> io::Result<TempDir> {
    tokio::fs::create_dir_all(directory).await?;
    tempfile::Builder::new().prefix("log-").tempdir_in(directory)
}

/// Whether a log begins with all of another.
async fn goes_on(log: &Path, beginning: &Path) -> io::Result<bool> {
    let (log, beginning) = (log.to_owned(), beginning.to_owned());
    let compare = move || {
        let log = match std::fs::File::open(log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            log => log?,
        };
        let mut log = io::BufReader::new(log);
        let mut beginning = std::fs::File::open(beginning)?;
        let (mut part, mut same) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        loop {
            let count = beginning.read(&mut part)?;
            let (part, same) = (&part[..count], &mut same[..count]);
            match log.read_exact(same) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                read => read?,
            }
            if part != same || count == 0 {
                return Ok(part == same);
            }
        }
    };
    tokio::task::spawn_blocking(compare).await.map_err(io::Error::other)?
}
