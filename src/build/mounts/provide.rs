//! Mounts inside the worker: made before a step, taken away after it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::net::SocketAddrUnix;

use super::request::{AgentSocket, CacheRequest, MountRequest, MountWhat, Selection};
use crate::build::copying::{self, Source};
use crate::build::protocol::Response;
use crate::build::worker::{Body, WorkerError};
use crate::layers::{
    self, CacheDirectory, CacheSharing, CopyError, DiffInput, Limits, Staged, UnpackOptions,
};
use crate::oci::Digest;
use crate::sandbox::{Access, Mount, MountSource};

/// The name of a socket, and of copied files, in a scratch directory.
const NAME: &str = "source";

/// How many connections wait until they are accepted.
const BACKLOG: i32 = 16;

/// Sockets that were made for the next step, with the directories that they are in.
pub(in crate::build) type Sockets = BTreeMap<AgentSocket, Staged>;

/// What a step's mounts are, as long as it runs. To be given to [`Provided::release`] whatever happened.
#[derive(Default)]
pub(in crate::build) struct Provided {
    mounts: Vec<Mount>,
    sources: Vec<Source>,
    staged: Vec<Staged>,
    caches: BTreeMap<Digest, CacheDirectory>,
}

impl Provided {
    /// Makes everything that `requests` ask for.
    pub(in crate::build) fn fill(
        &mut self,
        body: &mut Body,
        requests: &[MountRequest],
        context: Option<&OwnedFd>,
    ) -> Result<(), WorkerError> {
        self.lock_caches(body, requests, context)?;
        for request in requests {
            let source = match &request.what {
                MountWhat::Bind(files) => MountSource::Bind { source: self.bind(body, files, context)? },
                // What a program without a directory of its own may write to, as the kernel makes it.
                MountWhat::Tmpfs { max_bytes } => MountSource::Tmpfs { max_bytes: *max_bytes, mode: 0o1777 },
                MountWhat::Cache(cache) => {
                    let directory = self.caches.get(&cache.name).ok_or(WorkerError::Protocol)?;
                    MountSource::Bind { source: directory.path().to_owned() }
                }
                MountWhat::Secret { content, mode, owner: (uid, gid) } => {
                    MountSource::File { content: content.clone(), mode: *mode, uid: *uid, gid: *gid }
                }
                MountWhat::Agent(socket) => {
                    let staged = body.sockets().remove(socket).ok_or(WorkerError::Protocol)?;
                    let source = staged.tree().join(NAME);
                    self.staged.push(staged);
                    MountSource::Bind { source }
                }
            };
            let access = access(request, body.is_in_place());
            self.mounts.push(Mount { target: PathBuf::from(&request.target), source, access });
        }
        Ok(())
    }

    /// The mounts as the sandbox takes them.
    pub(in crate::build) fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Takes everything away that was for this step alone.
    pub(in crate::build) fn release(self, body: &mut Body) -> Result<(), WorkerError> {
        body.caches_used().extend(self.caches.values().map(|cache| cache.path().to_owned()));
        self.sources.into_iter().map(|source| source.close(body)).fold(Ok(()), Result::and)
    }

    /// All at once, in one order for every build: two that wait for each other would wait for ever. What one step mounts
    /// twice is locked once, by the strictest.
    fn lock_caches(
        &mut self,
        body: &mut Body,
        requests: &[MountRequest],
        context: Option<&OwnedFd>,
    ) -> Result<(), WorkerError> {
        let wanted = wanted_caches(requests, body.is_in_place());
        for (name, (sharing, cache)) in wanted {
            let store = body.layer_store()?;
            let directory =
                store.cache_directory(&name, sharing, |staged| begin_cache(body, staged, cache, context))?;
            self.caches.insert(name, directory);
        }
        Ok(())
    }

    /// A place where files are that the step may change without anybody else seeing it.
    fn bind(
        &mut self,
        body: &mut Body,
        files: &Selection,
        context: Option<&OwnedFd>,
    ) -> Result<PathBuf, WorkerError> {
        let source = Source::open(body, &files.from, copy_of(context)?)?;
        let opened = self.sources.len();
        self.sources.push(source);
        let source = self.sources.get(opened).ok_or(WorkerError::Protocol)?;
        // In place the files are the store's own.
        if let Some(base) = source.mounted_at().filter(|_| !body.is_in_place()) {
            let inner = source.root().canonical(Path::new(&files.source)).map_err(|error| {
                let missing = error.is_not_found();
                if missing {
                    CopyError::Missing(files.source.clone()).into()
                } else {
                    WorkerError::Root(error)
                }
            })?;
            return Ok(base.join(inner));
        }
        let staged = body.stage()?;
        let to = layers::Root::open(staged.tree())?;
        copying::copy(&files.copy_to(&format!("/{NAME}")), source.root(), VecDeque::new(), &to)?;
        let path = staged.tree().join(NAME);
        self.staged.push(staged);
        Ok(path)
    }
}

/// Whether a step may write to a mount.
fn access(request: &MountRequest, is_in_place: bool) -> Access {
    // What is in a directory of this step's own need not be kept from it; a socket is written to.
    let own = match &request.what {
        MountWhat::Bind(_) => is_in_place,
        MountWhat::Agent(_) => true,
        MountWhat::Tmpfs { .. } | MountWhat::Cache(_) | MountWhat::Secret { .. } => false,
    };
    if request.read_only && !own { Access::ReadOnly } else { Access::ReadWrite }
}

/// The caches that a step mounts, each with the strictest sharing that it is asked for with.
fn wanted_caches(
    requests: &[MountRequest],
    is_in_place: bool,
) -> BTreeMap<Digest, (CacheSharing, &CacheRequest)> {
    let mut wanted: BTreeMap<Digest, (CacheSharing, &CacheRequest)> = BTreeMap::new();
    for request in requests {
        if let MountWhat::Cache(cache) = &request.what {
            let (sharing, _) = wanted.entry(cache.name).or_insert((cache.sharing, cache));
            *sharing = cache.sharing.max(*sharing);
            if is_in_place {
                // A directory can be in one place only.
                *sharing = CacheSharing::Private.max(*sharing);
            }
        }
    }
    wanted
}

/// Makes the socket of an agent; the engine listens on its own copy of it.
pub(in crate::build) fn listen(
    body: &mut Body,
    socket: AgentSocket,
    descriptor: &OwnedFd,
    mode: u32,
    (uid, gid): (u32, u32),
) -> Result<(), WorkerError> {
    let staged = body.stage()?;
    let path = staged.tree().join(NAME);
    let bound = SocketAddrUnix::new(&path)
        .and_then(|address| rustix::net::bind(descriptor, &address))
        .and_then(|()| rustix::net::listen(descriptor, BACKLOG));
    bound.map_err(|error| WorkerError::Agent(error.into()))?;
    std::os::unix::fs::chown(&path, Some(uid), Some(gid)).map_err(WorkerError::Agent)?;
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&path, mode).map_err(WorkerError::Agent)?;
    body.sockets().insert(socket, staged);
    Ok(())
}

/// The first content of a cache.
fn begin_cache(
    body: &mut Body,
    staged: &Staged,
    cache: &CacheRequest,
    context: Option<&OwnedFd>,
) -> Result<(), WorkerError> {
    if let Some(seed) = &cache.seed {
        let from = Source::open(body, &seed.from, copy_of(context)?)?;
        let copied = layers::Root::open(staged.tree())
            .map_err(WorkerError::from)
            .and_then(|to| copying::copy(&seed.copy_to("/"), from.root(), VecDeque::new(), &to));
        from.close(body)?;
        copied?;
    }
    own_cache(staged, cache)
}

/// Gives a new cache the owner and the permissions that it is to have.
fn own_cache(staged: &Staged, cache: &CacheRequest) -> Result<(), WorkerError> {
    if let Some((uid, gid)) = cache.owner {
        std::os::unix::fs::chown(staged.tree(), Some(uid), Some(gid)).map_err(WorkerError::Cache)?;
    }
    if let Some(mode) = cache.mode {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(staged.tree(), mode).map_err(WorkerError::Cache)?;
    }
    Ok(())
}

/// Makes a cache, that is not here, of what was saved of it.
pub(in crate::build) fn restore_cache(
    body: &Body,
    cache: &CacheRequest,
    (diff_id, max_bytes): (&Digest, u64),
    saved: OwnedFd,
) -> Result<(), WorkerError> {
    // As much as would be saved: what is compressed says nothing of what comes out of it.
    let limits = Limits { max_bytes, ..Limits::default() };
    let options = UnpackOptions { limits, ..UnpackOptions::default() };
    let unpack = |staged: &Staged| {
        let root = layers::Root::open(staged.tree())?;
        layers::unpack_layer(File::from(saved), &root, Some(diff_id), &options)
            .map_err(|error| WorkerError::Unpack(*diff_id, error))?;
        own_cache(staged, cache)
    };
    body.layer_store()?.cache_directory(&cache.name, CacheSharing::Shared, unpack).map(drop)
}

/// Writes a cache as a tar, which has no entries if nothing is in it; nothing is done if somebody uses it.
pub(in crate::build) fn save_cache(
    body: &Body,
    name: &Digest,
    out: OwnedFd,
) -> Result<Response, WorkerError> {
    let Some(directory) = body.layer_store()?.idle_cache(name)? else { return Ok(Response::Done) };
    let upper = layers::Root::open(directory.path())?;
    let files = layers::diff(&DiffInput { upper: &upper, lowers: &[], ignore: &[], epoch: None })?;
    if files.is_empty() {
        return Ok(Response::Diffed { entries: 0, bytes: 0 });
    }
    let written = layers::write_tar(&files, &upper, None, File::from(out))?;
    Ok(Response::Diffed { entries: written.entries, bytes: written.bytes })
}

fn copy_of(context: Option<&OwnedFd>) -> Result<Option<OwnedFd>, WorkerError> {
    context.map(OwnedFd::try_clone).transpose().map_err(WorkerError::Cache)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::protocol::CopyFrom;
    use crate::model::Secret;

    fn mount(what: MountWhat, read_only: bool) -> MountRequest {
        MountRequest { target: "/m".to_owned(), read_only, what }
    }

    fn cache(name: &str, sharing: CacheSharing) -> MountRequest {
        let cache = CacheRequest { name: Digest::of(name), sharing, seed: None, mode: None, owner: None };
        mount(MountWhat::Cache(cache), false)
    }

    #[test]
    fn a_cache_that_is_mounted_twice_is_shared_as_the_stricter_mount_says() {
        use CacheSharing::{Locked, Private, Shared};
        let requests = [
            cache("a", Shared),
            cache("b", Private),
            cache("a", Locked),
            cache("b", Shared),
            mount(MountWhat::Tmpfs { max_bytes: None }, false),
            cache("c", Shared),
        ];
        let sharing = |is_in_place| {
            let wanted = wanted_caches(&requests, is_in_place);
            ["a", "b", "c"].map(|name| wanted[&Digest::of(name)].0)
        };
        assert_eq!(sharing(false), [Locked, Private, Shared]);
        assert_eq!(sharing(true), [Locked, Private, Private]);
        assert_eq!(wanted_caches(&requests, false).len(), 3);
    }

    #[test]
    fn what_is_only_read_is_not_written_to_unless_it_is_the_steps_own() {
        let files = || Selection { from: CopyFrom::Layers(Vec::new()), source: "/".to_owned() };
        let secret = || MountWhat::Secret { content: Secret::new(Vec::new()), mode: 0o400, owner: (0, 0) };
        let all = |is_in_place| {
            [MountWhat::Bind(files()), secret(), MountWhat::Agent(AgentSocket(0))]
                .map(|what| access(&mount(what, true), is_in_place) == Access::ReadOnly)
        };
        assert_eq!(all(false), [true, true, false]);
        assert_eq!(all(true), [false, true, false]);
        assert!(access(&mount(secret(), false), false) == Access::ReadWrite);
    }
}
