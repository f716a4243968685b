//! The files that COPY and ADD may take: the context directory without what the ignore file names.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::build::copying::Exclusion;
use crate::build::error::EngineError;
use crate::build::protocol::IgnoreText;
use crate::dockerfile::ignore_file_names;
use crate::layers::{self, Excluded, KnownContents, LayerStore};

/// The largest Dockerfile and ignore file that are read.
const MAX_TEXT_BYTES: u64 = 4 * 1024 * 1024;

/// A context, opened.
pub(crate) struct Context {
    directory: PathBuf,
    pub(crate) ignore: Option<IgnoreText>,
    root: layers::Root,
    /// Files that are handed over even where they are ignored, relative to the directory.
    needed: Vec<PathBuf>,
    /// No time in what is handed over is later.
    epoch: Option<i64>,
    /// What is known of the files' contents, and the store that knows it.
    store: Option<LayerStore>,
    known: OnceLock<KnownContents>,
}

impl Context {
    /// Opens a context and the ignore file that counts for a Dockerfile.
    pub(crate) fn open(directory: &Path, dockerfile: &Path) -> Result<Self, EngineError> {
        let read_error = |source| EngineError::Read { path: directory.to_owned(), source };
        let directory = directory.canonicalize().map_err(read_error)?;
        let root = layers::Root::open(&directory).map_err(|error| EngineError::Read {
            path: directory.clone(),
            source: io::Error::other(error),
        })?;
        let mut ignore = None;
        for name in ignore_file_names(&dockerfile.to_string_lossy()) {
            // The first is beside the Dockerfile, which may be outside the context; the second is the context's.
            if let Some(text) = read_text(&directory.join(&name))? {
                ignore = Some(IgnoreText { name, text });
                break;
            }
        }
        let known = OnceLock::new();
        Ok(Self { directory, ignore, root, needed: Vec::new(), epoch: None, store: None, known })
    }

    /// The same, handed over with these files even where they are ignored, and with no time after `epoch`.
    pub(crate) fn with(self, needed: Vec<PathBuf>, epoch: Option<i64>) -> Self {
        Self { needed, epoch, ..self }
    }

    /// The same, with what a store knows of the contents of its files.
    pub(crate) fn known_to(self, store: &LayerStore) -> Self {
        Self { store: Some(store.clone()), ..self }
    }

    /// What is known of the contents of its files.
    pub(crate) fn known(&self) -> Option<&KnownContents> {
        let store = self.store.as_ref()?;
        Some(self.known.get_or_init(|| store.known_contents(self.root.as_fd())))
    }

    /// Keeps what was learned of them. It only saves time: where it cannot be kept, files are read again.
    pub(crate) fn keep_known(&self) {
        if let Some(Err(error)) = self.known.get().map(KnownContents::keep) {
            tracing::debug!(%error, "what was read of the context is not remembered");
        }
    }

    /// The directory as the safe path functions take it.
    pub(crate) const fn root(&self) -> &layers::Root {
        &self.root
    }

    /// A descriptor of the directory, for the worker.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd, EngineError> {
        self.root.as_fd().try_clone_to_owned().map_err(EngineError::io("open the context"))
    }

    /// Whether a process of another user can read every file: then the worker can, whoever it is.
    pub(crate) fn is_readable_by_all(&self) -> bool {
        let readable = |entry: &walkdir::DirEntry| {
            let Ok(metadata) = entry.metadata() else { return false };
            let needed = if metadata.is_dir() { 0o005 } else { 0o004 };
            metadata.is_symlink() || metadata.permissions().mode() & needed == needed
        };
        walkdir::WalkDir::new(&self.directory)
            .into_iter()
            .all(|entry| entry.is_ok_and(|entry| readable(&entry)))
    }

    /// Writes what is not ignored as a tar, owned by root: what a copy from the directory itself would see, for a worker
    /// that may not read it.
    pub(crate) fn write_tar(&self, out: impl Write) -> Result<(), EngineError> {
        let exclusion =
            Exclusion::of(self.ignore.as_ref()).map_err(|error| EngineError::Wrong(error.to_string()))?;
        let (ways, files, epoch) = (Vec::new(), HashMap::new(), self.epoch);
        let mut writer = ContextWriter { tar: tar::Builder::new(out), ways, files, epoch };
        let mut walk = walkdir::WalkDir::new(&self.directory).min_depth(1).sort_by_file_name().into_iter();
        while let Some(entry) = walk.next() {
            let entry = entry.map_err(|error| EngineError::Read {
                path: error.path().unwrap_or(&self.directory).to_owned(),
                source: error.into(),
            })?;
            let path = entry.path().strip_prefix(&self.directory).unwrap_or(entry.path());
            match exclusion.excludes(path, entry.file_type().is_dir()) {
                Excluded::No => writer
                    .append(&self.directory, path)
                    .map_err(|source| EngineError::Read { path: entry.path().to_owned(), source })?,
                Excluded::Yes if entry.file_type().is_dir() => walk.skip_current_dir(),
                Excluded::YesButLookInside => writer.ways.push(path.to_owned()),
                Excluded::Yes => {}
            }
        }
        for path in &self.needed {
            let is_left_out = matches!(exclusion.excludes(path, false), Excluded::Yes);
            let source = self.directory.join(path);
            if is_left_out && source.is_file() {
                writer
                    .entry(&self.directory, path)
                    .map_err(|error| EngineError::Read { path: source, source: error })?;
            }
        }
        writer.tar.finish().map_err(EngineError::io("hand the context to the sandbox"))
    }
}

struct ContextWriter<W: Write> {
    tar: tar::Builder<W>,
    /// Directories that are ignored themselves and are looked into: written if something in them is.
    ways: Vec<PathBuf>,
    /// The first name of each file that has several.
    files: HashMap<(u64, u64), PathBuf>,
    /// No time is later.
    epoch: Option<i64>,
}

impl<W: Write> ContextWriter<W> {
    fn append(&mut self, directory: &Path, name: &Path) -> io::Result<()> {
        // The walk goes into a directory right after it: one that is not above this path holds nothing that is wanted.
        for way in std::mem::take(&mut self.ways) {
            if name.starts_with(&way) {
                self.entry(directory, &way)?;
            }
        }
        self.entry(directory, name)
    }

    fn entry(&mut self, directory: &Path, name: &Path) -> io::Result<()> {
        let path = directory.join(name);
        let metadata = fs::symlink_metadata(&path)?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        let mtime = self.epoch.map_or(metadata.mtime(), |epoch| metadata.mtime().min(epoch));
        header.set_mtime(u64::try_from(mtime).unwrap_or(0));
        header.set_size(0);
        if metadata.is_file() {
            let inode = (metadata.dev(), metadata.ino());
            if metadata.nlink() > 1
                && let Some(first) = self.files.get(&inode)
            {
                header.set_entry_type(tar::EntryType::Link);
                return self.tar.append_link(&mut header, name, first);
            }
            self.files.insert(inode, name.to_owned());
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(metadata.len());
            let content = io::Read::take(File::open(path)?, metadata.len());
            return self.tar.append_data(&mut header, name, content);
        }
        if metadata.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            return self.tar.append_link(&mut header, name, fs::read_link(path)?);
        }
        let kind = match () {
            () if metadata.is_dir() => tar::EntryType::Directory,
            () if metadata.file_type().is_fifo() => tar::EntryType::Fifo,
            // Sockets and devices are nobody's source.
            () => return Ok(()),
        };
        header.set_entry_type(kind);
        self.tar.append_data(&mut header, name, io::empty())
    }
}

/// A small text file; none if there is none.
pub(crate) fn read_text(path: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    let error = |source| EngineError::Read { path: path.to_owned(), source };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(missing) if matches!(missing.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(error(source)),
    };
    if !metadata.is_file() || metadata.len() > MAX_TEXT_BYTES {
        let problem = if metadata.is_file() { "larger than 4 MiB" } else { "not a file" };
        return Err(error(io::Error::other(problem)));
    }
    fs::read(path).map(Some).map_err(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_context_that_is_handed_over_has_what_the_directory_has() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("docs/deep/none")).unwrap();
        for name in ["a", "docs/x.md", "docs/x.txt", "docs/deep/y.txt"] {
            fs::write(at(name), name).unwrap();
        }
        fs::set_permissions(at("docs"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::hard_link(at("a"), at("b")).unwrap();
        symlink("a", at("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        fs::write(at(".dockerignore"), "docs\n!docs/**/*.md\n.dockerignore").unwrap();
        let mut bytes = Vec::new();
        Context::open(dir.path(), Path::new("Dockerfile")).unwrap().write_tar(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let link = entry.link_name().unwrap().map(|link| format!(" -> {}", link.display()));
            let kind = entry.header().entry_type().as_byte() as char;
            format!("{kind} {}{}", entry.path().unwrap().display(), link.unwrap_or_default())
        });
        let expected = ["0 a", "1 b -> a", "5 docs", "0 docs/x.md", "2 link -> a", "6 pipe"];
        assert_eq!(entries.collect::<Vec<_>>(), expected);
    }
}
