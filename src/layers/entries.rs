//! Reading a tar that may be hostile: ustar, GNU long names and PAX, each within limits, ambiguity refused.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use super::node::{Owner, Xattrs};

const BLOCK: usize = 512;

/// How much a tar may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries in one archive.
    pub max_entries: u64,
    /// Bytes of the uncompressed archive.
    pub max_bytes: u64,
    /// Bytes of one name or link target.
    pub max_path_bytes: usize,
    /// Bytes of one extended header (long names, PAX records with attributes).
    pub max_header_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_entries: 4_000_000, max_bytes: 64 << 30, max_path_bytes: 4095, max_header_bytes: 1 << 20 }
    }
}

/// Why a tar cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The source of the bytes failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It ends before it is complete.
    #[error("the archive ends in the middle of {0}")]
    Truncated(String),
    /// A header that is not one.
    #[error("the archive has a damaged header after `{after}`: {reason}")]
    Header {
        /// The last good entry.
        after: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// An entry that is refused.
    #[error("entry `{name}` is refused: {reason}")]
    Refused {
        /// The entry.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// More than a limit allows.
    #[error("the archive has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    Directory,
    Symlink(OsString),
    /// The target's path in the archive.
    Hardlink(PathBuf),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// One entry's header.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Relative, without `.` and `..`; empty for the archive's root.
    pub(super) path: PathBuf,
    pub(super) kind: EntryKind,
    pub(super) mode: u32,
    pub(super) owner: Owner,
    pub(super) mtime: i64,
    pub(super) xattrs: Xattrs,
}

/// The entries of a tar, in order.
pub(super) struct Entries<R> {
    reader: R,
    limits: Limits,
    /// Content of the current entry that was not read, and the padding after it.
    content_left: u64,
    padding: u64,
    bytes: u64,
    count: u64,
    /// Shown by errors.
    last: String,
}

/// What extended headers said about the entry that follows them.
#[derive(Default)]
struct Extended {
    pax: BTreeMap<Vec<u8>, Vec<u8>>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Entries<R> {
    pub(super) fn new(reader: R, limits: Limits) -> Self {
        let last = "the beginning".to_owned();
        Self { reader, limits, content_left: 0, padding: 0, bytes: 0, count: 0, last }
    }

    /// The next entry; what was left of the one before is skipped.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = Extended::default();
        loop {
            self.skip_content()?;
            let Some(header) = self.read_header()? else { return Ok(None) };
            self.count += 1;
            if self.count > self.limits.max_entries {
                return Err(ArchiveError::Limit { what: "entries", limit: self.limits.max_entries });
            }
            match header.entry_type().as_byte() {
                b'x' => extended
                    .pax
                    .append(&mut parse_pax(&self.read_extended(&header)?).map_err(|r| self.damaged(r))?),
                b'g' => drop(self.read_extended(&header)?),
                b'L' => extended.long_name = Some(trim_nul(self.read_extended(&header)?)),
                b'K' => extended.long_link = Some(trim_nul(self.read_extended(&header)?)),
                _ => return self.entry(&header, &extended).map(Some),
            }
        }
    }

    /// Reads of the current entry's content.
    pub(super) fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let limit = usize::try_from(self.content_left).unwrap_or(usize::MAX).min(buffer.len());
        if limit == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..limit]).map_err(ArchiveError::Read)?;
        if count == 0 {
            return Err(ArchiveError::Truncated(format!("`{}`", self.last)));
        }
        self.content_left -= count as u64;
        self.count_bytes(count as u64)?;
        Ok(count)
    }

    /// Reads to the end of the source, so that all of it was seen; returns the reader.
    pub(super) fn finish(mut self) -> Result<R, ArchiveError> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.reader.read(&mut buffer).map_err(ArchiveError::Read)? {
                0 => return Ok(self.reader),
                count => self.count_bytes(count as u64)?,
            }
        }
    }

    fn count_bytes(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        self.bytes += bytes;
        if self.bytes > self.limits.max_bytes {
            return Err(ArchiveError::Limit { what: "bytes", limit: self.limits.max_bytes });
        }
        Ok(())
    }

    fn damaged(&self, reason: &'static str) -> ArchiveError {
        ArchiveError::Header { after: self.last.clone(), reason }
    }

    fn skip_content(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = [0; 1 << 13];
        while self.read_content(&mut buffer)? > 0 {}
        self.content_left = std::mem::take(&mut self.padding);
        // Some writers leave out the padding of the last entry.
        while self.content_left > 0 {
            let limit = usize::try_from(self.content_left).unwrap_or(BLOCK).min(BLOCK);
            match self.reader.read(&mut buffer[..limit]).map_err(ArchiveError::Read)? {
                0 => self.content_left = 0,
                count => {
                    self.content_left -= count as u64;
                    self.count_bytes(count as u64)?;
                }
            }
        }
        Ok(())
    }

    /// A header with a right sum; `None` at the end mark or at the end of the source.
    fn read_header(&mut self) -> Result<Option<::tar::Header>, ArchiveError> {
        let mut header = ::tar::Header::new_old();
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut header.as_mut_bytes()[filled..]).map_err(ArchiveError::Read)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(ArchiveError::Truncated(format!("the header after `{}`", self.last))),
                count => filled += count,
            }
        }
        self.count_bytes(BLOCK as u64)?;
        if header.as_bytes().iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        if !has_right_sum(&header) {
            return Err(self.damaged("its sum is wrong"));
        }
        Ok(Some(header))
    }

    /// The whole content of an extended header.
    fn read_extended(&mut self, header: &::tar::Header) -> Result<Vec<u8>, ArchiveError> {
        let size = field(header, 124..136).ok_or_else(|| self.damaged("its size is not a number"))?;
        let limit = self.limits.max_header_bytes;
        if size > limit {
            return Err(ArchiveError::Limit { what: "bytes in one extended header", limit });
        }
        self.begin_content(size);
        let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
        let mut filled = 0;
        while filled < content.len() {
            filled += self.read_content(&mut content[filled..])?;
        }
        Ok(content)
    }

    fn begin_content(&mut self, size: u64) {
        self.content_left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(&mut self, header: &::tar::Header, extended: &Extended) -> Result<Entry, ArchiveError> {
        let name =
            self.name(header.path_bytes().into_owned(), extended.long_name.as_ref(), extended, b"path")?;
        self.last = String::from_utf8_lossy(&name).chars().take(200).collect();
        let refused = |reason| ArchiveError::Refused { name: self.last.clone(), reason };
        if extended.pax.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            return Err(refused("it is sparse; make the archive without `--sparse`"));
        }
        let link = header.link_name_bytes().unwrap_or_default().into_owned();
        let link = self.name(link, extended.long_link.as_ref(), extended, b"linkpath")?;
        let directory_name = name.last() == Some(&b'/');
        let number = |key: &[u8], own: Range<usize>| match extended.pax.get(key) {
            Some(text) => decimal(text).ok_or_else(|| refused("a PAX record is not a number")),
            None => field(header, own).ok_or_else(|| refused("a field of its header is not a number")),
        };
        let id = |key: &[u8], own| {
            let id = u32::try_from(number(key, own)?).ok().filter(|&id| id != u32::MAX);
            id.ok_or_else(|| refused("its owner is not a user id"))
        };
        let owner = Owner { uid: id(b"uid", 108..116)?, gid: id(b"gid", 116..124)? };
        let kind = match header.entry_type().as_byte() {
            b'0' | b'\0' if directory_name => EntryKind::Directory,
            b'0' | b'\0' | b'7' => EntryKind::File,
            b'1' => EntryKind::Hardlink(
                relative_path(&link).ok_or_else(|| refused("it links to a path with `..`"))?,
            ),
            b'2' if link.is_empty() => return Err(refused("it is a symlink without a target")),
            b'2' => EntryKind::Symlink(OsString::from_vec(link)),
            b'3' | b'4' => device(header).ok_or_else(|| refused("its device number is not a number"))?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => return Err(refused("it is sparse; make the archive without `--sparse`")),
            _ => return Err(refused("its type is not one that a layer has")),
        };
        let size = if kind == EntryKind::File { number(b"size", 124..136)? } else { 0 };
        if size > self.limits.max_bytes {
            return Err(ArchiveError::Limit { what: "bytes", limit: self.limits.max_bytes });
        }
        let mtime = match extended.pax.get(&b"mtime"[..]) {
            Some(text) => seconds(text).ok_or_else(|| refused("its PAX mtime is not a time"))?,
            None => number(b"mtime", 136..148)?.cast_signed(),
        };
        let mode = u32::try_from(number(b"", 100..108)? & 0o7777).unwrap_or_default();
        let path = relative_path(&name).ok_or_else(|| refused("its path has `..`"))?;
        let xattrs = xattrs(extended).ok_or_else(|| refused("the name of an attribute has a zero byte"))?;
        self.begin_content(size);
        Ok(Entry { path, kind, mode, owner, mtime, xattrs })
    }

    /// The one name that an entry has, of up to three places that can say it.
    fn name(
        &self,
        own: Vec<u8>,
        long: Option<&Vec<u8>>,
        extended: &Extended,
        pax: &[u8],
    ) -> Result<Vec<u8>, ArchiveError> {
        let name = match (long, extended.pax.get(pax)) {
            (Some(long), Some(pax)) if long != pax => {
                let name = String::from_utf8_lossy(long).into_owned();
                let reason = "a GNU and a PAX header give it different names";
                return Err(ArchiveError::Refused { name, reason });
            }
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) => own,
        };
        let refused = |reason| {
            let name = String::from_utf8_lossy(&name).chars().take(200).collect();
            Err(ArchiveError::Refused { name, reason })
        };
        if name.contains(&0) {
            return refused("its name has a zero byte");
        }
        if name.len() > self.limits.max_path_bytes || name.split(|&b| b == b'/').any(|part| part.len() > 255)
        {
            return refused("its name is longer than the system allows");
        }
        Ok(name)
    }
}

fn has_right_sum(header: &::tar::Header) -> bool {
    let bytes = header.as_bytes();
    let sum = bytes[..148].iter().chain(&bytes[156..]).map(|&byte| u64::from(byte)).sum::<u64>() + 8 * 32;
    field(header, 148..156) == Some(sum)
}

/// Whether a file that begins with these bytes is an archive with something in it.
pub(super) fn is_tar_header(start: &[u8; BLOCK]) -> bool {
    has_right_sum(::tar::Header::from_byte_slice(start)) && start[0] != 0
}

/// `name` as a relative path; `None` if it has `..`.
fn relative_path(name: &[u8]) -> Option<PathBuf> {
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            _ => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    Some(OsString::from_vec(path).into())
}

/// A number of a header: octal digits, or GNU's base 256; an empty field is 0.
fn field(header: &::tar::Header, at: Range<usize>) -> Option<u64> {
    let bytes = header.as_bytes().get(at)?;
    if bytes.first()? & 0x80 != 0 {
        let negative = bytes.first()? & 0x40 != 0;
        let (front, low) = bytes.split_last_chunk::<8>().unwrap_or((&[], &[0; 8]));
        let low = u64::from_be_bytes(*low);
        let low = if front.is_empty() { low & !(1 << 63) } else { low };
        return Some(if negative && front.is_empty() { low | (1 << 63) } else { low });
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_matches([' ', '\0']);
    let text = text.split('\0').next().unwrap_or_default().trim_end();
    if text.is_empty() {
        return Some(0);
    }
    if text.bytes().all(|digit| digit.is_ascii_digit()) { u64::from_str_radix(text, 8).ok() } else { None }
}

fn device(header: &::tar::Header) -> Option<EntryKind> {
    let number = |at| field(header, at).and_then(|number| u32::try_from(number).ok());
    let (major, minor) = (number(329..337)?, number(337..345)?);
    match header.entry_type().as_byte() {
        b'3' => Some(EntryKind::CharDevice(major, minor)),
        b'4' => Some(EntryKind::BlockDevice(major, minor)),
        _ => None,
    }
}

fn xattrs(extended: &Extended) -> Option<Xattrs> {
    let mut xattrs = Xattrs::new();
    for (key, value) in &extended.pax {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            xattrs.insert(CString::new(name).ok()?, value.clone());
        }
    }
    Some(xattrs)
}

/// PAX records: `<length> <key>=<value>\n`, the length counting all of it.
fn parse_pax(mut bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, &'static str> {
    let broken = "its PAX records are malformed";
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|&byte| byte == b' ').ok_or(broken)?;
        let length = decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok()).ok_or(broken)?;
        let record = bytes.get(space + 1..length).ok_or(broken)?;
        let record = record.strip_suffix(b"\n").ok_or(broken)?;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or(broken)?;
        records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn decimal(text: &[u8]) -> Option<u64> {
    if !text.first()?.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The whole seconds of a PAX time: `-1.5`, `1700000000.25`.
fn seconds(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let before = whole.starts_with('-') && fraction.bytes().any(|byte| byte != b'0');
    seconds.checked_sub(i64::from(before))
}

fn trim_nul(mut name: Vec<u8>) -> Vec<u8> {
    while name.last() == Some(&0) {
        name.pop();
    }
    name
}
