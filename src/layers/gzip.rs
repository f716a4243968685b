//! gzip on several cores, as one member, the same bytes whatever their number.
//!
//! The input is cut into blocks of a fixed size. Each is compressed by itself, with the 32 KiB before it as its dictionary,
//! and ends on a byte boundary (a sync flush), so that the pieces put together are one deflate stream. No reader can tell.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Small enough that a few dozen are no memory, large enough that cutting costs nothing.
const BLOCK_BYTES: usize = 256 << 10;
const DICTIONARY_BYTES: usize = 32 << 10;
const MAX_THREADS: usize = 8;

struct Job {
    data: Vec<u8>,
    dictionary: Vec<u8>,
    last: bool,
    done: SyncSender<io::Result<Piece>>,
}

struct Piece {
    compressed: Vec<u8>,
    crc: Crc,
}

/// A gzip stream being written to `W`.
pub(super) struct GzipWriter<W> {
    out: W,
    level: u32,
    block: Vec<u8>,
    dictionary: Vec<u8>,
    crc: Crc,
    jobs: Option<Sender<Job>>,
    queue: Arc<Mutex<Receiver<Job>>>,
    waiting: VecDeque<Receiver<io::Result<Piece>>>,
    threads: Vec<JoinHandle<()>>,
    max_threads: usize,
}

impl<W: Write> GzipWriter<W> {
    pub(super) fn new(out: W, level: u32) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::with_threads(out, level, cores)
    }

    fn with_threads(mut out: W, level: u32, threads: usize) -> io::Result<Self> {
        // No name, no time, unknown system: nothing but the content decides the bytes.
        out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff])?;
        let (jobs, queue) = channel();
        Ok(Self {
            out,
            level,
            block: Vec::with_capacity(BLOCK_BYTES),
            dictionary: Vec::new(),
            crc: Crc::new(),
            jobs: Some(jobs),
            queue: Arc::new(Mutex::new(queue)),
            waiting: VecDeque::new(),
            threads: Vec::new(),
            max_threads: threads.clamp(1, MAX_THREADS),
        })
    }

    /// Compresses what is left and ends the stream.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.dispatch(true)?;
        while !self.waiting.is_empty() {
            self.collect()?;
        }
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| lost())?;
        }
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        // The size modulo 2^32, as the format has it.
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }

    fn dispatch(&mut self, last: bool) -> io::Result<()> {
        if self.threads.len() < self.max_threads && self.waiting.len() >= self.threads.len() {
            let (queue, level) = (Arc::clone(&self.queue), Compression::new(self.level));
            let thread = std::thread::Builder::new().name("gzip".to_owned());
            self.threads.push(thread.spawn(move || work(&queue, level))?);
        }
        let data = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK_BYTES));
        let tail = data.len().saturating_sub(DICTIONARY_BYTES);
        let dictionary = std::mem::replace(&mut self.dictionary, data[tail..].to_vec());
        let (done, piece) = sync_channel(1);
        let jobs = self.jobs.as_ref().ok_or_else(lost)?;
        jobs.send(Job { data, dictionary, last, done }).map_err(|_| lost())?;
        self.waiting.push_back(piece);
        if self.waiting.len() > 2 * self.max_threads {
            self.collect()?;
        }
        Ok(())
    }

    /// Writes the oldest piece, waiting for it.
    fn collect(&mut self) -> io::Result<()> {
        let Some(piece) = self.waiting.pop_front() else { return Ok(()) };
        let piece = piece.recv().map_err(|_| lost())??;
        self.crc.combine(&piece.crc);
        self.out.write_all(&piece.compressed)
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        if self.block.len() == BLOCK_BYTES {
            self.dispatch(false)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lost() -> io::Error {
    io::Error::other("a compressing thread is gone")
}

fn work(queue: &Mutex<Receiver<Job>>, level: Compression) {
    loop {
        let next = queue.lock().map(|queue| queue.recv());
        let Ok(Ok(job)) = next else { return };
        let piece = compress(level, &job);
        // A writer that is gone needs no answer.
        drop(job.done.send(piece));
    }
}

fn compress(level: Compression, job: &Job) -> io::Result<Piece> {
    // Not one state reset for each block: what a reset leaves behind decides some matches, and then the bytes depend on
    // which thread took which block.
    let mut state = Compress::new(level, false);
    if !job.dictionary.is_empty() {
        state.set_dictionary(&job.dictionary).map_err(io::Error::other)?;
    }
    let mut crc = Crc::new();
    crc.update(&job.data);
    let flush = if job.last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut compressed = Vec::with_capacity(job.data.len() + job.data.len() / 64 + 1024);
    loop {
        let taken = usize::try_from(state.total_in()).unwrap_or(job.data.len());
        let status =
            state.compress_vec(&job.data[taken..], &mut compressed, flush).map_err(io::Error::other)?;
        let finished = if job.last {
            status == Status::StreamEnd
        } else {
            // Room that is left over means that the flush is complete.
            state.total_in() == job.data.len() as u64 && compressed.len() < compressed.capacity()
        };
        if finished {
            return Ok(Piece { compressed, crc });
        }
        compressed.reserve(compressed.capacity().max(1024));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn gzip(bytes: &[u8], threads: usize) -> Vec<u8> {
        let mut writer = GzipWriter::with_threads(Vec::new(), 6, threads).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        (0..length).map(|n| u8::try_from(if n % 5 == 0 { next() } else { next() & 3 }).unwrap()).collect()
    }

    #[test]
    fn any_length_is_one_member_that_reads_back() {
        for length in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES + 77] {
            let bytes = sample(length);
            let packed = gzip(&bytes, 3);
            let mut back = Vec::new();
            let mut reader = flate2::bufread::GzDecoder::new(&packed[..]);
            reader.read_to_end(&mut back).unwrap();
            assert_eq!(back, bytes, "{length}");
            assert!(reader.into_inner().is_empty(), "nothing follows the one member");
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_number_of_threads() {
        let bytes = sample(7 * BLOCK_BYTES + 5);
        let one = gzip(&bytes, 1);
        for threads in [2, 3, 8, 8, 8] {
            assert!(gzip(&bytes, threads) == one, "{threads} threads");
        }
    }

    #[test]
    fn cutting_costs_less_than_one_part_in_a_hundred() {
        let bytes = sample(8 * BLOCK_BYTES);
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), Compression::new(6));
        whole.write_all(&bytes).unwrap();
        let whole = whole.finish().unwrap().len();
        assert!(gzip(&bytes, 2).len() < whole + whole / 100);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut disk = [0_u8; 20];
        let mut writer = GzipWriter::with_threads(&mut disk[..], 6, 2).unwrap();
        let result = writer.write_all(&sample(9 * BLOCK_BYTES)).and_then(|()| writer.finish().map(drop));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WriteZero);
    }
}
