//! Objects of a push that is not decided: beside the repository's, seen with them, gone unless taken over.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::commit::Commit;
use super::objects::Objects;
use super::repository::{Repository, shallow_text, sync_directory};
use super::{GitError, child};
use crate::model::CommitId;

const PREFIX: &str = "incoming-";
const VIEW_PREFIX: &str = "view-";
const BROUGHT_PREFIX: &str = "brought-";
const ARRIVING_PREFIX: &str = "arriving-";
/// Locked by whoever uses the directory; an unlocked one is left over.
const LOCK: &str = "lock";
const SHALLOW: &str = "shallow";

/// The objects of one push. Dropping it deletes them.
#[derive(Debug)]
pub struct Quarantine {
    repository: Repository,
    directory: Directory,
    /// What the repository's list of shallow commits becomes.
    shallow: Option<BTreeSet<CommitId>>,
    /// Keeps [`Repository::collect`] from dropping what the push builds on.
    _repository_lock: File,
}

impl Quarantine {
    /// Makes an empty one; waits while the repository is being collected.
    pub(super) fn create(repository: &Repository) -> Result<Self, GitError> {
        let lock = shared(repository)?;
        let directory = Directory::create(&repository.object_directory(), PREFIX)?;
        let packs = directory.path().join("pack");
        fs::create_dir(&packs).map_err(GitError::io("create", packs))?;
        Ok(Self { repository: repository.clone(), directory, shallow: None, _repository_lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The objects of the push, then those of the repository.
    pub(super) fn objects(&self) -> Result<Objects, GitError> {
        let directories = self.directories();
        let paths: Vec<_> = directories.iter().map(PathBuf::as_path).collect();
        Ok(Objects::open(&paths)?.and(self.repository.distant()))
    }

    /// The objects of the push alone.
    pub(super) fn own_objects(&self) -> Result<Objects, GitError> {
        Objects::open(&[self.path()])
    }

    /// The repository that the push is for.
    pub(super) const fn repository(&self) -> &Repository {
        &self.repository
    }

    fn directories(&self) -> Vec<PathBuf> {
        std::iter::once(self.path().to_owned()).chain(self.repository.object_directories()).collect()
    }

    pub(super) fn set_shallow(&mut self, shallow: BTreeSet<CommitId>) {
        self.shallow = Some(shallow);
    }

    /// `git <command>` that writes here, and reads here and in the repository.
    pub(super) fn git(&self, command: &str) -> Result<tokio::process::Command, GitError> {
        self.git_in(self.path(), command)
    }

    /// The same that writes into another directory, and reads there and in the repository.
    pub(super) fn git_in(&self, path: &Path, command: &str) -> Result<tokio::process::Command, GitError> {
        let mut others = Vec::new();
        for directory in self.repository.object_directories() {
            let directory = directory.to_str().ok_or_else(|| GitError::NotUtf8(directory.clone()))?;
            others.push(child::quoted_alternate(directory));
        }
        let mut git = child::git(self.repository.path(), command);
        git.env("GIT_OBJECT_DIRECTORY", path)
            .env("GIT_QUARANTINE_PATH", path)
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", others.join(":"))
            .env("GIT_SHALLOW_FILE", self.path().join(SHALLOW));
        Ok(git)
    }

    /// Writes the list of shallow commits that [`Self::git`] reads.
    pub(super) fn write_shallow(&self, shallow: &BTreeSet<CommitId>) -> Result<(), GitError> {
        let path = self.path().join(SHALLOW);
        fs::write(&path, shallow_text(shallow)).map_err(GitError::io("write", path))
    }

    /// Reads a commit of the push, or of the repository.
    pub fn commit(&self, id: CommitId) -> Result<Commit, GitError> {
        Commit::open(self.repository.clone(), self.directories(), id)
    }

    /// Moves the objects into the repository, and makes `keep` survive [`Repository::collect`]. Returns the commits
    /// whose parents the repository does not have.
    ///
    /// A crash in between leaves objects that nothing names, and the same push works again. Blocks on the disk.
    pub fn migrate(self, keep: &[CommitId]) -> Result<BTreeSet<CommitId>, GitError> {
        let before = self.repository.shallow()?;
        let after = self.shallow.clone().unwrap_or_else(|| before.clone());
        // A pack must not be there before the list that excuses what it lacks, and must be there before an excuse
        // is taken back.
        let both: BTreeSet<CommitId> = before.union(&after).copied().collect();
        if both != before {
            self.repository.set_shallow(&both)?;
        }
        self.move_packs()?;
        if after != both {
            self.repository.set_shallow(&after)?;
        }
        self.repository.keep_also(keep)?;
        Ok(after)
    }

    /// The index last: with it, git sees the pack.
    fn move_packs(&self) -> Result<(), GitError> {
        let from = self.path().join("pack");
        let to = self.repository.object_directory().join("pack");
        let entries = fs::read_dir(&from).map_err(GitError::io("read", &from))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|e| e == "pack" || e == "rev" || e == "idx"));
        files.sort_by_key(|file| file.extension().is_some_and(|extension| extension == "idx"));
        for file in &files {
            let target = to.join(file.file_name().unwrap_or_default());
            // The name is the hash of the content.
            if !target.exists() {
                fs::rename(file, &target).map_err(GitError::io("move", file))?;
            }
        }
        if files.is_empty() { Ok(()) } else { sync_directory(&to) }
    }
}

/// Waits while objects are being dropped, and keeps them from being dropped.
pub(super) fn shared(repository: &Repository) -> Result<File, GitError> {
    let lock = repository.lock_file()?;
    flock(&lock, FlockOperation::LockShared)
        .map_err(|error| GitError::io("lock", repository.path())(error.into()))?;
    Ok(lock)
}

/// A directory inside the repository that goes with its user, also when the user is killed.
#[derive(Debug)]
pub(super) struct Directory {
    directory: tempfile::TempDir,
    _lock: File,
}

impl Directory {
    fn create(parent: &Path, prefix: &str) -> Result<Self, GitError> {
        let directory = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(parent)
            .map_err(GitError::io("create a directory in", parent))?;
        let lock = directory.path().join(LOCK);
        let lock = File::create(&lock).map_err(GitError::io("create", lock))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| GitError::io("lock", directory.path())(error.into()))?;
        Ok(Self { directory, _lock: lock })
    }

    /// A place for a view of the refs.
    pub(super) fn for_view(repository: &Repository) -> Result<Self, GitError> {
        let _until_made = shared(repository)?;
        Self::create(repository.path(), VIEW_PREFIX)
    }

    /// A place for what is brought of packs that are elsewhere.
    pub(super) fn for_brought(repository: &Repository) -> Result<Self, GitError> {
        let _until_made = shared(repository)?;
        Self::create(repository.path(), BROUGHT_PREFIX)
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// A directory on a repository's own disk for packs that are on their way.
#[derive(Debug)]
pub struct Arrivals(Directory);

impl Arrivals {
    /// One of its own.
    pub(super) fn new(repository: &Repository) -> Result<Self, GitError> {
        let _until_made = shared(repository)?;
        Directory::create(&repository.object_directory(), ARRIVING_PREFIX).map(Self)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Deletes the directories that a killed process left. The repository is locked: none is being made.
pub(super) fn sweep(repository: &Path) -> Result<(), GitError> {
    let own = repository.to_owned();
    let objects = repository.join("objects");
    let places = [
        (objects.clone(), PREFIX),
        (objects, ARRIVING_PREFIX),
        (own.clone(), VIEW_PREFIX),
        (own, BROUGHT_PREFIX),
    ];
    for (parent, prefix) in places {
        for entry in fs::read_dir(&parent).map_err(GitError::io("read", &parent))?.flatten() {
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
            if !ours {
                continue;
            }
            let lock = File::open(entry.path().join(LOCK));
            let in_use =
                lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err());
            if !in_use {
                match fs::remove_dir_all(entry.path()) {
                    // Its user was just removing it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed.map_err(GitError::io("remove", entry.path()))?,
                }
            }
        }
    }
    Ok(())
}
