//! COPY and ADD inside the worker: where files come from, and how they arrive.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Cursor;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::build::protocol::{CopyFrom, CopyRequest, Fetched, IgnoreText};
use crate::build::user::UserError;
use crate::build::worker::{Body, OpenRoot, WorkerError, accounts};
use crate::dockerfile::IgnoreFile;
use crate::layers::{
    self, CopyOptions, Excluded, Included, KnownContents, LaidFiles, ModeChange, NewFile, Owner, Owners,
    SourceHash, Staged,
};

/// An opened place that files are copied from.
pub(super) struct Source {
    root: layers::Root,
    /// The merged view of several layers, and its scratch directory.
    mounted: Option<(OpenRoot, Staged)>,
}

impl Source {
    pub(super) fn open(
        body: &mut Body,
        from: &CopyFrom,
        context: Option<OwnedFd>,
    ) -> Result<Self, WorkerError> {
        match from {
            CopyFrom::ContextDirectory { .. } => {
                let root = layers::Root::from_fd(context.ok_or(WorkerError::Protocol)?);
                Ok(Self { root, mounted: None })
            }
            CopyFrom::ContextCopy => Ok(Self { root: layers::Root::open(body.context()?)?, mounted: None }),
            CopyFrom::Layers(layers) => {
                let staged = body.stage()?;
                let mounted = body.open_root(&staged, layers, LaidFiles::Linked)?;
                match layers::Root::open(mounted.path()) {
                    Ok(root) => Ok(Self { root, mounted: Some((mounted, staged)) }),
                    Err(error) => {
                        body.close_unchanged(mounted)?;
                        Err(error.into())
                    }
                }
            }
        }
    }

    pub(super) const fn root(&self) -> &layers::Root {
        &self.root
    }

    /// Where its files are seen as one tree that may be written to, to no effect, if they are.
    pub(super) fn mounted_at(&self) -> Option<&Path> {
        self.mounted.as_ref().map(|(mounted, _)| mounted.path())
    }

    pub(super) fn close(self, body: &mut Body) -> Result<(), WorkerError> {
        drop(self.root);
        if let Some((mounted, staged)) = self.mounted {
            body.close_unchanged(mounted)?;
            drop(staged);
        }
        Ok(())
    }
}

/// What is left out of a copy.
pub(super) struct Exclusion(IgnoreFile);

impl Exclusion {
    pub(super) fn of(ignore: Option<&IgnoreText>) -> Result<Self, WorkerError> {
        match ignore {
            Some(ignore) => Ok(Self(IgnoreFile::parse(&ignore.text, &ignore.name)?)),
            None => Ok(Self(IgnoreFile::default())),
        }
    }

    /// What `--exclude` leaves out.
    fn of_flags(patterns: &[String]) -> Result<Self, WorkerError> {
        let parsed = IgnoreFile::of_patterns(patterns.iter().map(String::as_str));
        parsed.map(Self).map_err(|reason| WorkerError::Pattern { flag: "--exclude", reason })
    }

    pub(super) fn excludes(&self, path: &Path, is_directory: bool) -> Excluded {
        if !self.0.is_ignored(path) {
            Excluded::No
        } else if is_directory && self.0.may_reinclude_below(path) {
            Excluded::YesButLookInside
        } else {
            Excluded::Yes
        }
    }
}

/// The patterns of the sources of `--parents`.
struct Parents(BTreeMap<String, IgnoreFile>);

impl Parents {
    fn of(sources: &[String]) -> Result<Self, WorkerError> {
        let parsed = |source: &String| {
            let (_, pattern) = layers::pivot(source);
            let parsed = IgnoreFile::of_patterns([pattern.as_str()])
                .map_err(|reason| WorkerError::Pattern { flag: "--parents", reason })?;
            Ok((pattern, parsed))
        };
        sources.iter().map(parsed).collect::<Result<_, _>>().map(Self)
    }

    fn includes(&self, pattern: &str, path: &Path) -> Included {
        let Some(pattern) = self.0.get(pattern) else { return Included::No };
        if path.as_os_str().is_empty() {
            Included::LookInside
        } else if pattern.is_ignored(path) {
            Included::Yes
        } else if pattern.may_match_below(path) {
            Included::LookInside
        } else {
            Included::No
        }
    }
}

/// Calls `then` with the options of a copy.
fn with_options<T>(
    copy: &CopyRequest,
    owner: Option<Owner>,
    then: impl FnOnce(&CopyOptions<'_>) -> Result<T, WorkerError>,
) -> Result<T, WorkerError> {
    let ignore = match &copy.from {
        CopyFrom::ContextDirectory { ignore } => ignore.as_ref(),
        CopyFrom::ContextCopy | CopyFrom::Layers(_) => None,
    };
    let exclusion = Exclusion::of(ignore)?;
    let exclude = |path: &Path, is_directory| exclusion.excludes(path, is_directory);
    let flags = Exclusion::of_flags(&copy.exclude)?;
    let exclude_within = |path: &Path, is_directory| flags.excludes(path, is_directory);
    let parents = if copy.parents { Some(Parents::of(&copy.sources)?) } else { None };
    let include = |pattern: &str, path: &Path| {
        parents.as_ref().map_or(Included::Yes, |parents| parents.includes(pattern, path))
    };
    let mode = match copy.chmod.as_deref() {
        Some(text) => Some(text.parse::<ModeChange>()?),
        None => None,
    };
    then(&CopyOptions {
        owner,
        preserve_owner: matches!(copy.from, CopyFrom::Layers(_)) && owner.is_none(),
        keep_attributes: matches!(copy.from, CopyFrom::Layers(_)),
        mode: mode.as_ref(),
        exclude: Some(&exclude),
        exclude_within: if copy.exclude.is_empty() { None } else { Some(&exclude_within) },
        parents: if parents.is_some() { Some(&include) } else { None },
        extract: copy.extract,
        several: copy.sources.len() + copy.fetched.len() + copy.inline.len() > 1,
        owners: Owners::Keep,
    })
}

/// Copies into the image.
pub(super) fn copy(
    copy: &CopyRequest,
    from: &layers::Root,
    mut fetched: VecDeque<OwnedFd>,
    to: &layers::Root,
) -> Result<(), WorkerError> {
    let owner = match &copy.chown {
        Some(text) => {
            let (uid, gid) = accounts(to)?.owner(text).map_err(|error| owner_error(copy, text, error))?;
            Some(Owner { uid, gid })
        }
        None => None,
    };
    with_options(copy, owner, |options| {
        let sources: Vec<&str> = copy.sources.iter().map(String::as_str).collect();
        if !sources.is_empty() {
            layers::copy(&sources, from, &copy.destination, to, options)?;
        }
        for kind in &copy.fetched {
            let fd = fetched.pop_front().ok_or(WorkerError::Protocol)?;
            place_fetched(kind, fd, &copy.destination, to, options)?;
        }
        for file in &copy.inline {
            let content = Cursor::new(&file.content);
            let attributes = NewFile { mode: 0o644, mtime: copy.now };
            layers::write_file(to, &copy.destination, &file.name, content, options, attributes)?;
        }
        Ok(())
    })
}

fn place_fetched(
    kind: &Fetched,
    fd: OwnedFd,
    destination: &str,
    to: &layers::Root,
    options: &CopyOptions<'_>,
) -> Result<(), WorkerError> {
    match kind {
        Fetched::Directory => {
            // Whoever checked it out, the files are root's, as a context's.
            let options = CopyOptions {
                extract: false,
                exclude: None,
                preserve_owner: false,
                keep_attributes: false,
                ..*options
            };
            layers::copy(&["/"], &layers::Root::from_fd(fd), destination, to, &options)?;
        }
        Fetched::File { name, modified, unpack } => {
            let attributes = NewFile { mode: 0o600, mtime: *modified };
            let options = CopyOptions { extract: *unpack, ..*options };
            layers::add_file(to, destination, name.as_deref(), File::from(fd), &options, attributes)?;
        }
    }
    Ok(())
}

fn owner_error(copy: &CopyRequest, owner: &str, error: UserError) -> WorkerError {
    if copy.lowers.is_empty() { WorkerError::LinkedOwner(owner.to_owned()) } else { error.into() }
}

/// Hashes what a copy would see; what is `known` of contents is not read again.
pub(super) fn hash(
    copy: &CopyRequest,
    from: &layers::Root,
    known: Option<&KnownContents>,
) -> Result<SourceHash, WorkerError> {
    with_options(copy, None, |options| {
        let sources: Vec<&str> = copy.sources.iter().map(String::as_str).collect();
        Ok(layers::hash_sources(&sources, from, options, known)?)
    })
}
