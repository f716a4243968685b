//! Compression by what the bytes begin with, never by a name.

use std::io::{self, BufRead, BufReader, Read};

use sha2::{Digest as _, Sha256};

use crate::oci::Digest;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not at all.
    Plain,
    /// RFC 1952, any number of members.
    Gzip,
    /// bzip2, any number of streams.
    Bzip2,
    /// xz.
    Xz,
    /// Zstandard, any number of frames.
    Zstd,
}

impl Format {
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // A frame, or a skippable frame as zstd:chunked and pzstd begin with.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// A reader of what a stream holds, whatever it is compressed with.
pub struct Decompressed<'a> {
    format: Format,
    inner: Box<dyn Read + 'a>,
}

impl std::fmt::Debug for Decompressed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressed").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Decompressed<'_> {
    /// How the stream is compressed.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }
}

impl Read for Decompressed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

/// Memory that a decompressor may ask for, since the stream says how much it needs.
const XZ_MAX_MEMORY: u64 = 128 << 20;
/// 2^27 = 128 MiB, what the zstd tool itself allows without being told.
const ZSTD_MAX_WINDOW_LOG: u32 = 27;

/// Reads the beginning of `reader` and decompresses the whole.
pub fn sniff<'a>(reader: impl Read + 'a) -> io::Result<Decompressed<'a>> {
    let mut reader = BufReader::with_capacity(1 << 16, Beginning::new(reader)?);
    let format = Format::of(reader.fill_buf()?);
    let inner: Box<dyn Read + 'a> = match format {
        Format::Plain => Box::new(reader),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        Format::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MAX_MEMORY, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(reader, stream))
        }
        Format::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_MAX_WINDOW_LOG)?;
            Box::new(decoder)
        }
    };
    Ok(Decompressed { format, inner })
}

/// Gives its first bytes in one read, however small the pieces they come in.
struct Beginning<R> {
    start: [u8; 8],
    /// What of `start` is still to be given.
    from: usize,
    until: usize,
    inner: R,
}

impl<R: Read> Beginning<R> {
    fn new(mut inner: R) -> io::Result<Self> {
        let mut start = [0; 8];
        let mut until = 0;
        while until < start.len() {
            match inner.read(&mut start[until..]) {
                Ok(0) => break,
                Ok(count) => until += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { start, from: 0, until, inner })
    }
}

impl<R: Read> Read for Beginning<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.from == self.until {
            return self.inner.read(buffer);
        }
        let count = (&self.start[self.from..self.until]).read(buffer)?;
        self.from += count;
        Ok(count)
    }
}

/// Passes bytes through and sums them.
pub(super) struct Hashing<R> {
    inner: R,
    sum: Sha256,
    pub(super) bytes: u64,
}

impl<R> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, sum: Sha256::new(), bytes: 0 }
    }

    pub(super) fn digest(self) -> Digest {
        Digest::from_sha256(self.sum.finalize().into())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sum.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// A stream that must have the size and digest that were announced: its end is an error otherwise.
pub struct Verified<R> {
    inner: R,
    sum: Sha256,
    left: u64,
    digest: Digest,
    done: bool,
}

impl<R: Read> Verified<R> {
    /// Checks `inner` against `digest` and `size` in bytes.
    pub fn new(inner: R, digest: &Digest, size: u64) -> Self {
        Self { inner, sum: Sha256::new(), left: size, digest: *digest, done: false }
    }
}

impl<R> std::fmt::Debug for Verified<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verified").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wrong =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("blob {} {what}", self.digest));
        if self.done || buffer.is_empty() {
            return Ok(0);
        }
        let count = self.inner.read(buffer)?;
        if count as u64 > self.left {
            return Err(wrong("is longer than announced"));
        }
        if count == 0 && self.left > 0 {
            return Err(wrong("is shorter than announced"));
        }
        self.left -= count as u64;
        self.sum.update(&buffer[..count]);
        if count == 0 {
            self.done = true;
            let sum: [u8; 32] = std::mem::take(&mut self.sum).finalize().into();
            if Digest::from_sha256(sum) != self.digest {
                return Err(wrong("has other content than its digest says"));
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn all(bytes: &[u8]) -> (Format, Vec<u8>) {
        let mut out = Vec::new();
        let mut reader = sniff(bytes).unwrap();
        reader.read_to_end(&mut out).unwrap();
        (reader.format(), out)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_format_is_known_by_its_bytes() {
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bz.write_all(b"text").unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(b"text").unwrap();
        for (format, bytes) in [
            (Format::Plain, b"text".to_vec()),
            (Format::Gzip, gzip(b"text")),
            (Format::Gzip, [gzip(b"te"), gzip(b"xt")].concat()),
            (Format::Bzip2, bz.finish().unwrap()),
            (Format::Xz, xz.finish().unwrap()),
            (Format::Zstd, zstd::encode_all(&b"text"[..], 1).unwrap()),
            (
                Format::Zstd,
                [zstd::encode_all(&b"te"[..], 1).unwrap(), zstd::encode_all(&b"xt"[..], 1).unwrap()].concat(),
            ),
        ] {
            assert_eq!(all(&bytes), (format, b"text".to_vec()));
        }
        assert_eq!(all(b""), (Format::Plain, Vec::new()));
    }

    #[test]
    fn a_cut_stream_is_an_error_and_not_an_end() {
        let mut bytes = gzip(&[7; 1000]);
        bytes.truncate(bytes.len() - 9);
        assert!(sniff(&bytes[..]).unwrap().read_to_end(&mut Vec::new()).is_err());
    }

    #[test]
    fn a_blob_that_is_not_what_was_announced_does_not_end_well() {
        let digest = Digest::of("text");
        let read = |bytes: &[u8], size| Verified::new(bytes, &digest, size).read_to_end(&mut Vec::new());
        assert_eq!(read(b"text", 4).unwrap(), 4);
        for (bytes, size) in [(&b"text"[..], 3), (b"text", 5), (b"tExt", 4), (b"", 4)] {
            assert_eq!(read(bytes, size).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
