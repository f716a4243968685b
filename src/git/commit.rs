//! A commit and its tree: what is in it, and the tree as files.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use git2::{ObjectType, Oid};
use jiff::Timestamp;

use super::objects::{CommitHeader, Objects, TreeEntry, commit_id, oid};
use super::{GitError, Repository};
use crate::model::CommitId;

mod export;

pub use export::Exported;

/// More files and directories than this are not a source: trees that name each other a few times over have billions.
pub(super) const MAX_ENTRIES: u64 = 1_000_000;
/// Directories inside each other.
pub(super) const MAX_DEPTH: usize = 128;
/// All files of a commit together.
const MAX_TOTAL_BYTES: u64 = 16 << 30;
/// Names that a survey lists.
const MAX_LISTED: usize = 100;
/// A Git LFS pointer begins so, and has at most this many bytes (git-lfs docs/spec.md).
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const LFS_POINTER_MAX_BYTES: usize = 1024;

/// A commit whose objects are at hand. Its methods read the disk: no async code should wait for them.
pub struct Commit {
    id: CommitId,
    parents: Vec<CommitId>,
    header: CommitHeader,
    objects: Objects,
    /// Keeps what was brought of it.
    repository: Repository,
    /// The object directories, the first one first.
    directories: Vec<PathBuf>,
}

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A file that may be run.
    Executable,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A commit of another repository.
    Submodule,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, which contains no `/` and is neither `.` nor `..`.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
    /// Its object.
    pub id: CommitId,
}

/// What a commit has in it, of interest before it is built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// How many files and links.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Paths of submodules, at most 100: their files are in no push.
    pub submodules: Vec<String>,
    /// Paths of Git LFS pointers, at most 100: what they stand for is in no push.
    pub lfs_pointers: Vec<String>,
}

impl Commit {
    pub(super) fn open(
        repository: Repository,
        directories: Vec<PathBuf>,
        id: CommitId,
    ) -> Result<Self, GitError> {
        let paths: Vec<_> = directories.iter().map(PathBuf::as_path).collect();
        let objects = Objects::open(&paths)?;
        let header = objects.commit(oid(id))?;
        let parents = header.parents.iter().map(|parent| commit_id(*parent)).collect::<Result<_, _>>()?;
        Ok(Self { id, parents, header, objects, repository, directories })
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> CommitId {
        self.id
    }

    /// The commits before it, which may not be here.
    #[must_use]
    pub fn parents(&self) -> &[CommitId] {
        &self.parents
    }

    /// `Ada <ada@example.org>`, as the author wrote it.
    #[must_use]
    pub fn author(&self) -> &str {
        &self.header.author
    }

    /// The first line of the message.
    #[must_use]
    pub fn summary(&self) -> &str {
        &self.header.summary
    }

    /// When the committer made it: the `SOURCE_DATE_EPOCH` of a build. 1970 if the commit says nothing sensible.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        let seconds = self.header.committed_at.max(0);
        Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The entries of the root directory, in git's order.
    pub fn root(&self) -> Result<Vec<Entry>, GitError> {
        self.entries(self.header.tree)
    }

    /// The entries of a directory, in git's order; `None` if there is no such directory.
    pub fn list(&self, directory: &str) -> Result<Option<Vec<Entry>>, GitError> {
        match self.find(directory)? {
            Some((id, EntryKind::Directory)) => self.entries(id).map(Some),
            _ => Ok(None),
        }
    }

    /// The content of a file of at most `max_bytes`; `None` if there is no such file. Links are not followed.
    pub fn read(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, GitError> {
        match self.find(path)? {
            Some((id, EntryKind::File | EntryKind::Executable)) => {
                let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
                Ok(Some(self.objects.read(id, max_bytes)?.data().to_vec()))
            }
            _ => Ok(None),
        }
    }

    /// Counts the files, and finds those whose content is not in the repository.
    pub fn survey(&self) -> Result<Survey, GitError> {
        let mut survey = Survey::default();
        self.walk(|path, entry| {
            if entry.is_submodule() {
                note(&mut survey.submodules, path);
                return Ok(());
            }
            let (kind, bytes) = self.objects.header(entry.id)?;
            if kind != ObjectType::Blob {
                let (expected, found) = (ObjectType::Blob.str(), kind.str());
                return Err(GitError::Kind { id: entry.id.to_string(), expected, found });
            }
            survey.files += 1;
            survey.bytes += bytes as u64;
            let small = (LFS_POINTER.len()..=LFS_POINTER_MAX_BYTES).contains(&bytes);
            if small && !entry.is_symlink() {
                let blob = self.objects.read(entry.id, LFS_POINTER_MAX_BYTES)?;
                if blob.data().starts_with(LFS_POINTER) {
                    note(&mut survey.lfs_pointers, path);
                }
            }
            if survey.bytes > MAX_TOTAL_BYTES { Err(GitError::TooManyBytes(MAX_TOTAL_BYTES)) } else { Ok(()) }
        })?;
        Ok(survey)
    }

    /// At most `at_most` paths of files that this commit has otherwise than `before`, or does not have any more.
    pub fn changed_paths(&self, before: &Self, at_most: usize) -> Result<Vec<String>, GitError> {
        let mut changed = Vec::new();
        let mut pairs = vec![(Vec::new(), Some(before.header.tree), Some(self.header.tree))];
        while let Some((path, old, new)) = pairs.pop() {
            if old == new || changed.len() >= at_most || depth(&path) > MAX_DEPTH {
                continue;
            }
            let entries =
                |objects: &Objects, id: Option<Oid>| id.map_or(Ok(Vec::new()), |id| objects.tree(id));
            let (old, new) = (entries(&before.objects, old)?, entries(&self.objects, new)?);
            for (name, old, new) in paired(&old, &new) {
                if old == new {
                    continue;
                }
                let path = join(&path, name);
                let tree = |entry: Option<&TreeEntry>| entry.filter(|e| e.is_tree()).map(|e| e.id);
                if [old, new].iter().flatten().any(|entry| !entry.is_tree()) && changed.len() < at_most {
                    changed.push(String::from_utf8_lossy(&path).into_owned());
                }
                if tree(old).is_some() || tree(new).is_some() {
                    pairs.push((path, tree(old), tree(new)));
                }
            }
        }
        changed.sort();
        Ok(changed)
    }

    fn entries(&self, tree: Oid) -> Result<Vec<Entry>, GitError> {
        let entry = |entry: TreeEntry| {
            let (kind, id) = (kind(&entry), commit_id(entry.id)?);
            Ok(Entry { name: OsString::from_vec(entry.name), kind, id })
        };
        self.objects.tree(tree)?.into_iter().map(entry).collect()
    }

    /// The object at a path; `.` and empty parts stand for the directory they are in, `..` for nothing.
    fn find(&self, path: &str) -> Result<Option<(Oid, EntryKind)>, GitError> {
        let mut at = (self.header.tree, EntryKind::Directory);
        for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
            if at.1 != EntryKind::Directory {
                return Ok(None);
            }
            let entries = self.objects.tree(at.0)?;
            let Some(entry) = entries.iter().find(|entry| entry.name == part.as_bytes()) else {
                return Ok(None);
            };
            at = (entry.id, kind(entry));
        }
        Ok(Some(at))
    }

    /// Calls `visit` for every entry that is no directory, in git's order within each directory.
    fn walk(&self, mut visit: impl FnMut(&[u8], &TreeEntry) -> Result<(), GitError>) -> Result<(), GitError> {
        let mut seen = 0;
        let mut trees = vec![(Vec::new(), self.header.tree)];
        while let Some((path, tree)) = trees.pop() {
            for entry in self.objects.tree(tree)? {
                seen += 1;
                let path = join(&path, &entry.name);
                if seen > MAX_ENTRIES || depth(&path) > MAX_DEPTH {
                    return Err(GitError::TooManyFiles(MAX_ENTRIES));
                }
                if entry.is_tree() {
                    trees.push((path, entry.id));
                } else {
                    visit(&path, &entry)?;
                }
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commit").field("id", &self.id).field("header", &self.header).finish_non_exhaustive()
    }
}

const fn kind(entry: &TreeEntry) -> EntryKind {
    if entry.is_tree() {
        EntryKind::Directory
    } else if entry.is_submodule() {
        EntryKind::Submodule
    } else if entry.is_symlink() {
        EntryKind::Symlink
    } else if entry.mode & 0o100 == 0 {
        EntryKind::File
    } else {
        EntryKind::Executable
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
    [directory, separator, name].concat()
}

fn depth(path: &[u8]) -> usize {
    path.split(|b| *b == b'/').count()
}

fn note(paths: &mut Vec<String>, path: &[u8]) {
    if paths.len() < MAX_LISTED {
        paths.push(OsString::from_vec(path.to_vec()).to_string_lossy().into_owned());
    }
}

/// The entries of two directories, by name.
fn paired<'a>(
    old: &'a [TreeEntry],
    new: &'a [TreeEntry],
) -> Vec<(&'a [u8], Option<&'a TreeEntry>, Option<&'a TreeEntry>)> {
    let by_name = |entries: &'a [TreeEntry]| -> std::collections::BTreeMap<&'a [u8], &'a TreeEntry> {
        entries.iter().map(|entry| (entry.name.as_slice(), entry)).collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
    names.into_iter().map(|name| (name, old.get(name).copied(), new.get(name).copied())).collect()
}
