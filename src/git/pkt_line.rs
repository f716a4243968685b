//! pkt-line framing (gitprotocol-common) and the sideband inside it (gitprotocol-pack).
//!
//! A length prefix has four hexadecimal digits, so no packet can ask for more than 65 520 bytes of memory.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest packet that git sends or takes, with its length prefix.
const MAX_PACKET_BYTES: usize = 65_520;
/// The most bytes that one packet carries.
pub(super) const MAX_DATA_BYTES: usize = MAX_PACKET_BYTES - 4;
/// The most bytes that one sideband packet carries: one byte is the band.
const MAX_BAND_BYTES: usize = MAX_DATA_BYTES - 1;
/// The packet that ends a list.
pub(super) const FLUSH: &[u8; 4] = b"0000";

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    /// `0000`: the end of a list.
    Flush,
    /// `0001` and `0002` of protocol v2, which has no place in a push.
    Other,
    /// Data, without its length prefix and without a final line feed.
    Line(Vec<u8>),
}

/// Why a packet could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum PacketError {
    /// The peer closed the connection between two packets.
    #[error("the client closed the connection")]
    Closed,
    /// The connection failed, or ended inside a packet.
    #[error("failed to read from the client")]
    Io(#[from] io::Error),
    /// The prefix is not four hexadecimal digits of an allowed length.
    #[error("`{0}` is not the length of a packet")]
    Length(String),
}

/// Reads one packet and not a byte more.
pub(super) async fn read_packet<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Packet, PacketError> {
    let mut prefix = [0; 4];
    match reader.read(&mut prefix).await? {
        0 => return Err(PacketError::Closed),
        read => reader.read_exact(prefix.get_mut(read..).unwrap_or_default()).await?,
    };
    let invalid = || PacketError::Length(prefix.escape_ascii().to_string());
    let digits = prefix.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(&prefix).ok().filter(|_| digits).ok_or_else(invalid)?;
    let length = usize::from_str_radix(text, 16).map_err(|_| invalid())?;
    match length {
        0 => Ok(Packet::Flush),
        1 | 2 => Ok(Packet::Other),
        4..=MAX_PACKET_BYTES => {
            let mut line = vec![0; length - 4];
            reader.read_exact(&mut line).await?;
            line.pop_if(|last| *last == b'\n');
            Ok(Packet::Line(line))
        }
        _ => Err(invalid()),
    }
}

/// Appends one packet; what is beyond the longest packet is cut.
pub(super) fn write_line(output: &mut Vec<u8>, line: &[u8]) {
    let line = line.get(..MAX_DATA_BYTES).unwrap_or(line);
    output.extend_from_slice(format!("{:04x}", line.len() + 4).as_bytes());
    output.extend_from_slice(line);
}

/// A channel inside the stream to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Band {
    /// The report.
    Data = 1,
    /// Shown to the person with `remote: ` before each line.
    Progress = 2,
}

/// Writes `data` to a band, in as many packets as it needs; none of it is a packet without content, which
/// keeps the connection alive and is shown nowhere.
pub(super) async fn write_band<W: AsyncWrite + Unpin>(
    writer: &mut W,
    band: Band,
    data: &[u8],
) -> io::Result<()> {
    let mut output = Vec::with_capacity(data.len() + 5);
    let mut packet = |chunk: &[u8]| {
        output.extend_from_slice(format!("{:04x}", chunk.len() + 5).as_bytes());
        output.push(band as u8);
        output.extend_from_slice(chunk);
    };
    if data.is_empty() {
        packet(data);
    }
    data.chunks(MAX_BAND_BYTES).for_each(&mut packet);
    writer.write_all(&output).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn packets(mut input: &[u8]) -> Vec<Result<Packet, String>> {
        let mut found = Vec::new();
        loop {
            match read_packet(&mut input).await {
                Err(PacketError::Closed) => return found,
                Err(error) => {
                    found.push(Err(error.to_string()));
                    return found;
                }
                Ok(packet) => found.push(Ok(packet)),
            }
        }
    }

    #[tokio::test]
    async fn lines_and_flushes_are_read_back() {
        let mut output = Vec::new();
        write_line(&mut output, b"hello\n");
        write_line(&mut output, b"");
        output.extend_from_slice(FLUSH);
        assert_eq!(output, b"000ahello\n00040000");
        let expected = [Packet::Line(b"hello".to_vec()), Packet::Line(Vec::new()), Packet::Flush];
        assert_eq!(packets(&output).await, expected.map(Ok));
    }

    #[tokio::test]
    async fn lengths_that_no_packet_has_are_refused() {
        for input in ["0003", "fff1", "ffff", "+001", "zzzz", "00a", "GET "] {
            let found = packets(input.as_bytes()).await;
            assert!(matches!(found.as_slice(), [Err(_)]), "{input}: {found:?}");
        }
    }

    #[tokio::test]
    async fn a_packet_cut_short_is_an_error() {
        assert!(packets(b"0009abc").await.pop().unwrap().is_err());
    }

    #[tokio::test]
    async fn long_progress_is_split_and_none_is_a_keepalive() {
        let mut output = Vec::new();
        write_band(&mut output, Band::Progress, b"").await.unwrap();
        assert_eq!(output, b"0005\x02");
        output.clear();
        write_band(&mut output, Band::Data, &vec![b'x'; MAX_BAND_BYTES + 1]).await.unwrap();
        assert_eq!(&output[..5], b"fff0\x01");
        assert_eq!(&output[MAX_PACKET_BYTES..], b"0006\x01x");
    }
}
