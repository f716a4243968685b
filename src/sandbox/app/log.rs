//! The output of an app process: numbered, time-stamped lines in two files that take turns.
//!
//! A line is `NUMBER TIME STREAM TEXT`. Numbers go on over rotations and restarts, so a follower asks for what comes
//! after the last number it has.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The file that is written.
const CURRENT: &str = "log";
/// The file that was written before.
const PREVIOUS: &str = "log.1";
/// Where a line without an end is cut.
const MAX_LINE_BYTES: usize = 8 << 10;
/// What a line of ours is at most: the text, possibly tripled by replaced bytes, and what stands before it.
const MAX_STORED_LINE_BYTES: u64 = 4 * (8 << 10);

/// A line of an app's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Counts from 1 over the life of the process's directory.
    pub number: u64,
    /// When it was read.
    pub at: Timestamp,
    /// Where it came from.
    pub stream: Stream,
    /// The line without its end.
    pub text: String,
}

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// The app's standard output.
    Output,
    /// The app's standard error.
    Error,
    /// The holder: starts and ends.
    Holder,
}

impl Stream {
    const ALL: [Self; 3] = [Self::Output, Self::Error, Self::Holder];

    fn letter(self) -> &'static str {
        match self {
            Self::Output => "o",
            Self::Error => "e",
            Self::Holder => "h",
        }
    }
}

/// The first lines after the number `after`, at most `max_lines`.
pub fn read(directory: &Path, after: u64, max_lines: usize) -> io::Result<Vec<LogLine>> {
    let mut lines = Vec::new();
    visit(directory, |line| {
        if line.number > after && lines.len() < max_lines {
            lines.push(line);
        }
    })?;
    Ok(lines)
}

/// The last lines, at most `max_lines`.
pub fn tail(directory: &Path, max_lines: usize) -> io::Result<Vec<LogLine>> {
    let mut lines = VecDeque::new();
    visit(directory, |line| {
        lines.push_back(line);
        if lines.len() > max_lines {
            lines.pop_front();
        }
    })?;
    Ok(lines.into())
}

/// Both files in the order written. The current one is opened first: if they take turns meanwhile, a line is seen twice
/// and not never, and the second time is passed over.
fn visit(directory: &Path, mut each: impl FnMut(LogLine)) -> io::Result<()> {
    let current = open_if_there(&directory.join(CURRENT))?;
    let previous = open_if_there(&directory.join(PREVIOUS))?;
    let mut last = 0;
    for file in [previous, current].into_iter().flatten() {
        let mut reader = BufReader::new(file);
        loop {
            let mut line = Vec::new();
            if reader.by_ref().take(MAX_STORED_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            // The last line may be half written.
            let parsed = line.strip_suffix(b"\n").and_then(|line| parse(&String::from_utf8_lossy(line)));
            if let Some(parsed) = parsed.filter(|parsed| parsed.number > last) {
                last = parsed.number;
                each(parsed);
            }
        }
    }
    Ok(())
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(line: &str) -> Option<LogLine> {
    let mut fields = line.splitn(4, ' ');
    let number = fields.next()?.parse().ok()?;
    let at = fields.next()?.parse().ok()?;
    let letter = fields.next()?;
    let stream = Stream::ALL.into_iter().find(|stream| stream.letter() == letter)?;
    Some(LogLine { number, at, stream, text: fields.next().unwrap_or_default().to_owned() })
}

/// Writes the log; the holder has one.
#[derive(Debug)]
pub(super) struct LogWriter {
    directory: PathBuf,
    file: File,
    written: u64,
    max_file_bytes: u64,
    last: u64,
}

impl LogWriter {
    pub(super) fn open(directory: &Path, max_bytes: u64) -> io::Result<Self> {
        let last = tail(directory, 1)?.first().map_or(0, |line| line.number);
        let file = open_to_append(directory)?;
        let written = file.metadata()?.len();
        let max_file_bytes = (max_bytes / 2).max(MAX_STORED_LINE_BYTES);
        Ok(Self { directory: directory.to_owned(), file, written, max_file_bytes, last })
    }

    /// Appends lines; on a full disk they are lost, and the app goes on.
    pub(super) fn append(&mut self, stream: Stream, lines: &[String]) {
        let at = Timestamp::now();
        let mut text = String::new();
        for line in lines {
            self.last += 1;
            text.push_str(&format_line(self.last, at, stream, line));
            if text.len() as u64 + self.written > self.max_file_bytes {
                self.flush(&text);
                text.clear();
                self.rotate();
            }
        }
        self.flush(&text);
    }

    fn flush(&mut self, text: &str) {
        match self.file.write_all(text.as_bytes()) {
            Ok(()) => self.written += text.len() as u64,
            Err(error) => tracing::warn!(%error, "lines of an app's log are lost"),
        }
    }

    fn rotate(&mut self) {
        let renamed = fs::rename(self.directory.join(CURRENT), self.directory.join(PREVIOUS));
        match renamed.and_then(|()| open_to_append(&self.directory)) {
            Ok(file) => {
                self.file = file;
                self.written = 0;
            }
            Err(error) => tracing::warn!(%error, "an app's log could not be rotated"),
        }
    }
}

fn open_to_append(directory: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(directory.join(CURRENT))
}

fn format_line(number: u64, at: Timestamp, stream: Stream, text: &str) -> String {
    format!("{number} {at:.3} {} {text}\n", stream.letter())
}

/// Cuts what comes out of a pipe into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The lines that `bytes` complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                lines.push(self.take());
                continue;
            }
            self.rest.push(*byte);
            if self.rest.len() >= MAX_LINE_BYTES {
                lines.push(self.take());
            }
        }
        lines
    }

    /// The last line, when no more comes.
    pub(super) fn finish(&mut self) -> Option<String> {
        (!self.rest.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let line = std::mem::take(&mut self.rest);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        String::from_utf8_lossy(line).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(lines: &[LogLine]) -> Vec<u64> {
        lines.iter().map(|line| line.number).collect()
    }

    #[test]
    fn lines_come_back_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(directory.path(), 1 << 20).unwrap();
        log.append(Stream::Output, &["hello world".to_owned(), String::new()]);
        log.append(Stream::Error, &["oh".to_owned()]);
        let lines = read(directory.path(), 0, 10).unwrap();
        assert_eq!(numbers(&lines), [1, 2, 3]);
        assert_eq!(lines.first().map(|line| line.text.as_str()), Some("hello world"));
        assert_eq!(lines.last().map(|line| line.stream), Some(Stream::Error));
        assert_eq!(numbers(&read(directory.path(), 1, 1).unwrap()), [2]);
        assert_eq!(numbers(&tail(directory.path(), 2).unwrap()), [2, 3]);
    }

    #[test]
    fn numbers_go_on_after_a_rotation_and_a_new_writer() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(directory.path(), 0).unwrap();
        for _ in 0..20 {
            log.append(Stream::Output, &["x".repeat(4096)]);
        }
        drop(log);
        assert!(directory.path().join(PREVIOUS).exists());
        let mut log = LogWriter::open(directory.path(), 0).unwrap();
        log.append(Stream::Holder, &["again".to_owned()]);
        let lines = tail(directory.path(), 100).unwrap();
        assert_eq!(lines.last().map(|line| line.number), Some(21));
        let kept = numbers(&lines);
        assert!(kept.windows(2).all(|pair| matches!(pair, [a, b] if a + 1 == *b)), "{kept:?}");
        let size: u64 = [CURRENT, PREVIOUS]
            .iter()
            .map(|name| fs::metadata(directory.path().join(name)).unwrap().len())
            .sum();
        assert!(size <= 3 * MAX_STORED_LINE_BYTES, "{size}");
    }

    #[test]
    fn bytes_are_cut_into_lines_wherever_they_are_split() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\r\nb"), ["a"]);
        assert_eq!(lines.push(b"c\n\n"), ["bc", ""]);
        assert_eq!(lines.push(&vec![b'x'; MAX_LINE_BYTES + 1]).len(), 1);
        assert_eq!(lines.finish().as_deref(), Some("x"));
        assert_eq!(lines.finish(), None);
    }

    #[test]
    fn a_half_written_line_and_rubbish_are_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(CURRENT), "rubbish\n5 2026-01-01T00:00:00Z o fine\n6 2026-01-01T0")
            .unwrap();
        assert_eq!(numbers(&read(directory.path(), 0, 10).unwrap()), [5]);
    }
}
