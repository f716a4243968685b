//! The body of `hephy __sandbox build`: the side of a build that owns trees and runs commands.
//!
//! One thread, one request at a time, inside the build's user namespace if it has one. It holds no credential and has no
//! network of its own use; it knows digests and descriptors, and its working directory is the layer store.

mod error;
mod roots;
mod run;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(super) use self::error::WorkerError;
use self::roots::Changed;
pub(super) use self::roots::OpenRoot;
use crate::build::copying;
use crate::build::mounts::{self, Sockets};
use crate::build::plain::Kept;
use crate::build::protocol::{CopyFrom, CopyRequest, Made, Request, Response, WorkerFailure};
use crate::build::user::{Accounts, max_id};
use crate::layers::{
    self, DiffInput, Differences, LayerStore, Lease, Owner, Staged, TarStats, TreeInfo, UnpackOptions,
};
use crate::oci::Digest;
use crate::sandbox::{Isolation, Received, Sandbox, worker};

/// The largest `/etc/passwd` that is read.
const MAX_ACCOUNTS_BYTES: u64 = 10 * 1024 * 1024;

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
                let found =
                    accounts(source.root()).and_then(|accounts| Ok(accounts.process_user(user.as_deref())?));
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

    fn copy(&mut self, copy: &CopyRequest, fds: Vec<OwnedFd>) -> Result<Response, WorkerError> {
        let mut fds = VecDeque::from(fds);
        let is_in_place = matches!(copy.from, CopyFrom::ContextDirectory { .. });
        let context = if is_in_place { fds.pop_front() } else { None };
        let from = copying::Source::open(self, &copy.from, context)?;
        let changed = self.in_root(copy.lowers.clone(), |root| copying::copy(copy, from.root(), fds, root));
        from.close(self)?;
        changed
    }

    /// The tar of a committed tree, whose times are what they are to be.
    fn pack(&self, diff_id: Digest, lowers: &[Digest], out: OwnedFd) -> Result<Response, WorkerError> {
        let tree = self.store()?.lease.tree(&diff_id)?.ok_or(WorkerError::NoTree(diff_id))?;
        let upper = layers::Root::open(&tree)?;
        let changes = layers::diff(&DiffInput {
            upper: &upper,
            lowers: &self.roots(lowers)?,
            ignore: &[],
            epoch: None,
        })?;
        let written = layers::write_tar(&changes, &upper, None, File::from(out))?;
        Ok(Response::Diffed { entries: written.entries, bytes: written.bytes })
    }

    fn diff(&self, made: Made, epoch: Option<i64>, out: OwnedFd) -> Result<Response, WorkerError> {
        let Changed { staged, lowers, plain } = self.made.get(&made).ok_or(WorkerError::Protocol)?;
        let upper = layers::Root::open(staged.tree())?;
        let input = DiffInput { upper: &upper, lowers: &self.roots(lowers)?, ignore: &[], epoch };
        let Differences { changes, late } = layers::differences(&input)?;
        let written = if changes.is_empty() {
            TarStats::default()
        } else {
            layers::write_tar(&changes, &upper, epoch, File::from(out))?
        };
        // The tree is what its layer says, and nothing else: another image may have it over other layers.
        layers::strip(&changes, &upper).map_err(WorkerError::Prepare)?;
        layers::normalize_times(&changes, &upper, epoch)?;
        if let Some(plain) = plain {
            layers::normalize_times(&changes, plain.root.root(), epoch)?;
            layers::normalize_times(&late, plain.root.root(), epoch)?;
        }
        Ok(Response::Diffed { entries: written.entries, bytes: written.bytes })
    }
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
