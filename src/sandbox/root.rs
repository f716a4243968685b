//! The file system of a step, assembled in its own mount namespace on top of the root's overlay.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::error::Doing;
use super::mount_points::{self, Kind, Made};
use super::network::NetworkFiles;
use super::{Access, Mount, MountSource, SandboxError, Step, system};

/// Directories that every step has mounted over.
const DIRECTORIES: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Files that every step has mounted over, and their names while they wait in `/dev`.
const FILES: [(&str, &str); 3] =
    [("/etc/resolv.conf", "resolv.conf"), ("/etc/hosts", "hosts"), ("/etc/hostname", "hostname")];
/// Devices of the host that hold nothing of the host.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];
/// What tells of the host or reaches it, as container runtimes mask it.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Makes the mount points that `step` needs, in the worker's view of the root.
pub(super) fn prepare(path: &Path, step: &Step, made: &mut Vec<Made>) -> Result<(), SandboxError> {
    let root = mount_points::open_root(path)?;
    for directory in DIRECTORIES {
        mount_points::ensure(root.as_fd(), Path::new(directory), Kind::Directory, made)?;
    }
    for (file, _) in FILES {
        mount_points::ensure(root.as_fd(), Path::new(file), Kind::File, made)?;
    }
    for (index, mount) in step.mounts.iter().enumerate() {
        let covered = step.mounts[..index].iter().any(|outer| inside(&mount.target, outer).is_some());
        if !covered {
            mount_points::ensure(root.as_fd(), &mount.target, target_kind(mount)?, made)?;
        }
    }
    Ok(())
}

/// Where in `outer` a target is, if it is there by its name.
fn inside<'a>(target: &'a Path, outer: &Mount) -> Option<&'a Path> {
    target.strip_prefix(&outer.target).ok().filter(|rest| !rest.as_os_str().is_empty())
}

/// Mounts everything and makes `path` the root of this process.
///
/// To be called in a new mount and pid namespace, in the worker's directory.
pub(super) fn enter(path: &Path, step: &Step, files: &NetworkFiles) -> Result<(), SandboxError> {
    let root = mount_points::open_root(path)?;
    let root = root.as_fd();
    mount_proc(root)?;
    attach(root, Path::new("/sys"), Kind::Directory, &bind(Path::new("/sys"), Access::ReadOnly)?)?;
    mount_dev(root)?;
    mount_files(root, step, files)?;
    for (index, mount) in step.mounts.iter().enumerate() {
        mount_extra(root, mount, step.mounts.get(index + 1..).unwrap_or_default())?;
    }
    if !step.privileged {
        hide(root)?;
    }
    pivot(path)
}

fn hide(root: BorrowedFd<'_>) -> Result<(), SandboxError> {
    for masked in MASKED {
        mask(root, Path::new(masked))?;
    }
    for read_only in READ_ONLY {
        if let Some(found) = find_any(root, Path::new(read_only))? {
            let copy = clone_tree(found.as_fd()).doing(|| format!("copy the mount of `{read_only}`"))?;
            system::make_read_only(copy.as_fd(), true).doing(|| format!("make `{read_only}` read-only"))?;
            move_onto(copy.as_fd(), found.as_fd()).doing(|| format!("mount over `{read_only}`"))?;
        }
    }
    Ok(())
}

fn pivot(path: &Path) -> Result<(), SandboxError> {
    let doing = || "make the sandbox's root the root".to_owned();
    rustix::process::chdir(path).doing(doing)?;
    nix::unistd::pivot_root(".", ".").doing(doing)?;
    // The old root is now mounted over the new one.
    nix::mount::umount2(".", MntFlags::MNT_DETACH).doing(doing)?;
    rustix::process::chdir("/").doing(doing)
}

/// A new `/proc` shows this pid namespace alone. Where the host's is masked (in a container) the kernel allows none;
/// then the host's is shown, with the pids that it has.
fn mount_proc(root: BorrowedFd<'_>) -> Result<(), SandboxError> {
    let target = required(root, Path::new("/proc"), Kind::Directory)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match nix::mount::mount(Some("proc"), &magic(target.as_fd()), Some("proc"), flags, None::<&str>) {
        Err(nix::errno::Errno::EPERM) => {
            let outer = bind(Path::new("/proc"), Access::ReadWrite)?;
            move_onto(outer.as_fd(), target.as_fd()).doing(|| "mount the outer `/proc`".to_owned())
        }
        other => other.doing(|| "mount `/proc`".to_owned()),
    }
}

fn mount_dev(root: BorrowedFd<'_>) -> Result<(), SandboxError> {
    mount_tmpfs(root, Path::new("/dev"), "mode=755,size=65536k", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    let dev = required(root, Path::new("/dev"), Kind::Directory)?;
    for device in DEVICES {
        let doing = || format!("make `/dev/{device}`");
        let target = touch(dev.as_fd(), device).doing(doing)?;
        let source = bind(&Path::new("/dev").join(device), Access::ReadWrite)?;
        move_onto(source.as_fd(), target.as_fd()).doing(doing)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev, name).doing(|| format!("make `/dev/{name}`"))?;
    }
    for name in ["pts", "shm"] {
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(&dev, name, mode).doing(|| format!("make `/dev/{name}`"))?;
    }
    mount_pts(root)?;
    mount_tmpfs(
        root,
        Path::new("/dev/shm"),
        "mode=1777,size=67108864",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
    )
}

/// Group 5 is `tty` in every distribution; a map with fewer ids has none.
fn mount_pts(root: BorrowedFd<'_>) -> Result<(), SandboxError> {
    let pts = required(root, Path::new("/dev/pts"), Kind::Directory)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let mount = |options: &str| {
        nix::mount::mount(Some("devpts"), &magic(pts.as_fd()), Some("devpts"), flags, Some(options))
    };
    mount("newinstance,ptmxmode=0666,mode=0620,gid=5")
        .or_else(|_| mount("newinstance,ptmxmode=0666,mode=0620"))
        .doing(|| "mount `/dev/pts`".to_owned())
}

/// Our own `resolv.conf`, `hosts` and `hostname`: written in `/dev`, mounted over, and then without a name there.
fn mount_files(root: BorrowedFd<'_>, step: &Step, files: &NetworkFiles) -> Result<(), SandboxError> {
    let dev = required(root, Path::new("/dev"), Kind::Directory)?;
    let hosts = files.hosts(&step.hostname, step.network);
    let contents = [files.resolv_conf(step.network).to_owned(), hosts, format!("{}\n", step.hostname)];
    for ((target, name), content) in FILES.iter().zip(contents) {
        let doing = || format!("mount over `{target}`");
        let source = touch(dev.as_fd(), name).doing(doing)?;
        fs::OpenOptions::new()
            .write(true)
            .open(magic(source.as_fd()))
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .doing(doing)?;
        let copy = clone_tree(source.as_fd()).doing(doing)?;
        attach(root, Path::new(target), Kind::File, &copy)?;
        rustix::fs::unlinkat(&dev, *name, rustix::fs::AtFlags::empty()).doing(doing)?;
    }
    Ok(())
}

/// Mounts one of the step's own, with an empty place in it for each of `later` that goes inside.
fn mount_extra(root: BorrowedFd<'_>, mount: &Mount, later: &[Mount]) -> Result<(), SandboxError> {
    let make_places = |tree: BorrowedFd<'_>| {
        later.iter().try_for_each(|inner| match inside(&inner.target, mount) {
            // What is made in a mount goes with the mount, or is the cache's.
            Some(place) => mount_points::ensure(tree, place, target_kind(inner)?, &mut Vec::new()),
            None => Ok(()),
        })
    };
    let read_only = |tree: BorrowedFd<'_>| match mount.access {
        Access::ReadWrite => Ok(()),
        Access::ReadOnly => system::make_read_only(tree, true)
            .doing(|| format!("make `{}` read-only", mount.target.display())),
    };
    match &mount.source {
        MountSource::Bind { source } => {
            let (tree, kind) = (bind(source, Access::ReadWrite)?, target_kind(mount)?);
            if kind != Kind::File {
                make_places(tree.as_fd())?;
            }
            read_only(tree.as_fd())?;
            attach(root, &mount.target, kind, &tree)
        }
        MountSource::Tmpfs { max_bytes, mode } => {
            let size = max_bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount_tmpfs_at(
                &required(root, &mount.target, Kind::LinkedDirectory)?,
                &mount.target,
                &format!("mode={mode:o}{size}"),
                flags,
            )?;
            let mounted = required(root, &mount.target, Kind::LinkedDirectory)?;
            make_places(mounted.as_fd())?;
            read_only(mounted.as_fd())
        }
        MountSource::File { content, mode, uid, gid } => {
            let file = NewFile { content: content.reveal(), mode: *mode, uid: *uid, gid: *gid };
            mount_file(root, &mount.target, &file, read_only)
        }
    }
}

/// A file that is made for one step.
struct NewFile<'a> {
    content: &'a [u8],
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Mounts a file that is in the `/dev` of this step, without a name there when this returns.
fn mount_file(
    root: BorrowedFd<'_>,
    target: &Path,
    file: &NewFile<'_>,
    protect: impl FnOnce(BorrowedFd<'_>) -> Result<(), SandboxError>,
) -> Result<(), SandboxError> {
    const NAME: &str = ".being-made";
    let doing = || format!("make the file `{}` for user {}:{}", target.display(), file.uid, file.gid);
    let dev = required(root, Path::new("/dev"), Kind::Directory)?;
    let place = touch(dev.as_fd(), NAME).doing(doing)?;
    write_file(place.as_fd(), file).doing(doing)?;
    let tree = clone_tree(place.as_fd()).doing(doing)?;
    protect(tree.as_fd())?;
    attach(root, target, Kind::File, &tree)?;
    rustix::fs::unlinkat(&dev, NAME, rustix::fs::AtFlags::empty()).doing(doing)
}

fn write_file(place: BorrowedFd<'_>, new: &NewFile<'_>) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(magic(place))?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(new.content)?;
    std::os::unix::fs::fchown(&file, Some(new.uid), Some(new.gid))?;
    file.set_permissions(fs::Permissions::from_mode(new.mode))
}

fn target_kind(mount: &Mount) -> Result<Kind, SandboxError> {
    match &mount.source {
        MountSource::Tmpfs { .. } => Ok(Kind::LinkedDirectory),
        MountSource::File { .. } => Ok(Kind::File),
        MountSource::Bind { source } => {
            let metadata =
                fs::metadata(source).doing(|| format!("read the mount's source `{}`", source.display()))?;
            Ok(if metadata.is_dir() { Kind::LinkedDirectory } else { Kind::File })
        }
    }
}

fn mask(root: BorrowedFd<'_>, path: &Path) -> Result<(), SandboxError> {
    let Some(found) = find_any(root, path)? else {
        return Ok(());
    };
    let doing = || format!("mask `{}`", path.display());
    let stat = rustix::fs::fstat(&found).doing(doing)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        return mount_tmpfs(root, path, "mode=555,size=0,nr_inodes=2", MsFlags::MS_RDONLY);
    }
    let null = bind(Path::new("/dev/null"), Access::ReadWrite)?;
    move_onto(null.as_fd(), found.as_fd()).doing(doing)
}

fn mount_tmpfs(root: BorrowedFd<'_>, path: &Path, options: &str, flags: MsFlags) -> Result<(), SandboxError> {
    mount_tmpfs_at(&required(root, path, Kind::Directory)?, path, options, flags)
}

fn mount_tmpfs_at(target: &OwnedFd, path: &Path, options: &str, flags: MsFlags) -> Result<(), SandboxError> {
    nix::mount::mount(Some("tmpfs"), &magic(target.as_fd()), Some("tmpfs"), flags, Some(options))
        .doing(|| format!("mount a tmpfs on `{}`", path.display()))
}

/// A copy of a mount and all below it, not yet anywhere.
fn bind(source: &Path, access: Access) -> Result<OwnedFd, SandboxError> {
    let doing = || format!("bind `{}`", source.display());
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, source, flags).doing(doing)?;
    if access == Access::ReadOnly {
        system::make_read_only(tree.as_fd(), true).doing(doing)?;
    }
    Ok(tree)
}

fn clone_tree(at: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let flags = flags | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(at, "", flags)
}

fn attach(root: BorrowedFd<'_>, target: &Path, kind: Kind, tree: &OwnedFd) -> Result<(), SandboxError> {
    let at = required(root, target, kind)?;
    move_onto(tree.as_fd(), at.as_fd()).doing(|| format!("mount on `{}`", target.display()))
}

fn move_onto(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}

fn touch(directory: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    drop(rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?);
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

fn required(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<OwnedFd, SandboxError> {
    mount_points::find(root, path, kind)?
        .ok_or_else(|| SandboxError::Root { path: path.to_owned(), why: "is missing".to_owned() })
}

/// A file or directory that may be absent, in what is mounted on the root by us.
fn find_any(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, SandboxError> {
    use rustix::fs::ResolveFlags;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let relative = path.strip_prefix("/").unwrap_or(path);
    match rustix::fs::openat2(root, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(error) => Err(error).doing(|| format!("open `{}`", path.display())),
    }
}

/// A name for an open file that `mount(2)` takes; the host's `/proc` is still there while it is used.
fn magic(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
