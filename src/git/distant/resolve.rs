//! Objects of a pack from its parts, each checked by its id and then an object of its own.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use git2::{ObjectType, Oid};
use sha1::{Digest as _, Sha1};

use super::entry::{self, Content, Header, MAX_HEADER_BYTES};
use super::index::PackIndex;
use super::spool::Spool;
use crate::git::GitError;

/// No chain of differences is longer: git makes none of more than 4095.
pub(super) const MAX_CHAIN: usize = 4096;
/// What is made of differences is held in memory, and is no larger.
const MAX_MADE_BYTES: usize = 64 << 20;
/// So much of what others are made of is held in memory.
const CACHE_BYTES: usize = 64 << 20;

/// Why an object cannot be had from the parts of its pack.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The pack is not what it should be, or not for us: the whole of it may be.
    Pack(io::Error),
    /// This disk.
    Disk(GitError),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Pack(error)
    }
}

/// The pack is not what it should be.
pub(super) fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads the header of the object that begins at `offset`.
pub(super) fn header(index: &PackIndex, spool: &Spool, offset: u64) -> io::Result<Header> {
    let extent = index.extent(offset).ok_or_else(|| damaged("a base is no object of the pack"))?;
    let end = extent.end.min(offset + MAX_HEADER_BYTES as u64);
    let mut bytes = Vec::with_capacity(MAX_HEADER_BYTES);
    spool.read(offset..end)?.read_to_end(&mut bytes)?;
    Header::parse(&bytes, offset).map_err(damaged)
}

/// Where the base of an object begins, if it has one.
pub(super) fn base(index: &PackIndex, header: &Header) -> io::Result<Option<u64>> {
    match header.content {
        Content::Whole(_) => Ok(None),
        Content::Against(offset) => Ok(Some(offset)),
        Content::AgainstId(id) => {
            index.find(id).map(Some).ok_or_else(|| damaged("a base is not in the pack"))
        }
    }
}

/// Makes objects of one pack.
pub(super) struct Resolver<'a> {
    index: &'a PackIndex,
    spool: &'a Spool,
    /// Objects that others may be made of, by where they begin.
    made: HashMap<u64, Object>,
    made_bytes: usize,
}

#[derive(Clone)]
struct Object {
    kind: ObjectType,
    content: Arc<Vec<u8>>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(index: &'a PackIndex, spool: &'a Spool) -> Self {
        Self { index, spool, made: HashMap::new(), made_bytes: 0 }
    }

    /// Writes the object of this id, which begins at `offset`, into an object directory.
    pub(super) fn write(&mut self, id: Oid, offset: u64, directory: &Path) -> Result<(), Trouble> {
        let header = header(self.index, self.spool, offset)?;
        match header.content {
            // Of one that is large none is held whole.
            Content::Whole(kind) if header.size > MAX_MADE_BYTES as u64 => {
                let content = flate2::read::ZlibDecoder::new(self.packed(offset, &header)?);
                write_loose((id, kind), header.size, content, directory)
            }
            _ => {
                let object = self.object(offset)?;
                let size = object.content.len() as u64;
                write_loose((id, object.kind), size, object.content.as_slice(), directory)
            }
        }
    }

    fn packed(&self, offset: u64, header: &Header) -> io::Result<impl Read + use<'a>> {
        let extent = self.index.extent(offset).ok_or_else(|| damaged("an object is not in the pack"))?;
        self.spool.read(offset + header.length as u64..extent.end)
    }

    fn object(&mut self, offset: u64) -> io::Result<Object> {
        let (mut at, mut differences) = (offset, Vec::new());
        let mut object = loop {
            if let Some(made) = self.made.get(&at) {
                break made.clone();
            }
            let header = header(self.index, self.spool, at)?;
            let size = usize::try_from(header.size).ok().filter(|size| *size <= MAX_MADE_BYTES);
            let size = size.ok_or_else(|| damaged("an object is too large to be made of parts"))?;
            if let Content::Whole(kind) = header.content {
                let content = Arc::new(entry::inflate(self.packed(at, &header)?, size)?);
                let object = Object { kind, content };
                self.remember(at, &object);
                break object;
            }
            differences.push((at, header.length, size));
            if differences.len() > MAX_CHAIN {
                return Err(damaged("a chain of differences has no end"));
            }
            at = base(self.index, &header)?.ok_or_else(|| damaged("a difference has no base"))?;
        };
        while let Some((at, length, size)) = differences.pop() {
            let extent = self.index.extent(at).ok_or_else(|| damaged("an object is not in the pack"))?;
            let delta = entry::inflate(self.spool.read(at + length as u64..extent.end)?, size)?;
            let content = entry::apply(&object.content, &delta, MAX_MADE_BYTES).map_err(damaged)?;
            object = Object { kind: object.kind, content: Arc::new(content) };
            self.remember(at, &object);
        }
        Ok(object)
    }

    fn remember(&mut self, offset: u64, object: &Object) {
        if self.made_bytes + object.content.len() > CACHE_BYTES {
            self.made.clear();
            self.made_bytes = 0;
        }
        self.made_bytes += object.content.len();
        self.made.insert(offset, object.clone());
    }
}

/// Where an object of its own is in a directory.
pub(super) fn loose_path(directory: &Path, id: Oid) -> std::path::PathBuf {
    let name = id.to_string();
    let (fan_out, rest) = name.split_at(2);
    directory.join(fan_out).join(rest)
}

/// Writes an object that has this id, whole or not at all.
fn write_loose(
    (id, kind): (Oid, ObjectType),
    size: u64,
    content: impl Read,
    directory: &Path,
) -> Result<(), Trouble> {
    let path = loose_path(directory, id);
    let disk = |source| Trouble::Disk(GitError::Io { doing: "write", path: path.clone(), source });
    let parent = path.parent().unwrap_or(directory);
    fs::create_dir_all(parent).map_err(disk)?;
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(disk)?;
    let mut packed = flate2::write::ZlibEncoder::new(&mut file, flate2::Compression::fast());
    let begin = format!("{} {size}\0", kind.str());
    let mut sum = Sha1::new();
    sum.update(&begin);
    packed.write_all(begin.as_bytes()).map_err(disk)?;
    let (mut content, mut buffer, mut left) = (content, vec![0; 64 << 10], size);
    loop {
        let read = content.read(&mut buffer)?;
        let part = buffer.get(..read).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        left = left.checked_sub(read as u64).ok_or_else(|| damaged("an object is longer than it says"))?;
        sum.update(part);
        packed.write_all(part).map_err(disk)?;
    }
    if left > 0 || sum.finalize().as_slice() != id.as_bytes() {
        return Err(Trouble::Pack(damaged("an object is not what its id says")));
    }
    packed.finish().map_err(disk)?;
    // Not synced: after a crash of the machine another directory takes its place.
    file.persist(&path).map_err(|error| disk(error.error))?;
    Ok(())
}
