//! Images in OCI image layouts, from there and to there (image-spec, `image-layout.md`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::build::error::EngineError;
use crate::build::image::with_default_tag;
use crate::oci::{
    Descriptor, Digest, Index, MAX_MANIFEST_BYTES, MediaType, Platform, RawManifest, Reference,
};

/// A name, or as most tools write it the tag alone.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name, beside a tag alone: containerd's, BuildKit's and ours.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// What makes a directory a layout.
pub(crate) const MARKER: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// Adds blobs and entries to a layout, which is made if it is not there. Each file is written whole or not at all.
pub(crate) fn add(
    directory: &Path,
    blobs: &[(Digest, PathBuf)],
    documents: &[&[u8]],
    new: Vec<Descriptor>,
) -> Result<(), EngineError> {
    let sha256 = directory.join("blobs/sha256");
    let error = |path: &Path| EngineError::io(format!("write `{}`", path.display()));
    fs::create_dir_all(&sha256).map_err(error(&sha256))?;
    for (digest, from) in blobs {
        let to = blob_path(directory, digest);
        if !to.exists() {
            File::open(from).and_then(|mut from| write(&to, &mut from)).map_err(error(&to))?;
        }
    }
    for mut bytes in documents.iter().copied() {
        let to = blob_path(directory, &Digest::of(bytes));
        write(&to, &mut bytes).map_err(error(&to))?;
    }
    let index_path = directory.join("index.json");
    let mut entries = match fs::read(&index_path) {
        Ok(bytes) => RawManifest::parse(bytes, None)
            .ok()
            .and_then(|index| index.as_index().map(|index| index.manifests.clone()))
            .unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    for entry in new {
        entries.retain(|old| !is_replaced(old, &entry));
        entries.push(entry);
    }
    write(&index_path, &mut &index(entries)[..]).map_err(error(&index_path))?;
    let marker = directory.join("oci-layout");
    write(&marker, &mut MARKER.as_bytes()).map_err(error(&marker))
}

fn write(to: &Path, from: &mut dyn io::Read) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(to.parent().unwrap_or(Path::new(".")))?;
    io::copy(from, &mut file)?;
    file.as_file().set_permissions(PermissionsExt::from_mode(0o644))?;
    file.persist(to).map(drop).map_err(|error| error.error)
}

/// Whether an entry gives way to one of the same name: for the same platform, or for one that it does not say.
fn is_replaced(old: &Descriptor, new: &Descriptor) -> bool {
    let is_for_another = old.platform.is_some() && old.platform != new.platform;
    old.annotations.get(REF_NAME) == new.annotations.get(REF_NAME) && !is_for_another
}

/// An `index.json`: not an image index, so several entries may be for one platform.
pub(crate) fn index(manifests: Vec<Descriptor>) -> Vec<u8> {
    let index = Index {
        schema_version: 2,
        media_type: Some(MediaType::ImageIndex),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: BTreeMap::new(),
    };
    RawManifest::index(&index).bytes().to_vec()
}

/// Where a blob of a layout is.
pub(crate) fn blob_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs/sha256").join(digest.hex())
}

/// The manifest of an image in a layout, for a platform; an error is a sentence.
pub(crate) fn manifest(
    directory: &Path,
    wanted: &Reference,
    platform: &Platform,
) -> Result<Option<RawManifest>, String> {
    chosen(directory, platform, |entries| find(entries, wanted, platform))
}

/// The manifest, for a platform, of the first image in a layout that is wanted; an error is a sentence.
pub(crate) fn entry(
    directory: &Path,
    is_wanted: impl Fn(&Descriptor) -> bool,
    platform: &Platform,
) -> Result<Option<RawManifest>, String> {
    chosen(directory, platform, |entries| {
        let wanted: Vec<&Descriptor> = entries.iter().filter(|entry| is_wanted(entry)).collect();
        Ok(for_platform(&wanted, platform))
    })
}

fn chosen(
    directory: &Path,
    platform: &Platform,
    find: impl for<'a> Fn(&'a [Descriptor]) -> Result<Option<&'a Descriptor>, String>,
) -> Result<Option<RawManifest>, String> {
    let top = parse(read(&directory.join("index.json"), MAX_MANIFEST_BYTES as u64)?)?;
    let entries = &top.as_index().ok_or("index.json is not an index")?.manifests;
    let Some(entry) = find(entries)? else { return Ok(None) };
    let mut found = parse(blob(directory, &entry.digest, MAX_MANIFEST_BYTES as u64)?)?;
    if let Some(index) = found.as_index() {
        let child = index.choose(platform).map_err(|error| error.to_string())?.digest;
        found = parse(blob(directory, &child, MAX_MANIFEST_BYTES as u64)?)?;
    }
    Ok(Some(found))
}

/// Of several entries with one name, the one for a platform.
fn for_platform<'a>(entries: &[&'a Descriptor], platform: &Platform) -> Option<&'a Descriptor> {
    let is_for = |entry: &&&'a Descriptor| entry.platform.as_ref() == Some(platform);
    entries.iter().find(is_for).or_else(|| entries.first()).copied()
}

fn find<'a>(
    entries: &'a [Descriptor],
    wanted: &Reference,
    platform: &Platform,
) -> Result<Option<&'a Descriptor>, String> {
    if let Some(digest) = wanted.digest {
        return Ok(entries.iter().find(|entry| entry.digest == digest));
    }
    let wanted = with_default_tag(wanted.clone());
    let names = [wanted.to_string(), wanted.familiar()];
    let is_named = |entry: &&Descriptor| {
        let mut own = [REF_NAME, IMAGE_NAME].into_iter().filter_map(|key| entry.annotations.get(key));
        own.any(|name| names.contains(name))
    };
    let named: Vec<&Descriptor> = entries.iter().filter(is_named).collect();
    if let Some(entry) = for_platform(&named, platform) {
        return Ok(Some(entry));
    }
    // `12` may be of anything: `FROM node:12` is not built on Debian 12.
    let tag = wanted.tag.as_ref().map(ToString::to_string);
    let is_tagged = |entry: &Descriptor| {
        entry.annotations.get(REF_NAME) == tag.as_ref() && !entry.annotations.contains_key(IMAGE_NAME)
    };
    match (entries.iter().any(is_tagged), tag) {
        (true, Some(tag)) => Err(format!(
            "it has an image tagged `{tag}` that does not say of what: its index needs the annotation `{IMAGE_NAME}`"
        )),
        _ => Ok(None),
    }
}

/// A small blob, verified; an error is a sentence.
pub(crate) fn blob(directory: &Path, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>, String> {
    let path = blob_path(directory, digest);
    let bytes = read(&path, max_bytes)?;
    let actual = Digest::of(&bytes);
    if actual == *digest { Ok(bytes) } else { Err(format!("`{}` has digest `{actual}`", path.display())) }
}

fn parse(bytes: Vec<u8>) -> Result<RawManifest, String> {
    RawManifest::parse(bytes, None).map_err(|error| error.to_string())
}

fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(max_bytes + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("`{}`: {error}", path.display()))?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("`{}` is larger than {max_bytes} bytes", path.display()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(content: &str, annotations: &[(&str, &str)]) -> Descriptor {
        let mut entry = Descriptor::of(MediaType::ImageManifest, content.as_bytes());
        for (key, value) in annotations {
            entry.annotations.insert((*key).to_owned(), (*value).to_owned());
        }
        entry
    }

    #[test]
    fn an_image_is_found_by_its_whole_name_and_not_by_a_tag_that_may_be_anothers() {
        let entries = [
            entry("named", &[(REF_NAME, "busybox:1")]),
            entry("ours", &[(REF_NAME, "12"), (IMAGE_NAME, "docker.io/library/debian:12")]),
            entry("skopeo", &[(REF_NAME, "20")]),
            entry("latest", &[(REF_NAME, "alpine:latest")]),
            entry("elsewhere", &[(REF_NAME, "quay.io/org/app:1")]),
        ];
        let find = |text: &str| {
            let found = find(&entries, &text.parse().unwrap(), &Platform::native());
            found.map(|found| found.map(|entry| entry.digest))
        };
        let digest = |content: &str| Ok(Some(Digest::of(content)));
        assert_eq!(find("busybox:1"), digest("named"));
        assert_eq!(find("docker.io/library/debian:12"), digest("ours"));
        assert_eq!(find("debian:12"), digest("ours"));
        assert_eq!(find("alpine"), digest("latest"));
        assert_eq!(find("quay.io/org/app:1"), digest("elsewhere"));
        assert_eq!(find(&format!("node@{}", Digest::of("skopeo"))), digest("skopeo"));
        assert_eq!(find("node:12"), Ok(None));
        assert_eq!(find("debian:13"), Ok(None));
        assert!(find("node:20").unwrap_err().contains("does not say of what"));
    }

    #[test]
    fn a_manifest_that_is_not_what_its_digest_says_is_not_used() {
        let layout = tempfile::tempdir().unwrap();
        let digest = Digest::of("expected");
        std::fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        std::fs::write(blob_path(layout.path(), &digest), "other").unwrap();
        assert!(blob(layout.path(), &digest, 100).unwrap_err().contains(&Digest::of("other").to_string()));
        std::fs::write(blob_path(layout.path(), &digest), "expected").unwrap();
        assert_eq!(blob(layout.path(), &digest, 8).unwrap(), b"expected");
        assert!(blob(layout.path(), &digest, 7).is_err());
    }
}
