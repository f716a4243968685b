//! Packs in the registry, and the list that the App names.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::{SourcesError, blocking};
use crate::git::Pack;
use crate::model::store::{self, Store, StoreError};
use crate::model::{App, AppName, ObjectName};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, RawManifest, Tag, Target};
use crate::publish::Place;
use crate::registry::client::{BlobSource, Client};

/// What the manifest of an app's packs is.
const ARTIFACT: &str = "application/vnd.hephy.git.v1";
const PACK: &str = "application/vnd.hephy.git.pack";
const INDEX: &str = "application/vnd.hephy.git.index";
/// The annotation that names a pack.
const NAME: &str = "dev.hephy.git.name";
/// The annotation that says when a push was kept, in seconds since 1970.
const KEPT: &str = "dev.hephy.git.kept";
/// The annotation that tells a pack from the same one before.
const AGAIN: &str = "dev.hephy.git.again";
/// The tag that holds the manifest, for a registry that removes what has none.
const TAG: &str = "git";

/// Where the packs of all apps are kept.
#[derive(Debug, Clone)]
pub(super) struct Registry {
    pub(super) client: Client,
    pub(super) place: Place,
}

/// A pack in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) name: String,
    /// How often it was pushed again: objects that nothing named any more may be gone from a disk that had them.
    pub(super) again: u32,
    /// When it was pushed; a pack that was made of others has no time.
    pub(super) at: Option<Timestamp>,
    pub(super) pack: Descriptor,
    pub(super) index: Descriptor,
}

impl Kept {
    pub(super) fn key(&self) -> (String, u32) {
        (self.name.clone(), self.again)
    }

    /// Whether it came within `age`: what is in it may be named by nothing yet, since a push waits for its turn or another
    /// server is just about to name it.
    pub(super) fn is_young(&self, age: Duration) -> bool {
        self.at.is_some_and(|at| {
            Timestamp::now().duration_since(at) < SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX)
        })
    }
}

impl Registry {
    pub(super) fn repository(&self, app: &AppName) -> Result<crate::oci::Repository, SourcesError> {
        Ok(self.place.repository(app)?)
    }

    /// Uploads packs; those that are there already are not sent.
    pub(super) async fn push(&self, app: &AppName, packs: &[Pack]) -> Result<Vec<Kept>, SourcesError> {
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
                all.push(Kept { name, again: 0, at: None, pack, index });
            }
        }
        Ok(all)
    }

    /// Writes the list of an app's packs, by its digest.
    pub(super) async fn write(&self, app: &AppName, packs: &[Kept]) -> Result<RawManifest, SourcesError> {
        let keep = |source| SourcesError::Registry { doing: "keep", source };
        let repository = self.repository(app)?;
        let empty = Descriptor::of(MediaType::Empty, b"{}");
        self.client.push_blob(&repository, BlobSource::bytes("{}"), &[]).await.map_err(keep)?;
        let layers = packs.iter().flat_map(|kept| {
            let mut pack = kept.pack.clone();
            let again = (kept.again > 0).then(|| (AGAIN.to_owned(), kept.again.to_string()));
            let at = kept.at.map(|at| (KEPT.to_owned(), at.as_second().to_string()));
            let name = (NAME.to_owned(), kept.name.clone());
            pack.annotations = std::iter::once(name).chain(again).chain(at).collect();
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
    pub(super) async fn swap(
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
    pub(super) async fn tag_what_is_named(
        &self,
        store: &dyn Store,
        app: &AppName,
    ) -> Result<(), SourcesError> {
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
    pub(super) async fn list(&self, app: &AppName, manifest: Digest) -> Result<Vec<Kept>, SourcesError> {
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
            let at = pack.annotations.get(KEPT).and_then(|at| Timestamp::from_second(at.parse().ok()?).ok());
            packs.push(Kept { name, again, at, pack: pack.clone(), index: index.clone() });
        }
        Ok(packs)
    }

    /// Fetches a pack and its index into a directory.
    pub(super) async fn pull(
        &self,
        app: &AppName,
        kept: &Kept,
        directory: &Path,
    ) -> Result<Pack, SourcesError> {
        let file = |extension| directory.join(format!("{}.{extension}", kept.name));
        let pack = Pack { name: kept.name.clone(), pack: file("pack"), index: file("idx") };
        self.pull_blob(app, &kept.pack, &pack.pack).await?;
        self.pull_blob(app, &kept.index, &pack.index).await?;
        Ok(pack)
    }

    /// Fetches what was kept into a file.
    pub(super) async fn pull_blob(
        &self,
        app: &AppName,
        descriptor: &Descriptor,
        path: &Path,
    ) -> Result<(), SourcesError> {
        let failed = |source| SourcesError::File { doing: "write", path: path.to_owned(), source };
        let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
        let pulled = self.client.pull_blob(&self.repository(app)?, descriptor, &mut file).await;
        pulled.map_err(|source| SourcesError::Registry { doing: "fetch", source })
    }
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
pub(in crate::push) fn digest_of_file(path: &Path) -> io::Result<(Digest, u64)> {
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
