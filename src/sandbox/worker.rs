//! The worker's own part: becoming root of a new user namespace, in the steps that its starter waits for.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Gid, Pid, Uid};
use serde::{Deserialize, Serialize};

use super::error::Doing;
use super::{
    Channel, IdMap, InPlaceSandbox, Isolation, NetworkMode, ProtocolError, Sandbox, SandboxError,
    UsernsSandbox, in_place, system, userns,
};

/// What a worker has once it is in its namespaces.
#[derive(Debug)]
pub struct Entered {
    /// The conversation with the process that started it.
    pub channel: Channel,
    /// Where steps are run.
    pub sandbox: Box<dyn Sandbox>,
}

/// What the starter says while a worker enters its namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The first: be isolated so.
    Begin { isolation: Isolation, ids: IdMap, network: NetworkMode },
    /// The ids are written; take them.
    Mapped,
    /// The network namespace has its uplink, or needs none.
    Connected,
}

/// What the worker says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Progress {
    /// It is in a new user namespace, as nobody.
    Unmapped,
    /// It has its ids and its network namespace.
    Networked,
    /// It is done.
    Entered,
    /// It could not.
    Failed(String),
}

/// Enters the namespaces; the first call of a worker's body.
///
/// From here on this process is root of a user namespace, in the directory that its starter named.
pub fn enter() -> Result<Entered, SandboxError> {
    let mut channel = take_channel()?;
    match enter_by(&mut channel) {
        Ok(sandbox) => {
            channel.send(&Progress::Entered, &[])?;
            Ok(Entered { channel, sandbox })
        }
        Err(error) => {
            channel.send(&Progress::Failed(error.chain()), &[])?;
            Err(error)
        }
    }
}

/// Goes on in a process of its own, which nobody waits for and nobody ends; who waits for this one has waited enough.
///
/// For what takes long and concerns nobody, such as removing what is not needed any more.
pub fn detach() -> Result<(), SandboxError> {
    let doing = || "go on alone".to_owned();
    match system::fork_into(CloneFlags::empty()).doing(doing)? {
        ForkResult::Parent { .. } => system::leave(0),
        ForkResult::Child => {}
    }
    nix::unistd::setsid().doing(doing)?;
    let null = File::options().write(true).open("/dev/null").doing(doing)?;
    nix::unistd::dup2_stderr(null).doing(doing)
}

/// The socket comes as standard input, which no program that is started here may have.
fn take_channel() -> Result<Channel, SandboxError> {
    let doing = || "take the socket of the worker".to_owned();
    let socket: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().doing(doing)?;
    nix::unistd::dup2_stdin(File::open("/dev/null").doing(doing)?).doing(doing)?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).doing(doing)?;
    Ok(Channel::from(socket))
}

fn enter_by(channel: &mut Channel) -> Result<Box<dyn Sandbox>, SandboxError> {
    let Order::Begin { isolation, ids, network } = next_order(channel)? else {
        return Err(SandboxError::Reported("orders came in the wrong order".to_owned()));
    };
    let sandbox: Box<dyn Sandbox> = match isolation {
        Isolation::Userns => {
            enter_namespaces(channel, &ids, network)?;
            Box::new(UsernsSandbox::new(network))
        }
        Isolation::InPlace => {
            in_place::enter()?;
            Box::new(InPlaceSandbox::new(network))
        }
    };
    if let Err(error) = system::leave_session_keyring() {
        // A kernel without keys, or a container that forbids the call: then it is forbidden to steps too.
        tracing::debug!(%error, "the session's keyring stays");
    }
    nix::sys::prctl::set_dumpable(false).doing(|| "close the worker's memory".to_owned())?;
    Ok(sandbox)
}

fn enter_namespaces(channel: &mut Channel, ids: &IdMap, network: NetworkMode) -> Result<(), SandboxError> {
    if !ids.is_in_force() {
        nix::sched::unshare(CloneFlags::CLONE_NEWUSER).doing(|| "make a user namespace".to_owned())?;
    }
    channel.send(&Progress::Unmapped, &[])?;
    expect(channel, &Order::Mapped)?;
    become_root()?;
    if network != NetworkMode::Host {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).doing(|| "make a network namespace".to_owned())?;
        super::network::configure()?;
        channel.send(&Progress::Networked, &[])?;
        expect(channel, &Order::Connected)?;
        enter_inner_namespace(&ids.nested())?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::unshare(namespaces).doing(|| "make a mount namespace".to_owned())?;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .doing(|| "keep mounts to ourselves".to_owned())?;
    if !ids.is_in_force() {
        userns::forbid_nested();
    }
    Ok(())
}

/// Becomes root of the new namespace. It stays dumpable for now: its `/proc` directory must belong to its user while its
/// starter works on it.
fn become_root() -> Result<(), SandboxError> {
    let doing = || "become root of the user namespace".to_owned();
    nix::unistd::setgroups(&[]).doing(doing)?;
    nix::unistd::setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).doing(doing)?;
    nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).doing(doing)?;
    nix::sys::prctl::set_dumpable(true).doing(doing)?;
    // A change of ids clears it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).doing(doing)
}

/// Goes one user namespace further in, so that the network namespace belongs to one where no step is.
///
/// A process that has just made a namespace has no power in the one around it; a child that stays there writes the ids.
fn enter_inner_namespace(ids: &IdMap) -> Result<(), SandboxError> {
    let doing = || "make the inner user namespace".to_owned();
    let outer = nix::unistd::getpid();
    let (entered, entered_theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(doing)?;
    let child = match system::fork_into(CloneFlags::empty()).doing(doing)? {
        ForkResult::Child => {
            drop(entered_theirs);
            system::leave(write_ids_when_told(&entered, outer, ids))
        }
        ForkResult::Parent { child } => child,
    };
    drop(entered);
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER).doing(doing)?;
    rustix::io::write(&entered_theirs, b"1").doing(doing)?;
    drop(entered_theirs);
    match nix::sys::wait::waitpid(child, None).doing(doing)? {
        nix::sys::wait::WaitStatus::Exited(_, 0) => {}
        nix::sys::wait::WaitStatus::Exited(_, errno) => {
            return Err(nix::errno::Errno::from_raw(errno))
                .doing(|| "write the ids of the inner user namespace".to_owned());
        }
        _ => return Err(nix::errno::Errno::ECHILD).doing(doing),
    }
    become_root()
}

/// The child's part; its exit status is an error number, since it has no other way to tell.
fn write_ids_when_told(entered: &OwnedFd, process: Pid, ids: &IdMap) -> i32 {
    match rustix::io::read(entered, &mut [0_u8; 1]) {
        Ok(1) => match ids.apply(process) {
            Ok(()) => 0,
            Err(SandboxError::System { source, .. }) => source.raw_os_error().unwrap_or(libc_eio()),
            Err(_) => libc_eio(),
        },
        // The worker could not make the namespace, and says so itself.
        _ => 0,
    }
}

fn libc_eio() -> i32 {
    nix::errno::Errno::EIO as i32
}

fn next_order(channel: &mut Channel) -> Result<Order, SandboxError> {
    Ok(channel.receive()?.ok_or(ProtocolError::Truncated)?.message)
}

fn expect(channel: &mut Channel, order: &Order) -> Result<(), SandboxError> {
    let received = next_order(channel)?;
    if std::mem::discriminant(&received) == std::mem::discriminant(order) {
        return Ok(());
    }
    Err(SandboxError::Reported("orders came in the wrong order".to_owned()))
}
