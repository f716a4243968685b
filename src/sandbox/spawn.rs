//! The starter's part of a worker: a child process with one socket, its ids, its network and its limits.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{io, thread};

use nix::poll::{PollFd, PollFlags};
use nix::unistd::{Gid, Pid, Uid};
use rustix::process::PidfdFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cgroup::{Cgroup, CgroupUnavailable, Delegation};
use super::error::Doing;
use super::network::Uplink;
use super::worker::{Order, Progress};
use super::{
    Channel, IdMap, Isolation, Limits, NetworkMode, ProtocolError, Received, SandboxError, WORKER_COMMAND,
    system,
};

/// How a worker is started.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    /// Our own binary.
    pub executable: PathBuf,
    /// Which of its bodies: the argument after [`WORKER_COMMAND`].
    pub body: String,
    /// How its steps are kept apart.
    pub isolation: Isolation,
    /// The sandbox's ids.
    pub ids: IdMap,
    /// Where the worker is; made if absent, and given to the sandbox's root.
    pub directory: PathBuf,
    /// What it and its steps see of the network.
    pub network: NetworkMode,
    /// What it and its steps may use together.
    pub limits: Option<Limits>,
    /// The worker's own environment, all of it.
    pub environment: Vec<(String, String)>,
}

impl WorkerSpec {
    /// The binary that this process runs, even if its file has been replaced since.
    #[must_use]
    pub fn own_executable() -> PathBuf {
        PathBuf::from("/proc/self/exe")
    }
}

/// A started worker. When it is dropped, it and its steps are killed.
#[derive(Debug)]
pub struct Worker {
    channel: Channel,
    process: Process,
    limits: Result<(), CgroupUnavailable>,
    // In the order in which they end: the process, its uplink, its group.
    uplink: Option<Uplink>,
    cgroup: Option<Cgroup>,
    host_root: (u32, u32),
}

/// Kills a worker from anywhere; a call that waits for it then fails.
#[derive(Debug, Clone)]
pub struct Killer {
    pidfd: Arc<OwnedFd>,
}

impl Killer {
    /// Kills the worker; its steps die with it.
    pub fn kill(&self) {
        match rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(%error, "a worker could not be killed"),
        }
    }
}

/// The worker's process, which ends when this is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    killer: Killer,
}

/// How long a worker may take to tidy up when nobody speaks to it any more.
pub const TIDY: Duration = Duration::from_secs(30);

impl Process {
    /// Waits for its end, without taking its status.
    fn ends_within(&self, limit: Duration) -> bool {
        let millis = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(self.killer.pidfd.as_fd(), PollFlags::POLLIN)];
        matches!(nix::poll::poll(&mut fds, millis), Ok(1))
    }

    fn new(mut child: Child) -> io::Result<Self> {
        let pid = rustix::process::Pid::from_child(&child);
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, killer: Killer { pidfd: Arc::new(pidfd) } }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error.into())
            }
        }
    }

    fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.killer.kill();
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "a worker could not be waited for");
        }
    }
}

impl Worker {
    /// Starts a worker and waits until it is in its namespaces.
    pub fn start(spec: &WorkerSpec) -> Result<Self, SandboxError> {
        make_directory(&spec.directory, &spec.ids)?;
        let (ours, theirs) = Channel::pair().doing(|| "make a socket pair".to_owned())?;
        let mut command = Command::new(&spec.executable);
        command
            .args([WORKER_COMMAND, &spec.body])
            .current_dir(&spec.directory)
            .env_clear()
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let child = spawn_from_lasting_thread(command)
            .doing(|| format!("start `{} {WORKER_COMMAND}`", spec.executable.display()))?;
        let process = Process::new(child).doing(|| "watch the worker".to_owned())?;
        let id = process.id();
        let mut worker = Self {
            channel: ours,
            process,
            limits: Ok(()),
            uplink: None,
            cgroup: None,
            host_root: spec.ids.host_root(),
        };
        worker.limit(id, spec.limits.as_ref());
        worker.lead_in(id, spec)?;
        Ok(worker)
    }

    /// Asks the worker and waits for its answer.
    pub fn call<Q: Serialize, R: DeserializeOwned>(
        &mut self,
        request: &Q,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Received<R>, SandboxError> {
        self.give_pipes(fds)?;
        self.channel.send(request, fds)?;
        match self.channel.receive() {
            Ok(Some(received)) => Ok(received),
            Ok(None) | Err(ProtocolError::Truncated) => Err(self.gone()),
            Err(error) => Err(error.into()),
        }
    }

    /// As root a pipe of ours belongs to nobody in the sandbox, and `/dev/stdout` could not be opened there.
    fn give_pipes(&self, fds: &[BorrowedFd<'_>]) -> Result<(), SandboxError> {
        if !Uid::effective().is_root() {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.host_root.0), Gid::from_raw(self.host_root.1));
        fds.iter().filter(|fd| system::is_pipe(**fd)).try_for_each(|fd| {
            nix::unistd::fchown(fd, Some(uid), Some(gid)).doing(|| "give a pipe to the sandbox".to_owned())
        })
    }

    /// The conversation, for more than one answer to a request.
    pub fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// Readable when the worker says something.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// What kills it from elsewhere.
    #[must_use]
    pub fn killer(&self) -> Killer {
        self.process.killer.clone()
    }

    /// Why the limits are not in force, if they are not.
    pub fn limits_in_force(&self) -> Result<(), &CgroupUnavailable> {
        self.limits.as_ref().copied()
    }

    /// Whether the network has lost its way out.
    pub(super) fn uplink_has_ended(&mut self) -> bool {
        self.uplink.as_mut().is_some_and(Uplink::has_ended)
    }

    /// Closes the conversation and waits until the worker has ended.
    pub fn close(self) -> Result<(), SandboxError> {
        let Self { channel, mut process, uplink, cgroup, .. } = self;
        drop(channel);
        let status = process.child.wait().doing(|| "wait for the worker".to_owned())?;
        drop((uplink, cgroup));
        if status.success() { Ok(()) } else { Err(SandboxError::WorkerGone(describe(status))) }
    }

    /// Before it makes its first child, so that the limits hold for all of them.
    fn limit(&mut self, process: Pid, limits: Option<&Limits>) {
        let Some(limits) = limits else {
            return;
        };
        let name = format!("sandbox-{process}");
        match Delegation::detect().and_then(|delegation| delegation.create(&name, limits)) {
            Ok(cgroup) => match cgroup.add(process) {
                Ok(()) => self.cgroup = Some(cgroup),
                Err(error) => self.limits = Err(error),
            },
            Err(error) => self.limits = Err(error),
        }
    }

    fn lead_in(&mut self, process: Pid, spec: &WorkerSpec) -> Result<(), SandboxError> {
        let (isolation, ids, network) = (spec.isolation, spec.ids.clone(), spec.network);
        self.channel.send(&Order::Begin { isolation, ids, network }, &[])?;
        if isolation == Isolation::InPlace {
            return self.expect(&Progress::Entered);
        }
        self.expect(&Progress::Unmapped)?;
        spec.ids.apply(process)?;
        self.channel.send(&Order::Mapped, &[])?;
        if spec.network != NetworkMode::Host {
            self.expect(&Progress::Networked)?;
            if spec.network == NetworkMode::Isolated {
                self.uplink = Some(Uplink::start(process)?);
            }
            self.channel.send(&Order::Connected, &[])?;
        }
        self.expect(&Progress::Entered)
    }

    fn expect(&mut self, wanted: &Progress) -> Result<(), SandboxError> {
        match self.channel.receive::<Progress>()? {
            Some(Received { message: Progress::Failed(why), .. }) => Err(SandboxError::Reported(why)),
            Some(Received { message, .. })
                if std::mem::discriminant(&message) == std::mem::discriminant(wanted) =>
            {
                Ok(())
            }
            Some(Received { message, .. }) => {
                Err(SandboxError::Reported(format!("{message:?} instead of {wanted:?}")))
            }
            None => Err(self.gone()),
        }
    }

    /// The conversation is over, by its end or by ours: then it ends what it runs, tidies up and ends.
    fn gone(&mut self) -> SandboxError {
        if !self.process.ends_within(TIDY) {
            self.process.killer.kill();
        }
        let how = self.process.child.wait().map_or_else(|error| error.to_string(), describe);
        SandboxError::WorkerGone(how)
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(9)) => "killed: cancelled, or out of memory".to_owned(),
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// As root the sandbox's root is somebody else, and has to be given a place.
fn make_directory(directory: &Path, ids: &IdMap) -> Result<(), SandboxError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.doing(|| format!("make the directory `{}`", directory.display()))?;
    if Uid::effective().is_root() {
        let (uid, gid) = ids.host_root();
        chown(directory, Some(uid), Some(gid))
            .doing(|| format!("give `{}` to the sandbox's root", directory.display()))?;
    }
    Ok(())
}

/// Starts children from a thread that lives as long as the process.
///
/// "Dies with its parent" means the parent's thread to the kernel, and a thread of a pool may end early.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let gone = || io::Error::other("the thread that starts workers has ended");
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        let body = move || {
            for (mut command, answer) in jobs {
                let answered = answer.send(command.spawn());
                // Nobody waits for it any more: the child is dropped with the answer, and finds its socket closed.
                drop(answered);
            }
        };
        // Without the thread the sender has no receiver, which is an error below.
        drop(thread::Builder::new().name("sandbox-spawner".to_owned()).spawn(body));
        sender
    });
    let (answer, child) = channel();
    spawner.send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}
