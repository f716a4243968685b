//! Reading objects from object directories, without a repository: no configuration, no hooks, no refs, no
//! owner of a directory has a say in what is read.

use std::path::Path;
use std::sync::Arc;

use git2::{ObjectType, Odb, OdbLookupFlags, Oid};

use super::{Distant, GitError};
use crate::model::CommitId;

/// The largest commit, tag or tree that is taken into memory.
const MAX_STRUCTURE_BYTES: usize = 32 << 20;
/// How many tags may name each other before a commit.
pub(super) const MAX_TAG_DEPTH: usize = 8;

/// Objects of one or more directories, and which there are elsewhere.
pub(super) struct Objects {
    here: Odb<'static>,
    distant: Option<Arc<Distant>>,
}

impl Objects {
    pub(super) fn open(directories: &[&Path]) -> Result<Self, GitError> {
        // What is stored was hashed by `git index-pack` when it came; libgit2 would hash it again on each read.
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| git2::opts::strict_hash_verification(false));
        let odb = Odb::new().map_err(GitError::Open)?;
        for directory in directories {
            let path = directory.to_str().ok_or_else(|| GitError::NotUtf8(directory.to_path_buf()))?;
            odb.add_disk_alternate(path).map_err(GitError::Open)?;
        }
        Ok(Self { here: odb, distant: None })
    }

    /// These, and those of packs that are elsewhere.
    pub(super) fn and(self, distant: Option<&Arc<Distant>>) -> Self {
        Self { distant: distant.cloned(), ..self }
    }

    /// Whether there is such an object, here or elsewhere.
    pub(super) fn contains(&self, id: Oid) -> bool {
        self.is_here(id) || self.distant.as_ref().is_some_and(|distant| distant.contains(id))
    }

    /// Whether the object can be read.
    pub(super) fn is_here(&self, id: Oid) -> bool {
        self.here.exists_ext(id, OdbLookupFlags::NO_REFRESH)
    }

    /// The kind and the size, without reading the object.
    pub(super) fn header(&self, id: Oid) -> Result<(ObjectType, usize), GitError> {
        self.here.read_header(id).map(|(size, kind)| (kind, size)).map_err(|error| missing(id, error))
    }

    /// The whole object, if it has at most `max_bytes`.
    pub(super) fn read(&self, id: Oid, max_bytes: usize) -> Result<git2::OdbObject<'_>, GitError> {
        let (_, bytes) = self.header(id)?;
        if bytes > max_bytes {
            return Err(GitError::TooLarge { id: id.to_string(), bytes, max_bytes });
        }
        self.here.read(id).map_err(|error| missing(id, error))
    }

    /// A commit, tag or tree.
    pub(super) fn structure(&self, id: Oid, kind: ObjectType) -> Result<git2::OdbObject<'_>, GitError> {
        let object = self.read(id, MAX_STRUCTURE_BYTES)?;
        if object.kind() == kind {
            Ok(object)
        } else {
            Err(GitError::Kind { id: id.to_string(), expected: kind.str(), found: object.kind().str() })
        }
    }

    pub(super) fn commit(&self, id: Oid) -> Result<CommitHeader, GitError> {
        CommitHeader::parse(id, self.structure(id, ObjectType::Commit)?.data())
    }

    pub(super) fn tree(&self, id: Oid) -> Result<Vec<TreeEntry>, GitError> {
        parse_tree(id, self.structure(id, ObjectType::Tree)?.data())
    }

    /// What a tag names.
    pub(super) fn tag(&self, id: Oid) -> Result<Oid, GitError> {
        tag_target(id, self.structure(id, ObjectType::Tag)?.data())
    }

    /// What a tag names in the end: the object after the last tag, and its kind.
    pub(super) fn peel(&self, id: Oid) -> Result<(Oid, ObjectType), GitError> {
        let mut at = id;
        for _ in 0..MAX_TAG_DEPTH {
            match self.header(at)?.0 {
                ObjectType::Tag => at = self.tag(at)?,
                kind => return Ok((at, kind)),
            }
        }
        Err(malformed(id, "tags that name tags without end"))
    }
}

fn missing(id: Oid, error: git2::Error) -> GitError {
    GitError::Read { id: id.to_string(), source: error }
}

fn malformed(id: Oid, what: &'static str) -> GitError {
    GitError::Malformed { id: id.to_string(), what }
}

/// The same id in libgit2's type.
pub(super) fn oid(id: CommitId) -> Oid {
    let mut bytes = [0; 20];
    // An id is 40 hexadecimal digits: this cannot fail, and a zero id names nothing.
    let _always = hex::decode_to_slice(id.to_string(), &mut bytes);
    Oid::from_bytes(&bytes).unwrap_or(Oid::ZERO_SHA1)
}

/// The same id in our type.
pub(super) fn commit_id(id: Oid) -> Result<CommitId, GitError> {
    id.to_string().parse().map_err(|_| malformed(id, "an id that is not SHA-1"))
}

/// What we read of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommitHeader {
    pub(super) tree: Oid,
    pub(super) parents: Vec<Oid>,
    /// `Ada <ada@example.org>`.
    pub(super) author: String,
    /// When the committer made it, in seconds since 1970.
    pub(super) committed_at: i64,
    /// The first line of the message.
    pub(super) summary: String,
}

impl CommitHeader {
    fn parse(id: Oid, data: &[u8]) -> Result<Self, GitError> {
        let (header, message) = split_once(data, b"\n\n").unwrap_or((data, b""));
        let mut lines = header.split(|b| *b == b'\n');
        let mut tree = None;
        let mut parents = Vec::new();
        let (mut author, mut committed_at) = (String::new(), None);
        for line in &mut lines {
            match split_once(line, b" ") {
                Some((b"tree", hex)) if tree.is_none() => tree = parse_id(hex),
                Some((b"parent", hex)) => {
                    parents.push(parse_id(hex).ok_or_else(|| malformed(id, "a parent"))?);
                }
                Some((b"author", who)) => author = String::from_utf8_lossy(person(who).0).into_owned(),
                Some((b"committer", who)) => {
                    committed_at = person(who).1;
                    break;
                }
                _ => {}
            }
        }
        let summary = message.split(|b| *b == b'\n').find(|line| !line.is_empty()).unwrap_or_default();
        Ok(Self {
            tree: tree.ok_or_else(|| malformed(id, "a commit without a tree"))?,
            parents,
            author,
            committed_at: committed_at.unwrap_or(0),
            summary: String::from_utf8_lossy(summary).into_owned(),
        })
    }
}

/// `Ada <ada@example.org> 1700000000 +0100` as name and seconds.
fn person(line: &[u8]) -> (&[u8], Option<i64>) {
    let Some(end) = line.iter().rposition(|b| *b == b'>') else { return (line, None) };
    let (who, when) = line.split_at(end + 1);
    let seconds = when.split(|b| *b == b' ').find(|word| !word.is_empty());
    (who, seconds.and_then(|word| std::str::from_utf8(word).ok()?.parse().ok()))
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TreeEntry {
    pub(super) mode: u32,
    pub(super) name: Vec<u8>,
    pub(super) id: Oid,
}

impl TreeEntry {
    pub(super) const fn is_tree(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    pub(super) const fn is_submodule(&self) -> bool {
        self.mode & 0o170_000 == 0o160_000
    }

    pub(super) const fn is_symlink(&self) -> bool {
        self.mode & 0o170_000 == 0o120_000
    }
}

/// `<octal mode> <name> NUL <20 bytes>`, again and again. A name that would leave its directory is refused.
fn parse_tree(id: Oid, mut data: &[u8]) -> Result<Vec<TreeEntry>, GitError> {
    let mut entries = Vec::with_capacity(data.len() / 32);
    while !data.is_empty() {
        let entry = || {
            let (mode, rest) = split_once(data, b" ")?;
            let (name, rest) = split_once(rest, b"\0")?;
            let (hash, rest) = rest.split_at_checked(20)?;
            let mode = u32::from_str_radix(std::str::from_utf8(mode).ok()?, 8).ok()?;
            Some((TreeEntry { mode, name: name.to_vec(), id: Oid::from_bytes(hash).ok()? }, rest))
        };
        let (entry, rest) = entry().ok_or_else(|| malformed(id, "a tree entry cut short"))?;
        let escapes = matches!(entry.name.as_slice(), b"" | b"." | b"..") || entry.name.contains(&b'/');
        if escapes || entry.name.eq_ignore_ascii_case(b".git") {
            return Err(malformed(id, "a tree entry whose name is not a file name"));
        }
        entries.push(entry);
        data = rest;
    }
    Ok(entries)
}

fn tag_target(id: Oid, data: &[u8]) -> Result<Oid, GitError> {
    let line = data.split(|b| *b == b'\n').next().unwrap_or_default();
    line.strip_prefix(b"object ").and_then(parse_id).ok_or_else(|| malformed(id, "a tag without an object"))
}

fn parse_id(hex: &[u8]) -> Option<Oid> {
    let text = std::str::from_utf8(hex).ok().filter(|text| text.len() == 40)?;
    Oid::from_str(text).ok()
}

fn split_once<'a>(data: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = data.windows(separator.len()).position(|window| window == separator)?;
    Some((data.get(..at)?, data.get(at + separator.len()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6c8a51efd4f2f0b2a90ad8ba8aae2e8a3a7e2a51";

    #[test]
    fn a_commit_is_read_with_its_committers_time() {
        let text = format!(
            "tree {ID}\nparent {ID}\nauthor Ada <ada@example.org> 1 +0000\ncommitter Bob > <b@x> 1700000000 +0100\ngpgsig -\n\n\nFirst\nsecond\n"
        );
        let commit = CommitHeader::parse(Oid::ZERO_SHA1, text.as_bytes()).unwrap();
        assert_eq!(commit.parents.len(), 1);
        assert_eq!(commit.author, "Ada <ada@example.org>");
        assert_eq!(commit.committed_at, 1_700_000_000);
        assert_eq!(commit.summary, "First");
    }

    #[test]
    fn tree_entries_that_leave_their_directory_are_refused() {
        for name in ["", ".", "..", ".git", ".GIT", "a/b", "/etc"] {
            let mut data = format!("100644 {name}\0").into_bytes();
            data.extend_from_slice(&[1; 20]);
            assert!(parse_tree(Oid::ZERO_SHA1, &data).is_err(), "{name}");
        }
        assert!(parse_tree(Oid::ZERO_SHA1, b"100644 a\0short").is_err());
    }
}
