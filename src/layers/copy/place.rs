//! Where the files of a `COPY` land.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::select::{Found, Selected};
use super::{Copied, CopyError, CopyOptions, NewFile};
use crate::layers::entries::is_tar_header;
use crate::layers::error::AtPath as _;
use crate::layers::node::{Kind, Node, Owner, open_dir, open_read, read_link};
use crate::layers::place::{Attributes, Owners, apply, apply_link, copy_file, times};
use crate::layers::root::{Root, remove};
use crate::layers::sniff::sniff;
use crate::layers::unpack::{UnpackOptions, unpack_archive};

/// Whether a destination says itself that it is a directory.
pub(super) fn names_directory(dest: &str) -> bool {
    dest.ends_with('/') || dest.ends_with("/.") || dest == "." || dest.is_empty()
}

/// Puts files below one root.
pub(super) struct Placer<'a> {
    to: &'a Root,
    options: &'a CopyOptions<'a>,
    /// The first place of each source file that has several names.
    inodes: HashMap<(u64, u64), PathBuf>,
    pub(super) copied: Copied,
}

/// A place for a file: the directory, opened, its path without symlinks, and the name in it.
struct Place {
    dir: OwnedFd,
    path: PathBuf,
    name: OsString,
}

impl<'a> Placer<'a> {
    pub(super) fn new(to: &'a Root, options: &'a CopyOptions<'a>) -> Self {
        Self { to, options, inodes: HashMap::new(), copied: Copied::default() }
    }

    /// Copies one source.
    pub(super) fn source(&mut self, source: &Selected, from: &Root, dest: &str) -> Result<(), CopyError> {
        if source.node.is_directory() {
            return self.directory(source, from, dest);
        }
        if self.options.extract && source.node.kind == Kind::File {
            let file = from.open_file(&source.path)?;
            if self.archive(&source.path, &file, dest)? {
                return Ok(());
            }
        }
        let place = self.place(dest, &source.name)?;
        let (parent, name) = from.resolve_parent(&source.path)?;
        self.file(&source.path, &source.node, (parent.as_fd(), &name), &place)
    }

    /// Writes a file with content from elsewhere.
    pub(super) fn new_file(
        &mut self,
        dest: &str,
        name: &str,
        mut content: impl Read,
        new: NewFile,
    ) -> Result<(), CopyError> {
        let place = self.place(dest, OsStr::new(name))?;
        Self::clear(Path::new(name), &place)?;
        let file = create(&place)?;
        let path = place.path.join(&place.name);
        self.copied.bytes += io::copy(&mut content, &mut &file).at("write", &path)?;
        self.copied.files += 1;
        let mode = self.options.mode.map_or(new.mode, |change| change.apply(new.mode, false));
        let owner = self.options.owner.unwrap_or(Owner::ROOT);
        let attributes = Attributes { mode, owner, mtime: new.mtime, xattrs: BTreeMap::new() };
        Ok(apply(file.as_fd(), &attributes, self.options.owners)
            .at("set owner, mode or attributes of", path)?)
    }

    /// Makes the directories that nobody described, above and at a destination.
    ///
    /// `--chmod` says their mode too if it is a number, without the bits that are not permissions.
    fn create_dirs(&self, path: &Path) -> Result<(), CopyError> {
        let mode = self.options.mode.and_then(super::ModeChange::octal).map_or(0o755, |mode| mode & 0o777);
        self.create_dirs_with(path, mode)
    }

    fn create_dirs_with(&self, path: &Path, mode: u32) -> Result<(), CopyError> {
        let owner = self.options.owner.filter(|_| self.options.owners == Owners::Keep);
        self.to.create_dirs(path, mode, owner)?;
        Ok(())
    }

    /// Where a file called `name` goes: into `dest` if that is a directory, else it becomes `dest` itself, or what `dest`
    /// links to.
    fn place(&self, dest: &str, name: &OsStr) -> Result<Place, CopyError> {
        let mut path = PathBuf::from(dest.trim_start_matches('/'));
        let exists = self.is_directory(dest);
        if names_directory(dest) || exists {
            if !exists {
                self.create_dirs(&path)?;
            }
            let dir = self.to.subroot(&path)?.into_fd();
            return Ok(Place { dir, path: self.to.canonical(&path)?, name: name.to_owned() });
        }
        if self.options.several {
            return Err(CopyError::SeveralOntoOne(Path::new("/").join(path)));
        }
        // As many symlinks as the kernel follows.
        for _ in 0..40 {
            self.create_dirs(path.parent().unwrap_or(Path::new("")))?;
            let (_, name) = self.to.resolve_parent(&path)?;
            let parent = self.to.canonical_parent(&path)?;
            let dir = self.to.subroot(&parent)?.into_fd();
            let node = Node::at(dir.as_fd(), &name).at("inspect", &path)?;
            if node.is_none_or(|node| node.kind != Kind::Symlink) {
                return Ok(Place { dir, path: parent, name });
            }
            let target = read_link(dir.as_fd(), &name).at("read symlink", &path)?;
            // An absolute target begins at the root, which join does.
            path = Path::new("/").join(parent).join(target);
            path = path.strip_prefix("/").map(Path::to_owned).unwrap_or(path);
        }
        Ok(Err(rustix::io::Errno::LOOP).at("find", path)?)
    }

    /// Copies what is in a directory into `dest`.
    fn directory(&mut self, source: &Selected, from: &Root, dest: &str) -> Result<(), CopyError> {
        let dest = PathBuf::from(dest.trim_start_matches('/'));
        let exists = match self.to.resolve(&dest) {
            Ok(found) if !Node::of(&found).at("inspect", &dest)?.is_directory() => {
                return Err(CopyError::NotADirectory { source_path: source.path.clone(), target: dest });
            }
            Ok(_) => true,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error.into()),
        };
        if !exists {
            self.create_dirs(&dest)?;
        }
        let (from, to) = (from.subroot(&source.path)?, self.to.subroot(&dest)?);
        let base = self.to.canonical(&dest)?;
        // A root is whatever directory it was put in, also an image's, which no layer says the time of.
        let is_root = source.path.as_os_str().is_empty();
        let mut directories = Vec::new();
        for found in &source.entries {
            let is_new = self.entry(&source.path, found, (&from, &to, &base))?;
            if found.node.is_directory() {
                directories.push((found, is_new));
            }
        }
        // Filling a directory changes its time, and may need a mode that it is not to have.
        for (found, is_new) in directories.into_iter().rev() {
            if found.is_way && !is_new {
                touch_way(&found.path, &found.node, &to)?;
            } else {
                self.finish_directory(&found.path, &found.node, &from, &to)?;
            }
        }
        if !is_root {
            rustix::fs::futimens(to.as_fd(), &times(source.node.mtime)).at("set time of", &dest)?;
        }
        Ok(())
    }

    /// Copies one entry of a directory, and says whether it is new.
    fn entry(
        &mut self,
        source: &Path,
        Found { path, node, .. }: &Found,
        (from, to, base): (&Root, &Root, &Path),
    ) -> Result<bool, CopyError> {
        // Every directory above was found to be one in the source, and is one in the destination.
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default().to_owned();
        let dir = open_dir(to.as_fd(), parent).at("open directory", base.join(parent))?;
        let place = Place { dir, path: base.join(parent), name };
        let whole = source.join(path);
        if !node.is_directory() {
            let from_dir = open_dir(from.as_fd(), parent).at("open directory", source.join(parent))?;
            self.file(&whole, node, (from_dir.as_fd(), &place.name), &place)?;
            return Ok(true);
        }
        self.copied.files += 1;
        match Node::at(place.dir.as_fd(), &place.name).at("inspect", base.join(path))? {
            Some(found) if found.is_directory() => Ok(false),
            Some(_) => Err(CopyError::NotADirectory { source_path: whole, target: base.join(path) }),
            None => {
                let mode = Mode::from_raw_mode(0o700);
                rustix::fs::mkdirat(&place.dir, &place.name, mode).at("create directory", base.join(path))?;
                Ok(true)
            }
        }
    }

    fn finish_directory(&self, path: &Path, node: &Node, from: &Root, to: &Root) -> Result<(), CopyError> {
        let source = open_dir(from.as_fd(), path).at("open directory", path)?;
        let attributes = self.attributes(node, Some(source.as_fd()), path)?;
        let made = open_dir(to.as_fd(), path).at("open directory", path)?;
        Ok(apply(made.as_fd(), &attributes, self.options.owners)
            .at("set owner, mode or attributes of", path)?)
    }

    /// Copies something that is not a directory.
    fn file(
        &mut self,
        source: &Path,
        node: &Node,
        (from, from_name): (BorrowedFd<'_>, &OsStr),
        place: &Place,
    ) -> Result<(), CopyError> {
        Self::clear(source, place)?;
        self.copied.files += 1;
        let path = place.path.join(&place.name);
        if node.kind == Kind::File && node.links > 1 {
            if let Some(first) = self.inodes.get(&node.inode) {
                let (dir, name) = self.to.resolve_parent(first)?;
                let linked = rustix::fs::linkat(dir, name, &place.dir, &place.name, AtFlags::empty());
                return Ok(linked.at("create hard link", path)?);
            }
            self.inodes.insert(node.inode, path.clone());
        }
        match node.kind {
            Kind::File => self.regular(source, node, (from, from_name), place),
            Kind::Symlink => {
                let target = read_link(from, from_name).at("read symlink", source)?;
                rustix::fs::symlinkat(target, &place.dir, &place.name).at("create symlink", &path)?;
                let attributes = self.attributes(node, None, source)?;
                Ok(apply_link(place.dir.as_fd(), &place.name, &attributes, self.options.owners)
                    .at("set owner of", path)?)
            }
            _ => self.special(source, node, place),
        }
    }

    fn regular(
        &mut self,
        source: &Path,
        node: &Node,
        (from, from_name): (BorrowedFd<'_>, &OsStr),
        place: &Place,
    ) -> Result<(), CopyError> {
        let mut content = File::from(open_read(from, from_name).at("open", source)?);
        if Node::of(&content).at("inspect", source)?.kind != Kind::File {
            return Err(crate::layers::RootError::NotAFile(source.to_owned()).into());
        }
        let attributes = self.attributes(node, Some(content.as_fd()), source)?;
        let file = create(place)?;
        let path = place.path.join(&place.name);
        self.copied.bytes += copy_file(&mut content, &file).at("write", &path)?;
        Ok(apply(file.as_fd(), &attributes, self.options.owners)
            .at("set owner, mode or attributes of", path)?)
    }

    fn special(&self, source: &Path, node: &Node, place: &Place) -> Result<(), CopyError> {
        let path = place.path.join(&place.name);
        let file_type = match node.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let attributes = self.attributes(node, None, source)?;
        let mode = Mode::from_raw_mode(attributes.mode);
        rustix::fs::mknodat(&place.dir, &place.name, file_type, mode, node.rdev)
            .at("create device", &path)?;
        apply_link(place.dir.as_fd(), &place.name, &attributes, self.options.owners)
            .at("set owner of", &path)?;
        Ok(rustix::fs::chmodat(&place.dir, &place.name, mode, AtFlags::empty()).at("set mode of", path)?)
    }

    /// Removes what is in the place of a file.
    fn clear(source: &Path, place: &Place) -> Result<(), CopyError> {
        let path = place.path.join(&place.name);
        match Node::at(place.dir.as_fd(), &place.name).at("inspect", &path)? {
            Some(found) if found.is_directory() => {
                Err(CopyError::IsADirectory { source_path: source.to_owned(), target: path })
            }
            Some(_) => Ok(remove(place.dir.as_fd(), &place.name).at("replace", path)?),
            None => Ok(()),
        }
    }

    /// What a copy has: the source's, changed as asked.
    fn attributes(
        &self,
        node: &Node,
        fd: Option<BorrowedFd<'_>>,
        path: &Path,
    ) -> Result<Attributes, CopyError> {
        let mut attributes = match fd.filter(|_| self.options.keep_attributes) {
            Some(fd) => Attributes::of_file(node, fd).at("read attributes of", path)?,
            None => Attributes::of_node(node),
        };
        attributes.owner = match self.options.owner {
            Some(owner) => owner,
            None if self.options.preserve_owner => node.owner,
            None => Owner::ROOT,
        };
        if let (Some(change), false) = (self.options.mode, node.kind == Kind::Symlink) {
            attributes.mode = change.apply(node.mode, node.is_directory());
        }
        Ok(attributes)
    }

    /// Whether a destination is there as a directory.
    pub(super) fn is_directory(&self, dest: &str) -> bool {
        self.to.subroot(Path::new(dest.trim_start_matches('/'))).is_ok()
    }

    /// Unpacks a file into `dest` if it is an archive, which its content says; if not, it is as it was.
    pub(super) fn archive(&mut self, source: &Path, mut file: &File, dest: &str) -> Result<bool, CopyError> {
        let is_archive = is_archive(file);
        file.rewind().at("read", source)?;
        if !is_archive {
            return Ok(false);
        }
        let dest = PathBuf::from(dest.trim_start_matches('/'));
        // The mode of `--chmod` is for what is copied, and an archive's entries have their own.
        self.create_dirs_with(&dest, 0o755)?;
        // The archive's own symlinks lead nowhere but into the directory that it is unpacked in.
        let root = self.to.subroot(&dest)?;
        let options = UnpackOptions { owners: self.options.owners, ..UnpackOptions::default() };
        let owner = self.options.owner;
        let adjust = |attributes: &mut Attributes, _| attributes.owner = owner.unwrap_or(attributes.owner);
        let plain = sniff(file).at("read", source)?;
        let unpacked = unpack_archive(plain, &root, &options, &adjust)
            .map_err(|error| CopyError::Unpack { path: source.to_owned(), source: error })?;
        self.copied.files += unpacked.0;
        self.copied.bytes += unpacked.1;
        Ok(true)
    }
}

/// Whether what a file holds, decompressed, begins with an entry of a tar.
fn is_archive(file: &File) -> bool {
    let mut header = [0; 512];
    sniff(file).and_then(|mut plain| plain.read_exact(&mut header)).is_ok() && is_tar_header(&header)
}

/// Gives a directory that was there, and that nobody asked for, the mode of the source's, as BuildKit does; its owner stays.
fn touch_way(path: &Path, node: &Node, to: &Root) -> Result<(), CopyError> {
    let dir = open_dir(to.as_fd(), path).at("open directory", path)?;
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(node.mode)).at("set mode of", path)?;
    Ok(rustix::fs::futimens(&dir, &times(node.mtime)).at("set time of", path)?)
}

fn create(place: &Place) -> Result<File, CopyError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&place.dir, &place.name, flags, Mode::from_raw_mode(0o600));
    Ok(file.at("create", place.path.join(&place.name))?.into())
}
