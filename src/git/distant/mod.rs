//! Packs that are elsewhere, and of which objects are brought here one by one.
//!
//! Of such a pack its index is here. It says which objects there are, which is all that has to be known of most of them,
//! and from where to where each is in the pack: so a few parts of the pack are enough for a few objects, with those
//! that they are packed as differences from. What was brought is an object of its own in a directory beside the
//! repository's, checked by its id: git reads both and finds nothing that is half there.
//!
//! Where a pack cannot be had in parts, or most of it is wanted, the whole of it is taken in.

mod entry;
mod index;
mod resolve;
mod spool;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _};
use git2::Oid;

pub(super) use index::PackIndex;

use self::resolve::{Resolver, Trouble, base, damaged, header};
use self::spool::Spool;
use super::GitError;
use super::objects::Objects;
use super::quarantine::Directory;

/// So many parts are fetched at once.
const AT_ONCE: usize = 6;
/// The largest index that is read: one of more than a hundred million objects.
const MAX_INDEX_BYTES: u64 = 4 << 30;

/// What fails where packs are kept.
pub type FetchError = Box<dyn std::error::Error + Send + Sync>;

/// Where packs are kept.
pub struct PackSource {
    /// A part of a pack; `None` if there are no parts to be had.
    pub part: Box<AskPart>,
    /// Takes the whole of a pack into the repository.
    pub whole: Box<AskWhole>,
}

/// Asks for a part of the pack of this name.
pub type AskPart = dyn Fn(&str, Range<u64>) -> BoxFuture<'static, PartFetched> + Send + Sync;

/// Asks for the pack of this name.
pub type AskWhole = dyn Fn(&str) -> BoxFuture<'static, Result<(), FetchError>> + Send + Sync;

/// What came of asking for a part.
pub type PartFetched = Result<Option<Bytes>, FetchError>;

/// A pack that is elsewhere.
#[derive(Debug, Clone)]
pub struct DistantPack {
    /// `pack-` and a hash.
    pub name: String,
    /// How many bytes it has.
    pub bytes: u64,
    /// Its index, which is here.
    pub index: PathBuf,
}

/// The directory of what was brought. Goes with its last user, also when that is killed.
#[derive(Debug)]
pub struct Brought(Directory);

impl Brought {
    pub(super) const fn new(directory: Directory) -> Self {
        Self(directory)
    }

    /// Where it is. Indexes of packs may be kept in it.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The packs of a repository that are elsewhere.
pub struct Distant {
    packs: Vec<Arc<Held>>,
    brought: Arc<Brought>,
    source: PackSource,
    /// Who needs the same as another waits for it.
    turn: tokio::sync::Mutex<()>,
}

/// What is here of a pack that is elsewhere.
struct Held {
    name: String,
    bytes: u64,
    index: PackIndex,
    spool: Mutex<Spool>,
    /// It was taken into the repository.
    is_here: AtomicBool,
}

impl Held {
    fn open(pack: DistantPack, directory: &Path) -> Result<Self, GitError> {
        let path = &pack.index;
        let bytes = fs::metadata(path).map_err(GitError::io("read", path))?.len();
        let read =
            if bytes > MAX_INDEX_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { fs::read(path) };
        let read = read.map_err(GitError::io("read", path))?;
        let index = PackIndex::parse(read, pack.bytes);
        let index = index.map_err(|what| GitError::Index { pack: pack.name.clone(), what })?;
        let spool = Spool::new(directory, pack.bytes).map_err(GitError::io("create a file in", directory))?;
        let (spool, is_here) = (Mutex::new(spool), AtomicBool::new(false));
        Ok(Self { name: pack.name, bytes: pack.bytes, index, spool, is_here })
    }

    fn spool(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the bases of objects begin.
    fn bases(&self, offsets: &[u64]) -> io::Result<Vec<u64>> {
        let spool = self.spool();
        let base = |offset: &u64| base(&self.index, &header(&self.index, &spool, *offset)?);
        offsets.iter().filter_map(|offset| base(offset).transpose()).collect()
    }

    fn write(&self, wanted: &[(Oid, u64)], directory: &Path) -> Result<(), Trouble> {
        let spool = self.spool();
        let mut resolver = Resolver::new(&self.index, &spool);
        wanted.iter().try_for_each(|(id, offset)| resolver.write(*id, *offset, directory))
    }
}

impl Distant {
    /// Packs whose objects are brought into a directory. Reads their indexes: no async code should wait for it.
    pub fn open(
        packs: Vec<DistantPack>,
        brought: Arc<Brought>,
        source: PackSource,
    ) -> Result<Self, GitError> {
        let held = packs.into_iter().map(|pack| Held::open(pack, brought.path()).map(Arc::new));
        Ok(Self {
            packs: held.collect::<Result<_, _>>()?,
            brought,
            source,
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// Whether one of the packs has the object, wherever it is.
    pub(super) fn contains(&self, id: Oid) -> bool {
        self.packs.iter().any(|pack| pack.index.find(id).is_some())
    }

    /// Where the objects are that were brought.
    pub(super) fn objects(&self) -> &Path {
        self.brought.path()
    }

    /// Sees to it that the objects are here that are in these packs; others are nobody's business here.
    pub(super) async fn bring(self: &Arc<Self>, repository: PathBuf, ids: Vec<Oid>) -> Result<(), GitError> {
        if ids.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let this = Arc::clone(self);
        let wanted = blocking(move || this.lacking(&repository, ids)).await?;
        for (pack, wanted) in self.packs.iter().zip(wanted) {
            let error = match self.bring_from(pack, wanted).await {
                Ok(()) => continue,
                Err(Trouble::Disk(error)) => return Err(error),
                Err(Trouble::Pack(error)) => error,
            };
            tracing::info!(pack = pack.name, %error, "a pack is fetched whole");
            let whole = (self.source.whole)(&pack.name).await;
            whole.map_err(|source| GitError::Distant { pack: pack.name.clone(), source })?;
            pack.is_here.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// What is to be brought, pack by pack in their order.
    fn lacking(&self, repository: &Path, ids: Vec<Oid>) -> Result<Vec<Vec<(Oid, u64)>>, GitError> {
        let here = Objects::open(&[repository, self.objects()])?;
        let mut wanted = vec![Vec::new(); self.packs.len()];
        for id in ids.into_iter().collect::<HashSet<_>>() {
            let found = self.packs.iter().enumerate().find_map(|(at, pack)| Some((at, pack.index.find(id)?)));
            if let Some((at, offset)) = found
                && let Some(wanted) = wanted.get_mut(at)
                && !here.contains(id)
            {
                wanted.push((id, offset));
            }
        }
        Ok(wanted)
    }

    async fn bring_from(&self, pack: &Arc<Held>, mut wanted: Vec<(Oid, u64)>) -> Result<(), Trouble> {
        if wanted.is_empty() || pack.is_here.load(Ordering::Acquire) {
            return Ok(());
        }
        // In their order: those that have a base in common are beside each other.
        wanted.sort_unstable_by_key(|(_, offset)| *offset);
        let mut next: Vec<u64> = wanted.iter().map(|(_, offset)| *offset).collect();
        let mut seen: HashSet<u64> = next.iter().copied().collect();
        // Once around for each object of the longest chain: with most of them their bases are here too.
        for _ in 0..=resolve::MAX_CHAIN {
            if next.is_empty() {
                break;
            }
            self.fetch(pack, &next).await?;
            let held = Arc::clone(pack);
            let bases = blocking(move || Ok(held.bases(&next))).await.map_err(Trouble::Disk)??;
            next = bases.into_iter().filter(|offset| seen.insert(*offset)).collect();
        }
        let (held, directory) = (Arc::clone(pack), self.objects().to_owned());
        blocking(move || Ok(held.write(&wanted, &directory))).await.map_err(Trouble::Disk)?
    }

    /// Fetches what lacks of objects that begin there.
    async fn fetch(&self, pack: &Arc<Held>, offsets: &[u64]) -> Result<(), Trouble> {
        let extents = offsets.iter().map(|offset| pack.index.extent(*offset)).collect::<Option<Vec<_>>>();
        let extents = extents.ok_or_else(|| damaged("a base is no object of the pack"))?;
        let lacking = {
            let spool = pack.spool();
            let lacking = spool.lacking(extents);
            let bytes: u64 = lacking.iter().map(|part| part.end - part.start).sum();
            if (spool.bytes() + bytes).saturating_mul(2) > pack.bytes {
                return Err(Trouble::Pack(io::Error::other("most of it is wanted")));
            }
            lacking
        };
        futures::stream::iter(lacking)
            .map(|part| self.fetch_part(pack, part))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn fetch_part(&self, pack: &Arc<Held>, part: Range<u64>) -> Result<(), Trouble> {
        let fetched = (self.source.part)(&pack.name, part.clone()).await.map_err(io::Error::other)?;
        let bytes = fetched.ok_or_else(|| io::Error::other("no parts of it can be had"))?;
        if bytes.len() as u64 != part.end - part.start {
            return Err(Trouble::Pack(damaged("a part is not as long as it should be")));
        }
        let (file, start) = (pack.spool().file(), part.start);
        let written = blocking(move || Ok(std::os::unix::fs::FileExt::write_all_at(&*file, &bytes, start)));
        let path = self.objects();
        written.await.map_err(Trouble::Disk)?.map_err(|source| {
            Trouble::Disk(GitError::Io { doing: "write a file in", path: path.to_owned(), source })
        })?;
        pack.spool().note(part);
        Ok(())
    }
}

impl std::fmt::Debug for Distant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.packs.iter().map(|pack| &pack.name).collect();
        f.debug_struct("Distant")
            .field("packs", &names)
            .field("brought", &self.brought)
            .finish_non_exhaustive()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GitError> + Send + 'static,
) -> Result<T, GitError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| GitError::Stopped)?
}
