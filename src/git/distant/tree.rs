//! What a repository that is here in part lacks of a commit.

use std::collections::HashSet;

use git2::{ObjectType, Oid};

use super::blocking;
use crate::git::commit::{MAX_DEPTH, MAX_ENTRIES};
use crate::git::objects::{MAX_TAG_DEPTH, Objects, oid};
use crate::git::{GitError, Quarantine, Repository};
use crate::model::CommitId;

impl Repository {
    /// Sees to it that these objects can be read, if the repository has them and is here in part.
    pub async fn bring(&self, ids: &[CommitId]) -> Result<(), GitError> {
        self.bring_objects(ids.iter().copied().map(oid).collect()).await
    }

    pub(in crate::git) async fn bring_objects(&self, ids: Vec<Oid>) -> Result<(), GitError> {
        match self.distant() {
            Some(distant) => distant.bring(self.object_directory(), ids).await,
            None => Ok(()),
        }
    }

    /// The same of a commit and all its files.
    pub async fn bring_files(&self, commit: CommitId) -> Result<(), GitError> {
        if self.distant().is_none() {
            return Ok(());
        }
        self.bring(&[commit]).await?;
        let repository = self.clone();
        let root = blocking(move || Ok(repository.objects()?.commit(oid(commit))?.tree)).await?;
        let (mut trees, mut depth) = (vec![root], 0);
        let (mut seen, mut entries) = (HashSet::from([root]), 0);
        let mut files = HashSet::new();
        // Directory by directory downwards: those of one depth are brought together.
        while !trees.is_empty() {
            self.bring_objects(trees.clone()).await?;
            let repository = self.clone();
            let most = MAX_ENTRIES - entries;
            let read = blocking(move || entries_of(&repository.objects()?, &trees, most)).await?;
            trees = Vec::new();
            (entries, depth) = (entries + read.len() as u64, depth + 1);
            if depth > MAX_DEPTH + 1 {
                return Err(GitError::TooManyFiles(MAX_ENTRIES));
            }
            for (id, is_tree) in read {
                if !is_tree {
                    files.insert(id);
                } else if seen.insert(id) {
                    trees.push(id);
                }
            }
        }
        self.bring_objects(files.into_iter().collect()).await
    }
}

impl Quarantine {
    /// Sees to it that objects of the repository can be read, and what they name in the end if they are tags; tags may be
    /// of the push.
    pub(in crate::git) async fn bring_peeled(&self, ids: Vec<Oid>) -> Result<(), GitError> {
        let repository = self.repository();
        let mut ids = ids;
        for _ in 0..=MAX_TAG_DEPTH {
            if ids.is_empty() || repository.distant().is_none() {
                break;
            }
            repository.bring_objects(ids.clone()).await?;
            ids = tagged(&self.objects()?, &ids)?;
        }
        Ok(())
    }
}

/// What directories have in them, but not other repositories, and whether it is a directory; of no more than so many entries.
fn entries_of(objects: &Objects, trees: &[Oid], most: u64) -> Result<Vec<(Oid, bool)>, GitError> {
    let mut found = Vec::new();
    for tree in trees {
        let entries = objects.tree(*tree)?;
        found.extend(entries.iter().filter(|e| !e.is_submodule()).map(|e| (e.id, e.is_tree())));
        // A few directories, told by their differences, may have more entries than there is memory.
        if found.len() as u64 > most {
            return Err(GitError::TooManyFiles(MAX_ENTRIES));
        }
    }
    Ok(found)
}

/// What tags among these objects name.
fn tagged(objects: &Objects, ids: &[Oid]) -> Result<Vec<Oid>, GitError> {
    let mut named = Vec::new();
    for id in ids {
        // What is not here the check of the push finds missing.
        if objects.is_here(*id) && objects.header(*id)?.0 == ObjectType::Tag {
            named.push(objects.tag(*id)?);
        }
    }
    Ok(named)
}
