//! The body of `hephy __sandbox build`: the side of a build that owns trees and runs commands.
//!
//! One thread, one request at a time, inside the build's user namespace if it has one. It holds no credential and has no
//! network of its own use; it knows digests and descriptors, and its working directory is the layer store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::build::copying;
use crate::build::mounts::{self, Laid, Provided, Sockets};
use crate::build::plain::{Kept, Plain};
use crate::build::protocol::{
    CopyFrom, CopyRequest, Made, Request, Response, RunEnd, RunRequest, WorkerFailure,
};
use crate::build::user::{Accounts, UserError, max_id};
use crate::layers::{
    self, DiffInput, LaidFiles, LayerStore, Lease, Look, Owner, Owners, Staged, TreeInfo, UnpackOptions,
};
use crate::oci::Digest;
use crate::sandbox::{
    Access, Changes, Isolation, MemoryKills, Mount, MountSource, Outcome, Received, RootSpec, Sandbox,
    SandboxError, Stdio, Step, StepNetwork, UserIds, worker,
};

/// The largest `/etc/passwd` that is read.
const MAX_ACCOUNTS_BYTES: u64 = 10 * 1024 * 1024;

/// What the processes of a RUN see as the name of their machine.
const HOSTNAME: &str = "hephy-build";

/// The status of what could not be run because it is not there.
const NOT_FOUND: i32 = 127;

/// The name, in a step's scratch directory, of the script of a RUN heredoc.
const SCRIPT_FILE: &str = "script";

/// Why a request could not be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("failed to use the layer store")]
    Store(#[from] layers::StoreError),
    #[error("failed to open a directory of the image")]
    Root(#[from] layers::RootError),
    #[error("failed to prepare a step's directory")]
    Prepare(#[from] layers::FileError),
    #[error("failed to unpack the layer {0}")]
    Unpack(Digest, #[source] layers::UnpackError),
    #[error("failed to unpack the context")]
    Context(#[source] layers::UnpackError),
    #[error(transparent)]
    Copy(#[from] layers::CopyError),
    #[error(transparent)]
    Mode(#[from] layers::ModeError),
    #[error("failed to find the step's changes")]
    Diff(#[from] layers::DiffError),
    #[error("failed to write the step's layer")]
    Tar(#[from] layers::TarError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error("failed to read the ignore file")]
    Ignore(#[from] crate::dockerfile::IgnoreError),
    #[error("a pattern of `{flag}` is wrong: {reason}")]
    Pattern { flag: &'static str, reason: String },
    #[error("`--chown={0}` names an account, and nothing below this copy has accounts: give numbers")]
    LinkedOwner(String),
    #[error("failed to write the script of RUN")]
    Script(#[source] std::io::Error),
    #[error("failed to make the socket of an SSH agent")]
    Agent(#[source] std::io::Error),
    #[error("failed to add certificates to the image's bundle for a step")]
    Trust(#[source] std::io::Error),
    #[error("failed to make a cache mount")]
    Cache(#[source] std::io::Error),
    #[error("the layer {0} is not in the store")]
    NoTree(Digest),
    #[error("the engine sent a request without its descriptor, or out of order")]
    Protocol,
}

impl WorkerError {
    /// Whether the pusher can fix it.
    fn is_app(&self) -> bool {
        let is_theirs = match self {
            // Of the image or of the isolation, not of the machine.
            Self::Sandbox(error) => {
                matches!(error, SandboxError::Root { .. } | SandboxError::Lacking { .. })
            }
            other => matches!(
                other,
                Self::Copy(_)
                    | Self::User(_)
                    | Self::Mode(_)
                    | Self::Ignore(_)
                    | Self::Pattern { .. }
                    | Self::LinkedOwner(_)
            ),
        };
        is_theirs && !is_disk_full(self)
    }
}

/// Whether an error is that there is no room, which is nobody's who wrote a Dockerfile.
fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && matches!(error.kind(), StorageFull | QuotaExceeded)
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// Serves the engine until it closes the channel.
#[must_use]
pub fn main() -> ExitCode {
    let Ok(entered) = worker::enter() else { return ExitCode::FAILURE };
    let mut channel = entered.channel;
    let mut body = Body {
        sandbox: entered.sandbox,
        hangup: None,
        store: None,
        made: BTreeMap::new(),
        kept: Kept::default(),
        next: 0,
        context: None,
        sockets: Sockets::new(),
        caches_used: BTreeSet::new(),
    };
    body.hangup = channel.as_fd().try_clone_to_owned().ok();
    loop {
        let received: Received<Request> = match channel.receive() {
            Ok(Some(received)) => received,
            Ok(None) => break,
            Err(_) => return ExitCode::FAILURE,
        };
        let response = body.serve(received.message, received.fds).unwrap_or_else(|error| {
            Response::Failed(WorkerFailure { app: error.is_app(), chain: super::driver::chain(&error) })
        });
        if channel.send(&response, &[]).is_err() {
            return ExitCode::FAILURE;
        }
    }
    drop(channel);
    if body.kept.is_empty() {
        return ExitCode::SUCCESS;
    }
    // Whole root file systems are about to be removed.
    worker::detach().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

struct Store {
    store: LayerStore,
    lease: Lease,
}

/// What a step changed, before it is a layer.
struct Changed {
    /// The changes, as an upper directory.
    staged: Staged,
    lowers: Vec<Digest>,
    /// The root with the changes in it, if it can serve another step.
    plain: Option<Plain>,
}

/// An open root and what it stands on.
pub(super) struct OpenRoot {
    root: crate::sandbox::Root,
    /// The directory that is the root, where there is no overlay; none if the upper is.
    plain: Option<Plain>,
    /// Certificates that are in its bundles.
    laid: Option<Laid>,
}

impl OpenRoot {
    pub(super) fn path(&self) -> &Path {
        self.root.path()
    }
}

pub(super) struct Body {
    sandbox: Box<dyn Sandbox>,
    /// Readable when the engine is gone: then a running command is ended.
    hangup: Option<OwnedFd>,
    store: Option<Store>,
    made: BTreeMap<Made, Changed>,
    /// Roots for later steps, where there is no overlay.
    kept: Kept,
    next: u64,
    /// Where [`Request::Context`] put the context.
    context: Option<Staged>,
    /// Where [`Request::Listen`] listens.
    sockets: Sockets,
    caches_used: BTreeSet<PathBuf>,
}

impl Body {
    fn serve(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Response, WorkerError> {
        match request {
            Request::Begin { map } => {
                let store = LayerStore::open(Path::new("."), &map, None)?;
                let lease = store.lease()?;
                self.store = Some(Store { store, lease });
                Ok(Response::Ready { isolation: format!("{:?}", self.sandbox.isolation()).to_lowercase() })
            }
            Request::Unpack { diff_id, lowers } => self.unpack(diff_id, &lowers, one(fds)?),
            Request::Context => {
                let staged = self.store()?.store.stage()?;
                let root = layers::Root::open(staged.tree())?;
                layers::unpack_layer(File::from(one(fds)?), &root, None, &UnpackOptions::default())
                    .map_err(WorkerError::Context)?;
                self.context = Some(staged);
                Ok(Response::Done)
            }
            Request::Run(run) => self.run(&run, fds),
            Request::Listen { socket, mode, owner } => {
                mounts::listen(self, socket, &one(fds)?, mode, owner)?;
                Ok(Response::Done)
            }
            Request::Copy(copy) => self.copy(&copy, fds),
            Request::Hash(copy) => {
                let from = copying::Source::open(self, &copy.from, fds.into_iter().next())?;
                let hash = copying::hash(&copy, from.root(), None);
                from.close(self)?;
                Ok(Response::Hashed(hash?.digest))
            }
            Request::MakeDirectory { lowers, path, user } => self.in_root(lowers, |root| {
                let owner = match user.as_deref().filter(|user| !user.is_empty()) {
                    Some(user) => {
                        let user = accounts(root)?.user(Some(user))?;
                        Some(Owner { uid: user.uid, gid: user.gid })
                    }
                    None => None,
                };
                root.create_dirs(Path::new(&path), 0o755, owner)?;
                Ok(())
            }),
            Request::Diff { made, epoch } => self.diff(made, epoch, one(fds)?),
            Request::Pack { diff_id, lowers } => self.pack(diff_id, &lowers, one(fds)?),
            Request::Commit { made, diff_id, entries, bytes } => {
                let Changed { staged, plain, .. } = self.made.remove(&made).ok_or(WorkerError::Protocol)?;
                self.store()?.store.commit_tree(staged, &diff_id, TreeInfo { entries, bytes })?;
                self.store()?.lease.hold(&diff_id)?;
                if let Some(mut plain) = plain {
                    plain.layers.push(diff_id);
                    self.kept.put(plain);
                }
                Ok(Response::Done)
            }
            Request::Discard { made } => {
                if let Some(plain) = self.made.remove(&made).and_then(|changed| changed.plain) {
                    self.kept.put(plain);
                }
                Ok(Response::Done)
            }
            Request::User { layers, user } => {
                let source = copying::Source::open(self, &CopyFrom::Layers(layers), None)?;
                let found = accounts(source.root()).and_then(|accounts| Ok(accounts.user(user.as_deref())?));
                source.close(self)?;
                Ok(Response::User(found?))
            }
            Request::Settle => {
                self.store()?.store.settle()?;
                Ok(Response::Done)
            }
            Request::Prune { policy } => Ok(Response::Pruned(self.store()?.store.prune(&policy)?)),
            Request::RestoreCache { cache, diff_id, max_bytes } => {
                mounts::restore_cache(self, &cache, (&diff_id, max_bytes), one(fds)?)?;
                Ok(Response::Done)
            }
            Request::SaveCache { name } => mounts::save_cache(self, &name, one(fds)?),
            Request::PruneCaches { max_bytes } => self.prune_caches(max_bytes),
        }
    }

    /// Whether steps run in plain directories.
    pub(super) fn is_in_place(&self) -> bool {
        self.sandbox.isolation() == Isolation::InPlace
    }

    pub(super) fn sockets(&mut self) -> &mut Sockets {
        &mut self.sockets
    }

    /// The cache mounts that this build used.
    pub(super) fn caches_used(&mut self) -> &mut BTreeSet<PathBuf> {
        &mut self.caches_used
    }

    pub(super) fn layer_store(&self) -> Result<LayerStore, WorkerError> {
        Ok(self.store()?.store.clone())
    }

    /// Only after having used some: others see to theirs.
    fn prune_caches(&mut self, max_bytes: u64) -> Result<Response, WorkerError> {
        let used = std::mem::take(&mut self.caches_used);
        let store = self.layer_store()?;
        used.iter().try_for_each(|path| store.measure_cache(path))?;
        if !used.is_empty() {
            store.prune_caches(max_bytes, None)?;
        }
        Ok(Response::Done)
    }

    pub(super) fn context(&self) -> Result<&Path, WorkerError> {
        self.context.as_ref().map(Staged::tree).ok_or(WorkerError::Protocol)
    }

    fn store(&self) -> Result<&Store, WorkerError> {
        self.store.as_ref().ok_or(WorkerError::Protocol)
    }

    pub(super) fn stage(&self) -> Result<Staged, WorkerError> {
        Ok(self.store()?.store.stage()?)
    }

    /// The trees of layers, in the order given.
    pub(super) fn trees(&self, layers: &[Digest]) -> Result<Vec<PathBuf>, WorkerError> {
        let lease = &self.store()?.lease;
        layers.iter().map(|id| lease.tree(id)?.ok_or(WorkerError::NoTree(*id))).collect()
    }

    fn unpack(&self, diff_id: Digest, lowers: &[Digest], blob: OwnedFd) -> Result<Response, WorkerError> {
        let Store { store, lease } = self.store()?;
        let _lock = store.lock_layer(&diff_id)?;
        if lease.tree(&diff_id)?.is_some() {
            return Ok(Response::Unpacked { bytes: 0 });
        }
        let lowers = self.roots(lowers)?;
        let staged = store.stage()?;
        let root = layers::Root::open(staged.tree())?;
        let options = UnpackOptions { lowers: &lowers, ..UnpackOptions::default() };
        let unpacked = layers::unpack_layer(File::from(blob), &root, Some(&diff_id), &options)
            .map_err(|error| WorkerError::Unpack(diff_id, error))?;
        store.commit_tree(staged, &diff_id, TreeInfo { entries: unpacked.entries, bytes: unpacked.bytes })?;
        lease.hold(&diff_id)?;
        Ok(Response::Unpacked { bytes: unpacked.bytes })
    }

    /// The trees of layers, topmost first, as the layer mechanisms take them.
    fn roots(&self, layers: &[Digest]) -> Result<Vec<layers::Root>, WorkerError> {
        self.trees(layers)?.iter().rev().map(|tree| Ok(layers::Root::open(tree)?)).collect()
    }

    /// Opens the merged tree of `lowers`, whose changes go to `staged`. `files`: whether existing files are written to.
    pub(super) fn open_root(
        &mut self,
        staged: &Staged,
        lowers: &[Digest],
        files: LaidFiles,
    ) -> Result<OpenRoot, WorkerError> {
        layers::match_root(&layers::Root::open(staged.tree())?, &self.roots(lowers)?, Owners::Keep)?;
        let mut spec = RootSpec {
            lowers: self.trees(lowers)?,
            upper: staged.tree().to_owned(),
            work: staged.work().to_owned(),
            mount_point: staged.work().with_file_name("merged"),
        };
        let mut plain = None;
        if self.sandbox.isolation() == Isolation::InPlace {
            // On nothing, what is changed is all there is.
            let own = if lowers.is_empty() && files == LaidFiles::Linked {
                None
            } else {
                Some(self.plain(lowers, files)?)
            };
            let directory = own.as_ref().map_or(staged, |plain| &plain.staged);
            directory.tree().clone_into(&mut spec.mount_point);
            directory.work().clone_into(&mut spec.work);
            plain = own;
        }
        Ok(OpenRoot { root: self.sandbox.open(&spec)?, plain, laid: None })
    }

    /// A directory with these layers in it, made of the one that has most of them.
    fn plain(&mut self, layers: &[Digest], files: LaidFiles) -> Result<Plain, WorkerError> {
        let mut plain = match self.kept.take(layers, files) {
            Some(plain) => plain,
            None => Plain::empty(self.stage()?, files)?,
        };
        let trees = self.trees(layers)?;
        let rest: Vec<_> =
            layers.iter().copied().zip(trees.iter().map(PathBuf::as_path)).skip(plain.layers.len()).collect();
        plain.lay(&rest)?;
        Ok(plain)
    }

    /// Closes a root that was only read.
    pub(super) fn close_unchanged(&mut self, open: OpenRoot) -> Result<(), WorkerError> {
        self.sandbox.close(open.root)?;
        if let Some(plain) = open.plain {
            self.kept.put(plain);
        }
        Ok(())
    }

    /// Closes a root whose changes nobody wants; a plain one is not what its layers are any more.
    fn close_spoilt(&mut self, open: OpenRoot) -> Result<(), WorkerError> {
        Ok(self.sandbox.close(open.root)?)
    }

    /// Closes a root and keeps what changed in it.
    fn close_changed(
        &mut self,
        mut open: OpenRoot,
        look: Look,
        staged: Staged,
        lowers: Vec<Digest>,
    ) -> Result<Made, WorkerError> {
        // Removes the mount points that a step needed, so that they are in no layer.
        let changes = self.sandbox.changes(&mut open.root);
        let taken_back =
            open.laid.take().map_or(Ok(()), |laid| laid.take_back(&layers::Root::open(open.root.path())?));
        self.sandbox.close(open.root)?;
        taken_back?;
        if let (Changes::Scan { since }, Some(plain)) = (changes?, &mut open.plain) {
            let upper = layers::Root::open(staged.tree())?;
            plain.root.gather(since, look, &self.roots(&lowers)?, &upper).map_err(WorkerError::Prepare)?;
        }
        self.next += 1;
        let made = Made(self.next);
        self.made.insert(made, Changed { staged, lowers, plain: open.plain });
        Ok(made)
    }

    /// Lets `change` write into the merged tree of `lowers`, and keeps what it changed.
    fn in_root(
        &mut self,
        lowers: Vec<Digest>,
        change: impl FnOnce(&layers::Root) -> Result<(), WorkerError>,
    ) -> Result<Response, WorkerError> {
        let staged = self.stage()?;
        let open = self.open_root(&staged, &lowers, LaidFiles::Linked)?;
        let changed =
            layers::Root::open(open.path()).map_err(WorkerError::from).and_then(|root| change(&root));
        match changed {
            // Nothing here writes to a file that was there: it is replaced.
            Ok(()) => {
                let made = self.close_changed(open, Look::WhereNamesChanged, staged, lowers)?;
                Ok(Response::Changed(made))
            }
            Err(error) => self.close_spoilt(open).and(Err(error)),
        }
    }

    fn copy(&mut self, copy: &CopyRequest, fds: Vec<OwnedFd>) -> Result<Response, WorkerError> {
        let mut fds = VecDeque::from(fds);
        let is_in_place = matches!(copy.from, CopyFrom::ContextDirectory { .. });
        let context = if is_in_place { fds.pop_front() } else { None };
        let from = copying::Source::open(self, &copy.from, context)?;
        let changed = self.in_root(copy.lowers.clone(), |root| copying::copy(copy, from.root(), fds, root));
        from.close(self)?;
        changed
    }

    fn run(&mut self, run: &RunRequest, fds: Vec<OwnedFd>) -> Result<Response, WorkerError> {
        let mut fds = fds.into_iter();
        let output = fds.next().ok_or(WorkerError::Protocol)?;
        let mut provided = Provided::default();
        let ran = provided
            .fill(self, &run.mounts, fds.next().as_ref())
            .and_then(|()| self.run_with(run, &provided, output));
        let released = provided.release(self);
        let ran = ran?;
        released.map(|()| ran)
    }

    fn run_with(
        &mut self,
        run: &RunRequest,
        provided: &Provided,
        output: OwnedFd,
    ) -> Result<Response, WorkerError> {
        let staged = self.stage()?;
        let mut open = self.open_root(&staged, &run.lowers, LaidFiles::Copied)?;
        let scratch = staged.work().with_file_name(SCRIPT_FILE);
        let ran = self.run_in(&mut open, run, (provided, &scratch), output);
        match ran {
            Ok(end @ RunEnd::Exited(0)) => {
                let made = self.close_changed(open, Look::Everywhere, staged, run.lowers.clone())?;
                Ok(Response::Ran { end, made: Some(made) })
            }
            Ok(end) => self.close_spoilt(open).map(|()| Response::Ran { end, made: None }),
            Err(error) => self.close_spoilt(open).and(Err(error)),
        }
    }

    fn run_in(
        &mut self,
        open: &mut OpenRoot,
        run: &RunRequest,
        (provided, scratch): (&Provided, &Path),
        output: OwnedFd,
    ) -> Result<RunEnd, WorkerError> {
        let files = layers::Root::open(open.path())?;
        open.laid = run.trusted.as_deref().map(|pem| Laid::lay(&files, pem)).transpose()?;
        let OpenRoot { root, laid, .. } = open;
        let user = accounts(&files)?.user(run.user.as_deref())?;
        files.create_dirs(Path::new(&run.directory), 0o755, None)?;
        let mut environment: Vec<_> = run.environment.clone().into_iter().collect();
        environment.retain(|(name, _)| !run.secrets.contains_key(name));
        environment.extend(run.secrets.iter().map(|(name, value)| (name.clone(), value.reveal().clone())));
        let mut mounts = script(run, scratch)?;
        mounts.extend(provided.mounts().iter().cloned());
        if let Some(laid) = &laid {
            mounts.push(laid.mount());
            environment.extend(mounts::variables(|name| {
                run.environment.contains_key(name) || run.secrets.contains_key(name)
            }));
        }
        if !run.environment.contains_key("HOME") {
            environment.push(("HOME".to_owned(), user.home));
        }
        let step = Step {
            argv: run.argv.clone(),
            environment,
            directory: PathBuf::from(&run.directory),
            user: UserIds { uid: user.uid, gid: user.gid, groups: user.groups },
            hostname: HOSTNAME.to_owned(),
            mounts,
            network: if run.offline { StepNetwork::None } else { StepNetwork::Workers },
            privileged: run.privileged,
            ..Step::default()
        };
        let before = MemoryKills::read();
        let running = self.sandbox.start(root, &step, Stdio::merged(output.as_fd())?)?;
        drop(output);
        // After the start, since a process that starts another has one thread; it ends before this returns.
        let _watch = laid.as_ref().and_then(|laid| laid.watch(&files));
        let limit = Duration::from_millis(run.limit_millis);
        let outcome = running.wait(Some(limit), self.hangup.as_ref().map(AsFd::as_fd))?;
        Ok(match outcome {
            Outcome::Exited(NOT_FOUND) if is_absent(&files, run) => RunEnd::NoProgram,
            Outcome::Exited(0) => RunEnd::Exited(0),
            Outcome::Exited(status) => out_of_memory(before, status).unwrap_or(RunEnd::Exited(status)),
            Outcome::Signalled(signal) => {
                out_of_memory(before, 128 + signal).unwrap_or(RunEnd::Signalled(signal))
            }
            Outcome::TimedOut => RunEnd::TimedOut,
            Outcome::Cancelled => RunEnd::Cancelled,
        })
    }

    /// The tar of a committed tree, whose times are what they are to be.
    fn pack(&self, diff_id: Digest, lowers: &[Digest], out: OwnedFd) -> Result<Response, WorkerError> {
        let tree = self.store()?.lease.tree(&diff_id)?.ok_or(WorkerError::NoTree(diff_id))?;
        let upper = layers::Root::open(&tree)?;
        let changes = layers::diff(&DiffInput { upper: &upper, lowers: &self.roots(lowers)?, ignore: &[] })?;
        let written = layers::write_tar(&changes, &upper, None, File::from(out))?;
        Ok(Response::Diffed { entries: written.entries, bytes: written.bytes })
    }

    fn diff(&self, made: Made, epoch: Option<i64>, out: OwnedFd) -> Result<Response, WorkerError> {
        let Changed { staged, lowers, plain } = self.made.get(&made).ok_or(WorkerError::Protocol)?;
        let upper = layers::Root::open(staged.tree())?;
        let changes = layers::diff(&DiffInput { upper: &upper, lowers: &self.roots(lowers)?, ignore: &[] })?;
        if changes.is_empty() {
            return Ok(Response::Diffed { entries: 0, bytes: 0 });
        }
        let written = layers::write_tar(&changes, &upper, epoch, File::from(out))?;
        layers::normalize_times(&changes, &upper, epoch)?;
        if let Some(plain) = plain {
            layers::normalize_times(&changes, plain.root.root(), epoch)?;
        }
        Ok(Response::Diffed { entries: written.entries, bytes: written.bytes })
    }
}

/// The end of a command that failed, if the kernel has killed for memory since `before`.
fn out_of_memory(before: Option<MemoryKills>, status: i32) -> Option<RunEnd> {
    let limit_bytes = MemoryKills::read()?.limit_since(before)?;
    Some(RunEnd::OutOfMemory { status, limit_bytes })
}

/// Whether the program of a RUN is named by its path and is not there, neither in the image nor by a mount.
fn is_absent(files: &layers::Root, run: &RunRequest) -> bool {
    let Some(program) = run.argv.first().map(Path::new).filter(|path| path.is_absolute()) else {
        return false;
    };
    let is_mounted =
        run.script.is_some() || run.mounts.iter().any(|mount| program.starts_with(&mount.target));
    !is_mounted && files.resolve(program).is_err_and(|error| error.is_not_found())
}

/// The script of a RUN heredoc, as a file that the step sees where `argv` says.
fn script(run: &RunRequest, scratch: &Path) -> Result<Vec<Mount>, WorkerError> {
    let (Some(content), Some(target)) = (&run.script, run.argv.first()) else { return Ok(Vec::new()) };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(scratch)
        .map_err(WorkerError::Script)?;
    file.write_all(content.as_bytes()).map_err(WorkerError::Script)?;
    let source = MountSource::Bind { source: scratch.to_owned() };
    Ok(vec![Mount { target: PathBuf::from(target), source, access: Access::ReadOnly }])
}

/// The image's users and groups.
pub(super) fn accounts(root: &layers::Root) -> Result<Accounts, WorkerError> {
    let read = |path: &str| {
        Ok::<_, WorkerError>(root.read(Path::new(path), MAX_ACCOUNTS_BYTES)?.unwrap_or_default())
    };
    let max_id = max_id(&std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default());
    Ok(Accounts { passwd: read("/etc/passwd")?, group: read("/etc/group")?, max_id })
}

fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd, WorkerError> {
    fds.into_iter().next().ok_or(WorkerError::Protocol)
}
