//! A context as content of a registry: left there by whoever has it, pulled by an engine that runs elsewhere.
//!
//! The same files make the same digest, so that the platforms of a build, and a server that takes it over, share one.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Component, Path, PathBuf};

use tokio::io::AsyncSeekExt as _;

use crate::build::context::Context;
use crate::build::driver::BuildFailure;
use crate::build::error::EngineError;
use crate::build::process::blocking;
use crate::layers::{Compression, LayerWriter};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, RawManifest, Reference, Repository, Target};
use crate::registry::client::{BlobSource, Client};

/// What kind of artifact a source is.
const SOURCE_TYPE: &str = "application/vnd.hephy.source.v1";
/// The layer with a Dockerfile that is not in the context.
const DOCKERFILE_TYPE: &str = "application/vnd.hephy.source.dockerfile.v1.tar+zstd";
/// The annotation with that Dockerfile's name.
const TITLE: &str = "org.opencontainers.image.title";
/// The annotation with the build that a source is for alone.
const OWNER: &str = "dev.hephy.source.owner";
/// The largest Dockerfile with its ignore file, as a tar.
const MAX_DOCKERFILE_BYTES: u64 = 16 << 20;
/// Fast rather than small: it is written once and read once for each platform.
const COMPRESSION: Compression = Compression::Zstd { level: 1 };

/// A source in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedSource {
    /// Of its manifest.
    pub digest: Digest,
    /// The Dockerfile as the engine is to be told of it, relative to the context; none if it comes along by itself.
    pub dockerfile: Option<PathBuf>,
}

/// How a source is left in a registry.
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// Seconds since 1970: nothing in it is later.
    pub epoch: Option<i64>,
    /// Where its tar is written first; else where temporary files are.
    pub spool: Option<PathBuf>,
    /// Whose it is, if it is nobody else's and may be removed by its digest.
    pub owner: Option<String>,
}

/// Leaves in `repository` what a build of `context` needs: what is not ignored, the Dockerfile and its ignore file.
///
/// `dockerfile` is relative to the context or absolute. Bounded in memory.
pub async fn push_source(
    client: &Client,
    repository: &Repository,
    (context, dockerfile): (&Path, &Path),
    options: &SourceOptions,
) -> Result<PushedSource, BuildFailure> {
    pushed(client, repository, (context, dockerfile), options).await.map_err(|error| error.into_failure(None))
}

async fn pushed(
    client: &Client,
    repository: &Repository,
    (context, dockerfile): (&Path, &Path),
    options: &SourceOptions,
) -> Result<PushedSource, EngineError> {
    let (directory, given, packing) = (context.to_owned(), dockerfile.to_owned(), options.clone());
    let packed = blocking(move || pack(&directory, &given, &packing)).await?;
    let mut layers = Vec::new();
    for blob in [Some(packed.context), packed.dockerfile].into_iter().flatten() {
        let source = BlobSource::file(blob.file.path(), blob.descriptor.digest, blob.descriptor.size);
        client.push_blob(repository, source, &[]).await?;
        layers.push(blob.descriptor);
    }
    let config = Descriptor::of(MediaType::Empty, b"{}");
    client.push_blob(repository, BlobSource::bytes("{}"), &[]).await?;
    let mut manifest =
        Manifest { artifact_type: Some(MediaType::from(SOURCE_TYPE)), ..Manifest::image(config, layers) };
    manifest.annotations.extend(options.owner.clone().map(|owner| (OWNER.to_owned(), owner)));
    let manifest = RawManifest::image(&manifest);
    client.push_manifest(repository, &Target::Digest(manifest.digest()), &manifest).await?;
    Ok(PushedSource { digest: manifest.digest(), dockerfile: packed.inside })
}

struct Packed {
    context: Blob,
    dockerfile: Option<Blob>,
    inside: Option<PathBuf>,
}

struct Blob {
    file: tempfile::NamedTempFile,
    descriptor: Descriptor,
}

fn pack(directory: &Path, dockerfile: &Path, options: &SourceOptions) -> Result<Packed, EngineError> {
    let context = Context::open(directory, dockerfile)?;
    let read_error = |source| EngineError::Read { path: directory.join(dockerfile), source };
    let root = directory.canonicalize().map_err(read_error)?;
    let place = Place::of(&root, dockerfile).map_err(read_error)?;
    let ignore = context.ignore.as_ref().map(|ignore| Place::of(&root, Path::new(&ignore.name)));
    let ignore = ignore.transpose().map_err(read_error)?;
    let inside = place.inside.clone();
    let needed = inside.iter().chain(ignore.iter().filter_map(|ignore| ignore.inside.as_ref()));
    let context = context.with(needed.cloned().collect(), options.epoch);
    let spool = options.spool.as_deref();
    let layer =
        |written: (tempfile::NamedTempFile, Descriptor)| Blob { file: written.0, descriptor: written.1 };
    let packed = compressed(COMPRESSION.media_type(), spool, |out| context.write_tar(out))?;
    let dockerfile = match inside {
        // An ignore file in the context is in the context's tar.
        None => {
            let ignore = ignore.filter(|ignore| ignore.inside.is_none());
            Some(layer(beside_context(&place.path, ignore.map(|ignore| ignore.path), spool)?))
        }
        Some(_) => None,
    };
    Ok(Packed { context: layer(packed), dockerfile, inside })
}

/// Where a file is, wherever links and `..` lead.
struct Place {
    /// Its own path.
    path: PathBuf,
    /// What it is called in the context, if it is there.
    inside: Option<PathBuf>,
}

impl Place {
    fn of(root: &Path, given: &Path) -> io::Result<Self> {
        let named = root.join(given);
        let path = named.canonicalize()?;
        let is_plain = |name: &&Path| name.components().all(|part| matches!(part, Component::Normal(_)));
        let in_root = |path: &Path| path.strip_prefix(root).ok().filter(is_plain).map(Path::to_owned);
        // By its own name, where it is a link: that is how the engine will name it.
        let inside = in_root(&named).or_else(|| in_root(&path)).filter(|_| path.starts_with(root));
        Ok(Self { path, inside })
    }
}

/// A Dockerfile that is outside the context, with the ignore file beside it.
fn beside_context(
    dockerfile: &Path,
    ignore: Option<PathBuf>,
    spool: Option<&Path>,
) -> Result<(tempfile::NamedTempFile, Descriptor), EngineError> {
    let name = dockerfile.file_name().map(PathBuf::from).unwrap_or_default();
    let mut files = vec![(dockerfile.to_owned(), name.clone())];
    if let Some(ignore) = ignore {
        let mut beside = name.clone().into_os_string();
        beside.push(".dockerignore");
        files.push((ignore, beside.into()));
    }
    let (file, mut descriptor) = compressed(DOCKERFILE_TYPE, spool, |out| {
        let mut tar = tar::Builder::new(out);
        for (path, name) in &files {
            let read = |source| EngineError::Read { path: path.clone(), source };
            let text = std::fs::read(path).map_err(read)?;
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(text.len() as u64);
            tar.append_data(&mut header, name, text.as_slice()).map_err(read)?;
        }
        tar.finish().map_err(EngineError::io("write the Dockerfile"))
    })?;
    descriptor.annotations.insert(TITLE.to_owned(), name.to_string_lossy().into_owned());
    Ok((file, descriptor))
}

fn compressed(
    media_type: &str,
    spool: Option<&Path>,
    write: impl FnOnce(&mut dyn io::Write) -> Result<(), EngineError>,
) -> Result<(tempfile::NamedTempFile, Descriptor), EngineError> {
    let failed = |source| EngineError::Io { what: "write the source to a temporary file".to_owned(), source };
    let mut file = match spool {
        Some(spool) => std::fs::create_dir_all(spool).and_then(|()| tempfile::NamedTempFile::new_in(spool)),
        None => tempfile::NamedTempFile::new(),
    }
    .map_err(failed)?;
    let out = io::BufWriter::with_capacity(1 << 16, file.as_file_mut());
    let mut writer = LayerWriter::new(out, COMPRESSION).map_err(failed)?;
    write(&mut writer)?;
    let (made, mut out) = writer.finish().map_err(failed)?;
    out.flush().map_err(failed)?;
    drop(out);
    Ok((file, Descriptor::new(MediaType::from(media_type), made.digest, made.size)))
}

/// A source that was pulled, as tars.
pub(crate) struct PulledSource {
    pub(crate) context: File,
    /// The Dockerfile's directory, and its name there.
    pub(crate) dockerfile: Option<(File, String)>,
}

/// Pulls what [`push_source`] left.
pub(crate) async fn pull_source(
    client: &Client,
    reference: &Reference,
    spool: &Path,
) -> Result<PulledSource, EngineError> {
    let wrong = |why: &str| EngineError::Wrong(format!("`oci:{reference}` is not a source: {why}"));
    let manifest = client.manifest(&reference.repository, &reference.target()).await?;
    let image = manifest.as_image().ok_or_else(|| wrong("it is an index"))?;
    if image.artifact_type.as_ref().map(MediaType::as_str) != Some(SOURCE_TYPE) {
        return Err(wrong("it is another kind of artifact; `hephy build --driver=k8s` makes sources"));
    }
    let context = image.layers.first().ok_or_else(|| wrong("it has no layer"))?;
    let context = pulled(client, &reference.repository, context, spool).await?;
    let layer = image.layers.iter().find(|layer| layer.media_type.as_str() == DOCKERFILE_TYPE);
    let dockerfile = match layer {
        Some(layer) if layer.size > MAX_DOCKERFILE_BYTES => return Err(wrong("its Dockerfile is too large")),
        Some(layer) => {
            let name = layer.annotations.get(TITLE).filter(|name| !name.is_empty() && !name.contains('/'));
            let name = name.cloned().ok_or_else(|| wrong("its Dockerfile has no name"))?;
            Some((pulled(client, &reference.repository, layer, spool).await?, name))
        }
        None => None,
    };
    Ok(PulledSource { context, dockerfile })
}

async fn pulled(
    client: &Client,
    repository: &Repository,
    layer: &Descriptor,
    spool: &Path,
) -> Result<File, EngineError> {
    let failed = |source| EngineError::Io { what: "write the source to the disk".to_owned(), source };
    let mut file = tokio::fs::File::from_std(tempfile::tempfile_in(spool).map_err(failed)?);
    client.pull_blob(repository, layer, &mut file).await?;
    file.seek(SeekFrom::Start(0)).await.map_err(failed)?;
    let mut file = file.into_std().await;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(file: &Path) -> Vec<String> {
        let plain = crate::layers::sniff(File::open(file).unwrap()).unwrap();
        let mut archive = tar::Archive::new(plain);
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_source_has_what_is_not_ignored_and_the_dockerfile_whatever_is() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("Dockerfile", "FROM x"),
            (".dockerignore", "Dockerfile\n.dockerignore\nbig"),
            ("a", "a"),
            ("big", "b"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let at_five = SourceOptions { epoch: Some(5), ..SourceOptions::default() };
        let packed = pack(dir.path(), Path::new("Dockerfile"), &at_five).unwrap();
        assert_eq!(names(packed.context.file.path()), ["a", "Dockerfile", ".dockerignore"]);
        assert_eq!(packed.inside, Some(PathBuf::from("Dockerfile")));
        std::fs::File::open(dir.path().join("a"))
            .unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap();
        let again = pack(&dir.path().join("."), &dir.path().join("Dockerfile"), &at_five).unwrap();
        assert_eq!(again.context.descriptor, packed.context.descriptor);
        assert_eq!(again.inside, Some(PathBuf::from("Dockerfile")));
    }

    #[test]
    fn a_dockerfile_outside_the_context_comes_along_with_its_ignore_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("context")).unwrap();
        for (name, text) in
            [("File", "FROM x"), ("File.dockerignore", "big"), ("context/a", "a"), ("context/big", "b")]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let context = dir.path().join("context");
        for dockerfile in [dir.path().join("File"), PathBuf::from("../File")] {
            let packed = pack(&context, &dockerfile, &SourceOptions::default()).unwrap();
            assert_eq!((packed.inside, names(packed.context.file.path())), (None, vec!["a".to_owned()]));
            assert_eq!(names(packed.dockerfile.unwrap().file.path()), ["File", "File.dockerignore"]);
        }
        // With an allow-list nothing else comes along, whatever the ignore file is called.
        std::fs::write(dir.path().join("File.dockerignore"), "*\n!a\n").unwrap();
        let packed = pack(&context, Path::new("../File"), &SourceOptions::default()).unwrap();
        assert_eq!(names(packed.context.file.path()), ["a"]);
    }

    #[test]
    fn a_dockerfile_in_the_context_has_its_name_there_however_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().join("context");
        std::fs::create_dir(&context).unwrap();
        std::fs::write(context.join("File"), "FROM x").unwrap();
        let packed = pack(&context, Path::new("../context/File"), &SourceOptions::default()).unwrap();
        assert_eq!(packed.inside, Some(PathBuf::from("File")));
        assert_eq!(names(packed.context.file.path()), ["File"]);
    }
}
