//! The rung without namespaces and without mounts: steps in a plain directory that is their root by `chroot`.
//!
//! It needs what every container's root has (`CAP_SYS_CHROOT`, `CAP_SETPCAP`, `CAP_MKNOD` and those over files), and never
//! touches a file of the container: the directory is ours. What mounts give on the other rung is laid into the directory
//! while a step runs and taken out after it ([`placing`]).
//!
//! A step lacks `CAP_SYS_CHROOT`, with which root leaves a `chroot`, and `CAP_MKNOD`, without which the kernel refuses it
//! every process of the container that has it: the engine, the worker and whatever else runs here are closed to `ptrace`
//! and to `/proc/PID/{environ,mem,root,fd}`. What is not kept from a step: the container's network, signals to its
//! processes (root's to all, a user's to his own), and its share of the machine.

mod placing;
mod supervisor;
mod surroundings;
mod thing;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Instant, SystemTime};

use nix::sys::signal::SigSet;
use nix::unistd::ForkResult;
use rustix::thread::CapabilitySet;

use self::placing::Placing;
pub(super) use self::supervisor::{END, end_children};
use super::error::Doing;
use super::network::NetworkFiles;
use super::running::Ending;
use super::{
    Changes, Isolation, NetworkMode, Root, RootSpec, Running, Sandbox, SandboxError, Stdio, Step,
    StepNetwork, system,
};

/// What this rung takes: to make files of anybody's, to change root and ids, and to give rights up.
const NEEDED: [(CapabilitySet, &str); 9] = [
    (CapabilitySet::CHOWN, "CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "DAC_OVERRIDE"),
    (CapabilitySet::FOWNER, "FOWNER"),
    (CapabilitySet::FSETID, "FSETID"),
    (CapabilitySet::SETUID, "SETUID"),
    (CapabilitySet::SETGID, "SETGID"),
    (CapabilitySet::SETPCAP, "SETPCAP"),
    (CapabilitySet::SYS_CHROOT, "SYS_CHROOT"),
    (CapabilitySet::MKNOD, "MKNOD"),
];

/// Runs steps in plain directories.
///
/// The caller has laid the layers into [`RootSpec::mount_point`] before it opens it.
#[derive(Debug)]
pub struct InPlaceSandbox {
    files: NetworkFiles,
}

/// What is open of a plain root.
#[derive(Debug)]
pub(super) struct Plain {
    placing: Placing,
    /// When it was opened, by the clock of its file system.
    since: (i64, i64),
    /// The same moment by the wall clock, and by the time that only goes forward.
    opened: (SystemTime, Instant),
}

impl InPlaceSandbox {
    pub(super) fn new(network: NetworkMode) -> Self {
        Self { files: NetworkFiles::new(network) }
    }
}

impl Sandbox for InPlaceSandbox {
    fn isolation(&self) -> Isolation {
        Isolation::InPlace
    }

    fn open(&mut self, spec: &RootSpec) -> Result<Root, SandboxError> {
        for directory in [&spec.work, &spec.mount_point] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.doing(|| format!("make the directory `{}`", directory.display()))?;
        }
        let opened = (SystemTime::now(), Instant::now());
        let plain = Plain { placing: Placing::new(&spec.work)?, since: now(&spec.work)?, opened };
        let (path, upper) = (spec.mount_point.clone(), spec.upper.clone());
        Ok(Root { path, upper, made: Vec::new(), plain: Some(plain) })
    }

    fn start(&mut self, root: &mut Root, step: &Step, stdio: Stdio) -> Result<Running, SandboxError> {
        let Some(plain) = &mut root.plain else { return Err(foreign()) };
        if step.network == StepNetwork::None {
            return Err(SandboxError::Lacking {
                what: "a RUN without a network",
                why: "it takes a network namespace, and in-place isolation makes none",
            });
        }
        if step.privileged {
            return Err(SandboxError::Lacking {
                what: "`RUN --security=insecure`",
                why: "it takes a user namespace, and in-place isolation makes none",
            });
        }
        plain.placing.take_out()?;
        surroundings::place(&mut plain.placing, &root.path, step, &self.files)?;
        let (report, report_theirs) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(|| "make a pipe".to_owned())?;
        // The supervisor must not miss a signal before it waits for them.
        let mask = || "block signals".to_owned();
        let before = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK).doing(mask)?;
        let worker = nix::unistd::getpid();
        let forked = system::fork_into(nix::sched::CloneFlags::empty());
        if let Ok(ForkResult::Child) = forked {
            supervisor::run(&supervisor::Start {
                worker,
                root: &root.path,
                step,
                stdio: &stdio,
                report: report_theirs,
            });
        }
        before.thread_set_mask().doing(mask)?;
        match forked.doing(|| "start a process".to_owned())? {
            ForkResult::Parent { child } => Running::new(child, report, Ending::Supervised),
            ForkResult::Child => system::leave(1),
        }
    }

    fn changes(&mut self, root: &mut Root) -> Result<Changes, SandboxError> {
        let Some(plain) = &mut root.plain else { return Err(foreign()) };
        plain.placing.take_out()?;
        Ok(Changes::Scan { since: plain.since_now() })
    }

    fn close(&mut self, mut root: Root) -> Result<(), SandboxError> {
        root.plain.as_mut().map_or(Ok(()), |plain| plain.placing.take_out())
    }
}

impl Plain {
    /// The moment of opening; earlier if the wall clock has been put back meanwhile.
    fn since_now(&self) -> (i64, i64) {
        let (wall, forward) = self.opened;
        let Ok(back) = (wall + forward.elapsed()).duration_since(SystemTime::now()) else {
            return self.since;
        };
        let seconds = i64::try_from(back.as_secs()).unwrap_or(i64::MAX).saturating_add(1);
        (self.since.0.saturating_sub(seconds), self.since.1)
    }
}

/// Why this process cannot run steps in place, if it cannot.
pub(super) fn lacking() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("in-place isolation needs a container's root".to_owned());
    }
    let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(one, _)| !held.contains(*one)).map(|(_, name)| *name).collect();
    (!missing.is_empty()).then(|| format!("in-place isolation lacks the capabilities {}", missing.join(", ")))
}

/// Prepares the worker: what its steps leave behind is its own to end.
pub(super) fn enter() -> Result<(), SandboxError> {
    if let Some(why) = lacking() {
        return Err(SandboxError::Reported(why));
    }
    adopt_orphans()
}

/// Makes this process the parent of what its children leave behind.
///
/// A process that qemu emulates cannot be that: what a step leaves behind is then not ended with the step, but with the
/// container.
fn adopt_orphans() -> Result<(), SandboxError> {
    match nix::sys::prctl::set_child_subreaper(true) {
        Err(nix::errno::Errno::EINVAL) => Ok(()),
        adopted => adopted.doing(|| "adopt what steps leave behind".to_owned()),
    }
}

/// The time that a file changed now would have.
fn now(directory: &Path) -> Result<(i64, i64), SandboxError> {
    let file = directory.join("now");
    let doing = || format!("make the file `{}`", file.display());
    fs::write(&file, b"").doing(doing)?;
    let metadata = fs::symlink_metadata(&file).doing(doing)?;
    fs::remove_file(&file).doing(doing)?;
    Ok((metadata.ctime(), metadata.ctime_nsec()))
}

fn foreign() -> SandboxError {
    SandboxError::Reported("the root is another sandbox's".to_owned())
}
