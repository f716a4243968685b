//! Contexts that are elsewhere, as directories: tars, git repositories, tars over HTTP, as kaniko names them.
//!
//! Done before a build begins: what is built is a directory, wherever it came from.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tempfile::TempDir;
use url::Url;

use crate::build::driver::BuildFailure;
use crate::build::error::EngineError;
use crate::build::process::blocking;
use crate::build::remote::{
    Address, Answer, Git, GitAddress, GitCredentials, GitOptions, Guard, MAX_DOWNLOAD_BYTES, Object, Objects,
    Web, shown,
};
use crate::build::source::pull_source;
use crate::layers;
use crate::model::Secret;
use crate::oci::Reference;
use crate::registry::client::{Client, ClientConfig};

/// Where a context is.
#[derive(Debug, Clone)]
pub enum ContextPlace {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A tar, compressed or not.
    Tar(PathBuf),
    /// A tar on standard input.
    Stdin,
    /// A tar that is fetched.
    WebTar(Url),
    /// A tar in an object store.
    Object(ObjectContext),
    /// A commit of a git repository, or a directory of it.
    Git(GitContext),
    /// What [`push_source`](super::push_source) left in a registry, by its digest.
    Artifact(Reference),
}

/// An object of a store as a context.
#[derive(Debug, Clone)]
pub struct ObjectContext(Object);

/// A git repository as a context.
#[derive(Debug, Clone)]
pub struct GitContext(Box<GitAddress>);

impl ContextPlace {
    /// The context that a text names: `dir://`, `tar://`, `-`, `git://` (which is HTTPS), `https://….git#ref:directory`,
    /// `https://….tar.gz`, `s3://BUCKET/KEY`, `gs://BUCKET/OBJECT`, `https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB`,
    /// `user@host:repository`, or a path. With `plain_http`, `git://` is HTTP.
    pub fn parse(text: &str, plain_http: bool) -> Result<Self, String> {
        let path = |text: &str| PathBuf::from(if text.is_empty() { "." } else { text });
        if let Some(directory) = text.strip_prefix("dir://") {
            return Ok(Self::Directory(path(directory)));
        }
        if matches!(text, "-" | "tar://stdin") {
            return Ok(Self::Stdin);
        }
        if let Some(tar) = text.strip_prefix("tar://") {
            return Ok(Self::Tar(path(tar)));
        }
        if let Some(repository) = text.strip_prefix("git://") {
            return kaniko_git(repository, plain_http).map(Self::Git);
        }
        if let Some(reference) = text.strip_prefix("oci:").filter(|rest| !rest.starts_with("//")) {
            let reference: Reference = reference.parse().map_err(|error| format!("`{text}`: {error}"))?;
            if reference.digest.is_none() {
                return Err(format!(
                    "`{text}`: a source in a registry is named by its digest, `oci:REPOSITORY@sha256:…`"
                ));
            }
            return Ok(Self::Artifact(reference));
        }
        if let Some(object) = Object::parse(text)? {
            return Ok(Self::Object(ObjectContext(object)));
        }
        match Address::parse(text).map_err(|error| error.to_string())? {
            Some(Address::Git(git)) => Ok(Self::Git(GitContext(git))),
            Some(Address::Http(url)) if url.fragment().is_some() => {
                GitAddress::of_url(&url).map(|git| Self::Git(GitContext(Box::new(git))))
            }
            Some(Address::Http(url)) => Ok(Self::WebTar(url)),
            None => Ok(Self::Directory(path(text))),
        }
    }
}

/// `host/repository#reference#commit`, as kaniko has it: submodules only if they are asked for.
fn kaniko_git(text: &str, plain_http: bool) -> Result<GitContext, String> {
    let mut parts = text.splitn(3, '#');
    let scheme = if plain_http { "http" } else { "https" };
    let place = parts.next().unwrap_or_default();
    let url = Url::parse(&format!("{scheme}://{place}")).map_err(|error| {
        format!("`git://{}` is not a repository: {error}", place.rsplit('@').next().unwrap_or_default())
    })?;
    let mut address = GitAddress::of_url(&url)?;
    address.submodules = false;
    address.set_reference(parts.next())?;
    address.set_commit(parts.next())?;
    Ok(GitContext(Box::new(address)))
}

/// How a git context is fetched: what follows `--git`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitContextOptions {
    branch: Option<String>,
    recurse_submodules: Option<bool>,
    insecure: bool,
    keep_git_dir: bool,
}

impl GitContextOptions {
    /// Reads options such as `branch=main` and `recurse-submodules=true`.
    pub fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut found = Self::default();
        for option in options {
            let (name, value) = option.split_once('=').unwrap_or((option, "true"));
            let switch =
                || value.parse::<bool>().map_err(|_| format!("`--git {option}`: it is `true` or `false`"));
            match name {
                "branch" => found.branch = Some(value.to_owned()),
                "recurse-submodules" => found.recurse_submodules = Some(switch()?),
                "insecure-skip-tls" => found.insecure = switch()?,
                "keep-git-dir" => found.keep_git_dir = switch()?,
                // One commit is fetched, whatever is said of the others.
                "single-branch" => {
                    switch()?;
                }
                "depth" => {
                    value.parse::<u32>().map_err(|_| format!("`--git {option}`: it is a number"))?;
                }
                _ => {
                    let known =
                        "branch, single-branch, depth, recurse-submodules, insecure-skip-tls, keep-git-dir";
                    return Err(format!("`--git` has no option `{name}`; it has {known}"));
                }
            }
        }
        Ok(found)
    }
}

/// What is fetched, and how.
#[derive(Debug, Clone)]
pub struct ContextRequest {
    /// Where it is.
    pub place: ContextPlace,
    /// The directory in it that is built from.
    pub sub_path: Option<PathBuf>,
    /// For a git repository.
    pub git: GitContextOptions,
    /// Who asks for a git repository: user and password.
    pub git_credentials: Option<(String, Secret<String>)>,
    /// Who asks for a source in a registry.
    pub registry: Option<Client>,
    /// Certificates that are trusted beside the system's, as PEM.
    pub trusted: Option<String>,
}

/// A context that is a directory of this machine; it is gone when this is dropped, if it was fetched.
#[derive(Debug)]
pub struct FetchedContext {
    /// The directory.
    pub directory: PathBuf,
    /// The Dockerfile, where it came along and is not in the directory.
    pub dockerfile: Option<PathBuf>,
    kept: Option<TempDir>,
    _kept_dockerfile: Option<TempDir>,
}

impl FetchedContext {
    /// Whether it was made for this build.
    #[must_use]
    pub const fn is_fetched(&self) -> bool {
        self.kept.is_some()
    }
}

/// Brings a context here, below the directory `spool`.
///
/// # Cancel safety
/// Dropping the future leaves nothing behind.
pub async fn fetch_context(request: ContextRequest, spool: &Path) -> Result<FetchedContext, BuildFailure> {
    fetched(request, spool).await.map_err(|error| error.into_failure(None))
}

async fn fetched(request: ContextRequest, spool: &Path) -> Result<FetchedContext, EngineError> {
    let ContextRequest { place, sub_path, git, git_credentials, registry, trusted } = request;
    let trusted = trusted.as_deref();
    let mut beside = None;
    let (directory, kept) = match place {
        ContextPlace::Directory(directory) => (directory, None),
        ContextPlace::Tar(path) => {
            let read = |source| EngineError::Read { path: path.clone(), source };
            let tar = File::open(&path).map_err(read)?;
            unpacked(tar, path.display().to_string(), spool).await?
        }
        ContextPlace::Stdin => unpacked(std::io::stdin(), "standard input".to_owned(), spool).await?,
        ContextPlace::WebTar(url) => {
            let kept = temporary(spool)?;
            let web = Web::new(Guard::Open, MAX_DOWNLOAD_BYTES, trusted)?;
            let Answer::New(download) = web.get(&url, None, kept.path()).await? else {
                return Err(EngineError::Protocol);
            };
            unpacked(download.file, shown(&url), spool).await?
        }
        ContextPlace::Object(ObjectContext(object)) => {
            let kept = temporary(spool)?;
            let objects = Objects::from_environment(trusted)?;
            let download = Box::pin(objects.get(&object, kept.path())).await?;
            unpacked(download.file, object.to_string(), spool).await?
        }
        ContextPlace::Git(GitContext(address)) => {
            let credentials = git_credentials.map(|(user, password)| GitCredentials { user, password });
            let options = GitOptions { credentials, insecure: git.insecure };
            let fetcher = Git::new(Guard::Open, options, trusted, temporary_root(spool)?)?;
            checked_out(*address, git, fetcher, spool).await?
        }
        ContextPlace::Artifact(reference) => {
            let client = registry.unwrap_or_else(|| Client::new(ClientConfig::default()));
            let pulled = pull_source(&client, &reference, temporary_root(spool)?).await?;
            if let Some((dockerfile, name)) = pulled.dockerfile {
                let (directory, kept) =
                    unpacked(dockerfile, format!("Dockerfile of {reference}"), spool).await?;
                beside = Some((directory.join(name), kept));
            }
            unpacked(pulled.context, reference.to_string(), spool).await?
        }
    };
    let directory = match sub_path {
        Some(sub_path) => inside(&directory, &sub_path)?,
        None => directory,
    };
    let (dockerfile, kept_dockerfile) = beside.map_or((None, None), |(path, kept)| (Some(path), kept));
    Ok(FetchedContext { directory, dockerfile, kept, _kept_dockerfile: kept_dockerfile })
}

type Kept = (PathBuf, Option<TempDir>);

async fn checked_out(
    mut address: GitAddress,
    options: GitContextOptions,
    git: Git,
    spool: &Path,
) -> Result<Kept, EngineError> {
    if address.reference.is_none() {
        address.set_reference(options.branch.as_deref()).map_err(EngineError::Wrong)?;
    }
    address.submodules = options.recurse_submodules.unwrap_or(address.submodules);
    let commit = git.resolve(&address).await?;
    let kept = temporary(spool)?;
    let keep_git_dir = address.keep_git_dir.unwrap_or(options.keep_git_dir);
    git.checkout(&address, &commit, keep_git_dir, kept.path()).await?;
    Ok((inside(kept.path(), Path::new(&address.subdirectory))?, Some(kept)))
}

async fn unpacked(tar: impl Read + Send + 'static, name: String, spool: &Path) -> Result<Kept, EngineError> {
    let kept = temporary(spool)?;
    let into = kept.path().to_owned();
    blocking(move || {
        let wrong = |why: String| {
            EngineError::Wrong(format!("the context `{name}` is not a tar that can be used: {why}"))
        };
        let root = layers::Root::open(&into).map_err(|error| wrong(error.to_string()))?;
        let entries = layers::unpack_files(tar, &root)
            .map_err(|error| wrong(crate::build::driver::chain(&error).join(": ")))?;
        if entries == 0 {
            return Err(wrong("it is empty".to_owned()));
        }
        for entry in walkdir::WalkDir::new(&into) {
            let entry = entry.map_err(|error| wrong(error.to_string()))?;
            let kind = entry.file_type();
            if kind.is_char_device() || kind.is_block_device() {
                return Err(wrong(format!("`{}` is a device", entry.file_name().to_string_lossy())));
            }
        }
        Ok(())
    })
    .await?;
    Ok((kept.path().to_owned(), Some(kept)))
}

/// A directory inside another, wherever symlinks in it lead.
fn inside(directory: &Path, path: &Path) -> Result<PathBuf, EngineError> {
    let root = layers::Root::open(directory).and_then(|root| {
        let real = root.canonical(path)?;
        root.subroot(&real).map(|_| real)
    });
    match root {
        Ok(real) => Ok(directory.join(real)),
        Err(_) => Err(EngineError::Wrong(format!("the context has no directory `{}`", path.display()))),
    }
}

fn temporary(spool: &Path) -> Result<TempDir, EngineError> {
    tempfile::Builder::new()
        .prefix("context-")
        .tempdir_in(temporary_root(spool)?)
        .map_err(EngineError::io("make a directory for the context"))
}

fn temporary_root(spool: &Path) -> Result<&Path, EngineError> {
    std::fs::create_dir_all(spool).map_err(EngineError::io("make a directory for the context"))?;
    Ok(spool)
}

impl FromStr for ContextPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(text: &str) -> GitAddress {
        match text.parse::<ContextPlace>().unwrap() {
            ContextPlace::Git(GitContext(address)) => *address,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn contexts_are_named_as_kaniko_and_buildkit_name_them() {
        let place = |text: &str| format!("{:?}", text.parse::<ContextPlace>().unwrap());
        assert_eq!(place("dir:///workspace"), "Directory(\"/workspace\")");
        assert_eq!(place("some/dir"), "Directory(\"some/dir\")");
        assert_eq!(place("tar:///c.tar.gz"), "Tar(\"/c.tar.gz\")");
        assert_eq!((place("-"), place("tar://stdin")), ("Stdin".to_owned(), "Stdin".to_owned()));
        assert!(place("https://h/c.tar.gz?x").starts_with("WebTar"));
        for object in ["s3://b-1/k.tar.gz", "gs://b-1/k", "https://acme.blob.core.windows.net/c/k.tar.gz"] {
            assert!(place(object).starts_with("Object"), "{object}");
        }
        // Its address says who may read it.
        assert!(place("https://acme.blob.core.windows.net/c/k?sv=1&sig=x").starts_with("WebTar"));
        assert!("ftp://h/x".parse::<ContextPlace>().is_err());
    }

    #[test]
    fn a_git_context_has_a_reference_a_commit_and_a_directory() {
        let one = git("git://github.com/acme/p.git#refs/heads/main#0123456789012345678901234567890123456789");
        assert_eq!(one.remote.text(), "https://github.com/acme/p.git");
        assert_eq!(one.reference.as_deref(), Some("refs/heads/main"));
        assert_eq!(one.commit.as_deref(), Some("0123456789012345678901234567890123456789"));
        assert!(!one.submodules && git("https://h/p.git").submodules);
        let two = git("https://h/p#v1:dir");
        assert_eq!((two.reference.as_deref(), two.subdirectory.as_str()), (Some("v1"), "dir"));
        let plain = ContextPlace::parse("git://h/p", true).unwrap();
        assert!(format!("{plain:?}").contains("\"http\""), "{plain:?}");
        assert!("git://h/p#--upload-pack=x".parse::<ContextPlace>().is_err());
    }

    #[test]
    fn options_of_git_are_kanikos() {
        let options =
            GitContextOptions::parse(["branch=b", "single-branch=true", "depth=1", "recurse-submodules"]);
        let expected = GitContextOptions {
            branch: Some("b".to_owned()),
            recurse_submodules: Some(true),
            ..GitContextOptions::default()
        };
        assert_eq!(options, Ok(expected));
        for wrong in ["depth=x", "insecure-skip-tls=2", "brunch=b"] {
            assert!(GitContextOptions::parse([wrong]).is_err(), "{wrong}");
        }
    }
}
