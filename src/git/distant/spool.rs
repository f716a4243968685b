//! The parts of a pack that are here: in a file with holes, which has no name and goes with its user.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Parts are fetched in blocks of so many bytes: what is wanted next often lies beside.
const BLOCK_BYTES: u64 = 16 << 10;
/// Two parts with no more than this between them are one: another request takes longer.
const GAP_BYTES: u64 = 64 << 10;
/// No request is for more, as it is held in memory.
const MAX_PART_BYTES: u64 = 4 << 20;

/// The parts of one pack.
pub(super) struct Spool {
    file: Arc<File>,
    pack_bytes: u64,
    /// What is here: from where to where; no two touch.
    parts: BTreeMap<u64, u64>,
}

impl Spool {
    /// Of a pack of so many bytes nothing is here.
    pub(super) fn new(directory: &Path, pack_bytes: u64) -> io::Result<Self> {
        let file = Arc::new(tempfile::tempfile_in(directory)?);
        Ok(Self { file, pack_bytes, parts: BTreeMap::new() })
    }

    /// How much is here.
    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(|(start, end)| end - start).sum()
    }

    /// Where parts are written.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    fn has(&self, wanted: &Range<u64>) -> bool {
        let before = self.parts.range(..=wanted.start).next_back();
        wanted.is_empty() || before.is_some_and(|(_, end)| *end >= wanted.end)
    }

    /// What is to be fetched for these to be here.
    pub(super) fn lacking(&self, wanted: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
        let mut blocks: Vec<Range<u64>> = wanted
            .into_iter()
            .filter(|wanted| !self.has(wanted))
            .map(|wanted| {
                let end = wanted.end.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX);
                wanted.start / BLOCK_BYTES * BLOCK_BYTES..end.min(self.pack_bytes)
            })
            .collect();
        blocks.sort_unstable_by_key(|block| block.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for block in blocks {
            match joined.last_mut().filter(|last| block.start <= last.end.saturating_add(GAP_BYTES)) {
                Some(last) => last.end = last.end.max(block.end),
                None => joined.push(block),
            }
        }
        joined.into_iter().flat_map(pieces).collect()
    }

    /// Notes that a part was written.
    pub(super) fn note(&mut self, part: Range<u64>) {
        let (mut start, mut end) = (part.start, part.end);
        while let Some((&other, &other_end)) =
            self.parts.range(..=end).next_back().filter(|(_, other_end)| **other_end >= start)
        {
            self.parts.remove(&other);
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.parts.insert(start, end);
    }

    /// Reads from what is here.
    pub(super) fn read(&self, part: Range<u64>) -> io::Result<PartReader<'_>> {
        if self.has(&part) {
            Ok(PartReader { file: &self.file, part })
        } else {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a part of the pack is not here"))
        }
    }
}

/// Cuts what is too much for one request.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let piece = start..start.saturating_add(MAX_PART_BYTES).min(range.end);
        start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Reads one part of a spool.
pub(super) struct PartReader<'a> {
    file: &'a File,
    part: Range<u64>,
}

impl Read for PartReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.part.end - self.part.start).unwrap_or(usize::MAX);
        let room = buffer.len().min(left);
        let read = self.file.read_at(buffer.get_mut(..room).unwrap_or_default(), self.part.start)?;
        self.part.start += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(pack_bytes: u64) -> Spool {
        Spool::new(&std::env::temp_dir(), pack_bytes).unwrap()
    }

    #[test]
    fn what_is_near_is_one_request_and_what_is_here_is_none() {
        let mut spool = spool(10_000_000);
        let far = 40 * BLOCK_BYTES;
        let lacking = spool.lacking([far + 5..far + 9, 100..200, 70_000..70_001]);
        assert_eq!(lacking, [0..5 * BLOCK_BYTES, far..far + BLOCK_BYTES]);
        for part in lacking {
            spool.note(part);
        }
        assert!(spool.lacking([100..200, far + 1..far + 2, 0..5 * BLOCK_BYTES]).is_empty());
        let lacking = spool.lacking(Some(far..far + BLOCK_BYTES + 1));
        assert_eq!(lacking.first(), Some(&(far..far + 2 * BLOCK_BYTES)));
        assert_eq!(spool.bytes(), 6 * BLOCK_BYTES);
    }

    #[test]
    fn no_request_is_beyond_the_pack_or_too_large() {
        let lacking = spool(2 * MAX_PART_BYTES + 7).lacking(Some(3..2 * MAX_PART_BYTES + 1));
        let (one, two) = (MAX_PART_BYTES, 2 * MAX_PART_BYTES);
        assert_eq!(lacking, [0..one, one..two, two..two + 7]);
    }

    #[test]
    fn parts_that_touch_or_overlap_become_one() {
        let mut spool = spool(1000);
        for part in [10..20, 30..40, 20..30, 5..12, 35..50, 60..70] {
            spool.note(part);
        }
        assert_eq!(spool.parts.iter().map(|(a, b)| *a..*b).collect::<Vec<_>>(), [5..50, 60..70]);
        assert!(spool.read(5..50).is_ok());
        assert!(spool.read(45..61).is_err());
    }
}
