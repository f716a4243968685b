//! Build logs: append-only files of numbered lines, followed by any number of readers.
//!
//! The connection of a pusher, `builds log` and a replay are all views of the file, so there is one way to
//! show a build. A line is a JSON [`LogLine`]; a torn last line (a crash while writing) is cut off at the next
//! opening.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::watch;

use super::archive::{Archive, ArchiveError};
use crate::model::{AppName, Build, BuildNumber, Chain, LogLine, PushEvent};

/// The largest log that is kept, in bytes: what comes after is dropped, and the log says so.
const MAX_LOG_BYTES: u64 = 64 * 1024 * 1024;

/// The longest text of one line, in bytes.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// How long a build that has ended waits for its log to be in the archive.
const ARCHIVE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// The file beside a log that says that it has all lines of the build.
const WHOLE: &str = "whole";

type Key = (AppName, BuildNumber);

/// The logs of all builds, below one directory.
#[derive(Debug, Clone)]
pub struct Logs {
    directory: PathBuf,
    running: Arc<Mutex<HashMap<Key, watch::Receiver<u64>>>>,
    archive: Option<Archive>,
}

/// Writes one build's log; followers end when it is dropped.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    last: watch::Sender<u64>,
    bytes: u64,
    key: Key,
    running: Arc<Mutex<HashMap<Key, watch::Receiver<u64>>>>,
}

/// Reads one build's log, waiting for lines while it is being written.
#[derive(Debug)]
pub struct LogReader {
    lines: BufReader<File>,
    last: Option<watch::Receiver<u64>>,
    read: u64,
}

impl Logs {
    /// Logs in `directory/<app>/<number>-<when it was made>/log`.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, running: Arc::default(), archive: None }
    }

    /// The same, and those of builds that have ended also there, for other servers to find.
    #[must_use]
    pub fn archived(self, archive: Archive) -> Self {
        Self { archive: Some(archive), ..self }
    }

    /// Puts the log of a build that ends into the archive. A log that is not there stops no build; the operator is told.
    pub async fn keep(&self, build: &Build) {
        let Some(archive) = &self.archive else { return };
        let log = self.build_directory(build).join("log");
        let put = tokio::time::timeout(ARCHIVE_PATIENCE, archive.put(build, &log)).await;
        let error = match put {
            Ok(Ok(())) => {
                // Where this is lacking, the log is looked for in the archive again.
                drop(tokio::fs::write(log.with_extension(WHOLE), b"").await);
                return;
            }
            Ok(Err(error)) => Chain(&error).to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        tracing::error!(app = %build.app, build = %build.number, error, "a build's log is not in the registry");
    }

    /// Gets the log of a build that has ended from the archive, unless it is here whole: what is here may end where
    /// another server went on.
    pub async fn fetch(&self, build: &Build) -> Result<(), ArchiveError> {
        let Some(archive) = &self.archive else { return Ok(()) };
        let log = self.build_directory(build).join("log");
        let whole = log.with_extension(WHOLE);
        if build.outcome.is_some() && !tokio::fs::try_exists(&whole).await? && !self.is_written(build) {
            archive.get(build, &log).await?;
            if tokio::fs::try_exists(&log).await? {
                tokio::fs::write(whole, b"").await?;
            }
        }
        Ok(())
    }

    /// Whether this process writes the log.
    #[must_use]
    pub fn is_written(&self, build: &Build) -> bool {
        let key = (build.app.clone(), build.number);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&key)
    }

    /// The directory of one build. A build of the same number of an earlier app of that name has another.
    #[must_use]
    pub fn build_directory(&self, build: &Build) -> PathBuf {
        let name = format!("{}-{}", build.number.0, build.created_at.as_millisecond());
        self.directory.join(build.app.as_str()).join(name)
    }

    /// The directory of all builds of an app.
    #[must_use]
    pub fn app_directory(&self, app: &AppName) -> PathBuf {
        self.directory.join(app.as_str())
    }

    /// Opens a build's log to append to it, after what is there already.
    pub async fn write(&self, build: &Build) -> io::Result<LogWriter> {
        let directory = self.build_directory(build);
        tokio::fs::create_dir_all(&directory).await?;
        let path = directory.join("log");
        let (number, bytes) = whole_lines(&path).await?;
        let file = OpenOptions::new().create(true).append(true).open(&path).await?;
        file.set_len(bytes).await?;
        let (last, receiver) = watch::channel(number);
        let key = (build.app.clone(), build.number);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), receiver);
        Ok(LogWriter { file, last, bytes, key, running: Arc::clone(&self.running) })
    }

    /// Reads a build's log after line `after`; `None` if there is no log (yet).
    pub async fn read(&self, build: &Build, after: u64) -> io::Result<Option<LogReader>> {
        let key = (build.app.clone(), build.number);
        let last = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let file = match File::open(self.build_directory(build).join("log")).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut reader = LogReader { lines: BufReader::new(file), last, read: 0 };
        while reader.read < after && reader.next_written().await?.is_some() {}
        Ok(Some(reader))
    }
}

/// The number of the last whole line and the length of all whole lines.
async fn whole_lines(path: &Path) -> io::Result<(u64, u64)> {
    let file = match File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(error) => return Err(error),
    };
    let mut reader = LogReader { lines: BufReader::new(file), last: None, read: 0 };
    while reader.next_written().await?.is_some() {}
    let bytes = reader.lines.stream_position().await?;
    Ok((reader.read, bytes))
}

impl LogWriter {
    /// Appends an event. It is in the file, for every follower, when this returns.
    pub async fn write(&mut self, event: PushEvent) -> io::Result<()> {
        if self.bytes > MAX_LOG_BYTES {
            return Ok(());
        }
        let number = *self.last.borrow() + 1;
        let event = if self.bytes + MAX_TEXT_BYTES as u64 > MAX_LOG_BYTES {
            self.bytes = MAX_LOG_BYTES;
            PushEvent::Problem("the log is full (64 MiB): what follows is not kept".to_owned())
        } else {
            shortened(event)
        };
        let mut json = serde_json::to_vec(&LogLine { number, at: Timestamp::now(), event })?;
        json.push(b'\n');
        self.file.write_all(&json).await?;
        self.file.flush().await?;
        self.bytes += json.len() as u64;
        self.last.send_replace(number);
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

fn shortened(event: PushEvent) -> PushEvent {
    let cut = |mut text: String| {
        if text.len() > MAX_TEXT_BYTES {
            text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
            text.push('…');
        }
        text
    };
    match event {
        PushEvent::Heading(text) => PushEvent::Heading(cut(text)),
        PushEvent::Line(text) => PushEvent::Line(cut(text)),
        PushEvent::Platform { platform, text } => PushEvent::Platform { platform, text: cut(text) },
        PushEvent::Problem(text) => PushEvent::Problem(cut(text)),
    }
}

impl LogReader {
    /// Ends with what is written now, even if the build runs.
    #[must_use]
    pub fn without_waiting(self) -> Self {
        Self { last: None, ..self }
    }

    /// The next line, waiting for it while the build runs; `None` at the end. Not cancel safe.
    pub async fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            let written = self.last.as_ref().map(|last| *last.borrow());
            if written.is_none_or(|written| self.read < written) {
                let line = self.next_written().await?;
                if line.is_some() || written.is_none() {
                    return Ok(line);
                }
            }
            if let Some(last) = &mut self.last {
                let read = self.read;
                if last.wait_for(|written| *written > read).await.is_err() {
                    // The writer is gone: what it wrote last is still to be read.
                    self.last = None;
                }
            }
        }
    }

    /// The next line that is there whole; a torn one is left unread.
    async fn next_written(&mut self) -> io::Result<Option<LogLine>> {
        let start = self.lines.stream_position().await?;
        let mut json = Vec::new();
        let limit = 8 * MAX_TEXT_BYTES as u64;
        (&mut self.lines).take(limit).read_until(b'\n', &mut json).await?;
        let line = json.ends_with(b"\n").then(|| serde_json::from_slice::<LogLine>(&json).ok()).flatten();
        match line {
            Some(line) => {
                self.read = line.number;
                Ok(Some(line))
            }
            None => {
                self.lines.seek(io::SeekFrom::Start(start)).await?;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build() -> Build {
        let at = Timestamp::UNIX_EPOCH;
        let commit = "0123456789012345678901234567890123456789".parse().unwrap();
        let app: AppName = "hello".parse().unwrap();
        let source =
            crate::model::Source { app: app.clone(), build: BuildNumber(7), commit, committed_at: at };
        Build {
            format: 1,
            app,
            number: BuildNumber(7),
            commit,
            moves: Vec::new(),
            by: "ada".parse().unwrap(),
            created_at: at,
            options: crate::model::PushOptions::default(),
            state: crate::model::BuildState::Received(source),
            cancel: None,
            outcome: None,
        }
    }

    fn line(text: &str) -> PushEvent {
        PushEvent::Line(text.to_owned())
    }

    async fn rest(reader: &mut LogReader) -> Vec<(u64, PushEvent)> {
        let mut lines = Vec::new();
        while let Some(line) = reader.next().await.unwrap() {
            lines.push((line.number, line.event));
        }
        lines
    }

    #[tokio::test]
    async fn a_follower_sees_what_was_and_what_comes_and_then_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::new(directory.path().to_owned());
        let build = build();
        let mut writer = logs.write(&build).await.unwrap();
        writer.write(line("one")).await.unwrap();
        let mut reader = logs.read(&build, 0).await.unwrap().unwrap();
        let follower = tokio::spawn(async move { rest(&mut reader).await });
        writer.write(line("two")).await.unwrap();
        drop(writer);
        assert_eq!(follower.await.unwrap(), [(1, line("one")), (2, line("two"))]);
    }

    #[tokio::test]
    async fn a_torn_line_is_cut_and_numbers_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::new(directory.path().to_owned());
        let build = build();
        logs.write(&build).await.unwrap().write(line("one")).await.unwrap();
        let path = logs.build_directory(&build).join("log");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"number\":2,\"at\":");
        std::fs::write(&path, bytes).unwrap();
        logs.write(&build).await.unwrap().write(line("two")).await.unwrap();
        let mut reader = logs.read(&build, 1).await.unwrap().unwrap();
        assert_eq!(rest(&mut reader).await, [(2, line("two"))]);
    }

    #[tokio::test]
    async fn a_very_long_line_is_cut_at_a_character() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::new(directory.path().to_owned());
        let build = build();
        logs.write(&build).await.unwrap().write(line(&"é".repeat(10_000_000))).await.unwrap();
        let mut reader = logs.read(&build, 0).await.unwrap().unwrap();
        let PushEvent::Line(text) = reader.next().await.unwrap().unwrap().event else { panic!() };
        assert_eq!(text.len(), MAX_TEXT_BYTES + '…'.len_utf8());
    }
}
