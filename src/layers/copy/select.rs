//! Which files a `COPY` means: the same answer for copying them and for the key of its cache.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use super::pattern::{has_wildcard, matches};
use super::walk::{Entry, walk};
use super::{CopyError, CopyOptions, Excluded, Included};
use crate::layers::error::AtPath as _;
use crate::layers::known::Stamp;
use crate::layers::node::{Kind, Node, names};
use crate::layers::root::Root;

/// One source after wildcards and its own symlink.
#[derive(Debug)]
pub(crate) struct Selected {
    /// Where it is, without symlinks; empty for the whole of `from`.
    pub(crate) path: PathBuf,
    /// What it was called.
    pub(crate) name: OsString,
    pub(crate) node: Node,
    pub(crate) stamp: Stamp,
    /// If it is a directory, what is in it: directories before what they hold.
    pub(crate) entries: Vec<Found>,
}

/// Something in a source.
#[derive(Debug)]
pub(crate) struct Found {
    /// Relative to the source.
    pub(crate) path: PathBuf,
    pub(crate) node: Node,
    pub(crate) stamp: Stamp,
    /// A directory that was not asked for, but leads to what was.
    pub(crate) is_way: bool,
}

/// The directory that a source of `--parents` is looked for in, and the pattern of what is copied with its path: what
/// is before and after the first `/./`.
#[must_use]
pub fn pivot(source: &str) -> (String, String) {
    let (base, pattern) = source.split_once("/./").unwrap_or(("", source));
    (clean(base), clean(pattern))
}

/// Finds what `sources` mean in `from`, without what is excluded.
pub(crate) fn select(
    sources: &[&str],
    from: &Root,
    options: &CopyOptions<'_>,
) -> Result<Vec<Selected>, CopyError> {
    let mut selector = Selector { from, options, pattern: None };
    let mut selected = Vec::new();
    for source in sources {
        let clean = if options.parents.is_some() {
            let (base, pattern) = pivot(source);
            selector.pattern = Some(pattern);
            base
        } else {
            clean(source)
        };
        let before = selected.len();
        if has_wildcard(&clean) {
            for path in selector.expand(&clean)? {
                selected.extend(selector.select(&path)?);
            }
        } else {
            let path = PathBuf::from(&clean);
            let one = selector.select(&path).map_err(|error| match missing(error, source) {
                CopyError::Missing(source) => {
                    selector.leading_out(&path).unwrap_or(CopyError::Missing(source))
                }
                error => error,
            })?;
            selected.push(one.ok_or_else(|| CopyError::Excluded((*source).to_owned()))?);
        }
        let found = selected.iter().skip(before).any(|one| !one.entries.is_empty());
        if !found && let Some(pattern) = &selector.pattern {
            selector.explain(source, Path::new(&clean), pattern)?;
        }
    }
    Ok(selected)
}

fn missing(error: CopyError, source: &str) -> CopyError {
    match error {
        CopyError::Root(error) if error.is_not_found() => CopyError::Missing(source.to_owned()),
        error => error,
    }
}

/// `source` relative to the root, `..` never leading above it.
fn clean(source: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in source.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// Whether a link in a directory so many levels below its root names what is outside.
fn leads_out(target: &Path, depth: usize) -> bool {
    let mut depth = depth;
    for part in target.components() {
        match part {
            Component::RootDir | Component::Prefix(_) => return true,
            Component::ParentDir if depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
        }
    }
    false
}

/// A directory in a source, relative to it.
struct Directory {
    below: PathBuf,
    included: Included,
}

struct Selector<'a> {
    from: &'a Root,
    options: &'a CopyOptions<'a>,
    /// Of `--parents`: what of a source is copied.
    pattern: Option<String>,
}

impl Selector<'_> {
    fn excluded(&self, path: &Path, is_directory: bool) -> Excluded {
        match self.options.exclude {
            Some(exclude) if !path.as_os_str().is_empty() => exclude(path, is_directory),
            _ => Excluded::No,
        }
    }

    fn excluded_within(&self, path: &Path, is_directory: bool) -> Excluded {
        self.options.exclude_within.map_or(Excluded::No, |exclude| exclude(path, is_directory))
    }

    /// What `--parents` says of a path below its pivot.
    fn included(&self, path: &Path) -> Included {
        match (self.options.parents, self.pattern.as_deref()) {
            (Some(include), Some(pattern)) if !pattern.is_empty() => include(pattern, path),
            _ => Included::Yes,
        }
    }

    /// The first link on the way to `path` that leads out of a context, if one does. One with an absolute target does, for
    /// who wrote it; nothing leads out of an image.
    fn leading_out(&self, path: &Path) -> Option<CopyError> {
        if self.options.keep_attributes {
            return None;
        }
        let parts: Vec<_> = path.components().collect();
        (1..=parts.len()).find_map(|count| {
            let above: PathBuf = parts[..count].iter().collect();
            let (dir, name) = self.from.resolve_parent(&above).ok()?;
            let target = rustix::fs::readlinkat(&dir, &name, Vec::new()).ok()?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            let depth = self.from.canonical_parent(&above).ok()?.components().count();
            leads_out(&target, depth)
                .then(|| CopyError::LeadsOut { path: above.to_string_lossy().into_owned(), target })
        })
    }

    /// Why a source of `--parents` gave nothing, if it should have.
    fn explain(&self, source: &str, base: &Path, pattern: &str) -> Result<(), CopyError> {
        if pattern.is_empty() || has_wildcard(source) {
            return Ok(());
        }
        let path = base.join(pattern);
        let real = self.from.canonical(&path).map_err(|error| missing(error.into(), source))?;
        let node = Node::of(self.from.resolve(&real)?).at("inspect", &path)?;
        if self.excluded(&path, node.is_directory()) == Excluded::Yes {
            return Err(CopyError::Excluded(source.to_owned()));
        }
        let base = self.from.canonical(base)?;
        let leads_elsewhere = real.parent() != base.join(pattern).parent();
        if leads_elsewhere { Err(CopyError::ParentsThroughSymlink(source.to_owned())) } else { Ok(()) }
    }

    /// One source; `None` if it is excluded, or nothing that a layer has.
    fn select(&self, path: &Path) -> Result<Option<Selected>, CopyError> {
        let real = self.from.canonical(path)?;
        let (node, stamp) = Node::of_stamped(self.from.resolve(&real)?).at("inspect", path)?;
        // What is opened with `O_PATH` shows no attribute, where its owner may be noted.
        let node = match self.from.resolve_parent(&real) {
            Ok((dir, name)) => node.owned(dir.as_fd(), Path::new(&name)),
            Err(_) => node,
        };
        let name = path.file_name().unwrap_or_default().to_owned();
        let excluded = |path| self.excluded(path, node.is_directory());
        if excluded(path) == Excluded::Yes || excluded(&real) == Excluded::Yes {
            return Ok(None);
        }
        let entries =
            if node.is_directory() { self.walk(&self.from.subroot(&real)?, &real)? } else { Vec::new() };
        // A directory that is looked into only for what is in it, and has nothing.
        if excluded(&real) == Excluded::YesButLookInside && entries.is_empty() {
            return Ok(None);
        }
        let found = Selected { path: real, name, node, stamp, entries };
        Ok(Some(found).filter(|found| found.node.kind != Kind::Socket))
    }

    /// What is in the source `top`, which is at `base`.
    fn walk(&self, top: &Root, base: &Path) -> Result<Vec<Found>, CopyError> {
        let whole = Directory { below: PathBuf::new(), included: self.included(Path::new("")) };
        walk(whole, |directory| self.list(top, base, directory))
    }

    fn list(
        &self,
        top: &Root,
        base: &Path,
        Directory { below, included: above }: &Directory,
    ) -> Result<Vec<Entry<Found, Directory>>, CopyError> {
        let dir = crate::layers::node::open_dir(top.as_fd(), below).at("open directory", base.join(below))?;
        let names = names(&dir).at("list", base.join(below))?;
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let path = below.join(&name);
            let whole = base.join(&path);
            let Some((node, stamp)) = Node::at_stamped(dir.as_fd(), &name).at("inspect", &whole)? else {
                continue;
            };
            let is_directory = node.is_directory();
            let excluded = self.excluded(&whole, is_directory);
            let within = self.excluded_within(&path, is_directory);
            let included = if *above == Included::Yes { *above } else { self.included(&path) };
            let never = excluded == Excluded::Yes || within == Excluded::Yes || included == Included::No;
            if never || node.kind == Kind::Socket {
                continue;
            }
            let is_way = within != Excluded::No || included != Included::Yes;
            let is_asked = excluded == Excluded::No && !is_way;
            if is_asked || is_directory {
                let directory = is_directory.then(|| Directory { below: path.clone(), included });
                entries.push(Entry {
                    found: Found { path, node, stamp, is_way },
                    is_way: !is_asked,
                    directory,
                });
            }
        }
        Ok(entries)
    }

    /// The paths that a pattern matches, sorted. Components before the first wildcard are followed, those after are
    /// real directories.
    fn expand(&self, pattern: &str) -> Result<Vec<PathBuf>, CopyError> {
        let parts: Vec<&str> = pattern.split('/').collect();
        let literal = parts.iter().take_while(|part| !has_wildcard(part)).count();
        let base: PathBuf = parts[..literal].iter().collect();
        let mut found = Vec::new();
        match self.from.subroot(&base) {
            Ok(_) => self.expand_in(&base, &parts[literal..], pattern, &mut found)?,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(found)
    }

    fn expand_in(
        &self,
        dir: &Path,
        parts: &[&str],
        pattern: &str,
        found: &mut Vec<PathBuf>,
    ) -> Result<(), CopyError> {
        let [part, rest @ ..] = parts else {
            found.push(dir.to_owned());
            return Ok(());
        };
        let root = self.from.subroot(dir)?;
        for name in names(root.as_fd()).at("list", dir)? {
            let text: &OsStr = &name;
            let matched = matches(part, &text.to_string_lossy());
            if !matched.ok_or_else(|| CopyError::Pattern(pattern.to_owned()))? {
                continue;
            }
            let path = dir.join(&name);
            let node = Node::at(root.as_fd(), &name).at("inspect", &path)?;
            if rest.is_empty() {
                // A dangling symlink is no source.
                if self.from.resolve(&path).is_ok() {
                    found.push(path);
                }
            } else if node.is_some_and(|node| node.is_directory()) {
                self.expand_in(&path, rest, pattern, found)?;
            }
        }
        Ok(())
    }
}
