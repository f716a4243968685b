//! What nothing needs any more, and getting rid of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::storage::{Storage, optional};
use super::{Server, ServerError};
use crate::oci::{Digest, ManifestContent, RawManifest, RepositoryName, Tag};

/// What garbage collection leaves.
///
/// Besides what is named here it leaves what is younger than `grace` and what a tag names that hephy does not write
/// itself; tags that it does write (`v4`, a commit, `latest`) hold only what is in `releases`.
#[derive(Debug, Clone)]
pub struct Keep {
    /// The indexes of all releases that can be rolled back to, and of builds under way.
    pub releases: BTreeSet<Digest>,
    /// How old something must be to be garbage: longer than any push takes.
    pub grace: Duration,
    /// How old a tag in an app's cache must be to go.
    pub cache_age: Duration,
}

/// What garbage collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests that no repository has any more.
    pub manifests: u64,
    /// Files of content.
    pub blobs: u64,
    /// The sum of their lengths.
    pub bytes: u64,
}

impl Server {
    /// Removes what nothing needs. Pushes wait meanwhile; pulls go on.
    pub async fn collect_garbage(&self, keep: &Keep) -> Result<Collected, ServerError> {
        let _alone = self.shared.collecting.write().await;
        let (storage, keep) = (self.shared.storage.clone(), keep.clone());
        let collected = tokio::task::spawn_blocking(move || collect(&storage, &keep)).await;
        collected.map_err(io::Error::other).flatten().map_err(|source| self.directory_error(source))
    }
}

/// One repository's manifests and what each leads to.
struct Graph {
    manifests: BTreeMap<Digest, RawManifest>,
    /// Manifests that refer to one, which may itself not be there.
    referrers: BTreeMap<Digest, Vec<Digest>>,
}

/// The names of all repositories.
pub(super) fn repositories(storage: &Storage) -> io::Result<Vec<RepositoryName>> {
    let root = storage.repositories();
    let mut names = BTreeSet::new();
    let walk = walkdir::WalkDir::new(&root).min_depth(1).into_iter();
    let inner = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b"_")
    };
    let mut walk = walk;
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) => continue,
            Err(error) => return Err(error.into()),
        };
        if inner(&entry) {
            continue;
        }
        if entry.file_type().is_dir() {
            walk.skip_current_dir();
        }
        let name =
            entry.path().parent().and_then(|path| path.strip_prefix(&root).ok()?.to_str()?.parse().ok());
        names.extend(name);
    }
    Ok(names.into_iter().collect())
}

/// An index in the repository that has the manifest as a child.
pub(super) fn index_of(
    storage: &Storage,
    name: &RepositoryName,
    child: &Digest,
) -> io::Result<Option<Digest>> {
    let graph = Graph::read(storage, name)?;
    let has_child = |manifest: &&RawManifest| {
        manifest.as_index().is_some_and(|index| index.manifests.iter().any(|entry| entry.digest == *child))
    };
    Ok(graph.manifests.values().find(has_child).map(RawManifest::digest))
}

/// Takes a manifest out of a repository, with its tags and its place among its subject's referrers.
pub(super) fn remove_manifest(storage: &Storage, name: &RepositoryName, digest: &Digest) -> io::Result<()> {
    for tag in tags(storage, name)? {
        if storage.tag(name, &tag)? == Some(*digest) {
            optional(fs::remove_file(storage.tags(name).join(tag.as_str())))?;
        }
    }
    if let Some((media_type, bytes)) = storage.manifest(name, digest)?
        && let Ok(manifest) = RawManifest::parse(bytes, Some(media_type.as_str()))
        && let Some(subject) = manifest.subject()
    {
        optional(fs::remove_file(storage.referrers(name, &subject.digest).join(digest.hex())))?;
    }
    optional(fs::remove_file(storage.manifest_links(name).join(digest.hex()))).map(drop)
}

fn collect(storage: &Storage, keep: &Keep) -> io::Result<Collected> {
    let mut collected = Collected::default();
    let mut linked = BTreeSet::new();
    for name in repositories(storage)? {
        collect_repository(storage, &name, keep, &mut collected)?;
        linked.extend(digests_in(&storage.manifest_links(&name))?);
        linked.extend(digests_in(&storage.blob_links(&name))?);
    }
    for digest in digests_in(&storage.blobs())? {
        let path = storage.blob(&digest);
        if !linked.contains(&digest) && is_older(&path, keep.grace)? {
            let length = optional(fs::metadata(&path))?.map_or(0, |metadata| metadata.len());
            optional(fs::remove_file(&path))?;
            collected.blobs += 1;
            collected.bytes += length;
        }
    }
    Ok(collected)
}

fn collect_repository(
    storage: &Storage,
    name: &RepositoryName,
    keep: &Keep,
    collected: &mut Collected,
) -> io::Result<()> {
    let graph = Graph::read(storage, name)?;
    let mut roots: BTreeSet<Digest> = keep.releases.clone();
    for tag in tags(storage, name)? {
        let Some(digest) = storage.tag(name, &tag)? else { continue };
        let path = storage.tags(name).join(tag.as_str());
        let age = match () {
            () if is_cache(name) || is_result_tag(&tag) => Some(keep.cache_age),
            () => is_release_tag(&tag).then_some(keep.grace),
        };
        let goes =
            age.is_some_and(|age| !keep.releases.contains(&digest) && is_older(&path, age).unwrap_or(false));
        if goes {
            optional(fs::remove_file(path))?;
        } else {
            roots.insert(digest);
        }
    }
    for digest in graph.manifests.keys() {
        if !is_older(&storage.manifest_links(name).join(digest.hex()), keep.grace)? {
            roots.insert(*digest);
        }
    }
    let (manifests, blobs) = graph.reachable(roots);
    for digest in graph.manifests.keys().filter(|digest| !manifests.contains(digest)) {
        remove_manifest(storage, name, digest)?;
        collected.manifests += 1;
    }
    for digest in digests_in(&storage.blob_links(name))? {
        let link = storage.blob_links(name).join(digest.hex());
        if !blobs.contains(&digest) && is_older(&link, keep.grace)? {
            optional(fs::remove_file(link))?;
        }
    }
    Ok(())
}

impl Graph {
    fn read(storage: &Storage, name: &RepositoryName) -> io::Result<Self> {
        let mut graph = Self { manifests: BTreeMap::new(), referrers: BTreeMap::new() };
        for digest in digests_in(&storage.manifest_links(name))? {
            let Some((media_type, bytes)) = storage.manifest(name, &digest)? else { continue };
            let manifest = RawManifest::parse(bytes, Some(media_type.as_str())).map_err(io::Error::other)?;
            if let Some(subject) = manifest.subject() {
                graph.referrers.entry(subject.digest).or_default().push(digest);
            }
            graph.manifests.insert(digest, manifest);
        }
        Ok(graph)
    }

    /// The manifests and blobs that these lead to, with what refers to them.
    fn reachable(&self, roots: BTreeSet<Digest>) -> (BTreeSet<Digest>, BTreeSet<Digest>) {
        let (mut manifests, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        let mut next: Vec<Digest> = roots.into_iter().collect();
        while let Some(digest) = next.pop() {
            let Some(manifest) = self.manifests.get(&digest) else { continue };
            if !manifests.insert(digest) {
                continue;
            }
            next.extend(self.referrers.get(&digest).into_iter().flatten());
            match manifest.content() {
                ManifestContent::Index(index) => {
                    next.extend(index.manifests.iter().map(|child| child.digest));
                }
                ManifestContent::Image(image) => {
                    blobs.insert(image.config.digest);
                    blobs.extend(image.layers.iter().map(|layer| layer.digest));
                }
            }
        }
        (manifests, blobs)
    }
}

fn digests_in(directory: &Path) -> io::Result<Vec<Digest>> {
    let names = Storage::names_in(directory)?;
    Ok(names.iter().filter_map(|name| format!("sha256:{name}").parse().ok()).collect())
}

fn tags(storage: &Storage, name: &RepositoryName) -> io::Result<Vec<Tag>> {
    Ok(Storage::names_in(&storage.tags(name))?.iter().filter_map(|tag| tag.parse().ok()).collect())
}

/// `v4`, a commit, `latest`.
fn is_release_tag(tag: &Tag) -> bool {
    let text = tag.as_str();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text == "latest"
        || text.strip_prefix('v').is_some_and(digits)
        || (text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// The result of a build that ran elsewhere: `app--17--arm64.0123456789ab`.
fn is_result_tag(tag: &Tag) -> bool {
    tag.as_str().split_once('.').is_some_and(|(job, _)| job.split("--").count() >= 3)
}

fn is_cache(name: &RepositoryName) -> bool {
    name.as_str().split('/').nth(1) == Some("cache")
}

fn is_older(path: &Path, age: Duration) -> io::Result<bool> {
    let Some(metadata) = optional(fs::metadata(path))? else { return Ok(false) };
    Ok(SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default() >= age)
}
