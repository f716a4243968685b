//! The pipeline of a layer: tar → sha256 (diff id) → compress → sha256 (digest) → out, in one pass and bounded memory.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::gzip::GzipWriter;
use crate::oci::Digest;

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, which every client reads.
    Gzip {
        /// 0 to 9.
        level: u32,
    },
    /// Zstandard.
    Zstd {
        /// 1 to 19.
        level: i32,
    },
}

impl Default for Compression {
    fn default() -> Self {
        Self::Gzip { level: 6 }
    }
}

impl Compression {
    /// The same kind at another level; `None` if it has no such level.
    #[must_use]
    pub fn with_level(self, level: i32) -> Option<Self> {
        match self {
            Self::None => Some(self),
            Self::Gzip { .. } => {
                u32::try_from(level).ok().filter(|level| *level <= 9).map(|level| Self::Gzip { level })
            }
            Self::Zstd { .. } => Some(Self::Zstd { level }).filter(|_| (1..=19).contains(&level)),
        }
    }

    /// The OCI media type of a layer so compressed.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip { .. } => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd { .. } => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Not a kind of compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("compression `{0}` is not known: use `gzip`, `zstd` or `none`")]
pub struct CompressionError(String);

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::default()),
            "zstd" => Ok(Self::Zstd { level: 3 }),
            _ => Err(CompressionError(text.to_owned())),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip { .. } => "gzip",
            Self::Zstd { .. } => "zstd",
        })
    }
}

/// A layer as it was compressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compressed {
    /// Of the tar.
    pub diff_id: Digest,
    /// Of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of the tar.
    pub uncompressed_size: u64,
    /// How.
    pub compression: Compression,
}

/// Takes a layer's tar and writes its blob to `W`.
pub struct LayerWriter<W: Write> {
    tar: Sha256,
    tar_bytes: u64,
    compression: Compression,
    encoder: Encoder<W>,
}

enum Encoder<W: Write> {
    Plain(Summed<W>),
    Gzip(GzipWriter<Summed<W>>),
    Zstd(zstd::stream::write::Encoder<'static, Summed<W>>),
}

impl<W: Write> fmt::Debug for LayerWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerWriter").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl<W: Write> LayerWriter<W> {
    /// Begins a blob.
    pub fn new(out: W, compression: Compression) -> io::Result<Self> {
        let out = Summed { out, sum: Sha256::new(), bytes: 0 };
        let encoder = match compression {
            Compression::None => Encoder::Plain(out),
            Compression::Gzip { level } => Encoder::Gzip(GzipWriter::new(out, level.min(9))?),
            Compression::Zstd { level } => Encoder::Zstd(zstd::stream::write::Encoder::new(out, level)?),
        };
        Ok(Self { tar: Sha256::new(), tar_bytes: 0, compression, encoder })
    }

    /// Ends the blob; what it is called is known now.
    pub fn finish(self) -> io::Result<(Compressed, W)> {
        let out = match self.encoder {
            Encoder::Plain(out) => out,
            Encoder::Gzip(gzip) => gzip.finish()?,
            Encoder::Zstd(zstd) => zstd.finish()?,
        };
        let Summed { mut out, sum, bytes } = out;
        out.flush()?;
        let compressed = Compressed {
            diff_id: Digest::from_sha256(self.tar.finalize().into()),
            digest: Digest::from_sha256(sum.finalize().into()),
            size: bytes,
            uncompressed_size: self.tar_bytes,
            compression: self.compression,
        };
        Ok((compressed, out))
    }
}

impl<W: Write> Write for LayerWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = match &mut self.encoder {
            Encoder::Plain(out) => out.write(bytes),
            Encoder::Gzip(gzip) => gzip.write(bytes),
            Encoder::Zstd(zstd) => zstd.write(bytes),
        }?;
        self.tar.update(&bytes[..count]);
        self.tar_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses all of `tar` into `out`.
pub fn compress_layer(
    mut tar: impl Read,
    out: impl Write,
    compression: Compression,
) -> io::Result<Compressed> {
    let mut writer = LayerWriter::new(out, compression)?;
    let mut buffer = vec![0; 1 << 17];
    loop {
        match tar.read(&mut buffer) {
            Ok(0) => return Ok(writer.finish()?.0),
            Ok(count) => writer.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sums what passes.
struct Summed<W> {
    out: W,
    sum: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.sum.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sniff::sniff;
    use super::*;

    #[test]
    fn every_compression_names_the_tar_and_the_blob() {
        let tar: Vec<u8> = (0..2_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for text in ["none", "gzip", "zstd"] {
            let compression: Compression = text.parse().unwrap();
            let mut blob = Vec::new();
            let compressed = compress_layer(&tar[..], &mut blob, compression).unwrap();
            assert_eq!(compressed.diff_id, Digest::of(&tar));
            assert_eq!(compressed.digest, Digest::of(&blob));
            assert_eq!(
                (compressed.size, compressed.uncompressed_size),
                (blob.len() as u64, tar.len() as u64)
            );
            let mut back = Vec::new();
            sniff(&blob[..]).unwrap().read_to_end(&mut back).unwrap();
            assert!(back == tar, "{text}");
            let again = compress_layer(&tar[..], io::sink(), compression).unwrap();
            assert_eq!(again, compressed, "the same tar gives the same blob");
        }
    }

    #[test]
    fn levels_are_those_of_the_format() {
        let gzip = Compression::default();
        assert_eq!(gzip.with_level(9), Some(Compression::Gzip { level: 9 }));
        assert_eq!(gzip.with_level(10), None);
        assert_eq!("zstd".parse::<Compression>().unwrap().with_level(20), None);
        assert!("brotli".parse::<Compression>().is_err());
    }
}
