//! The index of a pack (gitformat-pack, "Version 2 pack-*.idx files"): which objects it has, and where.
//!
//! Read with care: whatever the bytes say, nothing outside of them and of the pack is ever named.

use std::ops::Range;

use git2::Oid;

const MAGIC: [u8; 8] = [0xff, b't', b'O', b'c', 0, 0, 0, 2];
const FAN_OUT_BYTES: usize = 256 * 4;
const ID_BYTES: usize = 20;
/// An id, a checksum and an offset.
const ENTRY_BYTES: usize = ID_BYTES + 4 + 4;
/// The hashes of the pack and of the index.
const TRAILER_BYTES: usize = 40;
/// In an offset: the rest is a place in the list of offsets of 64 bits.
const IS_LARGE: u32 = 1 << 31;
/// Where the first object of a pack is.
const PACK_HEADER_BYTES: u64 = 12;
/// What follows the last one.
const PACK_TRAILER_BYTES: u64 = 20;

/// The index of a pack.
pub(in crate::git) struct PackIndex {
    bytes: Vec<u8>,
    count: usize,
    /// Where objects begin, in order.
    offsets: Vec<u64>,
    /// Where the last one ends.
    end: u64,
}

impl PackIndex {
    /// Reads the index of a pack of so many bytes.
    pub(in crate::git) fn parse(bytes: Vec<u8>, pack_bytes: u64) -> Result<Self, &'static str> {
        if !bytes.starts_with(&MAGIC) {
            return Err("it is no index of version 2");
        }
        let end = pack_bytes.checked_sub(PACK_TRAILER_BYTES).ok_or("its pack is too short")?;
        let mut index = Self { bytes, count: 0, offsets: Vec::new(), end };
        index.count = index.fan_out()?;
        let fixed = index
            .count
            .checked_mul(ENTRY_BYTES)
            .and_then(|bytes| bytes.checked_add(MAGIC.len() + FAN_OUT_BYTES + TRAILER_BYTES));
        let large = fixed.and_then(|fixed| index.bytes.len().checked_sub(fixed));
        if large.is_none_or(|large| large % 8 != 0 || large / 8 > index.count) {
            return Err("its length is not that of its objects");
        }
        let mut offsets = Vec::with_capacity(index.count);
        for position in 0..index.count {
            let offset = index.offset(position).ok_or("an offset is cut off")?;
            if !(PACK_HEADER_BYTES..end).contains(&offset) {
                return Err("an object is outside of the pack");
            }
            offsets.push(offset);
        }
        offsets.sort_unstable();
        if offsets.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
            return Err("two objects are in one place");
        }
        index.offsets = offsets;
        Ok(index)
    }

    /// How many objects there are, as the table of first bytes says.
    fn fan_out(&self) -> Result<usize, &'static str> {
        let mut before = 0;
        for byte in 0..=u8::MAX {
            let up_to = self.up_to(byte).ok_or("it is cut off")?;
            if up_to < before {
                return Err("its table of first bytes goes back");
            }
            before = up_to;
        }
        Ok(before)
    }

    /// How many ids have a first byte of at most this.
    fn up_to(&self, first: u8) -> Option<usize> {
        let count = number(&self.bytes, MAGIC.len() + usize::from(first) * 4)?;
        usize::try_from(count).ok()
    }

    /// All objects.
    pub(in crate::git) fn ids(&self) -> impl Iterator<Item = Oid> + '_ {
        (0..self.count).filter_map(|position| Oid::from_bytes(self.id(position)?).ok())
    }

    fn id(&self, position: usize) -> Option<&[u8]> {
        let start = MAGIC.len() + FAN_OUT_BYTES + position * ID_BYTES;
        self.bytes.get(start..start + ID_BYTES)
    }

    fn offset(&self, position: usize) -> Option<u64> {
        let offsets = MAGIC.len() + FAN_OUT_BYTES + self.count * (ID_BYTES + 4);
        let short = number(&self.bytes, offsets + position * 4)?;
        if short & IS_LARGE == 0 {
            return Some(short.into());
        }
        let place = usize::try_from(short & !IS_LARGE).ok()?;
        let start = offsets + self.count * 4 + place.checked_mul(8)?;
        // The trailer is no offset.
        let end = start.checked_add(8).filter(|end| end + TRAILER_BYTES <= self.bytes.len())?;
        Some(u64::from_be_bytes(self.bytes.get(start..end)?.try_into().ok()?))
    }

    /// Where an object begins.
    pub(super) fn find(&self, id: Oid) -> Option<u64> {
        let wanted = id.as_bytes();
        let first = *wanted.first()?;
        let mut low = first.checked_sub(1).map_or(Some(0), |before| self.up_to(before))?;
        let mut high = self.up_to(first)?;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.id(middle)?.cmp(wanted) {
                std::cmp::Ordering::Equal => return self.offset(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// From where to where the object is that begins there; `None` if none does.
    pub(super) fn extent(&self, offset: u64) -> Option<Range<u64>> {
        let at = self.offsets.binary_search(&offset).ok()?;
        Some(offset..self.offsets.get(at + 1).copied().unwrap_or(self.end))
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An index as git writes it, of these objects and where they begin.
    pub(in crate::git::distant) fn written(objects: &[([u8; 20], u64)]) -> Vec<u8> {
        let mut objects = objects.to_vec();
        objects.sort_unstable();
        let mut bytes = MAGIC.to_vec();
        for first in 0..=u8::MAX {
            let up_to = objects.iter().filter(|(id, _)| id[0] <= first).count();
            bytes.extend(u32::try_from(up_to).unwrap().to_be_bytes());
        }
        bytes.extend(objects.iter().flat_map(|(id, _)| id));
        bytes.resize(bytes.len() + objects.len() * 4, 0);
        let mut large = Vec::new();
        for (_, offset) in &objects {
            let short = u32::try_from(*offset).ok().filter(|short| short & IS_LARGE == 0);
            bytes.extend(short.unwrap_or(IS_LARGE | u32::try_from(large.len() / 8).unwrap()).to_be_bytes());
            if short.is_none() {
                large.extend(offset.to_be_bytes());
            }
        }
        bytes.extend(large);
        bytes.extend([0; TRAILER_BYTES]);
        bytes
    }

    fn id(first: u8) -> [u8; 20] {
        [first; 20]
    }

    fn oid(first: u8) -> Oid {
        Oid::from_bytes(&id(first)).unwrap()
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn objects_beyond_two_and_four_gigabytes_are_found_with_their_ends() {
        let objects = [(id(0), 5 * GIB), (id(7), 12), (id(9), 3 * GIB), (id(255), GIB)];
        let index = PackIndex::parse(written(&objects), 6 * GIB).unwrap();
        assert_eq!([0, 7, 9, 255].map(|first| index.find(oid(first)).unwrap()), [5 * GIB, 12, 3 * GIB, GIB]);
        assert_eq!(index.find(oid(8)), None);
        assert_eq!(index.extent(12), Some(12..GIB));
        assert_eq!(index.extent(3 * GIB), Some(3 * GIB..5 * GIB));
        assert_eq!(index.extent(5 * GIB), Some(5 * GIB..6 * GIB - 20));
        assert_eq!(index.extent(13), None);
        assert_eq!(index.ids().collect::<Vec<_>>(), [0, 7, 9, 255].map(oid));
    }

    #[test]
    fn an_index_of_nothing_has_nothing() {
        let index = PackIndex::parse(written(&[]), 32).unwrap();
        assert_eq!((index.find(oid(1)), index.extent(12), index.ids().count()), (None, None, 0));
    }

    #[test]
    fn what_names_places_outside_of_the_pack_or_of_itself_is_refused() {
        let good = written(&[(id(1), 12), (id(2), 3 * GIB)]);
        assert!(PackIndex::parse(good.clone(), 4 * GIB).is_ok());
        assert!(PackIndex::parse(good.clone(), 3 * GIB).is_err(), "a pack that is shorter");
        assert!(PackIndex::parse(good.clone(), 19).is_err(), "a pack without a trailer");
        assert!(PackIndex::parse(written(&[(id(1), 0)]), GIB).is_err(), "in the pack's header");
        assert!(PackIndex::parse(written(&[(id(1), 12), (id(2), 12)]), GIB).is_err(), "the same place twice");
        assert!(PackIndex::parse(written(&[(id(1), u64::MAX)]), GIB).is_err(), "nowhere");
        // The place of the large offset in its list: the second object's offset is the last before the list.
        let mut astray = good.clone();
        let at = MAGIC.len() + FAN_OUT_BYTES + 2 * 24 + 4;
        astray[at..at + 4].copy_from_slice(&(IS_LARGE | 1).to_be_bytes());
        assert!(PackIndex::parse(astray, 4 * GIB).is_err(), "an offset in the trailer");
        let mut counted = good.clone();
        counted[MAGIC.len() + 255 * 4..][..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(PackIndex::parse(counted, 4 * GIB).is_err(), "more objects than bytes");
        let mut back = good.clone();
        back[MAGIC.len()..][..4].copy_from_slice(&9_u32.to_be_bytes());
        assert!(PackIndex::parse(back, 4 * GIB).is_err(), "a table that goes back");
        for length in 0..good.len() {
            assert!(PackIndex::parse(good[..length].to_vec(), 4 * GIB).is_err(), "cut off after {length}");
        }
        assert!(PackIndex::parse([good.as_slice(), &[0; 8]].concat(), 4 * GIB).is_ok(), "an unused offset");
        assert!(PackIndex::parse([good.as_slice(), &[0; 4]].concat(), 4 * GIB).is_err(), "half an offset");
    }
}
