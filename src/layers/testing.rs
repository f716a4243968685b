//! Tars written by hand, and trees as text, for the tests of this module.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::node::{Kind, Node, names, open_dir, open_read, read_link, xattrs};
use super::root::Root;

/// Whether the tests run as root, who may give files away.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A tar being written, with nothing checked.
#[derive(Default)]
pub(super) struct RawTar(pub(super) Vec<u8>);

impl RawTar {
    /// Adds an entry of `kind` (the byte in the header).
    pub(super) fn entry(self, kind: u8, name: &str, link: &str, content: &[u8]) -> Self {
        self.owned(kind, name, link, content, (0o644, 0, 0))
    }

    pub(super) fn owned(
        self,
        kind: u8,
        name: &str,
        link: &str,
        content: &[u8],
        (mode, uid, gid): (u32, u64, u64),
    ) -> Self {
        let mut header = ::tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(if kind == b'5' { mode | 0o111 } else { mode });
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(1_000_000_000);
        header.set_entry_type(::tar::EntryType::new(kind));
        header.set_size(content.len() as u64);
        self.raw(header, content)
    }

    pub(super) fn raw(mut self, mut header: ::tar::Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            text += &[&length.to_string(), " ", key, "=", value, "\n"].concat();
        }
        self.entry(b'x', "pax", "", text.as_bytes())
    }

    pub(super) fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name, "", content.as_bytes())
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"")
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Every file below `dir`: path, kind and content, one a line.
pub(super) fn listing(dir: &Path) -> Vec<String> {
    let root = Root::open(dir).unwrap();
    let mut lines = Vec::new();
    list(&root, &PathBuf::new(), &mut lines);
    lines
}

fn list(root: &Root, path: &Path, lines: &mut Vec<String>) {
    let dir = open_dir(root.as_fd(), path).unwrap();
    for name in names(&dir).unwrap() {
        let node = Node::at(dir.as_fd(), &name).unwrap().unwrap();
        let path = path.join(&name);
        let shown = path.display();
        let extra = match node.kind {
            Kind::File | Kind::Directory => {
                let fd = open_read(dir.as_fd(), &name).unwrap();
                let opaque = super::lowers::is_opaque;
                let mut text = String::new();
                if node.is_directory() && opaque(root, &path).unwrap() {
                    text += " opaque";
                }
                for (name, value) in xattrs(fd.as_fd()).unwrap() {
                    let name = name.to_str().unwrap();
                    text += &[" ", name, "=", &String::from_utf8_lossy(&value)].concat();
                }
                text
            }
            _ => String::new(),
        };
        match node.kind {
            Kind::File => {
                let content = root.read(&path, 1 << 20).unwrap().unwrap();
                lines.push(format!("{shown} {:o} {:?}{extra}", node.mode, String::from_utf8_lossy(&content)));
            }
            Kind::Directory => {
                lines.push(format!("{shown}/ {:o}{extra}", node.mode));
                list(root, &path, lines);
            }
            Kind::Symlink => {
                let target = read_link(dir.as_fd(), &name).unwrap();
                lines.push(format!("{shown} -> {}", target.display()));
            }
            Kind::CharDevice if node.is_whiteout() => lines.push(format!("{shown} whiteout")),
            kind => lines.push(format!("{shown} {kind:?} {:o}", node.mode)),
        }
    }
}
