//! An object as it is in a pack (gitformat-pack, "pack-*.pack files have the following format"): whole, or what differs
//! from another.

use std::io::{self, Read};

use git2::{ObjectType, Oid};

/// More than the longest header: a size, an offset or an id, each with room to spare.
pub(super) const MAX_HEADER_BYTES: usize = 64;
/// A size of 64 bits has at most so many bytes of seven bits.
const MAX_NUMBER_BYTES: usize = 10;

/// What an object in a pack is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// All of it.
    Whole(ObjectType),
    /// What differs from the object that begins there, in the same pack.
    Against(u64),
    /// What differs from the object of this id.
    AgainstId(Oid),
}

/// The beginning of an object in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) content: Content,
    /// How many bytes are packed, before they were compressed.
    pub(super) size: u64,
    /// How many bytes this header has.
    pub(super) length: usize,
}

impl Header {
    /// Reads the header of the object that begins at `offset` with these bytes.
    pub(super) fn parse(bytes: &[u8], offset: u64) -> Result<Self, &'static str> {
        let mut rest = bytes.iter();
        let mut next = || rest.next().copied().ok_or("an object's header is cut off");
        let first = next()?;
        let (mut size, mut shift, mut more) = (u64::from(first & 0x0f), 4, first & 0x80 != 0);
        while more {
            let byte = next()?;
            let bits = u64::from(byte & 0x7f);
            size |= bits
                .checked_shl(shift)
                .filter(|part| part >> shift == bits)
                .ok_or("a size beyond all sizes")?;
            (shift, more) = (shift + 7, byte & 0x80 != 0);
        }
        let content = match first >> 4 & 7 {
            1 => Content::Whole(ObjectType::Commit),
            2 => Content::Whole(ObjectType::Tree),
            3 => Content::Whole(ObjectType::Blob),
            4 => Content::Whole(ObjectType::Tag),
            6 => {
                let mut byte = next()?;
                let mut back = u64::from(byte & 0x7f);
                for _ in 0..MAX_NUMBER_BYTES {
                    if byte & 0x80 == 0 {
                        break;
                    }
                    byte = next()?;
                    let more = back.checked_add(1).and_then(|back| back.checked_mul(128));
                    back = more.ok_or("a base before the pack")? | u64::from(byte & 0x7f);
                }
                // What is before is the only base of this kind: no chain of them comes back to where it began.
                let base = offset.checked_sub(back).filter(|base| *base < offset && byte & 0x80 == 0);
                Content::Against(base.ok_or("a base that is not before its object")?)
            }
            7 => {
                let mut id = [0; 20];
                for byte in &mut id {
                    *byte = next()?;
                }
                Content::AgainstId(Oid::from_bytes(&id).map_err(|_| "a base whose id is none")?)
            }
            _ => return Err("an object of no kind"),
        };
        Ok(Self { content, size, length: bytes.len() - rest.len() })
    }
}

/// Unpacks `size` bytes, no more and no fewer.
pub(super) fn inflate(packed: impl Read, size: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(size.min(1 << 20));
    let mut unpacked = flate2::read::ZlibDecoder::new(packed).take(size as u64 + 1);
    unpacked.read_to_end(&mut bytes)?;
    if bytes.len() == size {
        Ok(bytes)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "an object is not as long as it says"))
    }
}

/// Applies a difference to its base, to make at most `max_bytes`.
pub(super) fn apply(base: &[u8], delta: &[u8], max_bytes: usize) -> Result<Vec<u8>, &'static str> {
    let (base_bytes, rest) = number(delta)?;
    let (made_bytes, mut rest) = number(rest)?;
    if base_bytes != base.len() as u64 {
        return Err("a difference from another base");
    }
    let length = usize::try_from(made_bytes).ok().filter(|length| *length <= max_bytes);
    let length = length.ok_or("a difference makes more than is taken")?;
    let mut made = Vec::with_capacity(length.min(1 << 20));
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let part = if first & 0x80 == 0 {
            let (part, after) =
                rest.split_at_checked(usize::from(*first)).ok_or("a difference is cut off")?;
            rest = after;
            // Reserved, and never written.
            if part.is_empty() {
                return Err("a difference does nothing");
            }
            part
        } else {
            let (start, after) = sparse(*first & 0x0f, rest)?;
            let (size, after) = sparse(*first >> 4 & 0x07, after)?;
            rest = after;
            let size = if size == 0 { 0x1_0000 } else { size };
            base.get(start..)
                .and_then(|base| base.get(..size))
                .ok_or("a difference copies what is not there")?
        };
        if made.len() + part.len() > length {
            return Err("a difference makes more than it says");
        }
        made.extend_from_slice(part);
    }
    if made.len() == length { Ok(made) } else { Err("a difference makes less than it says") }
}

/// A number of which only the bytes are there that `which` names.
fn sparse(which: u8, mut rest: &[u8]) -> Result<(usize, &[u8]), &'static str> {
    let mut number = 0;
    for place in 0..4 {
        if which & 1 << place != 0 {
            let (byte, after) = rest.split_first().ok_or("a difference is cut off")?;
            number |= usize::from(*byte) << (8 * place);
            rest = after;
        }
    }
    Ok((number, rest))
}

/// A number in bytes of seven bits, the lowest first.
fn number(bytes: &[u8]) -> Result<(u64, &[u8]), &'static str> {
    let mut number = 0;
    for (place, byte) in bytes.iter().take(MAX_NUMBER_BYTES).enumerate() {
        let (bits, shift) = (u64::from(byte & 0x7f), 7 * place);
        if bits << shift >> shift != bits {
            break;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok((number, bytes.get(place + 1..).unwrap_or_default()));
        }
    }
    Err("a length is cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_follows() {
        let whole = Header::parse(&[0b1011_0101, 0b0000_0011, 9], 12).unwrap();
        assert_eq!(whole, Header { content: Content::Whole(ObjectType::Blob), size: 0b11_0101, length: 2 });
        let near = Header::parse(&[0b0110_0001, 5], 20).unwrap();
        assert_eq!(near, Header { content: Content::Against(15), size: 1, length: 2 });
        // 128 is two bytes: the second group begins where the first ends.
        let far = Header::parse(&[0b0110_0001, 0x80, 0], 300).unwrap();
        assert_eq!((far.content, far.length), (Content::Against(172), 3));
        let named = Header::parse(&[&[0b0111_0000][..], &[7; 20]].concat(), 12).unwrap();
        let id = Oid::from_bytes(&[7; 20]).unwrap();
        assert_eq!((named.content, named.length), (Content::AgainstId(id), 21));
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let far = [&[0b0110_0000][..], &[0xff; 12], &[0]].concat();
        let large = [&[0b1011_0000][..], &[0xff; 12], &[0]].concat();
        for (bytes, why) in [
            (&[][..], "nothing"),
            (&[0b1011_0000], "cut off in its size"),
            (&[0b0110_0000], "cut off in its base"),
            (&[0b0111_0000, 1, 2], "cut off in its base's id"),
            (&[0b0000_0001], "of no kind"),
            (&[0b0101_0001], "of a reserved kind"),
            (&[0b0110_0001, 0], "its own base"),
            (&[0b0110_0001, 101], "a base before the pack"),
            (&far, "a base before everything"),
            (&large, "larger than everything"),
        ] {
            assert!(Header::parse(bytes, 100).is_err(), "{why}");
        }
    }

    /// Copies `bcd`, then adds `X`.
    const DELTA: [u8; 7] = [6, 4, 0b1001_0001, 1, 3, 1, b'X'];

    #[test]
    fn a_difference_is_applied() {
        assert_eq!(apply(b"abcdef", &DELTA, 100).unwrap(), b"bcdX");
        let all = vec![7; 0x1_0000];
        // A size of nothing is 64 KiB.
        let copy = [0x80, 0x80, 4, 0x80, 0x80, 4, 0b1000_0000];
        assert_eq!(apply(&all, &copy, all.len()).unwrap(), all);
    }

    #[test]
    fn differences_that_lie_are_refused() {
        let max = 100;
        assert!(apply(b"abcde", &DELTA, max).is_err(), "another base");
        assert!(apply(b"abcdef", &DELTA, 3).is_err(), "more than is taken");
        for length in 0..DELTA.len() {
            assert!(apply(b"abcdef", &DELTA[..length], max).is_err(), "cut off after {length}");
        }
        for (delta, why) in [
            (&[6, 4, 0b1001_0001, 4, 3, 1, b'X'][..], "copies beyond the base"),
            (&[6, 3, 0b1001_0001, 1, 3, 1, b'X'], "more than it says"),
            (&[6, 5, 0b1001_0001, 1, 3, 1, b'X'], "less than it says"),
            (&[6, 4, 0b1001_0001, 1, 3, 0, 1, b'X'], "does nothing"),
            (&[6, 4, 0b1000_1111, 255, 255, 255, 255], "copies from far away"),
            (&[0xff; 20], "lengths without end"),
        ] {
            assert!(apply(b"abcdef", delta, max).is_err(), "{why}");
        }
    }

    #[test]
    fn what_is_unpacked_is_as_long_as_it_says() {
        use std::io::Write as _;
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&[0; 1000]).unwrap();
        let packed = packed.finish().unwrap();
        assert_eq!(inflate(packed.as_slice(), 1000).unwrap(), [0; 1000]);
        assert!(inflate(packed.as_slice(), 999).is_err());
        assert!(inflate(packed.as_slice(), 1001).is_err());
        assert!(inflate(&packed[..packed.len() / 2], 1000).is_err());
    }
}
