//! Whether all that a push names is there.
//!
//! The repository's own objects are complete: each came through here, and all that nothing needs goes at once
//! ([`Repository::collect`](super::Repository::collect)). So it is enough to follow the objects of the push to where
//! they meet those. The exception are commits whose parents a shallow clone did not have: they are kept in a list.

use std::collections::{BTreeSet, HashSet};

use git2::{ObjectType, Oid};

use super::{Command, Quarantine, blocking};
use crate::git::objects::{Objects, commit_id, oid};
use crate::git::{GitError, Refs, repository};
use crate::model::CommitId;

/// Larger packs are checked by `git rev-list`, which needs less memory for each object.
const MAX_WALKED_OBJECTS: u32 = 500_000;

/// What is checked.
pub(super) struct Scope {
    /// What the refs are to name.
    pub(super) tips: Vec<Oid>,
    /// Shallow commits of the client.
    pub(super) offered: BTreeSet<CommitId>,
    /// Shallow commits of the repository.
    pub(super) shallow: BTreeSet<CommitId>,
    /// How many objects the pack has.
    pub(super) objects: u32,
}

/// Refuses a push of which something is missing; else the quarantine knows its shallow commits.
pub(super) async fn complete(
    mut quarantine: Quarantine,
    scope: Scope,
    refs: &Refs,
) -> Result<Quarantine, GitError> {
    // Of what is elsewhere `git rev-list` knows nothing.
    let large = scope.objects > MAX_WALKED_OBJECTS && quarantine.repository().distant().is_none();
    let tips = scope.tips.clone();
    let quarantine = blocking(move || {
        let shallow = shallow_after(&quarantine, &scope)?;
        if !large {
            walk(&quarantine, scope.tips, &shallow)?;
        }
        quarantine.write_shallow(&shallow)?;
        quarantine.set_shallow(shallow);
        Ok(quarantine)
    })
    .await?;
    if large {
        let known = refs.values().filter(|id| quarantine.objects().is_ok_and(|all| all.contains(oid(**id))));
        let lines = tips.iter().map(|tip| format!("{tip}\n")).chain(known.map(|id| format!("^{id}\n")));
        let input: String = lines.collect();
        let mut rev_list = quarantine.git("rev-list")?;
        repository::run(rev_list.args(["--objects", "--stdin", "--quiet"]), "rev-list", input.into_bytes())
            .await?;
    }
    Ok(quarantine)
}

/// Finds the commit that a command names; the inner error refuses a branch that would name something else.
pub(super) fn peel(objects: &Objects, command: &mut Command) -> Result<Result<(), &'static str>, GitError> {
    let Some(new) = command.new else { return Ok(Ok(())) };
    let (target, kind) = objects.peel(oid(new))?;
    if kind == ObjectType::Commit {
        command.commit = Some(commit_id(target)?);
    }
    if command.name.as_branch().is_some() && command.commit != command.new {
        return Ok(Err(
            "a branch names a commit: push a tag as `refs/tags/<name>`, or its commit as `<tag>^{commit}`",
        ));
    }
    Ok(Ok(()))
}

/// The commits without parents here, after the push: those of before whose parents did not come now, and those of
/// the client that came now.
fn shallow_after(quarantine: &Quarantine, scope: &Scope) -> Result<BTreeSet<CommitId>, GitError> {
    if scope.shallow.is_empty() && scope.offered.is_empty() {
        return Ok(BTreeSet::new());
    }
    let (own, all) = (quarantine.own_objects()?, quarantine.objects()?);
    let mut after = BTreeSet::new();
    let came = scope.offered.iter().filter(|id| own.contains(oid(**id)));
    for id in scope.shallow.iter().chain(came) {
        // A commit of the list that is not here excuses nothing.
        if !all.contains(oid(*id)) {
            continue;
        }
        if !all.commit(oid(*id))?.parents.iter().all(|parent| all.contains(*parent)) {
            after.insert(*id);
        }
    }
    Ok(after)
}

/// Follows everything that came with the push.
fn walk(quarantine: &Quarantine, tips: Vec<Oid>, shallow: &BTreeSet<CommitId>) -> Result<(), GitError> {
    let (own, all) = (quarantine.own_objects()?, quarantine.objects()?);
    let shallow: HashSet<Oid> = shallow.iter().map(|id| oid(*id)).collect();
    let mut seen = HashSet::new();
    // Whether the object may name others: of a file it is enough to know that it is there.
    let mut open: Vec<(Oid, bool)> = tips.into_iter().map(|tip| (tip, true)).collect();
    while let Some((id, names_others)) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        if !own.contains(id) {
            if !all.contains(id) {
                let is_shallow = !shallow.is_empty();
                return Err(if is_shallow { GitError::BeyondShallow } else { GitError::Incomplete }(
                    id.to_string(),
                ));
            }
            continue;
        }
        if !names_others {
            continue;
        }
        match own.header(id)?.0 {
            ObjectType::Commit => {
                let commit = own.commit(id)?;
                open.push((commit.tree, true));
                if !shallow.contains(&id) {
                    open.extend(commit.parents.into_iter().map(|parent| (parent, true)));
                }
            }
            ObjectType::Tree => {
                let entries = own.tree(id)?.into_iter();
                open.extend(
                    entries.filter(|entry| !entry.is_submodule()).map(|entry| (entry.id, entry.is_tree())),
                );
            }
            ObjectType::Tag => open.push((own.tag(id)?, true)),
            _ => {}
        }
    }
    Ok(())
}
