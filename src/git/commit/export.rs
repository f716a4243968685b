//! The tree of a commit as files.
//!
//! Each directory is made by us and used through its descriptor, each file is created and never opened: whatever a
//! tree says, nothing outside is written and no link is followed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use git2::{ObjectType, Oid};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};

use super::super::objects::TreeEntry;
use super::super::{GitError, child};
use super::{Commit, MAX_DEPTH, MAX_ENTRIES, MAX_TOTAL_BYTES};

/// Larger files are streamed by a child: libgit2 holds whole objects in memory.
const STREAMED_BYTES: usize = 16 << 20;
/// The longest target of a link.
const MAX_TARGET_BYTES: usize = 4095;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// How many files and links.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

struct Export<'a> {
    commit: &'a Commit,
    times: Timestamps,
    /// Files come with the wrong mode: each call that changes one costs as much as making it.
    masked: bool,
    entries: u64,
    done: Exported,
    /// For messages: where we are.
    path: PathBuf,
}

impl Commit {
    /// Writes all files into `directory`, which is made and must not be there before.
    ///
    /// Modes are 0644 or 0755, every time is the commit's, a submodule is an empty directory. What was written
    /// before an error stays: the caller deletes `directory`.
    pub fn export(&self, directory: &Path) -> Result<Exported, GitError> {
        let all = fs::DirBuilder::new().mode(0o777).create(directory);
        all.map_err(GitError::io("create", directory))?;
        let time = Timespec { tv_sec: self.time().as_second(), tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let root = File::open(directory).map_err(GitError::io("open", directory))?;
        // What the directory lacks of what it was made with, files will lack too.
        let got = root.metadata().map_err(GitError::io("read", directory))?.mode();
        let (masked, path) = (got & 0o755 != 0o755, directory.to_owned());
        let mut export = Export { commit: self, times, masked, entries: 0, done: Exported::default(), path };
        export.tree(root.as_fd(), self.header.tree, 0)?;
        Ok(export.done)
    }
}

impl Export<'_> {
    fn tree(&mut self, directory: BorrowedFd<'_>, tree: Oid, depth: usize) -> Result<(), GitError> {
        let entries = self.commit.objects.tree(tree)?;
        self.entries += entries.len() as u64;
        if self.entries > MAX_ENTRIES || depth > MAX_DEPTH {
            return Err(GitError::TooManyFiles(MAX_ENTRIES));
        }
        for entry in &entries {
            self.path.push(std::ffi::OsStr::new(std::str::from_utf8(&entry.name).unwrap_or("?")));
            if entry.is_tree() || entry.is_submodule() {
                let made = self.made(self.directory(directory, entry))?;
                if entry.is_tree() {
                    self.tree(made.as_fd(), entry.id, depth + 1)?;
                }
            } else if entry.is_symlink() {
                self.link(directory, entry)?;
            } else {
                self.file(directory, entry)?;
            }
            self.path.pop();
        }
        if self.masked || depth == 0 {
            self.made(rustix::fs::fchmod(directory, Mode::from_raw_mode(0o755)))?;
        }
        // Last: each file made in it changed its time.
        self.made(rustix::fs::futimens(directory, &self.times))
    }

    fn directory(&self, parent: BorrowedFd<'_>, entry: &TreeEntry) -> rustix::io::Result<OwnedFd> {
        rustix::fs::mkdirat(parent, entry.name.as_slice(), Mode::from_raw_mode(0o755))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, entry.name.as_slice(), flags, Mode::empty())?;
        if entry.is_submodule() {
            rustix::fs::futimens(&made, &self.times)?;
        }
        Ok(made)
    }

    fn link(&mut self, directory: BorrowedFd<'_>, entry: &TreeEntry) -> Result<(), GitError> {
        let blob = self.commit.objects.read(entry.id, MAX_TARGET_BYTES)?;
        self.count(blob.len())?;
        let name = entry.name.as_slice();
        self.made(rustix::fs::symlinkat(blob.data(), directory, name))?;
        self.made(rustix::fs::utimensat(directory, name, &self.times, AtFlags::SYMLINK_NOFOLLOW))
    }

    fn file(&mut self, directory: BorrowedFd<'_>, entry: &TreeEntry) -> Result<(), GitError> {
        let (kind, bytes) = self.commit.objects.header(entry.id)?;
        if kind != ObjectType::Blob {
            let (expected, found) = (ObjectType::Blob.str(), kind.str());
            return Err(GitError::Kind { id: entry.id.to_string(), expected, found });
        }
        self.count(bytes)?;
        let mode = Mode::from_raw_mode(if entry.mode & 0o100 == 0 { 0o644 } else { 0o755 });
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.made(rustix::fs::openat(directory, entry.name.as_slice(), flags, mode))?;
        let mut file = File::from(file);
        if bytes > STREAMED_BYTES {
            self.stream(entry.id, bytes, &file)?;
        } else {
            let blob = self.commit.objects.read(entry.id, STREAMED_BYTES)?;
            file.write_all(blob.data()).map_err(GitError::io("write", &self.path))?;
        }
        if self.masked {
            self.made(rustix::fs::fchmod(&file, mode))?;
        }
        self.made(rustix::fs::futimens(&file, &self.times))
    }

    /// `git cat-file` writes into the file itself.
    fn stream(&self, id: Oid, bytes: usize, file: &File) -> Result<(), GitError> {
        let failed = GitError::io("write", &self.path);
        let run = || -> io::Result<bool> {
            let id = id.to_string();
            let git = self.commit.git(&["cat-file", "blob", &id]);
            let mut git = git.ok_or(io::ErrorKind::InvalidInput)?;
            let status = git.stdout(Stdio::from(file.try_clone()?)).stderr(Stdio::null()).status()?;
            Ok(status.success() && file.metadata()?.len() == bytes as u64)
        };
        if run().map_err(failed)? {
            Ok(())
        } else {
            let message = format!("the object {id} was not written whole to `{}`", self.path.display());
            Err(GitError::Child { command: "cat-file", status: "incomplete".to_owned(), message })
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), GitError> {
        self.done.files += 1;
        self.done.bytes += bytes as u64;
        if self.done.bytes > MAX_TOTAL_BYTES { Err(GitError::TooManyBytes(MAX_TOTAL_BYTES)) } else { Ok(()) }
    }

    fn made<T>(&self, result: rustix::io::Result<T>) -> Result<T, GitError> {
        result.map_err(|error| GitError::io("create", &self.path)(error.into()))
    }
}

impl Commit {
    /// `git` that reads the object directories of this commit.
    fn git(&self, arguments: &[&str]) -> Option<std::process::Command> {
        let (command, rest) = arguments.split_first()?;
        let mut git = child::git(self.repository.path(), command).into_std();
        git.args(rest);
        let (first, others) = self.directories.split_first()?;
        git.env("GIT_OBJECT_DIRECTORY", first);
        let others: Vec<_> =
            others.iter().filter_map(|path| path.to_str()).map(child::quoted_alternate).collect();
        if !others.is_empty() {
            git.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", others.join(":"));
        }
        Some(git)
    }
}
