//! What ADD takes from elsewhere: known for the key of its step, and fetched only if the step is not known.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use url::Url;

use crate::build::engine::Engine;
use crate::build::error::EngineError;
use crate::build::key::KeyBuilder;
use crate::build::protocol::Fetched;
use crate::build::remote::{
    Address, Answer, Download, Git, GitAddress, GitOptions, MAX_DOWNLOAD_BYTES, RemoteError, Validators, Web,
    http_name, shown,
};
use crate::dockerfile::Add;
use crate::layers;
use crate::oci::Digest;

/// What ADD's flags say of sources that are elsewhere.
#[derive(Debug, Clone, Default)]
pub(super) struct AddFlags {
    checksum: Option<String>,
    keep_git_dir: Option<bool>,
    unpack: bool,
}

impl From<&Add> for AddFlags {
    fn from(add: &Add) -> Self {
        let checksum = add.checksum.clone().filter(|text| !text.is_empty());
        // An address gives a file, if nobody says otherwise.
        Self { checksum, keep_git_dir: add.keep_git_dir, unpack: add.unpack == Some(true) }
    }
}

/// A source that is elsewhere, of which the key is known.
pub(super) enum Remote {
    Web { url: Url, unpack: bool, expected: Expected, file: Option<Download> },
    Git { address: Box<GitAddress>, commit: String, keep_git_dir: bool },
}

/// What was fetched: the descriptors, what each is, and what has to stay until they are read.
#[derive(Default)]
pub(super) struct FetchedSources {
    pub(super) kinds: Vec<Fetched>,
    pub(super) fds: Vec<OwnedFd>,
    checkouts: Vec<TempDir>,
}

/// What a file has to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expected {
    /// As its author says.
    Checksum(Digest),
    /// As the key says.
    Known(Digest),
}

/// What is remembered of a file that was fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Remembered {
    validators: Validators,
    digest: Digest,
    modified: i64,
}

/// The sources of ADD: which are paths and which are addresses.
pub(super) fn split(paths: &[String], flags: &AddFlags) -> Result<(Vec<String>, Vec<Address>), EngineError> {
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    for path in paths {
        match Address::parse(path)? {
            Some(address) => remote.push(address),
            None => local.push(path.clone()),
        }
    }
    if flags.checksum.is_some() && (paths.len() != 1 || remote.is_empty()) {
        return Err(EngineError::Wrong(
            "`ADD --checksum` is for one source, which is an address of a file or a git repository"
                .to_owned(),
        ));
    }
    Ok((local, remote))
}

/// Refuses the addresses among the sources of COPY.
pub(super) fn refuse(paths: &[String]) -> Result<(), EngineError> {
    let is_address = |path: &&String| matches!(Address::parse(path), Ok(Some(_)));
    match paths.iter().find(is_address).map(|path| Address::parse(path)) {
        Some(Ok(Some(Address::Http(url)))) => {
            Err(EngineError::Wrong(format!("COPY takes no address: `ADD {}` does", shown(&url))))
        }
        Some(Ok(Some(Address::Git(git)))) => {
            Err(EngineError::Wrong(format!("COPY takes no repository: `ADD {}` does", git.remote.text())))
        }
        _ => Ok(()),
    }
}

impl Engine {
    /// Finds out what addresses stand for now, and adds it to a key.
    pub(super) async fn remotes(
        &self,
        addresses: Vec<Address>,
        flags: &AddFlags,
        key: &mut KeyBuilder,
    ) -> Result<Vec<Remote>, EngineError> {
        let mut remotes = Vec::new();
        for address in addresses {
            remotes.push(match address {
                Address::Http(url) => self.web_source(url, flags, key).await?,
                Address::Git(address) => self.git_source(address, flags, key).await?,
            });
        }
        Ok(remotes)
    }

    async fn web_source(
        &self,
        url: Url,
        flags: &AddFlags,
        key: &mut KeyBuilder,
    ) -> Result<Remote, EngineError> {
        key.text("web").optional(http_name(&url).as_deref()).number(u64::from(flags.unpack));
        let unpack = flags.unpack;
        if let Some(checksum) = &flags.checksum {
            // Whatever the address gives, it is this or an error: nobody is asked.
            let digest = checksum.parse::<Digest>().map_err(|error| {
                EngineError::Wrong(format!("`ADD --checksum={checksum}` of a file: {error}"))
            })?;
            key.text("checksum").digest(digest);
            return Ok(Remote::Web { url, unpack, expected: Expected::Checksum(digest), file: None });
        }
        let store = &self.trees.bases.store;
        let slot = KeyBuilder::new("address").text(url.as_str()).finish();
        let remembered = match self.options.cache {
            crate::build::CacheUse::Ignore => None,
            crate::build::CacheUse::Read => store.step(&slot)?,
        };
        let remembered = remembered
            .and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok())
            .filter(|remembered| !remembered.validators.is_empty());
        let known = remembered.as_ref().map(|remembered| &remembered.validators);
        let answer = self.web()?.get(&url, known, &self.spool()).await?;
        let (digest, modified, file) = match (answer, remembered) {
            (Answer::New(download), _) => {
                let (digest, modified) = (download.digest, download.modified);
                let now = Remembered { validators: download.validators.clone(), digest, modified };
                store.put_step(&slot, &serde_json::to_vec(&now).unwrap_or_default())?;
                (digest, modified, Some(download))
            }
            (Answer::Unchanged, Some(remembered)) => (remembered.digest, remembered.modified, None),
            (Answer::Unchanged, None) => return Err(EngineError::Protocol),
        };
        key.digest(digest).number(modified.cast_unsigned());
        Ok(Remote::Web { url, unpack, expected: Expected::Known(digest), file })
    }

    async fn git_source(
        &self,
        mut address: Box<GitAddress>,
        flags: &AddFlags,
        key: &mut KeyBuilder,
    ) -> Result<Remote, EngineError> {
        let name = address.remote.text();
        let contradiction =
            |what: &str| EngineError::Wrong(format!("`{name}` and its flags say two things of `{what}`"));
        match (&address.checksum, &flags.checksum) {
            (Some(one), Some(other)) if one != other => return Err(contradiction("--checksum")),
            (None, Some(_)) => address.checksum.clone_from(&flags.checksum),
            _ => {}
        }
        if matches!((address.keep_git_dir, flags.keep_git_dir), (Some(one), Some(other)) if one != other) {
            return Err(contradiction("--keep-git-dir"));
        }
        let keep_git_dir = address.keep_git_dir.or(flags.keep_git_dir).unwrap_or(false);
        let commit = self.git()?.resolve(&address).await?;
        key.text("git").text(&name).text(&commit).text(&address.subdirectory);
        key.number(u64::from(keep_git_dir)).number(u64::from(address.submodules));
        Ok(Remote::Git { address, commit, keep_git_dir })
    }

    /// Fetches what is not here yet, as descriptors for the worker.
    pub(super) async fn fetch(&self, remotes: Vec<Remote>) -> Result<FetchedSources, EngineError> {
        let mut fetched = FetchedSources::default();
        for remote in remotes {
            match remote {
                Remote::Web { url, unpack, expected, file } => {
                    let download = match file {
                        Some(file) => file,
                        None => self.download(&url, expected).await?,
                    };
                    fetched.kinds.push(Fetched::File {
                        name: http_name(&url),
                        modified: download.modified,
                        unpack,
                    });
                    fetched.fds.push(download.file.into());
                }
                Remote::Git { address, commit, keep_git_dir } => {
                    let (directory, fd) = self.checkout(&address, &commit, keep_git_dir).await?;
                    fetched.kinds.push(Fetched::Directory);
                    fetched.fds.push(fd);
                    fetched.checkouts.push(directory);
                }
            }
        }
        Ok(fetched)
    }

    async fn download(&self, url: &Url, expected: Expected) -> Result<Download, EngineError> {
        let Answer::New(download) = self.web()?.get(url, None, &self.spool()).await? else {
            return Err(EngineError::Protocol);
        };
        let (address, found) = (shown(url), download.digest);
        match expected {
            Expected::Checksum(digest) if digest != found => {
                let (expected, found) = (digest.to_string(), found.to_string());
                Err(RemoteError::Checksum { address, expected, found }.into())
            }
            Expected::Known(before) if before != found => {
                Err(RemoteError::Changed { address, before, now: found }.into())
            }
            Expected::Checksum(_) | Expected::Known(_) => Ok(download),
        }
    }

    /// The directory of a checkout, and in it the one that is copied.
    async fn checkout(
        &self,
        address: &GitAddress,
        commit: &str,
        keep_git_dir: bool,
    ) -> Result<(TempDir, OwnedFd), EngineError> {
        let directory = tempfile::Builder::new()
            .prefix("checkout-")
            .tempdir_in(self.spool())
            .map_err(EngineError::io("make a directory for a checkout"))?;
        self.git()?.checkout(address, commit, keep_git_dir, directory.path()).await?;
        let root = layers::Root::open(directory.path())
            .and_then(|root| root.subroot(std::path::Path::new(&address.subdirectory)));
        let root = root.map_err(|_| {
            EngineError::Wrong(format!(
                "`{}` has no directory `{}`",
                address.remote.text(),
                address.subdirectory
            ))
        })?;
        Ok((directory, root.into_fd()))
    }

    fn web(&self) -> Result<Web, EngineError> {
        Ok(Web::new(self.options.network.into(), MAX_DOWNLOAD_BYTES, self.trusted())?)
    }

    fn git(&self) -> Result<Git, EngineError> {
        let options = GitOptions::default();
        Ok(Git::new(self.options.network.into(), options, self.trusted(), &self.spool())?)
    }

    fn trusted(&self) -> Option<&str> {
        self.options.mounts.ca_bundle.as_deref()
    }

    fn spool(&self) -> std::path::PathBuf {
        self.options.layers.join("tmp")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::{Instruction, parse_trigger};

    const SUM: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn paths(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    fn flags(text: &str) -> AddFlags {
        match parse_trigger(text, "a test").unwrap().instruction {
            Instruction::Add(add) => AddFlags::from(&add),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_sources_of_add_are_paths_or_addresses() {
        let sources = paths(&["a", "https://h/x.tar.gz", "https://h/p.git#v1", "d/", "git@h:p.git"]);
        let (local, remote) = split(&sources, &AddFlags::default()).unwrap();
        assert_eq!(local, ["a", "d/"]);
        assert!(matches!(&remote[..], [Address::Http(_), Address::Git(_), Address::Git(_)]), "{remote:?}");
    }

    #[test]
    fn a_checksum_is_for_one_source_that_is_elsewhere() {
        let flags = flags(&format!("ADD --checksum={SUM} https://h/x /"));
        for (sources, is_right) in [
            (&["https://h/x"][..], true),
            (&["https://h/p.git"], true),
            (&["a"], false),
            (&["a", "https://h/x"], false),
            (&["https://h/x", "https://h/y"], false),
        ] {
            assert_eq!(split(&paths(sources), &flags).is_ok(), is_right, "{sources:?}");
        }
    }

    #[test]
    fn what_an_address_gives_is_unpacked_only_if_somebody_says_so() {
        for (text, is_unpacked) in [
            ("ADD https://h/x /", false),
            ("ADD --unpack=true https://h/x /", true),
            ("ADD --unpack=false a /", false),
        ] {
            assert_eq!(flags(text).unpack, is_unpacked, "{text}");
        }
    }

    #[test]
    fn copy_takes_nothing_from_elsewhere_and_says_what_does_without_a_password() {
        let refused = |path: &str| refuse(&paths(&["a", path])).unwrap_err().to_string();
        let told = refused("https://user:hunter2@h/x?token=hunter2");
        assert_eq!(told, "COPY takes no address: `ADD https://h/x` does");
        let told = refused("https://user:hunter2@h/p.git");
        assert!(told.starts_with("COPY takes no repository: `ADD ") && !told.contains("hunter2"), "{told}");
        assert!(refuse(&paths(&["a", "http:", "h/x.git"])).is_ok());
    }
}
