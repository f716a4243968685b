//! Lines of a log from the registry. Whatever it has, what is taken are lines that go on from those before.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use flate2::read::GzDecoder;

use super::{Archive, ArchiveError, CREATED, Extent, LAST, LOG, MAX_SEGMENTS, RUNNING, blocking};
use crate::model::{Build, LogLine};
use crate::oci::Descriptor;
use crate::push::log::MAX_LINE_BYTES;

/// The largest log that is read back, in bytes, once unpacked: more than any that is written.
const MAX_LOG_BYTES: u64 = 80 * 1024 * 1024;

impl Archive {
    /// Appends the lines after line `last` that the registry has to a file, and moves `last` to the last of them; also where
    /// the rest cannot be read. `None`: it has no such log.
    pub(in crate::push) async fn bring(
        &self,
        build: &Build,
        last: &mut u64,
        to: &Path,
    ) -> Result<Option<Extent>, ArchiveError> {
        let (repository, target) = self.find(build)?;
        let Some(manifest) = self.client.find_manifest(&repository, &target).await? else { return Ok(None) };
        let created = build.created_at.to_string();
        let Some(image) =
            manifest.as_image().filter(|image| image.annotations.get(CREATED) == Some(&created))
        else {
            return Ok(None);
        };
        let layers: Vec<_> = image.layers.iter().filter(|layer| layer.media_type.as_str() == LOG).collect();
        if layers.len() > MAX_SEGMENTS {
            return Err(ArchiveError::Malformed("it has too many layers"));
        }
        for layer in layers {
            if last_of(layer).is_some_and(|of| of <= *last) {
                continue;
            }
            if layer.size > MAX_LOG_BYTES {
                return Err(ArchiveError::Malformed("a layer is too large"));
            }
            let packed = to.with_extension("gz");
            let mut file = tokio::fs::File::create(&packed).await?;
            self.client.pull_blob(&repository, layer, &mut file).await?;
            let (to, before) = (to.to_owned(), *last);
            let appended = blocking(move || append(&packed, before, &to)).await?;
            *last = appended.last;
            if let Some(why) = appended.wrong {
                return Err(ArchiveError::Malformed(why));
            }
        }
        let is_running = image.annotations.contains_key(RUNNING);
        Ok(Some(if is_running { Extent::SoFar } else { Extent::Whole }))
    }
}

/// The number of a layer's last line, if it says it.
fn last_of(layer: &Descriptor) -> Option<u64> {
    layer.annotations.get(LAST)?.parse().ok()
}

/// What was appended.
#[derive(Debug, PartialEq, Eq)]
struct Appended {
    last: u64,
    /// What is the matter with what comes next.
    wrong: Option<&'static str>,
}

/// Appends those of the packed lines that come after line `last`.
fn append(packed: &Path, last: u64, to: &Path) -> io::Result<Appended> {
    let unpacked = GzDecoder::new(BufReader::new(File::open(packed)?)).take(MAX_LOG_BYTES);
    let file = OpenOptions::new().create(true).append(true).open(to)?;
    let length = file.metadata()?.len();
    append_lines(&mut BufReader::new(unpacked), last, (&file, length)).inspect_err(|_| {
        // What there is of a line would spoil the next.
        drop(file.set_len(length));
    })
}

fn append_lines(
    lines: &mut impl BufRead,
    mut last: u64,
    (file, mut length): (&File, u64),
) -> io::Result<Appended> {
    let mut file = BufWriter::new(file);
    let wrong = loop {
        let mut json = Vec::new();
        match next(lines, &mut json) {
            Ok(None) => break None,
            Ok(Some(number)) if number <= last => {}
            Ok(Some(number)) if number == last + 1 => {
                length += json.len() as u64;
                if length > MAX_LOG_BYTES {
                    break Some("it is too large");
                }
                file.write_all(&json)?;
                last = number;
            }
            Ok(Some(_)) => break Some("lines are missing"),
            Err(why) => break Some(why),
        }
    };
    file.flush()?;
    Ok(Appended { last, wrong })
}

/// Reads a line, and gives its number; none at the end.
fn next(lines: &mut impl BufRead, json: &mut Vec<u8>) -> Result<Option<u64>, &'static str> {
    let read = lines.take(MAX_LINE_BYTES).read_until(b'\n', json);
    match read.map_err(|_| "a layer cannot be unpacked")? {
        0 => Ok(None),
        _ if !json.ends_with(b"\n") => Err("a line has no end"),
        _ => match serde_json::from_slice::<LogLine>(json) {
            Ok(line) => Ok(Some(line.number)),
            Err(_) => Err("a line is not one of a log"),
        },
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::model::PushEvent;

    fn line(number: u64) -> Vec<u8> {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let line = LogLine { number, at, event: PushEvent::Line(format!("line {number}")) };
        [serde_json::to_vec(&line).unwrap(), b"\n".to_vec()].concat()
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// What comes of these bytes after line 1.
    fn appended(bytes: &[u8]) -> (Appended, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("gz"), directory.path().join("log"));
        std::fs::write(&from, bytes).unwrap();
        std::fs::write(&to, line(1)).unwrap();
        let appended = append(&from, 1, &to).unwrap();
        (appended, std::fs::read(&to).unwrap())
    }

    fn lines(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        numbers.into_iter().flat_map(line).collect()
    }

    #[test]
    fn lines_that_are_here_already_are_left_out() {
        let (appended, log) = appended(&packed(&lines(1..=3)));
        assert_eq!((appended, log), (Appended { last: 3, wrong: None }, lines(1..=3)));
    }

    #[test]
    fn what_does_not_go_on_ends_what_is_taken() {
        let whole = packed(&lines([2, 3]));
        let endless = [line(2), vec![b'x'; 1 << 20]].concat();
        for (bytes, why) in [
            (packed(&lines([2, 4])), "lines are missing"),
            (packed(&[line(2), b"{}\n".to_vec()].concat()), "a line is not one of a log"),
            (packed(&[line(2), line(3)[..20].to_vec()].concat()), "a line has no end"),
            (packed(&endless), "a line has no end"),
        ] {
            let (appended, log) = appended(&bytes);
            assert_eq!((appended, log), (Appended { last: 2, wrong: Some(why) }, lines([1, 2])));
        }
        let (appended, _) = appended(&whole[..whole.len() - 12]);
        assert_eq!(appended.wrong, Some("a layer cannot be unpacked"));
        let (appended, log) = self::appended(b"no gzip at all");
        assert_eq!((appended.last, log), (1, line(1)));
    }

    #[test]
    fn what_unpacks_to_more_than_any_log_is_cut() {
        let text = "x".repeat(100_000);
        let at = jiff::Timestamp::UNIX_EPOCH;
        let large = (2..=1000).flat_map(|number| {
            let line = LogLine { number, at, event: PushEvent::Line(text.clone()) };
            [serde_json::to_vec(&line).unwrap(), b"\n".to_vec()].concat()
        });
        let (appended, log) = appended(&packed(&large.collect::<Vec<_>>()));
        assert!(appended.wrong.is_some());
        assert!(log.len() as u64 <= MAX_LOG_BYTES && log.ends_with(b"\n"));
    }
}
