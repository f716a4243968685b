//! The hash of what a `COPY` would see, for the key of its cache: framed, typed, and nothing that changes by itself.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::select::{Selected, select};
use super::{CopyError, CopyOptions};
use crate::layers::error::AtPath as _;
use crate::layers::node::{Kind, Node, read_link, xattrs};
use crate::layers::root::Root;
use crate::oci::Digest;

/// What was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceHash {
    /// Of everything.
    pub digest: Digest,
    /// Of each file, by its path in the source, in order.
    pub files: Vec<(PathBuf, Digest)>,
}

/// Hashes the files that a copy of `sources` with `options` would see: names, types, modes, link targets, attributes,
/// content and which names are one file; owners if they would be preserved. Times are not looked at.
pub fn hash_sources(sources: &[&str], from: &Root, options: &CopyOptions<'_>) -> Result<Digest, CopyError> {
    Ok(hash_sources_listed(sources, from, options)?.digest)
}

/// As [`hash_sources`], and each file's own hash, so that what changed can be named.
pub fn hash_sources_listed(
    sources: &[&str],
    from: &Root,
    options: &CopyOptions<'_>,
) -> Result<SourceHash, CopyError> {
    let mut hasher = Hasher { options, inodes: HashMap::new(), files: Vec::new(), buffer: vec![0; 1 << 17] };
    let mut whole = Framed::new(b"hephy sources 1");
    for selected in select(sources, from, options)? {
        whole.field(b"source", selected.name.as_bytes());
        hasher.source(&selected, from)?;
    }
    for (path, digest) in &hasher.files {
        whole.field(b"path", path.as_os_str().as_bytes());
        whole.field(b"file", digest.to_string().as_bytes());
    }
    Ok(SourceHash { digest: whole.digest(), files: hasher.files })
}

struct Hasher<'a> {
    options: &'a CopyOptions<'a>,
    inodes: HashMap<(u64, u64), PathBuf>,
    files: Vec<(PathBuf, Digest)>,
    buffer: Vec<u8>,
}

impl Hasher<'_> {
    fn source(&mut self, selected: &Selected, from: &Root) -> Result<(), CopyError> {
        // Of a directory that is a source only what is in it is copied.
        if !selected.node.is_directory() {
            self.file(&selected.path, &selected.node, from)?;
        }
        for found in &selected.entries {
            self.file(&selected.path.join(&found.path), &found.node, from)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, node: &Node, from: &Root) -> Result<(), CopyError> {
        let mut file = Framed::new(format!("{:?}", node.kind).as_bytes());
        file.field(b"mode", &node.mode.to_le_bytes());
        if self.options.preserve_owner {
            file.field(b"uid", &node.owner.uid.to_le_bytes());
            file.field(b"gid", &node.owner.gid.to_le_bytes());
        }
        let first =
            if node.links > 1 && node.kind == Kind::File { self.inodes.get(&node.inode) } else { None };
        match (node.kind, first) {
            (_, Some(first)) => file.field(b"hard link", first.as_os_str().as_bytes()),
            (Kind::Symlink, _) => {
                let target = read_link(from.as_fd(), path).at("read symlink", path)?;
                file.field(b"target", target.as_bytes());
            }
            (Kind::File, _) => {
                self.inodes.insert(node.inode, path.to_owned());
                self.content(&mut file, path, from)?;
            }
            (Kind::Directory, _) => {
                if self.options.keep_attributes {
                    let fd = from.subroot(path)?;
                    for (name, value) in xattrs(fd.as_fd()).at("read attributes of", path)? {
                        file.field(name.as_bytes(), &value);
                    }
                }
            }
            (Kind::CharDevice | Kind::BlockDevice, _) => file.field(b"device", &node.rdev.to_le_bytes()),
            (Kind::Fifo | Kind::Socket, _) => {}
        }
        self.files.push((path.to_owned(), file.digest()));
        Ok(())
    }

    fn content(&mut self, framed: &mut Framed, path: &Path, from: &Root) -> Result<(), CopyError> {
        let mut file: File = from.open_file(path)?;
        if self.options.keep_attributes {
            for (name, value) in xattrs(file.as_fd()).at("read attributes of", path)? {
                framed.field(name.as_bytes(), &value);
            }
        }
        let mut content = Sha256::new();
        loop {
            let count = file.read(&mut self.buffer).at("read", path)?;
            if count == 0 {
                break;
            }
            content.update(&self.buffer[..count]);
        }
        framed.field(b"content", &content.finalize());
        Ok(())
    }
}

/// Fields with their lengths before them: no two lists of fields have the same bytes.
struct Framed(Sha256);

impl Framed {
    fn new(kind: &[u8]) -> Self {
        let mut framed = Self(Sha256::new());
        framed.field(b"kind", kind);
        framed
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        for bytes in [name, value] {
            self.0.update((bytes.len() as u64).to_le_bytes());
            self.0.update(bytes);
        }
    }

    fn digest(self) -> Digest {
        Digest::from_sha256(self.0.finalize().into())
    }
}
