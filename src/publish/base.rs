//! Root file systems → base images: one layer each, an index over them, tags last; in a registry or an OCI layout.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;

use crate::bases::RootFilesystem;
use crate::layers::{Compressed, Compression, compress_layer};
use crate::oci::{
    Descriptor, Digest, History, ImageConfig, Index, IndexError, Manifest, MediaType, Platform, RawManifest,
    Repository, Tag, Target,
};
use crate::registry::client::{BlobSource, Client, ClientError};

/// What containerd and BuildKit call a whole name in a layout.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// What Debian's own images say too.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a base image could not be made or published.
#[derive(Debug, thiserror::Error)]
pub enum BaseImageError {
    /// A file could not be read or written.
    #[error("cannot {action} `{}`", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The images make no index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The registry did not take it.
    #[error("the registry did not take the base")]
    Registry(#[from] ClientError),
    /// A time that is none.
    #[error("the archive's date {0} is not a time")]
    Epoch(i64),
}

/// A base image for one platform, its layer in a file.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// For which platform.
    pub platform: Platform,
    /// Its one layer.
    pub layer: Compressed,
    /// Where the layer is.
    pub blob: PathBuf,
    config: Bytes,
    manifest: RawManifest,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedBase {
    /// Of the index.
    pub digest: Digest,
    /// What it has images for, in the index's order.
    pub platforms: Vec<Platform>,
}

/// Makes the image of a root file system, and its layer beside the tar. The same tar gives the same image.
///
/// Blocks: it compresses the whole.
pub fn base_image(root: &RootFilesystem, compression: Compression) -> Result<BaseImage, BaseImageError> {
    let blob = root.tar.with_extension("layer");
    let tar = File::open(&root.tar).map_err(file("open", &root.tar))?;
    let out = File::create(&blob).map_err(file("create", &blob))?;
    let layer =
        compress_layer(tar, io::BufWriter::new(out), compression).map_err(file("compress", &root.tar))?;
    let created = Timestamp::from_second(root.epoch).map_err(|_| BaseImageError::Epoch(root.epoch))?;
    let mut config = ImageConfig::new(&root.platform);
    config.created = Some(created);
    config.config.env = vec![PATH.to_owned()];
    config.config.cmd = Some(root.command.clone());
    config.rootfs.diff_ids = vec![layer.diff_id];
    let created_by = Some(root.created_by.clone());
    config.history = vec![History { created: Some(created), created_by, ..History::default() }];
    let config = config.to_bytes();
    let descriptor = Descriptor::of(MediaType::ImageConfig, &config);
    let layers = vec![Descriptor::new(MediaType::from(compression.media_type()), layer.digest, layer.size)];
    let manifest = RawManifest::image(&Manifest::image(descriptor, layers));
    Ok(BaseImage { platform: root.platform.clone(), layer, blob, config, manifest })
}

/// Pushes images and their index, and moves `tags` to it, the first of them last.
///
/// An index that is there already keeps its images of other platforms, so that each machine can add its own.
pub async fn push_base(
    client: &Client,
    repository: &Repository,
    tags: &[Tag],
    images: &[BaseImage],
) -> Result<PublishedBase, BaseImageError> {
    let mut children = BTreeMap::new();
    if let Some(tag) = tags.first() {
        let there = client.find_manifest(repository, &Target::Tag(tag.clone())).await?;
        let index = there.as_ref().and_then(RawManifest::as_index);
        let entries = index.into_iter().flat_map(|index| &index.manifests);
        children.extend(entries.filter_map(|entry| Some((entry.platform.clone()?, entry.clone()))));
    }
    for image in images {
        let layer = BlobSource::file(image.blob.clone(), image.layer.digest, image.layer.size);
        client.push_blob(repository, layer, &[]).await?;
        client.push_blob(repository, BlobSource::bytes(image.config.clone()), &[]).await?;
        let target = Target::Digest(image.manifest.digest());
        client.push_manifest(repository, &target, &image.manifest).await?;
        children.insert(image.platform.clone(), image.manifest.descriptor());
    }
    let (index, published) = index_of(children)?;
    client.push_manifest(repository, &Target::Digest(index.digest()), &index).await?;
    for tag in tags.iter().rev() {
        client.push_manifest(repository, &Target::Tag(tag.clone()), &index).await?;
    }
    Ok(published)
}

/// Writes images and their index as an OCI layout into the directory `directory`, made if need be.
///
/// Each tag is an entry under the tag alone, as most tools read it, that says in containerd's annotation of which repository it is.
pub fn write_layout(
    directory: &Path,
    repository: &Repository,
    tags: &[Tag],
    images: &[BaseImage],
) -> Result<PublishedBase, BaseImageError> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(file("create", &blobs))?;
    let write = |digest: Digest, content: &[u8]| {
        let path = blobs.join(digest.hex());
        fs::write(&path, content).map_err(file("write", &path))
    };
    let mut children = BTreeMap::new();
    for image in images {
        let path = blobs.join(image.layer.digest.hex());
        fs::copy(&image.blob, &path).map_err(file("write", &path))?;
        write(Digest::of(&image.config), &image.config)?;
        write(image.manifest.digest(), image.manifest.bytes())?;
        children.insert(image.platform.clone(), image.manifest.descriptor());
    }
    let (index, published) = index_of(children)?;
    write(index.digest(), index.bytes())?;
    let entry = |tag: &Tag| {
        let descriptor = index.descriptor();
        json!({
            "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size,
            "annotations": {
                IMAGE_NAME: repository.with(&Target::Tag(tag.clone())).to_string(),
                "org.opencontainers.image.ref.name": tag.to_string(),
            },
        })
    };
    let media_type = MediaType::ImageIndex;
    let mut entries: Vec<_> = tags.iter().map(entry).collect();
    entries.extend(others(&directory.join("index.json"), repository, tags));
    let top = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
    for (name, content) in [("index.json", top), ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }))] {
        let path = directory.join(name);
        fs::write(&path, content.to_string()).map_err(file("write", &path))?;
    }
    Ok(published)
}

/// The entries of a layout's index that is there, but for those of `tags`.
fn others(index: &Path, repository: &Repository, tags: &[Tag]) -> Vec<serde_json::Value> {
    let names: Vec<String> =
        tags.iter().map(|tag| repository.with(&Target::Tag(tag.clone())).to_string()).collect();
    let read = fs::read(index).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let index: serde_json::Value = read.unwrap_or_default();
    let entries = index["manifests"].as_array().cloned().unwrap_or_default();
    let name = |entry: &serde_json::Value| entry["annotations"][IMAGE_NAME].as_str().map(ToOwned::to_owned);
    entries.into_iter().filter(|entry| name(entry).is_none_or(|name| !names.contains(&name))).collect()
}

/// Writes what [`write_layout`] wrote into `layout` as one tar, the same for the same layout.
pub fn pack_layout(layout: &Path, tar: &Path) -> Result<(), BaseImageError> {
    let out = File::create(tar).map_err(file("create", tar))?;
    let mut builder = tar::Builder::new(io::BufWriter::new(out));
    builder.mode(tar::HeaderMode::Deterministic);
    let mut names = vec!["oci-layout".to_owned(), "index.json".to_owned()];
    let blobs = layout.join("blobs/sha256");
    let entries = fs::read_dir(&blobs).map_err(file("list", &blobs))?;
    let mut found: Vec<String> =
        entries.flatten().map(|entry| format!("blobs/sha256/{}", entry.file_name().display())).collect();
    found.sort();
    names.extend(found);
    for name in names {
        builder.append_path_with_name(layout.join(&name), &name).map_err(file("write", tar))?;
    }
    let finish =
        builder.into_inner().and_then(|out| out.into_inner().map_err(io::IntoInnerError::into_error));
    finish.map(drop).map_err(file("write", tar))
}

fn index_of(
    children: BTreeMap<Platform, Descriptor>,
) -> Result<(RawManifest, PublishedBase), BaseImageError> {
    let index = Index::of_platforms(children.into_iter().collect())?;
    let platforms = index.manifests.iter().filter_map(|entry| entry.platform.clone()).collect();
    let index = RawManifest::index(&index);
    let digest = index.digest();
    Ok((index, PublishedBase { digest, platforms }))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BaseImageError + use<> {
    let path = path.to_owned();
    move |source| BaseImageError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> Repository {
        "debian".parse().unwrap()
    }

    fn image(directory: &Path, platform: &str) -> BaseImage {
        let tar = directory.join(format!("{}.tar", platform.replace('/', "-")));
        fs::write(&tar, [0; 1024]).unwrap();
        let root = RootFilesystem {
            platform: platform.parse().unwrap(),
            tar,
            epoch: 1_000_000_000,
            command: vec!["sh".to_owned()],
            created_by: "hephy base busybox".to_owned(),
        };
        base_image(&root, Compression::default()).unwrap()
    }

    #[test]
    fn the_same_files_give_the_same_index_wherever_they_are() {
        let digest = || {
            let directory = tempfile::tempdir().unwrap();
            let images = ["linux/arm64", "linux/amd64"].map(|platform| image(directory.path(), platform));
            let tags = ["12".parse().unwrap(), "bookworm".parse().unwrap()];
            let layout = directory.path().join("layout");
            let published = write_layout(&layout, &repository(), &tags, &images).unwrap();
            let shown: Vec<_> = published.platforms.iter().map(ToString::to_string).collect();
            assert_eq!(shown, ["linux/amd64", "linux/arm64"]);
            let packed = directory.path().join("layout.tar");
            pack_layout(&layout, &packed).unwrap();
            (published.digest, Digest::of(fs::read(packed).unwrap()))
        };
        assert_eq!(digest(), digest());
    }

    #[test]
    fn a_layout_names_every_tag_and_holds_every_blob() {
        let directory = tempfile::tempdir().unwrap();
        let images = [image(directory.path(), "linux/amd64")];
        let layout = directory.path().join("layout");
        let published = write_layout(
            &layout,
            &repository(),
            &["12".parse().unwrap(), "bookworm".parse().unwrap()],
            &images,
        )
        .unwrap();
        let top: serde_json::Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let entries = top["manifests"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1]["annotations"]["org.opencontainers.image.ref.name"], "bookworm");
        assert_eq!(entries[0]["digest"], published.digest.to_string());
        assert_eq!(entries[0]["annotations"]["io.containerd.image.name"], "docker.io/library/debian:12");
        // Another base beside it, and the same again.
        let other = "busybox".parse().unwrap();
        for repository in [&other, &repository()] {
            write_layout(&layout, repository, &["12".parse().unwrap()], &images).unwrap();
        }
        let top: serde_json::Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let name = |entry: &serde_json::Value| entry["annotations"]["io.containerd.image.name"].to_string();
        let names: Vec<String> = top["manifests"].as_array().unwrap().iter().map(name).collect();
        assert_eq!(
            names.join(" "),
            r#""docker.io/library/debian:12" "docker.io/library/busybox:12" "docker.io/library/debian:bookworm""#
        );
        for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(
                Digest::of(fs::read(&path).unwrap()).hex(),
                path.file_name().unwrap().to_str().unwrap()
            );
        }
    }
}
