//! Changes become a tar: the same changes give the same bytes.
//!
//! ustar headers; PAX records only where ustar has no room; no names of users and groups; times clamped.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use tar::{EntryType, Header};

use super::diff::{Change, ChangeKind, xattrs_of};
use super::error::{AtPath as _, FileError};
use super::node::{Kind, Node, WHITEOUT_PREFIX, read_link};
use super::place::times;
use super::root::Root;

/// Why a tar could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The tar's reader is gone, or its disk is full.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// Something still runs and writes.
    #[error("`{}` changed while it was read", .0.display())]
    Changed(PathBuf),
    /// An attribute that PAX cannot hold.
    #[error("`{}` has an extended attribute with `=` in its name, which no layer can hold", .0.display())]
    AttributeName(PathBuf),
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct TarStats {
    /// Entries.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
}

/// Writes `changes`, read from the directory `upper` that they were found in, as a layer.
///
/// `epoch` is `SOURCE_DATE_EPOCH` in seconds: nothing in the tar is newer.
pub fn write_tar(
    changes: &[Change],
    upper: &Root,
    epoch: Option<i64>,
    out: impl Write,
) -> Result<TarStats, TarError> {
    let mut writer = Writer { out, upper, epoch, stats: TarStats::default(), buffer: vec![0; 1 << 17] };
    for change in changes {
        writer.change(change)?;
        writer.stats.entries += 1;
    }
    writer.out.write_all(&[0; 1024]).map_err(TarError::Write)?;
    writer.out.flush().map_err(TarError::Write)?;
    Ok(writer.stats)
}

/// Gives what changed in `upper` the times that the tar says: whole seconds, none after `epoch`.
///
/// A tree made by a step is then the same as one unpacked from its layer, for every step after it.
pub fn normalize_times(changes: &[Change], upper: &Root, epoch: Option<i64>) -> Result<(), TarError> {
    for change in changes {
        if let (Some(node), false) = (change.node, change.path.as_os_str().is_empty()) {
            let times = times(clamped(node.mtime, epoch));
            rustix::fs::utimensat(upper.as_fd(), &change.path, &times, AtFlags::SYMLINK_NOFOLLOW)
                .at("set time of", &change.path)?;
        }
    }
    Ok(())
}

/// The time that a layer says.
pub(super) fn clamped(mtime: i64, epoch: Option<i64>) -> i64 {
    epoch.map_or(mtime, |epoch| mtime.min(epoch))
}

struct Writer<'a, W> {
    out: W,
    upper: &'a Root,
    epoch: Option<i64>,
    stats: TarStats,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<'_, W> {
    fn change(&mut self, change: &Change) -> Result<(), TarError> {
        let path = &change.path;
        let Some(node) = change.node.filter(|_| change.kind != ChangeKind::Deleted) else {
            return self.whiteout(path);
        };
        let mut pax = Pax::default();
        let mut header = self.header(&node, &mut pax);
        let mut name = path.as_os_str().as_bytes().to_vec();
        if node.is_directory() {
            if name.is_empty() {
                name.push(b'.');
            }
            name.push(b'/');
        }
        set_name(&mut header, 0..100, &name, b"path", &mut pax);
        if let Some(target) = &change.hardlink {
            header.set_entry_type(EntryType::Link);
            set_octal(&mut header, 124..136, 0);
            set_name(&mut header, 157..257, target.as_os_str().as_bytes(), b"linkpath", &mut pax);
            return self.write_headers(header, &pax);
        }
        for (name, value) in xattrs_of(self.upper, path, &node)? {
            if name.as_bytes().contains(&b'=') {
                return Err(TarError::AttributeName(path.clone()));
            }
            pax.add(&[b"SCHILY.xattr.", name.as_bytes()].concat(), &value);
        }
        match node.kind {
            Kind::Symlink => {
                let target = read_link(self.upper.as_fd(), path).at("read symlink", path)?;
                set_name(&mut header, 157..257, target.as_bytes(), b"linkpath", &mut pax);
                self.write_headers(header, &pax)
            }
            Kind::File => {
                self.write_headers(header, &pax)?;
                self.content(path, &node)
            }
            _ => self.write_headers(header, &pax),
        }
    }

    fn whiteout(&mut self, path: &Path) -> Result<(), TarError> {
        let mut name = std::ffi::OsString::from(WHITEOUT_PREFIX);
        name.push(path.file_name().unwrap_or_default());
        let path = path.with_file_name(name);
        let mut pax = Pax::default();
        let mut header = new_header(EntryType::Regular);
        set_name(&mut header, 0..100, path.as_os_str().as_bytes(), b"path", &mut pax);
        self.write_headers(header, &pax)
    }

    fn header(&self, node: &Node, pax: &mut Pax) -> Header {
        let entry_type = match node.kind {
            Kind::File | Kind::Socket => EntryType::Regular,
            Kind::Directory => EntryType::Directory,
            Kind::Symlink => EntryType::Symlink,
            Kind::CharDevice => EntryType::Char,
            Kind::BlockDevice => EntryType::Block,
            Kind::Fifo => EntryType::Fifo,
        };
        let mut header = new_header(entry_type);
        // A symlink has no mode of its own; what the system shows differs between file systems.
        let mode = if node.kind == Kind::Symlink { 0o777 } else { node.mode };
        set_octal(&mut header, 100..108, mode.into());
        set_number(&mut header, 108..116, node.owner.uid.into(), b"uid", pax);
        set_number(&mut header, 116..124, node.owner.gid.into(), b"gid", pax);
        if node.kind == Kind::File {
            set_number(&mut header, 124..136, node.size, b"size", pax);
        }
        let mtime = clamped(node.mtime, self.epoch);
        match u64::try_from(mtime) {
            Ok(mtime) => set_number(&mut header, 136..148, mtime, b"mtime", pax),
            Err(_) => pax.add(b"mtime", mtime.to_string().as_bytes()),
        }
        if matches!(node.kind, Kind::CharDevice | Kind::BlockDevice) {
            set_octal(&mut header, 329..337, rustix::fs::major(node.rdev).into());
            set_octal(&mut header, 337..345, rustix::fs::minor(node.rdev).into());
        }
        header
    }

    fn write_headers(&mut self, mut header: Header, pax: &Pax) -> Result<(), TarError> {
        if !pax.0.is_empty() {
            let mut extended = new_header(EntryType::XHeader);
            let name = b"PaxHeaders.0/next";
            extended.as_mut_bytes()[..name.len()].copy_from_slice(name);
            set_octal(&mut extended, 100..108, 0o644);
            set_octal(&mut extended, 124..136, pax.0.len() as u64);
            self.block(&mut extended)?;
            self.out.write_all(&pax.0).map_err(TarError::Write)?;
            self.pad(pax.0.len() as u64)?;
        }
        self.block(&mut header)
    }

    fn block(&mut self, header: &mut Header) -> Result<(), TarError> {
        header.set_cksum();
        self.out.write_all(header.as_bytes()).map_err(TarError::Write)
    }

    fn content(&mut self, path: &Path, node: &Node) -> Result<(), TarError> {
        let mut file = File::from(self.upper.open_known(path)?);
        let now = Node::of(&file).at("inspect", path)?;
        if (now.inode, now.size) != (node.inode, node.size) {
            return Err(TarError::Changed(path.to_owned()));
        }
        let mut left = node.size;
        while left > 0 {
            let limit = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = file.read(&mut self.buffer[..limit]).at("read", path)?;
            if count == 0 {
                return Err(TarError::Changed(path.to_owned()));
            }
            self.out.write_all(&self.buffer[..count]).map_err(TarError::Write)?;
            left -= count as u64;
        }
        self.stats.bytes += node.size;
        self.pad(node.size)
    }

    fn pad(&mut self, size: u64) -> Result<(), TarError> {
        let padding = usize::try_from(size.wrapping_neg() % 512).unwrap_or_default();
        self.out.write_all(&[0; 512][..padding]).map_err(TarError::Write)
    }
}

fn new_header(entry_type: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(entry_type);
    for field in [100..108, 108..116, 116..124, 124..136, 136..148, 329..337, 337..345] {
        set_octal(&mut header, field, 0);
    }
    header
}

/// Zero-padded octal digits and a zero byte; what does not fit is in a PAX record.
fn set_octal(header: &mut Header, at: std::ops::Range<usize>, number: u64) {
    let digits = at.len() - 1;
    let text = format!("{number:0digits$o}");
    if let (true, Some(field)) = (text.len() == digits, header.as_mut_bytes().get_mut(at)) {
        field[..digits].copy_from_slice(text.as_bytes());
        field[digits] = 0;
    }
}

fn set_number(header: &mut Header, at: std::ops::Range<usize>, number: u64, key: &[u8], pax: &mut Pax) {
    if number >> (3 * (at.len() - 1)) == 0 {
        set_octal(header, at, number);
    } else {
        pax.add(key, number.to_string().as_bytes());
    }
}

/// Puts a path into its field, and into a PAX record if it is too long or not ASCII.
fn set_name(header: &mut Header, at: std::ops::Range<usize>, name: &[u8], key: &[u8], pax: &mut Pax) {
    let fits = name.len() <= at.len();
    if !fits || !name.is_ascii() {
        if std::str::from_utf8(name).is_err() {
            pax.add(b"hdrcharset", b"BINARY");
        }
        pax.add(key, name);
    }
    if let Some(field) = header.as_mut_bytes().get_mut(at) {
        let length = name.len().min(field.len());
        field[..length].copy_from_slice(&name[..length]);
    }
}

/// The records of an extended header.
#[derive(Debug, Default)]
struct Pax(Vec<u8>);

impl Pax {
    /// Adds `<length> <key>=<value>\n`, whose length counts its own digits.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
