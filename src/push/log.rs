//! Build logs: append-only files of numbered lines, followed by any number of readers.
//!
//! The connection of a pusher, `builds log` and a replay are all views of the file, so there is one way to
//! show a build. A line is a JSON [`LogLine`]; a torn last line (a crash while writing) is cut off at the next
//! opening. Who opens a log that has lines already goes on with a build, and what is told again of it is not written again.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::{Semaphore, watch};

use super::archive::{Archive, Segments, Uploading};
use crate::model::{AppName, Build, BuildNumber, LogLine, PushEvent};
use crate::oci::Platform;

mod archived;
mod told;

pub(super) use archived::Mirror;
use told::Told;

/// The largest log that is kept, in bytes: what comes after is dropped, and the log says so.
const MAX_LOG_BYTES: u64 = 64 * 1024 * 1024;

/// What the log says where it ends so.
const FULL: &str = "the log is full (64 MiB): what follows is not kept";

/// The longest text of one line, in bytes.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// The longest line, in bytes.
pub(super) const MAX_LINE_BYTES: u64 = 8 * MAX_TEXT_BYTES as u64;

type Key = (AppName, BuildNumber);

/// How far a log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// The number of the last line.
    pub(super) number: u64,
    /// The length of all lines.
    pub(super) bytes: u64,
}

/// The logs of all builds, below one directory.
#[derive(Debug, Clone)]
pub struct Logs {
    directory: PathBuf,
    running: Running,
    archive: Option<Archive>,
    /// Whose turn it is of those that put a log into the archive late.
    late: Arc<Semaphore>,
}

/// The logs that this process writes.
type Running = Arc<Mutex<HashMap<Key, watch::Receiver<Written>>>>;

/// Writes one build's log; followers end when it is dropped.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    written: watch::Sender<Written>,
    is_full: bool,
    /// What was said by who wrote it before.
    told: Told,
    key: Key,
    running: Running,
    uploading: Option<Uploading>,
}

/// Reads one build's log, waiting for lines while it is being written.
#[derive(Debug)]
pub struct LogReader {
    lines: BufReader<File>,
    written: Option<watch::Receiver<Written>>,
    read: u64,
}

impl Logs {
    /// Logs in `directory/<app>/<number>-<when it was made>/log`.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, running: Arc::default(), archive: None, late: Arc::new(Semaphore::new(1)) }
    }

    /// The same, and also there, for other servers to find: what is new of a running one every few seconds.
    #[must_use]
    pub fn archived(self, archive: Archive) -> Self {
        Self { archive: Some(archive), ..self }
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

    fn file(&self, build: &Build) -> PathBuf {
        self.build_directory(build).join("log")
    }

    /// Opens a build's log to append to it, after what is there already.
    pub async fn write(&self, build: &Build) -> io::Result<LogWriter> {
        let path = self.file(build);
        tokio::fs::create_dir_all(self.build_directory(build)).await?;
        let (before, told) = whole_lines(&path).await?;
        let file = OpenOptions::new().create(true).append(true).open(&path).await?;
        file.set_len(before.bytes).await?;
        let (written, receiver) = watch::channel(before);
        let uploading = self.archive.as_ref().map(|archive| {
            let segments = Segments::new(archive.clone(), build.clone(), path, receiver.clone());
            Uploading::start(segments)
        });
        let key = (build.app.clone(), build.number);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), receiver);
        let running = Arc::clone(&self.running);
        Ok(LogWriter { file, written, is_full: false, told, key, running, uploading })
    }

    /// Reads a build's log after line `after`; `None` if there is no log (yet).
    pub async fn read(&self, build: &Build, after: u64) -> io::Result<Option<LogReader>> {
        let key = (build.app.clone(), build.number);
        let written = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let Some(mut reader) = LogReader::open(&self.file(build)).await? else { return Ok(None) };
        while reader.read < after && reader.next_written().await?.is_some() {}
        Ok(Some(LogReader { written, ..reader }))
    }
}

/// How far a log has whole lines, and what they say.
async fn whole_lines(path: &Path) -> io::Result<(Written, Told)> {
    let mut told = Told::default();
    let Some(mut reader) = LogReader::open(path).await? else { return Ok((Written::default(), told)) };
    while let Some(line) = reader.next_written().await? {
        told.add(&line.event);
    }
    let bytes = reader.lines.stream_position().await?;
    Ok((Written { number: reader.read, bytes }, told))
}

impl LogWriter {
    /// Appends an event, unless who wrote the log before has said it. It is in the file, for every follower, when this returns.
    pub async fn write(&mut self, event: PushEvent) -> io::Result<()> {
        let Written { number, bytes } = *self.written.borrow();
        let mut event = shortened(event);
        if self.is_full || self.told.take(&event) {
            return Ok(());
        }
        if bytes + MAX_TEXT_BYTES as u64 > MAX_LOG_BYTES {
            self.is_full = true;
            event = PushEvent::Problem(FULL.to_owned());
            if self.told.take(&event) {
                return Ok(());
            }
        }
        let number = number + 1;
        let mut json = serde_json::to_vec(&LogLine { number, at: Timestamp::now(), event })?;
        json.push(b'\n');
        if let Err(error) = append(&mut self.file, &json).await {
            // What there is of the line would spoil the next.
            self.file.set_len(bytes).await?;
            return Err(error);
        }
        self.written.send_replace(Written { number, bytes: bytes + json.len() as u64 });
        Ok(())
    }

    /// What is said of a platform from here on is not what was said before: its build has begun anew.
    pub(super) fn begins(&mut self, platform: &Platform) {
        self.told.forget(platform);
    }

    /// What is kept of the log while it is written, where it is kept.
    pub(super) fn segments(&self) -> Option<Arc<Segments>> {
        self.uploading.as_ref().map(Uploading::segments)
    }
}

async fn append(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes).await?;
    file.flush().await
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
    /// Reads what is in a file; `None` if there is none.
    async fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path).await {
            Ok(file) => Ok(Some(Self { lines: BufReader::new(file), written: None, read: 0 })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends with what is written now, even if the build runs.
    #[must_use]
    pub fn without_waiting(self) -> Self {
        Self { written: None, ..self }
    }

    /// The next line, waiting for it while the build runs; `None` at the end. Not cancel safe.
    pub async fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            let written = self.written.as_ref().map(|written| written.borrow().number);
            if written.is_none_or(|written| self.read < written) {
                let line = self.next_written().await?;
                if line.is_some() || written.is_none() {
                    return Ok(line);
                }
            }
            if let Some(written) = &mut self.written {
                let read = self.read;
                if written.wait_for(|written| written.number > read).await.is_err() {
                    // The writer is gone: what it wrote last is still to be read.
                    self.written = None;
                }
            }
        }
    }

    /// The next line that is there whole; a torn one is left unread.
    async fn next_written(&mut self) -> io::Result<Option<LogLine>> {
        let start = self.lines.stream_position().await?;
        let mut json = Vec::new();
        (&mut self.lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut json).await?;
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
    async fn who_goes_on_with_a_log_says_again_only_what_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::new(directory.path().to_owned());
        let (build, platform) = (build(), Platform::native());
        let of = |text: &str| PushEvent::Platform { platform: platform.clone(), text: text.to_owned() };
        let said = [line("one"), of("a"), of("b")];
        let mut writer = logs.write(&build).await.unwrap();
        for event in said.clone() {
            writer.write(event).await.unwrap();
        }
        drop(writer);
        let mut writer = logs.write(&build).await.unwrap();
        for event in said.into_iter().chain([of("c"), line("one")]) {
            writer.write(event).await.unwrap();
        }
        drop(writer);
        let mut writer = logs.write(&build).await.unwrap();
        writer.begins(&platform);
        writer.write(of("a")).await.unwrap();
        drop(writer);
        let mut reader = logs.read(&build, 3).await.unwrap().unwrap();
        assert_eq!(rest(&mut reader).await, [(4, of("c")), (5, line("one")), (6, of("a"))]);
    }

    #[tokio::test]
    async fn a_full_log_says_so_once() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::new(directory.path().to_owned());
        let build = build();
        let mut writer = logs.write(&build).await.unwrap();
        writer.write(line("one")).await.unwrap();
        writer.written.send_modify(|written| written.bytes = MAX_LOG_BYTES - 100);
        for text in ["two", "three"] {
            writer.write(line(text)).await.unwrap();
        }
        let mut reader = logs.read(&build, 1).await.unwrap().unwrap().without_waiting();
        assert_eq!(rest(&mut reader).await, [(2, PushEvent::Problem(FULL.to_owned()))]);
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
