//! A bare repository on disk: objects, and refs that only keep them alive.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::io::AsyncWriteExt;

use super::child::{self, Group};
use super::commit::Commit;
use super::objects::{Objects, oid};
use super::quarantine::Directory;
use super::{Brought, Distant, GitError, quarantine};
use crate::model::CommitId;

/// More packs than this make reading slow: each push adds one.
pub const CROWDED_PACKS: usize = 40;
/// No build takes longer.
const GRACE: Duration = Duration::from_hours(24);
/// Refs below this name the commits that must stay; no client sees them.
const KEEP: &str = "refs/hephy/keep";

/// The tree without entries, which every repository has from the start.
pub(super) const EMPTY_TREE: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";

/// The configuration of every repository. Children get the rest on their command line.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n\thooksPath = /dev/null\n\
    [receive]\n\tunpackLimit = 1\n\tautogc = false\n[gc]\n\tauto = 0\n[uploadpack]\n\tallowFilter = true\n";

/// A repository of one app.
#[derive(Debug, Clone)]
pub struct Repository {
    path: PathBuf,
    /// What of it is elsewhere.
    distant: Option<Arc<Distant>>,
}

impl Repository {
    /// Opens the repository, and makes it before if it is not there.
    ///
    /// It is made aside and renamed: one that exists is complete.
    pub fn open_or_create(path: &Path) -> Result<Self, GitError> {
        if path.to_str().is_none() {
            return Err(GitError::NotUtf8(path.to_owned()));
        }
        if !path.join("HEAD").exists() {
            create(path)?;
        }
        Ok(Self { path: path.to_owned(), distant: None })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same, of which these packs are elsewhere: what is read of them is to be brought before ([`Self::bring`]).
    #[must_use]
    pub fn in_part(self, distant: Distant) -> Self {
        Self { distant: Some(Arc::new(distant)), ..self }
    }

    /// A directory for what is brought of packs that are elsewhere. Those that a killed process left are gone then,
    /// unless the repository is in use.
    pub fn brought(&self) -> Result<Brought, GitError> {
        let lock = self.lock_file()?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            quarantine::sweep(&self.path)?;
        }
        drop(lock);
        Directory::for_brought(self).map(Brought::new)
    }

    pub(super) const fn distant(&self) -> Option<&Arc<Distant>> {
        self.distant.as_ref()
    }

    /// Where objects are that can be read.
    pub(super) fn object_directories(&self) -> Vec<PathBuf> {
        let brought = self.distant.iter().map(|distant| distant.objects().to_owned());
        std::iter::once(self.object_directory()).chain(brought).collect()
    }

    /// The objects, those that are elsewhere with them.
    pub(super) fn objects(&self) -> Result<Objects, GitError> {
        let directories = self.object_directories();
        let paths: Vec<_> = directories.iter().map(PathBuf::as_path).collect();
        Ok(Objects::open(&paths)?.and(self.distant.as_ref()))
    }

    pub(super) fn object_directory(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// Whether the repository has the object.
    pub fn contains(&self, id: CommitId) -> Result<bool, GitError> {
        Ok(self.objects()?.contains(oid(id)))
    }

    /// Reads a commit. Of a repository that is here in part it is to be brought before, and its files too to be read.
    pub fn commit(&self, id: CommitId) -> Result<Commit, GitError> {
        Commit::open(self.clone(), self.object_directories(), id)
    }

    /// The commits whose parents are not here (`git help shallow`).
    pub fn shallow(&self) -> Result<BTreeSet<CommitId>, GitError> {
        let path = self.path.join("shallow");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(GitError::io("read", path)(error)),
        }
    }

    /// Replaces the list of [`Self::shallow`].
    pub(super) fn set_shallow(&self, shallow: &BTreeSet<CommitId>) -> Result<(), GitError> {
        let path = self.path.join("shallow");
        if shallow.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(GitError::io("remove", path)(error))
                }
                _ => Ok(()),
            };
        }
        replace(&path, shallow_text(shallow).as_bytes())
    }

    /// Collects a repository that is crowded, down to these commits, those that came lately, and what they need: a
    /// commit that is being built is named by no ref yet. Returns whether it did.
    pub async fn tidy(&self, ids: Vec<CommitId>) -> Result<bool, GitError> {
        let repository = self.clone();
        let keep = move || Ok(repository.is_crowded()? && repository.keep(&ids, GRACE).map(|()| true)?);
        let crowded = tokio::task::spawn_blocking(keep).await.map_err(|_| GitError::Stopped)??;
        Ok(crowded && self.collect().await?)
    }

    /// Makes these commits, and what they need, survive [`Self::collect`], with those that came within `grace`. To be
    /// called before each collection.
    pub fn keep(&self, ids: &[CommitId], grace: Duration) -> Result<(), GitError> {
        let directory = self.path.join(KEEP);
        self.keep_also(ids)?;
        let wanted: BTreeSet<String> = ids.iter().map(ToString::to_string).collect();
        for entry in fs::read_dir(&directory).map_err(GitError::io("read", &directory))? {
            let entry = entry.map_err(GitError::io("read", &directory))?;
            let came = entry.metadata().and_then(|metadata| metadata.modified());
            let lately = came.is_ok_and(|came| came.elapsed().is_ok_and(|age| age < grace));
            if !lately && !entry.file_name().to_str().is_some_and(|name| wanted.contains(name)) {
                fs::remove_file(entry.path()).map_err(GitError::io("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    /// Adds to what survives.
    pub(super) fn keep_also(&self, ids: &[CommitId]) -> Result<(), GitError> {
        let directory = self.path.join(KEEP);
        fs::create_dir_all(&directory).map_err(GitError::io("create", &directory))?;
        for id in ids {
            let path = directory.join(id.to_string());
            // Not synced: what a crash takes of it is written again before the next collection. Written also where
            // it is there: it came now.
            let content = format!("{id}\n");
            let mut file = tempfile::NamedTempFile::new_in(&self.path)
                .map_err(GitError::io("create a file in", &self.path))?;
            file.write_all(content.as_bytes()).map_err(GitError::io("write", &path))?;
            file.persist(&path).map_err(|error| GitError::io("write", path)(error.error))?;
        }
        Ok(())
    }

    /// Whether there are so many packs that [`Self::collect`] is due.
    pub fn is_crowded(&self) -> Result<bool, GitError> {
        let packs = self.object_directory().join("pack");
        let entries = fs::read_dir(&packs).map_err(GitError::io("read", packs))?;
        let is_pack = |name: PathBuf| name.extension().is_some_and(|extension| extension == "pack");
        Ok(entries.flatten().filter(|entry| is_pack(entry.file_name().into())).count() > CROWDED_PACKS)
    }

    /// Packs all objects that are kept into one pack and drops the others. Returns `false` at once, having done
    /// nothing, while a push is being received, and of a repository that is here in part.
    ///
    /// All objects that are dropped go at once: an object that is here always has all that it needs here too, which
    /// is what the check of a push relies on.
    pub async fn collect(&self) -> Result<bool, GitError> {
        if self.distant.is_some() {
            return Ok(false);
        }
        let lock = self.lock_file()?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(GitError::io("lock", &self.path)(error.into())),
        }
        quarantine::sweep(&self.path)?;
        let mut repack = child::git(&self.path, "repack");
        repack.args(["-a", "-d", "-q", "-l", "--threads=1"]);
        run(&mut repack, "repack", Vec::new()).await?;
        Ok(true)
    }

    /// Held shared while a push is received, exclusively while objects are dropped.
    pub(super) fn lock_file(&self) -> Result<File, GitError> {
        let path = self.path.join("hephy.lock");
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(false).write(true);
        options.open(&path).map_err(GitError::io("open", path))
    }
}

/// Runs a child to its end, with `input` on its standard input.
pub(super) async fn run(
    command: &mut tokio::process::Command,
    name: &'static str,
    input: Vec<u8>,
) -> Result<(), GitError> {
    let failed = |error: io::Error| GitError::Io { doing: "run", path: "git".into(), source: error };
    let mut group = Group::spawn(command.stdin(Stdio::piped())).map_err(failed)?;
    let (stdin, stderr) = (group.child.stdin.take(), group.child.stderr.take());
    let (Some(mut stdin), Some(mut stderr)) = (stdin, stderr) else {
        return Err(failed(io::ErrorKind::BrokenPipe.into()));
    };
    let write = async {
        // One that ends without reading all says why.
        let _ended = stdin.write_all(&input).await;
        drop(stdin);
        Ok(())
    };
    let ((), message) = tokio::try_join!(write, child::message(&mut stderr, |_| ())).map_err(failed)?;
    let status = group.wait().await.map_err(failed)?;
    if status.success() {
        Ok(())
    } else {
        Err(GitError::Child { command: name, status: status.to_string(), message })
    }
}

/// One id on each line.
pub(super) fn shallow_text(shallow: &BTreeSet<CommitId>) -> String {
    shallow.iter().flat_map(|id| [id.to_string(), "\n".to_owned()]).collect()
}

fn create(path: &Path) -> Result<(), GitError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(GitError::io("create", parent))?;
    let new = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(parent)
        .map_err(GitError::io("create", parent))?;
    for directory in ["objects/pack", "objects/info", "refs/heads", "refs/tags", KEEP] {
        let directory = new.path().join(directory);
        fs::create_dir_all(&directory).map_err(GitError::io("create", directory))?;
    }
    let (fan_out, rest) = EMPTY_TREE.split_at(2);
    let tree = new.path().join("objects").join(fan_out);
    fs::create_dir(&tree).map_err(GitError::io("create", &tree))?;
    let tree = tree.join(rest);
    let mut object = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::none());
    let object =
        object.write_all(b"tree 0\0").and_then(|()| object.finish()).map_err(GitError::io("pack", &tree))?;
    let files = [(new.path().join("HEAD"), b"ref: refs/heads/main\n".to_vec()), (tree, object)];
    for (file, content) in files.into_iter().chain([(new.path().join("config"), CONFIG.into())]) {
        fs::write(&file, content).map_err(GitError::io("write", file))?;
    }
    match fs::rename(new.path(), path) {
        // Somebody made it meanwhile.
        Err(_) if path.join("HEAD").exists() => Ok(()),
        Err(error) => Err(GitError::io("create", path)(error)),
        Ok(()) => {
            let _renamed = new.keep();
            sync_directory(parent)
        }
    }
}

/// Writes a file so that a crash leaves the old or the new content.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), GitError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file =
        tempfile::NamedTempFile::new_in(parent).map_err(GitError::io("create a file in", parent))?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(GitError::io("write", path))?;
    file.persist(path).map_err(|error| GitError::io("write", path)(error.error))?;
    sync_directory(parent)
}

pub(super) fn sync_directory(path: &Path) -> Result<(), GitError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(GitError::io("sync", path))
}
