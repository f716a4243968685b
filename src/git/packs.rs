//! Packs as files: those of a push, to be kept elsewhere, and those kept elsewhere, to be taken in.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::quarantine::{Arrivals, shared};
use super::repository::sync_directory;
use super::{GitError, Quarantine, Repository};
use crate::model::CommitId;

/// A pack and its index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pack {
    /// `pack-` and the hash of its content.
    pub name: String,
    /// The objects.
    pub pack: PathBuf,
    /// Where each object is.
    pub index: PathBuf,
}

/// The packs in a directory that have an index.
fn in_directory(directory: &Path) -> Result<Vec<Pack>, GitError> {
    let mut packs = Vec::new();
    for entry in fs::read_dir(directory).map_err(GitError::io("read", directory))? {
        let pack = entry.map_err(GitError::io("read", directory))?.path();
        let name = pack.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let index = pack.with_extension("idx");
        if pack.extension().is_some_and(|extension| extension == "pack") && index.exists() {
            packs.push(Pack { name, pack, index });
        }
    }
    packs.sort();
    Ok(packs)
}

impl Quarantine {
    /// The packs of the push: each can be read without any other.
    pub fn packs(&self) -> Result<Vec<Pack>, GitError> {
        in_directory(&self.path().join("pack"))
    }
}

impl Repository {
    /// The names of the packs that are here.
    pub fn pack_names(&self) -> Result<BTreeSet<String>, GitError> {
        let packs = in_directory(&self.object_directory().join("pack"))?;
        Ok(packs.into_iter().map(|pack| pack.name).collect())
    }

    /// The packs that are here.
    pub fn packs(&self) -> Result<Vec<Pack>, GitError> {
        in_directory(&self.object_directory().join("pack"))
    }

    /// A directory on the repository's own disk for packs that are on their way.
    pub fn arrivals(&self) -> Result<Arrivals, GitError> {
        Arrivals::new(self)
    }

    /// Takes in packs, which it moves here, and the list of commits whose parents they lack. Blocks on the disk.
    ///
    /// The packs are trusted: they are those of a repository like this one.
    pub fn take_in(&self, packs: &[Pack], shallow: &BTreeSet<CommitId>) -> Result<(), GitError> {
        let _lock: File = shared(self)?;
        let before = self.shallow()?;
        // As in a push: the excuse before what it excuses, and taken back after what makes it needless.
        let both: BTreeSet<CommitId> = before.union(shallow).copied().collect();
        if both != before {
            self.set_shallow(&both)?;
        }
        self.move_in(packs)?;
        if *shallow != both {
            self.set_shallow(shallow)?;
        }
        Ok(())
    }

    /// Takes in packs of which the repository had the objects already, elsewhere. Blocks on the disk.
    pub fn take_in_more(&self, packs: &[Pack]) -> Result<(), GitError> {
        let _lock: File = shared(self)?;
        self.move_in(packs)
    }

    fn move_in(&self, packs: &[Pack]) -> Result<(), GitError> {
        let directory = self.object_directory().join("pack");
        for pack in packs {
            for (from, extension) in [(&pack.pack, "pack"), (&pack.index, "idx")] {
                sync(from).map_err(GitError::io("sync", from))?;
                let to = directory.join(format!("{}.{extension}", pack.name));
                fs::rename(from, &to).map_err(GitError::io("move", from))?;
            }
        }
        if packs.is_empty() { Ok(()) } else { sync_directory(&directory) }
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
