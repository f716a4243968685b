//! The second look at a push to a repository that is here in part.
//!
//! `git index-pack --strict` reads what the pushed objects name: that a directory's file is a file, that what is now named
//! `.gitmodules` is fit for it. Of a repository that is here in part most of that is elsewhere, and which of it is wanted is
//! known when the pack has been read. So such a pack is read twice: first as it comes, then strictly, with what it
//! names brought in between.

use std::collections::HashSet;
use std::fs;
use std::process::Stdio;

use git2::{ObjectType, Oid};
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::ingest::{STRICT, keep_alive};
use super::report::Reporter;
use super::{Limits, Quarantine, blocking};
use crate::git::child::{Group, drain, message};
use crate::git::distant::PackIndex;
use crate::git::objects::Objects;
use crate::git::{GitError, ReceiveError};

/// Looks at the push as strictly as at one to a repository that is here whole.
pub(super) async fn check<W: AsyncWrite + Unpin>(
    quarantine: Quarantine,
    limits: &Limits,
    reporter: &mut Reporter<W>,
) -> Result<Quarantine, ReceiveError> {
    let complete = Instant::now().into();
    let looked = async {
        let (quarantine, named) = blocking(move || {
            let named = named(&quarantine)?;
            Ok((quarantine, named))
        })
        .await
        .map_err(ReceiveError::Objects)?;
        quarantine.repository().bring_objects(named).await.map_err(ReceiveError::Storage)?;
        strictly(&quarantine, limits).await?;
        Ok(quarantine)
    };
    tokio::select! {
        looked = looked => looked,
        error = keep_alive(limits, reporter, &complete) => Err(error),
    }
}

/// What the pushed objects name of those that are elsewhere.
fn named(quarantine: &Quarantine) -> Result<Vec<Oid>, GitError> {
    let (own, all) = (quarantine.own_objects()?, quarantine.objects()?);
    let mut named = HashSet::new();
    for pack in quarantine.packs()? {
        let io = |doing| GitError::io(doing, &pack.index);
        let read = fs::read(&pack.index).map_err(io("read"))?;
        let bytes = fs::metadata(&pack.pack).map_err(io("read the pack of"))?.len();
        let index = PackIndex::parse(read, bytes);
        let index = index.map_err(|what| GitError::Index { pack: pack.name.clone(), what })?;
        for id in index.ids() {
            let links = links(&own, id)?;
            named.extend(links.into_iter().filter(|id| !own.contains(*id) && all.contains(*id)));
        }
    }
    Ok(named.into_iter().collect())
}

/// What an object names.
fn links(objects: &Objects, id: Oid) -> Result<Vec<Oid>, GitError> {
    match objects.header(id)?.0 {
        ObjectType::Commit => {
            let commit = objects.commit(id)?;
            Ok(std::iter::once(commit.tree).chain(commit.parents).collect())
        }
        ObjectType::Tree => {
            let entries = objects.tree(id)?.into_iter();
            Ok(entries.filter(|entry| !entry.is_submodule()).map(|entry| entry.id).collect())
        }
        ObjectType::Tag => Ok(vec![objects.tag(id)?]),
        _ => Ok(Vec::new()),
    }
}

async fn strictly(quarantine: &Quarantine, limits: &Limits) -> Result<(), ReceiveError> {
    let packs = quarantine.packs().map_err(ReceiveError::Storage)?;
    // Where nothing is: of an object that is there already, the two would be compared.
    let directory = tempfile::tempdir_in(quarantine.path());
    let directory = directory.map_err(GitError::io("create a directory in", quarantine.path()));
    let directory = directory.map_err(ReceiveError::Storage)?;
    let storage = |source| ReceiveError::Storage(GitError::Io { doing: "run", path: "git".into(), source });
    for pack in packs {
        let mut command = quarantine.git_in(directory.path(), "index-pack").map_err(ReceiveError::Storage)?;
        command
            .args([STRICT, "--no-rev-index", "-o"])
            .arg(directory.path().join("again.idx"))
            .arg(&pack.pack);
        command.stdout(Stdio::piped());
        let mut group = Group::spawn(&mut command).map_err(storage)?;
        group.limit_memory(limits.memory_bytes).map_err(storage)?;
        let (Some(mut stdout), Some(mut stderr)) = (group.child.stdout.take(), group.child.stderr.take())
        else {
            return Err(storage(std::io::ErrorKind::BrokenPipe.into()));
        };
        let said = async { tokio::try_join!(message(&mut stderr, |_| ()), drain(&mut stdout, 256, |_| ())) };
        let (said, _name) = said.await.map_err(storage)?;
        if !group.wait().await.map_err(storage)?.success() {
            return Err(ReceiveError::Pack(said));
        }
        fs::remove_file(directory.path().join("again.idx")).map_err(storage)?;
    }
    Ok(())
}
