//! Where the pushed objects are: in repositories on this disk, and of several servers in the registry.
//!
//! Of several servers each has a disk of its own, which is a cache. The packs of a push are blobs in the app's
//! repository of the registry; a manifest lists them, and the App names the manifest by its digest. It does so before any
//! ref names a commit of the push, so whatever a ref or a build names is in the packs that the App names. A server
//! fetches the packs that it lacks when it opens a repository.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::git::{GitError, Pack, Repository};
use crate::model::store::{self, Store, StoreError};
use crate::model::{App, AppName, ObjectName};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, RawManifest, Tag, Target};
use crate::publish::Place;
use crate::registry::client::{BlobSource, Client, ClientError};

/// What the manifest of an app's packs is.
const ARTIFACT: &str = "application/vnd.hephy.git.v1";
const PACK: &str = "application/vnd.hephy.git.pack";
const INDEX: &str = "application/vnd.hephy.git.index";
/// The annotation that names a pack.
const NAME: &str = "dev.hephy.git.name";
/// The annotation that tells a pack from the same one before.
const AGAIN: &str = "dev.hephy.git.again";
/// The tag that holds the manifest, for a registry that removes what has none.
const TAG: &str = "git";
/// The file that says which packs a repository has, or had before it was collected.
const KNOWN: &str = "hephy.packs";
/// So many packs are fetched at once.
const AT_ONCE: usize = 4;

/// The repositories of all apps.
#[derive(Debug)]
pub struct Sources {
    directory: PathBuf,
    registry: Option<Registry>,
    /// One fetch of an app at a time.
    fetching: Mutex<HashMap<AppName, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug)]
struct Registry {
    client: Client,
    place: Place,
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

/// A pack in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    name: String,
    /// How often it was pushed again: objects that nothing named any more may be gone from a disk that had them.
    again: u32,
    pack: Descriptor,
    index: Descriptor,
}

/// What a repository on disk has of what is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    /// Whose: an app of the same name may have been there before.
    created_at: Option<jiff::Timestamp>,
    manifest: Option<Digest>,
    packs: BTreeSet<(String, u32)>,
    /// Where history was cut off when this was noted.
    #[serde(default)]
    shallow: BTreeSet<crate::model::CommitId>,
}

impl Kept {
    fn key(&self) -> (String, u32) {
        (self.name.clone(), self.again)
    }
}

impl Sources {
    /// Repositories that are on this disk alone.
    #[must_use]
    pub fn local(directory: PathBuf) -> Self {
        Self { directory, registry: None, fetching: Mutex::default() }
    }

    /// Repositories whose packs are in the registry, and on this disk while they are needed.
    #[must_use]
    pub fn shared(directory: PathBuf, client: Client, place: Place) -> Self {
        Self { directory, registry: Some(Registry { client, place }), fetching: Mutex::default() }
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

    /// Opens an app's repository, which has everything that the App names at this moment.
    ///
    /// Cancel safe: what was fetched in part is dropped.
    pub async fn open(&self, store: &dyn Store, app: &AppName) -> Result<Repository, SourcesError> {
        let path = self.path(app);
        let Some(registry) = &self.registry else {
            return blocking(move || Ok(Repository::open_or_create(&path)?)).await;
        };
        let turn = self.turn(app);
        let _turn = turn.lock().await;
        let read = store::load::<App>(store, &ObjectName::of(app)).await?.map(|read| read.object);
        let known_path = path.join(KNOWN);
        let mut known = read_known(known_path.clone()).await?;
        let made = read.as_ref().map(|app| app.created_at);
        if known.created_at.is_some() && known.created_at != made {
            // Another app of that name was here: nobody may find its objects, nor build on them.
            let left = path.clone();
            blocking(move || remove_aside(&left)).await?;
            known = Known::default();
        }
        let repository = blocking(move || Ok(Repository::open_or_create(&path)?)).await?;
        let Some(app) = read else { return Ok(repository) };
        known.created_at = made;
        match app.packs {
            Some(manifest) => registry.fetch(&repository, &app, manifest, (known_path, known)).await?,
            None => write_known(known_path, known).await?,
        }
        Ok(repository)
    }

    /// Names in the registry, instead of many packs, the few that this disk has made of them, where nobody has pushed since.
    /// And tags the list that the App names, should a server have been stopped before it did.
    pub async fn consolidate(
        &self,
        store: &dyn Store,
        name: &AppName,
        tidied: bool,
    ) -> Result<(), SourcesError> {
        let Some(registry) = &self.registry else { return Ok(()) };
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let app = store::require::<App>(store, &ObjectName::of(name)).await?.object;
        let Some(base) = app.packs else { return Ok(()) };
        let known_path = self.path(name).join(KNOWN);
        let mut known = read_known(known_path.clone()).await?;
        if !tidied || known.manifest != Some(base) {
            return registry.tag_what_is_named(store, name).await;
        }
        let path = self.path(name);
        let repository = blocking(move || Ok(Repository::open_or_create(&path)?)).await?;
        let packs = blocking(move || Ok(repository.packs()?)).await?;
        let all = registry.push(name, &packs).await?;
        let manifest = registry.write(name, &all).await?;
        if registry.swap(store, name, (Some(base), manifest.digest())).await? {
            known.packs = all.iter().map(Kept::key).collect();
            known.manifest = Some(manifest.digest());
            write_known(known_path, known).await?;
            tracing::info!(app = %name, packs = all.len(), "the pushed objects in the registry are consolidated");
        }
        registry.tag_what_is_named(store, name).await
    }

    fn turn(&self, app: &AppName) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(fetching.entry(app.clone()).or_default())
    }

    /// Keeps the packs of a push: when this returns, every server finds them by the App, which must be there.
    pub async fn keep(&self, store: &dyn Store, app: &AppName, packs: &[Pack]) -> Result<(), SourcesError> {
        let Some(registry) = &self.registry else { return Ok(()) };
        if packs.is_empty() {
            return Ok(());
        }
        let new = registry.push(app, packs).await?;
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

impl Registry {
    fn repository(&self, app: &AppName) -> Result<crate::oci::Repository, SourcesError> {
        Ok(self.place.repository(app)?)
    }

    /// Uploads packs; those that are there already are not sent.
    async fn push(&self, app: &AppName, packs: &[Pack]) -> Result<Vec<Kept>, SourcesError> {
        let repository = self.repository(app)?;
        let mut all = Vec::with_capacity(packs.len());
        for pack in packs {
            let mut descriptors = Vec::with_capacity(2);
            for (path, media_type) in [(&pack.pack, PACK), (&pack.index, INDEX)] {
                let (digest, size) = digest_of(path.clone()).await?;
                let blob = BlobSource::file(path, digest, size);
                let pushed = self.client.push_blob(&repository, blob, &[]).await;
                pushed.map_err(|source| SourcesError::Registry { doing: "keep", source })?;
                descriptors.push(Descriptor::new(MediaType::from(media_type), digest, size));
            }
            if let [pack_file, index] = descriptors.as_slice() {
                let (name, pack, index) = (pack.name.clone(), pack_file.clone(), index.clone());
                all.push(Kept { name, again: 0, pack, index });
            }
        }
        Ok(all)
    }

    /// Writes the list of an app's packs, by its digest.
    async fn write(&self, app: &AppName, packs: &[Kept]) -> Result<RawManifest, SourcesError> {
        let keep = |source| SourcesError::Registry { doing: "keep", source };
        let repository = self.repository(app)?;
        let empty = Descriptor::of(MediaType::Empty, b"{}");
        self.client.push_blob(&repository, BlobSource::bytes("{}"), &[]).await.map_err(keep)?;
        let layers = packs.iter().flat_map(|kept| {
            let mut pack = kept.pack.clone();
            let again = (kept.again > 0).then(|| (AGAIN.to_owned(), kept.again.to_string()));
            pack.annotations = [(NAME.to_owned(), kept.name.clone())].into_iter().chain(again).collect();
            [pack, kept.index.clone()]
        });
        let layers = layers.collect();
        let manifest =
            Manifest { artifact_type: Some(MediaType::from(ARTIFACT)), ..Manifest::image(empty, layers) };
        let manifest = RawManifest::image(&manifest);
        if manifest.bytes().len() > crate::oci::MAX_MANIFEST_BYTES {
            return Err(SourcesError::TooMany(packs.len()));
        }
        let target = Target::Digest(manifest.digest());
        self.client.push_manifest(&repository, &target, &manifest).await.map_err(keep)?;
        Ok(manifest)
    }

    /// Has the App name another list, if it still names `base`.
    async fn swap(
        &self,
        store: &dyn Store,
        app: &AppName,
        (base, next): (Option<Digest>, Digest),
    ) -> Result<bool, SourcesError> {
        let name = ObjectName::of(app);
        let swapped = store::modify(store, &name, |app: &mut App| {
            let is_base = app.packs == base || app.packs == Some(next);
            if is_base {
                app.packs = Some(next);
            }
            Ok::<_, StoreError>(is_base)
        });
        Ok(swapped.await?.1)
    }

    /// Tags the list that the App names, so that no registry takes it for garbage; again, if it names another by then.
    async fn tag_what_is_named(&self, store: &dyn Store, app: &AppName) -> Result<(), SourcesError> {
        let Ok(tag) = TAG.parse::<Tag>() else { return Ok(()) };
        let (repository, target) = (self.repository(app)?, Target::Tag(tag));
        let named = async || {
            Ok::<_, SourcesError>(store::require::<App>(store, &ObjectName::of(app)).await?.object.packs)
        };
        let keep = |source| SourcesError::Registry { doing: "keep", source };
        let mut next = named().await?;
        while let Some(digest) = next {
            let list = self.client.manifest(&repository, &Target::Digest(digest)).await.map_err(keep)?;
            self.client.push_manifest(&repository, &target, &list).await.map_err(keep)?;
            next = named().await?.filter(|now| *now != digest);
        }
        Ok(())
    }

    /// The packs that a manifest lists.
    async fn list(&self, app: &AppName, manifest: Digest) -> Result<Vec<Kept>, SourcesError> {
        let target = Target::Digest(manifest);
        let read = self.client.manifest(&self.repository(app)?, &target).await;
        let read = read.map_err(|source| SourcesError::Registry { doing: "find", source })?;
        let malformed = |why| SourcesError::Malformed { digest: manifest, why };
        let list = read.as_image().ok_or_else(|| malformed("it is no image manifest"))?;
        let mut packs = Vec::with_capacity(list.layers.len() / 2);
        for pair in list.layers.chunks(2) {
            let [pack, index] = pair else { return Err(malformed("a pack lacks its index")) };
            let name = pack.annotations.get(NAME).filter(|name| is_pack_name(name));
            let name = name.ok_or_else(|| malformed("a pack has no name"))?.clone();
            if (pack.media_type.as_str(), index.media_type.as_str()) != (PACK, INDEX) {
                return Err(malformed("a layer is neither a pack nor an index"));
            }
            let again = pack.annotations.get(AGAIN).and_then(|again| again.parse().ok()).unwrap_or_default();
            packs.push(Kept { name, again, pack: pack.clone(), index: index.clone() });
        }
        Ok(packs)
    }

    /// Brings the repository up to what the App names.
    async fn fetch(
        &self,
        repository: &Repository,
        app: &App,
        manifest: Digest,
        (known_path, mut known): (PathBuf, Known),
    ) -> Result<(), SourcesError> {
        if known.manifest == Some(manifest) && known.shallow == app.shallow {
            return Ok(());
        }
        let here = repository.clone();
        let here = blocking(move || Ok(here.pack_names()?)).await?;
        let listed = self.list(&app.name, manifest).await?;
        let is_here = |kept: &&Kept| here.contains(&kept.name) || known.packs.contains(&kept.key());
        let lacking: Vec<&Kept> = listed.iter().filter(|kept| !is_here(kept)).collect();
        let arrivals = repository.arrivals()?;
        let started = std::time::Instant::now();
        let mut fetched = Vec::with_capacity(lacking.len());
        for some in lacking.chunks(AT_ONCE) {
            let pulled = some.iter().map(|kept| self.pull(&app.name, kept, arrivals.path()));
            fetched.extend(try_join_all(pulled).await?);
        }
        if !fetched.is_empty() {
            let (packs, elapsed) = (fetched.len(), started.elapsed());
            tracing::info!(app = %app.name, packs, ?elapsed, "pushed objects were fetched from the registry");
        }
        let (repository, shallow) = (repository.clone(), app.shallow.clone());
        blocking(move || Ok(repository.take_in(&fetched, &shallow)?)).await?;
        known.packs.extend(listed.iter().map(Kept::key));
        known.manifest = Some(manifest);
        known.shallow.clone_from(&app.shallow);
        write_known(known_path, known).await
    }

    async fn pull(&self, app: &AppName, kept: &Kept, directory: &Path) -> Result<Pack, SourcesError> {
        let repository = self.repository(app)?;
        let file = |extension| directory.join(format!("{}.{extension}", kept.name));
        let pack = Pack { name: kept.name.clone(), pack: file("pack"), index: file("idx") };
        for (descriptor, path) in [(&kept.pack, &pack.pack), (&kept.index, &pack.index)] {
            let failed = |source| SourcesError::File { doing: "write", path: path.clone(), source };
            let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
            let pulled = self.client.pull_blob(&repository, descriptor, &mut file).await;
            pulled.map_err(|source| SourcesError::Registry { doing: "fetch", source })?;
        }
        Ok(pack)
    }
}

/// Removes a repository; whoever has it open finds it empty, and nobody finds half of it.
fn remove_aside(path: &Path) -> Result<(), SourcesError> {
    let failed = |source| SourcesError::File { doing: "remove", path: path.to_owned(), source };
    let parent = path.parent().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let aside = tempfile::Builder::new().prefix("removed-").tempdir_in(parent).map_err(failed)?;
    std::fs::rename(path, aside.path().join("git")).map_err(failed)?;
    aside.close().map_err(failed)
}

/// `pack-` and a hash, and nothing that leads elsewhere.
fn is_pack_name(name: &str) -> bool {
    let hash = name.strip_prefix("pack-").unwrap_or_default();
    hash.len() == 40 && hash.bytes().all(|b| b.is_ascii_hexdigit())
}

async fn digest_of(path: PathBuf) -> Result<(Digest, u64), SourcesError> {
    blocking(move || {
        digest_of_file(&path).map_err(|source| SourcesError::File { doing: "read", path, source })
    })
    .await
}

/// The digest and the size of a file's content.
pub(super) fn digest_of_file(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = std::fs::File::open(path)?;
    let (mut sum, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 128 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((Digest::from_sha256(sum.finalize().into()), size)),
            read => {
                sum.update(buffer.get(..read).unwrap_or_default());
                size += read as u64;
            }
        }
    }
}

/// What is known; a file that is damaged is one that says nothing, since what is here is looked at anyway.
async fn read_known(path: PathBuf) -> Result<Known, SourcesError> {
    match tokio::fs::read(&path).await {
        Ok(json) => Ok(serde_json::from_slice(&json).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
        Err(source) => Err(SourcesError::File { doing: "read", path, source }),
    }
}

async fn write_known(path: PathBuf, known: Known) -> Result<(), SourcesError> {
    let failed = |source| SourcesError::File { doing: "write", path: path.clone(), source };
    let json = serde_json::to_vec(&known).map_err(|error| failed(error.into()))?;
    let aside = path.with_extension("aside");
    tokio::fs::write(&aside, json).await.map_err(failed)?;
    tokio::fs::rename(&aside, &path).await.map_err(failed)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourcesError> + Send + 'static,
) -> Result<T, SourcesError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| SourcesError::Stopped)?
}
