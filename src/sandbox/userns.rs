//! The strict rung: steps in namespaces over an overlay.

use std::fs;
use std::path::Path;

use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use nix::unistd::ForkResult;

use super::error::Doing;
use super::init::{self, Start};
use super::network::NetworkFiles;
use super::running::Ending;
use super::{
    Changes, Isolation, NetworkMode, Root, RootSpec, Running, Sandbox, SandboxError, Stdio, Step,
    StepNetwork, mount_points, overlay, root, system,
};

/// Runs steps in user, mount and pid namespaces.
///
/// It is made by [`worker::enter`](super::worker::enter), which has entered the user namespace.
#[derive(Debug)]
pub struct UsernsSandbox {
    files: NetworkFiles,
}

impl UsernsSandbox {
    pub(super) fn new(network: NetworkMode) -> Self {
        Self { files: NetworkFiles::new(network) }
    }
}

impl Sandbox for UsernsSandbox {
    fn isolation(&self) -> Isolation {
        Isolation::Userns
    }

    fn open(&mut self, spec: &RootSpec) -> Result<Root, SandboxError> {
        overlay::mount(spec)?;
        Ok(Root { path: spec.mount_point.clone(), upper: spec.upper.clone(), made: Vec::new(), plain: None })
    }

    fn start(&mut self, root: &mut Root, step: &Step, stdio: Stdio) -> Result<Running, SandboxError> {
        root::prepare(&root.path, step, &mut root.made)?;
        let (report, report_theirs) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(|| "make a pipe".to_owned())?;
        let start = Start { root: &root.path, step, files: &self.files, stdio, report: report_theirs };
        let mut namespaces = CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        if step.network == StepNetwork::None {
            namespaces |= CloneFlags::CLONE_NEWNET;
        }
        // The first process must not miss a signal before it waits for them.
        let mask = || "block signals".to_owned();
        let before = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK).doing(mask)?;
        let forked = system::fork_into(namespaces);
        if let Ok(ForkResult::Child) = forked {
            init::run(start);
        }
        before.thread_set_mask().doing(mask)?;
        match forked.doing(|| "start a process in new namespaces".to_owned())? {
            ForkResult::Parent { child } => Running::new(child, report, Ending::Namespace),
            ForkResult::Child => system::leave(1),
        }
    }

    fn changes(&mut self, root: &mut Root) -> Result<Changes, SandboxError> {
        remove_mount_points(root)?;
        Ok(Changes::Upper { directory: root.upper.clone() })
    }

    fn close(&mut self, mut root: Root) -> Result<(), SandboxError> {
        let removed = remove_mount_points(&mut root);
        overlay::unmount(&root.path)?;
        removed
    }
}

fn remove_mount_points(root: &mut Root) -> Result<(), SandboxError> {
    if root.made.is_empty() {
        return Ok(());
    }
    let fd = mount_points::open_root(&root.path)?;
    mount_points::remove(std::os::fd::AsFd::as_fd(&fd), &mut root.made)
}

/// Forbids user namespaces in this one: in a namespace of its own a step would have every capability again, and all of
/// the kernel that they reach.
pub(super) fn forbid_nested() {
    let file = Path::new("/proc/sys/user/max_user_namespaces");
    if let Err(error) = fs::write(file, "0") {
        // `/proc/sys` is read-only in most containers; the boundary around this namespace is the same without it.
        tracing::debug!(%error, "nested user namespaces stay possible");
    }
}
