//! Where the pushed objects are: in repositories on this disk, and of several servers in the registry.
//!
//! Of several servers each has a disk of its own, which is a cache. The packs of a push are blobs in the app's
//! repository of the registry; a manifest lists them, and the App names the manifest by its digest. It does so before any
//! ref names a commit of the push, so whatever a ref or a build names is in the packs that the App names.
//!
//! A server fetches the packs that it lacks when it opens a repository whole, as a clone needs it. A push and a build
//! open it in part: what is large stays in the registry, and what they read is brought from there object by object.

mod kept;
mod known;
mod part;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use crate::git::{GitError, Pack, Repository};
use crate::model::store::{self, Store, StoreError};
use crate::model::{App, AppName, ObjectName};
use crate::oci::Digest;
use crate::publish::Place;
use crate::registry::client::{Client, ClientError};

pub(super) use kept::digest_of_file;
use kept::{Kept, Registry};
use known::{Known, remove_aside};

/// So many packs are fetched at once.
const AT_ONCE: usize = 4;
/// Packs that have no more bytes than this together are fetched whole also where a part would do.
const NEAR_BYTES: u64 = 16 << 20;
/// How long a push may wait until something names what came with it.
const YOUNG: Duration = Duration::from_hours(24);

/// The repositories of all apps.
#[derive(Debug)]
pub struct Sources {
    directory: PathBuf,
    registry: Option<Registry>,
    near_bytes: u64,
    /// Packs that came within this time stay in the list, whatever is made of them.
    young: Duration,
    /// One change at a time of what is here of an app.
    turns: Turns,
    /// One at a time has all of an app come here, which takes long and is in the way of nobody else.
    fetching: Turns,
    /// What was brought of repositories that are here in part.
    brought: Mutex<HashMap<AppName, part::Place>>,
}

/// How much of an app's repository is on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Not all.
    Part {
        /// How many packs there are, without those that came of late.
        packs: usize,
    },
}

/// Who waits for whom, by app.
#[derive(Debug, Default)]
struct Turns(Mutex<HashMap<AppName, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, app: &AppName) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.0).entry(app.clone()).or_default())
    }
}

/// Why a repository cannot be opened or kept.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// The repository on disk.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The app's object.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry.
    #[error("cannot {doing} the pushed objects in the registry")]
    Registry {
        /// `keep`, `find`, `fetch`.
        doing: &'static str,
        /// What went wrong.
        source: ClientError,
    },
    /// A file on this disk.
    #[error("cannot {doing} `{path}`")]
    File {
        /// `read`, `write`.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The app's name is not one of a repository.
    #[error("cannot name the app's repository in the registry")]
    Name(#[from] crate::oci::NameError),
    /// The manifest is not one of packs.
    #[error("the registry's list of pushed objects {digest} is not one: {why}")]
    Malformed {
        /// Which.
        digest: Digest,
        /// Why.
        why: &'static str,
    },
    /// There are more packs than a manifest may list.
    #[error("the app has {0} packs, more than a list in the registry may have")]
    TooMany(usize),
    /// The server stops.
    #[error("the work was stopped")]
    Stopped,
}

/// A repository, and what it lacks.
struct Opened {
    repository: Repository,
    app: Option<App>,
    known: Known,
    listed: Vec<Kept>,
    lacking: Vec<Kept>,
}

impl Sources {
    /// Repositories that are on this disk alone.
    #[must_use]
    pub fn local(directory: PathBuf) -> Self {
        Self::with(directory, None)
    }

    /// Repositories whose packs are in the registry, and on this disk while they are needed.
    #[must_use]
    pub fn shared(directory: PathBuf, client: Client, place: Place) -> Self {
        Self::with(directory, Some(Registry { client, place }))
    }

    fn with(directory: PathBuf, registry: Option<Registry>) -> Self {
        let (turns, fetching, brought) = (Turns::default(), Turns::default(), Mutex::default());
        Self { directory, registry, near_bytes: NEAR_BYTES, young: YOUNG, turns, fetching, brought }
    }

    /// The same that fetches packs whole where they have no more bytes than this together.
    #[must_use]
    pub fn near(self, near_bytes: u64) -> Self {
        Self { near_bytes, ..self }
    }

    /// The same, for which packs are young for so long: these stay in the list whatever is made of them.
    #[must_use]
    pub fn young(self, young: Duration) -> Self {
        Self { young, ..self }
    }

    /// Whether the packs are kept in the registry.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.registry.is_some()
    }

    /// Where an app's repository is.
    #[must_use]
    pub fn path(&self, app: &AppName) -> PathBuf {
        self.directory.join(format!("{app}.git"))
    }

    /// Opens an app's repository, which has everything here that the App names at this moment.
    ///
    /// Cancel safe: what was fetched in part is dropped.
    pub async fn open(&self, store: &dyn Store, app: &AppName) -> Result<Repository, SourcesError> {
        let Some(registry) = &self.registry else { return self.open_local(app).await };
        let fetching = self.fetching.of(app);
        let _fetching = fetching.lock().await;
        let turn = self.turns.of(app);
        let (mut fetched, mut arrivals, mut whose) = (Vec::new(), None, None);
        loop {
            let opened = {
                let _turn = turn.lock().await;
                let mut opened = self.look(registry, store, app).await?;
                if std::mem::replace(&mut whose, opened.known.created_at) != opened.known.created_at {
                    // What came is of another app of that name, or nothing.
                    fetched.clear();
                }
                opened.take_in(std::mem::take(&mut fetched)).await?;
                opened
            };
            if opened.lacking.is_empty() {
                self.let_go(app);
                return Ok(opened.repository);
            }
            let repository = opened.repository;
            let directory = arrivals.insert(blocking(move || Ok(repository.arrivals()?)).await?);
            fetched = registry.fetch(app, &opened.lacking, directory.path()).await?;
        }
    }

    /// Opens an app's repository, which has everything that the App names at this moment: what is large perhaps
    /// elsewhere, so that it is to be brought before it is read.
    ///
    /// Cancel safe: what was fetched in part is dropped.
    pub async fn open_in_part(&self, store: &dyn Store, app: &AppName) -> Result<Repository, SourcesError> {
        let Some(registry) = &self.registry else { return self.open_local(app).await };
        let turn = self.turns.of(app);
        let of_turn = turn.lock().await;
        let mut opened = self.look(registry, store, app).await?;
        let near = part::near(&opened.listed, self.near_bytes);
        let lacking = std::mem::take(&mut opened.lacking);
        let (near, far): (Vec<_>, Vec<_>) = lacking.into_iter().partition(|kept| near.contains(&kept.key()));
        let repository = opened.repository.clone();
        let arrivals = blocking(move || Ok(repository.arrivals()?)).await?;
        let fetched = registry.fetch(app, &near, arrivals.path()).await?;
        opened.lacking = near.into_iter().chain(far.clone()).collect();
        opened.take_in(fetched).await?;
        if far.is_empty() {
            return Ok(opened.repository);
        }
        match self.distant(registry, app, &opened.repository, far).await {
            Ok(distant) => Ok(opened.repository.in_part(distant)),
            Err(SourcesError::Git(error @ GitError::Index { .. })) => {
                tracing::warn!(app = %app, %error, "a repository is fetched whole");
                drop(of_turn);
                self.open(store, app).await
            }
            Err(error) => Err(error),
        }
    }

    /// How much of an app's repository is here.
    pub async fn extent(&self, store: &dyn Store, app: &AppName) -> Result<Extent, SourcesError> {
        let Some(registry) = &self.registry else { return Ok(Extent::Whole) };
        let turn = self.turns.of(app);
        let _turn = turn.lock().await;
        let opened = self.look(registry, store, app).await?;
        let packs = opened.listed.iter().filter(|kept| !kept.is_young(self.young)).count();
        Ok(if opened.lacking.is_empty() { Extent::Whole } else { Extent::Part { packs } })
    }

    async fn open_local(&self, app: &AppName) -> Result<Repository, SourcesError> {
        let path = self.path(app);
        blocking(move || Ok(Repository::open_or_create(&path)?)).await
    }

    /// Finds out what is here, and what is not. The app's turn is ours.
    async fn look(
        &self,
        registry: &Registry,
        store: &dyn Store,
        app: &AppName,
    ) -> Result<Opened, SourcesError> {
        let path = self.path(app);
        let read = store::load::<App>(store, &ObjectName::of(app)).await?.map(|read| read.object);
        let mut known = Known::read(&path).await?;
        let made = read.as_ref().map(|app| app.created_at);
        if known.created_at.is_some() && known.created_at != made {
            // Another app of that name was here: nobody may find its objects, nor build on them.
            let left = path.clone();
            blocking(move || remove_aside(&left)).await?;
            self.let_go(app);
            known = Known::default();
        }
        let repository = self.open_local(app).await?;
        known.created_at = made;
        let (mut listed, mut lacking) = (Vec::new(), Vec::new());
        if let Some(manifest) =
            read.as_ref().and_then(|app| app.packs).filter(|now| known.manifest != Some(*now))
        {
            let looked = repository.clone();
            let here = blocking(move || Ok(looked.pack_names()?)).await?;
            listed = registry.list(app, manifest).await?;
            let is_here = |kept: &&Kept| here.contains(&kept.name) || known.packs.contains(&kept.key());
            lacking = listed.iter().filter(|kept| !is_here(kept)).cloned().collect();
        }
        Ok(Opened { repository, app: read, known, listed, lacking })
    }

    /// Names in the registry, instead of many packs, the few that this disk has made of them, where nobody has pushed since.
    /// And tags the list that the App names, should a server have been stopped before it did.
    ///
    /// What came of late stays in the list beside them: nothing may have named it when the packs were made.
    pub async fn consolidate(
        &self,
        store: &dyn Store,
        name: &AppName,
        tidied: bool,
    ) -> Result<(), SourcesError> {
        let Some(registry) = &self.registry else { return Ok(()) };
        // Not the turn: to send what was made of them takes long.
        let fetching = self.fetching.of(name);
        let _fetching = fetching.lock().await;
        let app = store::require::<App>(store, &ObjectName::of(name)).await?.object;
        let Some(base) = app.packs else { return Ok(()) };
        if !tidied {
            return registry.tag_what_is_named(store, name).await;
        }
        let mut young = registry.list(name, base).await?;
        young.retain(|kept| kept.is_young(self.young));
        if Known::read(&self.path(name)).await?.manifest != Some(base) {
            self.note(name, |known| known.lose(&young)).await?;
            return registry.tag_what_is_named(store, name).await;
        }
        let repository = self.open_local(name).await?;
        let packs = blocking(move || Ok(repository.packs()?)).await?;
        let made = registry.push(name, &packs).await?;
        young.retain(|kept| made.iter().all(|made| made.name != kept.name));
        let manifest = registry.write(name, &[&made[..], &young[..]].concat()).await?;
        if registry.swap(store, name, (Some(base), manifest.digest())).await? {
            let packs = made.iter().map(Kept::key).collect();
            self.note(name, |known| {
                (known.packs, known.manifest) = (packs, Some(manifest.digest()));
                known.lose(&young);
            })
            .await?;
            tracing::info!(app = %name, packs = made.len(), "the pushed objects in the registry are consolidated");
        } else {
            self.note(name, |known| known.lose(&young)).await?;
        }
        registry.tag_what_is_named(store, name).await
    }

    /// Changes what is known of an app's repository.
    async fn note(&self, app: &AppName, change: impl FnOnce(&mut Known)) -> Result<(), SourcesError> {
        let (path, turn) = (self.path(app), self.turns.of(app));
        let _turn = turn.lock().await;
        // Nothing is known of what is not here.
        if !tokio::fs::try_exists(&path).await.unwrap_or_default() {
            return Ok(());
        }
        let mut known = Known::read(&path).await?;
        change(&mut known);
        known.write(&path).await
    }

    /// Keeps the packs of a push: when this returns, every server finds them by the App, which must be there.
    pub async fn keep(&self, store: &dyn Store, app: &AppName, packs: &[Pack]) -> Result<(), SourcesError> {
        let Some(registry) = &self.registry else { return Ok(()) };
        if packs.is_empty() {
            return Ok(());
        }
        let mut new = registry.push(app, packs).await?;
        for kept in &mut new {
            kept.at = Some(Timestamp::now());
        }
        let name = ObjectName::of(app);
        loop {
            let base = store::require::<App>(store, &name).await?.object.packs;
            let mut all = match base {
                Some(manifest) => registry.list(app, manifest).await?,
                None => Vec::new(),
            };
            for kept in &new {
                let before = all.iter().position(|other| other.name == kept.name).map(|at| all.remove(at));
                let again = before.map_or(0, |before| before.again + 1);
                all.push(Kept { again, ..kept.clone() });
            }
            let manifest = registry.write(app, &all).await?;
            // Another push kept its packs meanwhile? Its list is the one to add to.
            if registry.swap(store, app, (base, manifest.digest())).await? {
                return registry.tag_what_is_named(store, app).await;
            }
        }
    }
}

impl Opened {
    /// Takes in packs that came, and notes it. The app's turn is ours.
    async fn take_in(&mut self, fetched: Vec<Pack>) -> Result<(), SourcesError> {
        let path = self.repository.path().to_owned();
        let Some(App { packs: Some(manifest), shallow, .. }) = &self.app else {
            return if self.app.is_some() { self.known.write(&path).await } else { Ok(()) };
        };
        let came: BTreeSet<String> = fetched.iter().map(|pack| pack.name.clone()).collect();
        self.lacking.retain(|kept| !came.contains(&kept.name));
        if self.known.manifest == Some(*manifest) && self.known.shallow == *shallow {
            return Ok(());
        }
        let (repository, cut_off) = (self.repository.clone(), shallow.clone());
        blocking(move || Ok(repository.take_in(&fetched, &cut_off)?)).await?;
        if self.lacking.is_empty() {
            self.known.packs.extend(self.listed.iter().map(Kept::key));
            self.known.manifest = Some(*manifest);
            self.known.shallow.clone_from(shallow);
        }
        self.known.write(&path).await
    }
}

impl Registry {
    /// Fetches packs into a directory.
    async fn fetch(
        &self,
        app: &AppName,
        packs: &[Kept],
        directory: &std::path::Path,
    ) -> Result<Vec<Pack>, SourcesError> {
        let started = std::time::Instant::now();
        let pulled: Vec<_> = packs.iter().map(|kept| self.pull(app, kept, directory)).collect();
        let fetched: Vec<Pack> = futures::stream::iter(pulled).buffered(AT_ONCE).try_collect().await?;
        if !fetched.is_empty() {
            let (packs, elapsed) = (fetched.len(), started.elapsed());
            tracing::info!(app = %app, packs, ?elapsed, "pushed objects were fetched from the registry");
        }
        Ok(fetched)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourcesError> + Send + 'static,
) -> Result<T, SourcesError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| SourcesError::Stopped)?
}
