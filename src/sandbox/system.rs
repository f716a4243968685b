//! The system calls that have no safe wrapper, each with why its use here is sound.
#![expect(
    unsafe_code,
    reason = "fork, clone, exec and mount_setattr have no safe wrapper; every use says why it is sound"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::unistd::{ForkResult, Pid};

/// Starts a child in new namespaces that returns from this call, like `fork`.
///
/// To be called from a process with one thread: the worker is one from its exec on, and its children are.
pub(super) fn fork_into(namespaces: CloneFlags) -> io::Result<ForkResult> {
    // An emulator of another architecture has a thread of its own, which it takes care of.
    debug_assert!(cfg!(not(target_arch = "x86_64")) || threads() == 1, "a process that forks has one thread");
    let flags = libc::c_long::from(namespaces.bits()) | libc::c_long::from(libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM and with no stack of its own the child is a copy, as with fork(2); with one thread
    // no lock can be held by a thread that the child does not have. s390x alone takes the stack first.
    let child = unsafe {
        if cfg!(target_arch = "s390x") {
            libc::syscall(libc::SYS_clone, none, flags, none, none, none)
        } else {
            libc::syscall(libc::SYS_clone, flags, none, none, none, none)
        }
    };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(ForkResult::Child),
        child => {
            Ok(ForkResult::Parent { child: Pid::from_raw(i32::try_from(child).map_err(io::Error::other)?) })
        }
    }
}

/// The threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Ends a forked child without running what its parent registered to run at exit.
pub(super) fn leave(status: i32) -> ! {
    // SAFETY: _exit has no preconditions; it only ends the process.
    unsafe { libc::_exit(status) }
}

/// Whether a blocked signal has been sent to this process.
pub(super) fn is_pending(signal: Signal) -> bool {
    // SAFETY: sigset_t is plain data, and sigpending fills it.
    let pending = unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        if libc::sigpending(&raw mut pending) != 0 {
            return false;
        }
        SigSet::from_sigset_t_unchecked(pending)
    };
    pending.contains(signal)
}

/// Lets a child inherit a descriptor under its own number.
///
/// Clearing the flag in this process instead would hand the descriptor to whatever another thread starts meanwhile.
pub(super) fn keep_open(command: &mut Command, fd: BorrowedFd<'_>) {
    let fd = fd.as_raw_fd();
    let clear = move || {
        // SAFETY: fcntl is async-signal-safe and touches a flag only; no memory is allocated and no lock is taken.
        let result = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure does nothing but the call above.
    unsafe { command.pre_exec(clear) };
}

/// Makes signals that Rust's runtime or a parent ignores do what they usually do, and unblocks all.
pub(super) fn reset_signals() -> nix::Result<()> {
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: the default disposition runs no code of ours.
            unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
        }
    }
    SigSet::empty().thread_set_mask()
}

/// Makes a mount, and with `recursive` all mounts below it, read-only, whatever its other flags are.
pub(super) fn make_read_only(mount: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    /// `MOUNT_ATTR_RDONLY` of `linux/mount.h`.
    const READ_ONLY: u64 = 1;
    let attributes = MountAttributes { set: READ_ONLY, clear: 0, propagation: 0, userns_fd: 0 };
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and the structure lives until the call returns; its size is passed with it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            std::ptr::from_ref(&attributes),
            size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Closes every descriptor from 3 on except `kept`.
pub(super) fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.saturating_add(1).max(3), u32::MAX)] {
        if first <= last {
            // SAFETY: called where this process is about to own nothing but `kept`; no owner of a closed
            // descriptor runs again.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Closes every descriptor from 3 on in the program that is executed next.
pub(super) fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: only a flag of each descriptor changes.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Adds a route on which everything is refused at once.
pub(super) fn add_unreachable_route(
    socket: BorrowedFd<'_>,
    network: std::net::Ipv4Addr,
    mask: std::net::Ipv4Addr,
) -> io::Result<()> {
    // SAFETY: the structure is plain data for which all zeroes is a value.
    let mut route: Route = unsafe { std::mem::zeroed() };
    route.destination = socket_address(network);
    route.mask = socket_address(mask);
    route.flags = libc::RTF_UP | libc::RTF_REJECT;
    // SAFETY: SIOCADDRT reads one such structure, which lives until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCADDRT, std::ptr::from_ref(&route)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a descriptor is a pipe.
pub(super) fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    let stat = rustix::fs::fstat(fd);
    stat.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo)
}

/// Leaves the keys of whoever started this process behind: a session's keyring is inherited like a descriptor.
pub(super) fn leave_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    let nameless: libc::c_long = 0;
    // SAFETY: with a null name a new keyring is made and joined; no memory of ours is read.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, nameless) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Of `linux/sockios.h`, in the type that this libc's `ioctl` takes.
const SIOCADDRT: libc::Ioctl = 0x890B;
/// Likewise.
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;

/// `struct rtentry` of `linux/route.h`.
#[repr(C)]
struct Route {
    padding_1: libc::c_ulong,
    destination: libc::sockaddr,
    gateway: libc::sockaddr,
    mask: libc::sockaddr,
    flags: libc::c_ushort,
    padding_2: libc::c_short,
    padding_3: libc::c_ulong,
    padding_4: *mut libc::c_void,
    metric: libc::c_short,
    device: *mut libc::c_char,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    initial_round_trip: libc::c_ushort,
}

/// Brings the loopback interface up.
pub(super) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, std::ptr::from_ref(&request)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn socket_address(address: std::net::Ipv4Addr) -> libc::sockaddr {
    /// `AF_INET`, in the width it has here.
    const INTERNET: libc::sa_family_t = 2;
    let internet = libc::sockaddr_in {
        sin_family: INTERNET,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both structures have the same size and are plain data; sockaddr is the family and then bytes.
    unsafe { std::mem::transmute(internet) }
}
