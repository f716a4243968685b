//! The files of `COPY` and `ADD`: which ones, onto what, with which owner and mode, as `BuildKit` does it.

mod hash;
mod mode;
mod pattern;
mod place;
mod select;
mod walk;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::FileError;
use super::node::Owner;
use super::place::Owners;
use super::root::{Root, RootError};
use super::unpack::UnpackError;

pub use hash::{SourceHash, hash_sources};
pub use mode::{ModeChange, ModeError};
pub use select::pivot;

/// Why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A source that is not there.
    #[error("`{0}` is not there")]
    Missing(String),
    /// A source whose link leads out of where it is.
    #[error(
        "`{path}` is a link to `{}`, which leads out of the place that is copied from: what is outside is not copied",
        target.display()
    )]
    LeadsOut {
        /// The source.
        path: String,
        /// Where it leads, as the link says.
        target: PathBuf,
    },
    /// A source that the ignore file takes away.
    #[error("`{0}` is excluded by the ignore file")]
    Excluded(String),
    /// A path of `--parents` with a symlink in it.
    #[error(
        "`{0}` leads through a symlink, which `--parents` does not follow: give the path that it leads to"
    )]
    ParentsThroughSymlink(String),
    /// Files onto one file.
    #[error("several files cannot become the one file `{}`: let the destination end in `/`", .0.display())]
    SeveralOntoOne(PathBuf),
    /// A file that has no name, into a directory.
    #[error("the address has no name for a file in `{0}`: give the file one in the destination")]
    Nameless(String),
    /// A wildcard that is none.
    #[error("`{0}` is not a valid pattern: a `[` needs its `]`, and `\\` a character after it")]
    Pattern(String),
    /// A directory onto something else.
    #[error("cannot copy the directory `{}` onto `{}`, which is not a directory", source_path.display(), target.display())]
    NotADirectory {
        /// The directory.
        source_path: PathBuf,
        /// What is in its place.
        target: PathBuf,
    },
    /// Something else onto a directory.
    #[error("cannot copy `{}` onto `{}`, which is a directory", source_path.display(), target.display())]
    IsADirectory {
        /// The file.
        source_path: PathBuf,
        /// What is in its place.
        target: PathBuf,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A path could not be resolved.
    #[error(transparent)]
    Root(#[from] RootError),
    /// An archive of `ADD` could not be unpacked.
    #[error("cannot unpack the archive `{}`", path.display())]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: UnpackError,
    },
}

/// What the ignore file says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excluded {
    /// It is copied.
    No,
    /// It is not, nor is anything in it.
    Yes,
    /// It is a directory that is not copied for itself, but something in it may be.
    YesButLookInside,
}

/// Asked for every path below the source's root (relative to it), and whether it is a directory. What is below an excluded directory
/// is to be excluded too.
pub type Exclude<'a> = &'a (dyn Fn(&Path, bool) -> Excluded + Sync);

/// What `--parents` says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Included {
    /// It is copied, with everything in it.
    Yes,
    /// If it is a directory, something in it may be.
    LookInside,
    /// It is not copied, nor is anything in it.
    No,
}

/// Asked with the pattern of a source, as [`pivot`] gives it, and every path below the pivot.
pub type Include<'a> = &'a (dyn Fn(&str, &Path) -> Included + Sync);

/// How to copy.
#[derive(Clone, Copy, Default)]
pub struct CopyOptions<'a> {
    /// `--chown`, resolved. Without it everything belongs to 0:0, or to whom it belonged.
    pub owner: Option<Owner>,
    /// From another stage or image: without `owner`, files keep theirs.
    pub preserve_owner: bool,
    /// Extended attributes are copied too. Those of a context are the builder's machine's own: a browser's note of where a
    /// file is from, a label of its policy.
    pub keep_attributes: bool,
    /// `--chmod`.
    pub mode: Option<&'a ModeChange>,
    /// The ignore file.
    pub exclude: Option<Exclude<'a>>,
    /// `--exclude`: asked for the paths in a directory that is a source, relative to it. A source itself is never excluded by it.
    pub exclude_within: Option<Exclude<'a>>,
    /// `--parents`: sources are copied with their paths.
    pub parents: Option<Include<'a>>,
    /// `ADD`: archives are unpacked.
    pub extract: bool,
    /// Other files go to the same destination, in other calls.
    pub several: bool,
    /// Whether owners are set at all.
    pub owners: Owners,
}

impl std::fmt::Debug for CopyOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyOptions")
            .field("owner", &self.owner)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Files, directories and links.
    pub files: u64,
    /// Bytes of their content.
    pub bytes: u64,
}

/// Copies `sources` of `from` to `dest` in `to`.
///
/// A directory's content is copied, not the directory. `dest` is a directory if it ends in `/` or exists as one, and has to be one
/// for several files; symlinks in it are followed inside `to`. A source's own symlink is followed inside `from`, those in a
/// directory are copied. A directory at `dest` keeps its mode and owner, or is made with
/// 0755 and 0:0; those in it get the source's. Hard
/// links among the sources stay links. A wildcard may match nothing; a plain source must exist.
pub fn copy(
    sources: &[&str],
    from: &Root,
    dest: &str,
    to: &Root,
    options: &CopyOptions<'_>,
) -> Result<Copied, CopyError> {
    let selected = select::select(sources, from, options)?;
    let files = selected.iter().filter(|one| !one.node.is_directory()).count();
    let options = &CopyOptions { several: options.several || files > 1, ..*options };
    let mut placer = place::Placer::new(to, options);
    for one in &selected {
        placer.source(one, from, dest)?;
    }
    Ok(placer.copied)
}

/// Writes one file that is in no directory: the body of a heredoc, or what a URL gave. `dest` and `name` are as for a source that is
/// called `name`.
pub fn write_file(
    to: &Root,
    dest: &str,
    name: &str,
    content: impl Read,
    options: &CopyOptions<'_>,
    attributes: NewFile,
) -> Result<Copied, CopyError> {
    let mut placer = place::Placer::new(to, options);
    placer.new_file(dest, name, content, attributes)?;
    Ok(placer.copied)
}

/// Writes what a URL gave, as [`write_file`], or if `options` say so and it is an archive, what is in it.
pub fn add_file(
    to: &Root,
    dest: &str,
    name: Option<&str>,
    content: File,
    options: &CopyOptions<'_>,
    attributes: NewFile,
) -> Result<Copied, CopyError> {
    let mut placer = place::Placer::new(to, options);
    if !options.extract || !placer.archive(Path::new(name.unwrap_or(dest)), &content, dest)? {
        let is_nameless = name.is_none() && (place::names_directory(dest) || placer.is_directory(dest));
        if is_nameless {
            return Err(CopyError::Nameless(dest.to_owned()));
        }
        placer.new_file(dest, name.unwrap_or_default(), content, attributes)?;
    }
    Ok(placer.copied)
}

/// What a file that comes from no file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewFile {
    /// Its mode, if `--chmod` does not say another.
    pub mode: u32,
    /// Its time, in seconds.
    pub mtime: i64,
}

#[cfg(test)]
mod tests;
