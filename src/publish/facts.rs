//! What is in a layer, as far as finding a program goes: programs, links and removals.
//!
//! A layer is streamed through once and remembered by its digest: the layers of a base are looked into at the first push on it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Handle;

use super::PublishError;
use super::program::{HEAD_BYTES, Machine, machine_in};
use crate::oci::{Descriptor, Digest, LayerCompression, Repository};
use crate::registry::client::{Client, ClientError};

/// Larger layers are not looked into.
const MAX_LAYER_BYTES: u64 = 256 << 20;
/// What is beyond this in an unpacked layer is not looked at.
const MAX_UNPACKED_BYTES: u64 = 2 << 30;
/// The most that is remembered of one layer.
const MAX_FACTS: usize = 50_000;
/// The most that is remembered of all.
const MAX_CACHED_FACTS: usize = 200_000;
/// Longer paths are nobody's entrypoint.
const MAX_PATH_BYTES: usize = 4096;
/// How much of a layer waits between the network and the unpacking.
const PIPE_BYTES: usize = 256 * 1024;
/// The most links that are followed, as in Linux.
const MAX_LINKS: usize = 40;

/// What is known of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fact {
    Program(Machine),
    /// An executable file that is no ELF program.
    Script,
    /// A symbolic link.
    Link(PathBuf),
    /// Another name of a file in the same layer, from the root.
    SameAs(PathBuf),
    /// Gone, with all below it.
    Removed,
    /// A directory that hides what lower layers have in it.
    Opaque,
}

/// The facts of one layer, by paths from the root without a leading `/`.
#[derive(Debug, Default)]
pub(super) struct Facts {
    by_path: BTreeMap<PathBuf, Fact>,
}

/// The layers seen so far, top first.
#[derive(Debug, Default)]
pub(super) struct Stack {
    layers: Vec<Arc<Facts>>,
}

/// What a path turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Program(Machine),
    Script,
}

/// Facts of layers seen before; the oldest go when there are too many.
#[derive(Debug, Default)]
pub(super) struct FactsCache {
    seen: Mutex<VecDeque<(Digest, Arc<Facts>)>>,
}

impl FactsCache {
    /// The facts of a layer; `None` if it is too large to look into.
    pub(super) async fn of_layer(
        &self,
        client: &Client,
        repository: &Repository,
        layer: &Descriptor,
    ) -> Result<Option<Arc<Facts>>, PublishError> {
        if let Some(facts) = self.known(&layer.digest) {
            return Ok(Some(facts));
        }
        let Some(compression) = layer.media_type.compression().filter(|_| layer.size <= MAX_LAYER_BYTES)
        else {
            return Ok(None);
        };
        let (mut sink, source) = tokio::io::duplex(PIPE_BYTES);
        let handle = Handle::current();
        let reading =
            tokio::task::spawn_blocking(move || Facts::read(Blocking { source, handle }, compression));
        let pulled = client.pull_blob(repository, layer, &mut sink).await;
        // The reader stops where it knows enough; then there is nobody to write to.
        let stopped = matches!(&pulled, Err(ClientError::Sink { .. }));
        if !stopped {
            pulled?;
        }
        drop(sink.shutdown().await);
        drop(sink);
        let Ok(Ok(facts)) = reading.await else { return Ok(None) };
        let facts = Arc::new(facts);
        self.remember(layer.digest, &facts);
        Ok(Some(facts))
    }

    fn known(&self, digest: &Digest) -> Option<Arc<Facts>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().find(|(known, _)| known == digest).map(|(_, facts)| facts.clone())
    }

    fn remember(&self, digest: Digest, facts: &Arc<Facts>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|(known, _)| *known != digest);
        seen.push_back((digest, facts.clone()));
        // An empty layer is remembered too, and counts.
        while seen.iter().map(|(_, facts)| facts.by_path.len() + 16).sum::<usize>() > MAX_CACHED_FACTS {
            seen.pop_front();
        }
    }
}

impl Facts {
    fn read(source: impl Read, compression: LayerCompression) -> io::Result<Self> {
        let tar: Box<dyn Read> = match compression {
            LayerCompression::None => Box::new(source),
            LayerCompression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(source)),
            LayerCompression::Zstd => Box::new(zstd::Decoder::new(source)?),
        };
        let mut facts = Self::default();
        let mut archive = tar::Archive::new(tar.take(MAX_UNPACKED_BYTES));
        for entry in archive.entries()? {
            let mut entry = entry?;
            if facts.by_path.len() >= MAX_FACTS {
                return Err(io::Error::other("more in one layer than is worth knowing"));
            }
            if entry.path_bytes().len() > MAX_PATH_BYTES {
                continue;
            }
            let Some(path) = inner(&entry.path()?) else { continue };
            facts.note(path, &mut entry)?;
        }
        Ok(facts)
    }

    fn note(&mut self, path: PathBuf, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default().to_vec();
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        if name == b".wh..wh..opq" {
            self.by_path.insert(parent, Fact::Opaque);
        } else if let Some(removed) = name.strip_prefix(b".wh.") {
            self.by_path.insert(parent.join(OsStr::from_bytes(removed)), Fact::Removed);
        } else if kind.is_symlink() {
            if let Some(target) = entry.link_name()? {
                self.by_path.insert(path, Fact::Link(target.into_owned()));
            }
        } else if kind.is_hard_link() {
            if let Some(target) = entry.link_name()?.and_then(|target| inner(&target)) {
                self.by_path.insert(path, Fact::SameAs(target));
            }
        } else if kind.is_file() && entry.header().mode()? & 0o111 != 0 {
            let mut head = Vec::with_capacity(HEAD_BYTES);
            entry.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
            self.by_path.insert(path, machine_in(&head).map_or(Fact::Script, Fact::Program));
        }
        Ok(())
    }
}

impl Stack {
    /// Puts the next lower layer under those so far.
    pub(super) fn push(&mut self, facts: Arc<Facts>) {
        self.layers.push(facts);
    }

    /// What is at an absolute path, links followed; `None` if the layers so far do not have it.
    pub(super) fn find(&self, path: &Path) -> Option<Found> {
        let mut rest: VecDeque<PathBuf> = parts(path).collect();
        let mut at = PathBuf::new();
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == Path::new("..") {
                at.pop();
                continue;
            }
            at.push(part);
            match self.fact(&at) {
                Some(Fact::Program(machine)) if rest.is_empty() => return Some(Found::Program(*machine)),
                Some(Fact::Script) if rest.is_empty() => return Some(Found::Script),
                Some(Fact::Link(target)) => {
                    links += 1;
                    at.pop();
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    if links > MAX_LINKS {
                        return None;
                    }
                    for part in parts(target).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(part);
                    }
                }
                Some(Fact::SameAs(target)) if rest.is_empty() && links < MAX_LINKS => {
                    links += 1;
                    rest = parts(target).collect();
                    at = PathBuf::new();
                }
                _ => {}
            }
        }
        None
    }

    /// What the highest layer that says anything says.
    fn fact(&self, path: &Path) -> Option<&Fact> {
        for layer in &self.layers {
            match layer.by_path.get(path) {
                Some(Fact::Removed) => return None,
                Some(Fact::Opaque) | None => {}
                Some(fact) => return Some(fact),
            }
            let hidden =
                |above: &Path| matches!(layer.by_path.get(above), Some(Fact::Removed | Fact::Opaque));
            if path.ancestors().skip(1).any(hidden) {
                return None;
            }
        }
        None
    }
}

/// The parts of a path, without roots and `.`.
fn parts(path: &Path) -> impl Iterator<Item = PathBuf> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// A tar's name as a path from the root; `None` if it would leave it.
fn inner(path: &Path) -> Option<PathBuf> {
    let plain: PathBuf = parts(path).collect();
    (!plain.components().any(|part| part == Component::ParentDir)).then_some(plain)
}

/// Reads in a blocking task what an async one writes.
struct Blocking {
    source: DuplexStream,
    handle: Handle,
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.handle.block_on(self.source.read(buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::super::program::machine_of;
    use super::*;

    const PROGRAM: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0the rest";

    fn arm64() -> Option<Found> {
        machine_of(&"linux/arm64".parse().unwrap()).map(Found::Program)
    }

    enum Content<'a> {
        File(&'a [u8]),
        Link(&'a str),
        Hard(&'a str),
    }

    fn layer(entries: &[(&str, Content<'_>)]) -> Arc<Facts> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            let (kind, data, link) = match content {
                Content::File(data) => (tar::EntryType::Regular, *data, None),
                Content::Link(target) => (tar::EntryType::Symlink, &b""[..], Some(target)),
                Content::Hard(target) => (tar::EntryType::Link, &b""[..], Some(target)),
            };
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            match link {
                Some(target) => tar.append_link(&mut header, path, target).unwrap(),
                None => tar.append_data(&mut header, path, data).unwrap(),
            }
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &tar.into_inner().unwrap()).unwrap();
        Arc::new(Facts::read(gzip.finish().unwrap().as_slice(), LayerCompression::Gzip).unwrap())
    }

    fn find(layers: &[Arc<Facts>], path: &str) -> Option<Found> {
        Stack { layers: layers.to_vec() }.find(Path::new(path))
    }

    #[test]
    fn a_program_is_found_through_links_of_all_layers() {
        use Content::{File, Hard, Link};
        let top = layer(&[("app/run", Link("../bin/./sh"))]);
        let base = layer(&[
            ("bin", Link("usr/bin")),
            ("usr/bin/dash", File(PROGRAM)),
            ("usr/bin/sh", Link("dash")),
            ("usr/bin/other", Hard("usr/bin/dash")),
            ("usr/bin/script", File(b"#!/bin/sh")),
            ("loop", Link("/loop")),
        ]);
        let layers = [top, base];
        for path in ["/app/run", "/bin/sh", "/usr/bin/dash", "/bin/other", "/app/../../bin/sh"] {
            assert_eq!(find(&layers, path), arm64(), "{path}");
        }
        assert_eq!(find(&layers, "/bin/script"), Some(Found::Script));
        for path in ["/loop", "/loop/x", "/absent", "/", "/usr/bin", "/bin/sh/x"] {
            assert_eq!(find(&layers, path), None, "{path}");
        }
        assert_eq!(find(&layers[..1], "/app/run"), None, "the rest is in a lower layer");
    }

    #[test]
    fn what_an_upper_layer_removes_is_not_found_below() {
        use Content::File;
        let base = layer(&[("opt/a", File(PROGRAM)), ("opt/b", File(PROGRAM)), ("srv/c", File(PROGRAM))]);
        let top =
            layer(&[("opt/.wh.a", File(b"")), ("srv/.wh..wh..opq", File(b"")), ("srv/d", File(PROGRAM))]);
        let layers = [top, base];
        assert_eq!(find(&layers, "/opt/a"), None);
        assert_eq!(find(&layers, "/opt/b"), arm64());
        assert_eq!(find(&layers, "/srv/c"), None);
        assert_eq!(find(&layers, "/srv/d"), arm64());
    }

    #[test]
    fn a_broken_or_hostile_layer_is_an_error_and_no_more() {
        for bytes in [&b"not gzip"[..], b"\x1f\x8b\x08\0\0\0\0\0\0\x03"] {
            assert!(Facts::read(bytes, LayerCompression::Gzip).is_err());
        }
        assert!(Facts::read(&b"no tar at all"[..], LayerCompression::None).is_err());
        assert_eq!(inner(Path::new("../../etc/passwd")), None);
        assert_eq!(inner(Path::new("./a//b/.")), Some(PathBuf::from("a/b")));
    }
}
