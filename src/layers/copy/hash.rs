//! The hash of what a `COPY` would see, for the key of its cache: framed, typed, and nothing that changes by itself.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::select::select;
use super::{CopyError, CopyOptions};
use crate::layers::error::AtPath as _;
use crate::layers::known::{KnownContents, Stamp};
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
///
/// Each file's own hash is there too, so that what changed can be named. What is `known` of contents is not read again.
pub fn hash_sources(
    sources: &[&str],
    from: &Root,
    options: &CopyOptions<'_>,
    known: Option<&KnownContents>,
) -> Result<SourceHash, CopyError> {
    let mut whole = Framed::new(b"hephy sources 1");
    let mut files = Vec::new();
    let mut inodes = HashMap::new();
    for selected in select(sources, from, options)? {
        whole.field(b"source", selected.name.as_bytes());
        // Of a directory that is a source only what is in it is copied.
        if !selected.node.is_directory() {
            files.push(Seen::new(selected.path.clone(), selected.node, selected.stamp, &mut inodes));
        }
        files.extend(
            selected
                .entries
                .into_iter()
                .map(|found| Seen::new(selected.path.join(found.path), found.node, found.stamp, &mut inodes)),
        );
    }
    let (attributes, owners) = (options.keep_attributes, options.preserve_owner);
    let digests = Hasher { attributes, owners, from, known }.all(&files)?;
    let files: Vec<_> = files.into_iter().map(|file| file.path).zip(digests).collect();
    for (path, digest) in &files {
        whole.field(b"path", path.as_os_str().as_bytes());
        whole.field(b"file", digest.to_string().as_bytes());
    }
    Ok(SourceHash { digest: whole.digest(), files })
}

/// One file to hash.
struct Seen {
    path: PathBuf,
    node: Node,
    stamp: Stamp,
    /// The name before this one that is the same file.
    first: Option<PathBuf>,
}

impl Seen {
    fn new(path: PathBuf, node: Node, stamp: Stamp, inodes: &mut HashMap<(u64, u64), PathBuf>) -> Self {
        let mut first = None;
        if node.links > 1 && node.kind == Kind::File {
            first = inodes.get(&node.inode).cloned();
            inodes.entry(node.inode).or_insert_with(|| path.clone());
        }
        Self { path, node, stamp, first }
    }
}

/// How many files a thread takes at once.
const PART: usize = 256;

/// More threads than this wait for the same disk.
const MAX_THREADS: usize = 8;

/// What is looked at, and where.
struct Hasher<'a> {
    attributes: bool,
    owners: bool,
    from: &'a Root,
    known: Option<&'a KnownContents>,
}

impl Hasher<'_> {
    /// The hashes of all files, in their order. Of several errors the first file's is told.
    fn all(&self, files: &[Seen]) -> Result<Vec<Digest>, CopyError> {
        let parts: Vec<&[Seen]> = files.chunks(PART).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut buffer, mut done) = (vec![0; 1 << 17], Vec::new());
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(part) = parts.get(index) else { return done };
                let hashed: Result<Vec<_>, _> =
                    part.iter().map(|seen| self.hash(seen, &mut buffer)).collect();
                let is_over = hashed.is_err();
                done.push((index, hashed));
                if is_over {
                    return done;
                }
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = processors.min(MAX_THREADS).min(parts.len());
        let mut done = std::thread::scope(|scope| {
            // This thread is one of them, and perhaps the only one that can be had.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..threads).filter_map(spawn).collect();
            let mut done = work();
            for other in others {
                done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            done
        });
        done.sort_by_key(|(index, _)| *index);
        let mut all = Vec::with_capacity(files.len());
        for (_, hashed) in done {
            all.extend(hashed?);
        }
        Ok(all)
    }

    fn hash(&self, seen: &Seen, buffer: &mut [u8]) -> Result<Digest, CopyError> {
        let Seen { path, node, first, .. } = seen;
        let mut file = Framed::new(name_of(node.kind));
        file.field(b"mode", &node.mode.to_le_bytes());
        if self.owners {
            file.field(b"uid", &node.owner.uid.to_le_bytes());
            file.field(b"gid", &node.owner.gid.to_le_bytes());
        }
        match (node.kind, first) {
            (_, Some(first)) => file.field(b"hard link", first.as_os_str().as_bytes()),
            (Kind::Symlink, _) => {
                let target = read_link(self.from.as_fd(), path).at("read symlink", path)?;
                file.field(b"target", target.as_bytes());
            }
            (Kind::File, _) => self.content(&mut file, seen, buffer)?,
            (Kind::Directory, _) => {
                if self.attributes {
                    let fd = self.from.subroot(path)?;
                    for (name, value) in xattrs(fd.as_fd()).at("read attributes of", path)? {
                        file.field(name.as_bytes(), &value);
                    }
                }
            }
            (Kind::CharDevice | Kind::BlockDevice, _) => file.field(b"device", &node.rdev.to_le_bytes()),
            (Kind::Fifo | Kind::Socket, _) => {}
        }
        Ok(file.digest())
    }

    fn content(
        &self,
        framed: &mut Framed,
        Seen { path, node, stamp, .. }: &Seen,
        buffer: &mut [u8],
    ) -> Result<(), CopyError> {
        if !self.attributes
            && let Some(digest) = self.known.and_then(|known| known.get(stamp))
        {
            framed.field(b"content", &digest);
            return Ok(());
        }
        let since = SystemTime::now();
        let mut file = self.from.open_found(path, node)?;
        if self.attributes {
            for (name, value) in xattrs(file.as_fd()).at("read attributes of", path)? {
                framed.field(name.as_bytes(), &value);
            }
        }
        let mut content = Sha256::new();
        loop {
            let count = file.read(buffer).at("read", path)?;
            if count == 0 {
                break;
            }
            content.update(&buffer[..count]);
        }
        let digest = content.finalize();
        if let Some(known) = self.known
            && Node::of_stamped(&file).at("inspect", path)?.1 == *stamp
        {
            known.learn(*stamp, digest.into(), since);
        }
        framed.field(b"content", &digest);
        Ok(())
    }
}

const fn name_of(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::File => b"File",
        Kind::Directory => b"Directory",
        Kind::Symlink => b"Symlink",
        Kind::CharDevice => b"CharDevice",
        Kind::BlockDevice => b"BlockDevice",
        Kind::Fifo => b"Fifo",
        Kind::Socket => b"Socket",
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
