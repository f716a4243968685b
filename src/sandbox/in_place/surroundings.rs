//! What a step finds around the image's files: devices, name resolution, facts of the machine, and what it was lent.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::placing::{Placing, magic};
use super::thing::Thing;
use crate::sandbox::error::Doing;
use crate::sandbox::network::NetworkFiles;
use crate::sandbox::{Access, Mount, MountSource, SandboxError, Step};

/// Devices that hold nothing of the machine: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Facts of the machine that programs read; without a mount they are copies.
const FACTS: [&str; 22] = [
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "stat",
    "uptime",
    "version",
    "sys/fs/file-max",
    "sys/fs/nr_open",
    "sys/fs/pipe-max-size",
    "sys/kernel/cap_last_cap",
    "sys/kernel/ngroups_max",
    "sys/kernel/osrelease",
    "sys/kernel/ostype",
    "sys/kernel/pid_max",
    "sys/kernel/random/boot_id",
    "sys/kernel/random/uuid",
    "sys/kernel/threads-max",
    "sys/net/core/somaxconn",
    "sys/vm/max_map_count",
    "sys/vm/mmap_min_addr",
    "sys/vm/overcommit_memory",
];
/// What is mounted, as a step on the other rung sees it.
const MOUNTS: [(&str, &str, &str); 4] = [
    ("overlay", "/", "overlay"),
    ("proc", "/proc", "proc"),
    ("tmpfs", "/dev", "tmpfs"),
    ("sysfs", "/sys", "sysfs"),
];

/// Lays everything into the root.
pub(super) fn place(
    placing: &mut Placing,
    root: &Path,
    step: &Step,
    files: &NetworkFiles,
) -> Result<(), SandboxError> {
    place_proc(placing, root)?;
    placing.put_directory(root, Path::new("/sys"), 0o555)?;
    place_dev(placing, root)?;
    let hosts = files.hosts(&step.hostname, step.network);
    let hostname = format!("{}\n", step.hostname);
    for (path, content) in [
        ("/etc/resolv.conf", files.resolv_conf(step.network)),
        ("/etc/hosts", &hosts),
        ("/etc/hostname", &hostname),
    ] {
        placing.put(root, Path::new(path), &Thing::File(content.as_bytes()))?;
    }
    step.mounts.iter().try_for_each(|mount| place_extra(placing, root, mount))
}

fn place_extra(placing: &mut Placing, root: &Path, mount: &Mount) -> Result<(), SandboxError> {
    let thing = match (&mount.source, mount.access) {
        (MountSource::Tmpfs { mode, .. }, _) => Thing::Directory(*mode),
        (MountSource::Bind { source }, Access::ReadWrite) => Thing::Lent(source),
        (MountSource::Bind { source }, Access::ReadOnly) => Thing::Copy(source),
        (MountSource::File { content, mode, uid, gid }, _) => {
            Thing::OwnedFile { content: content.reveal(), mode: *mode, uid: *uid, gid: *gid }
        }
    };
    placing.put(root, &mount.target, &thing)
}

fn place_dev(placing: &mut Placing, root: &Path) -> Result<(), SandboxError> {
    let doing = || "make devices in `/dev`".to_owned();
    let dev = placing.put_directory(root, Path::new("/dev"), 0o755)?;
    for (name, major, minor) in DEVICES {
        let (mode, device) = (Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor));
        match rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, device) {
            // The container has a user namespace of its own, where nobody makes devices: its own stand in.
            Err(Errno::PERM) => {
                let own = Path::new("/dev").join(name);
                placing.bind(dev.as_fd(), name, &own).doing(|| {
                    format!(
                        "bind `{}` (in a container's own user namespace it takes `SYS_ADMIN`)",
                        own.display()
                    )
                })?;
            }
            made => {
                made.doing(doing)?;
                rustix::fs::chmodat(&dev, name, mode, AtFlags::empty()).doing(doing)?;
            }
        }
    }
    // Where the container or its volume allows no devices, better here than in the middle of somebody's script.
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(&dev, "null", flags, Mode::empty())
        .doing(|| "open `/dev/null` in the data directory (is it on a volume mounted `nodev`?)".to_owned())?;
    for (name, mode) in [("shm", 0o1777), ("pts", 0o755)] {
        let path = magic(dev.as_fd()).join(name);
        fs::create_dir(&path).doing(doing)?;
        rustix::fs::chmodat(&dev, name, Mode::from_raw_mode(mode), AtFlags::empty()).doing(doing)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        rustix::fs::symlinkat(target, &dev, name).doing(doing)?;
    }
    Ok(())
}

/// No process is in it: that takes a mount.
fn place_proc(placing: &mut Placing, root: &Path) -> Result<(), SandboxError> {
    let doing = || "write facts of the machine to `/proc`".to_owned();
    let directory = placing.put_directory(root, Path::new("/proc"), 0o555)?;
    let proc = magic(directory.as_fd());
    let write = |name: &str, content: &[u8]| {
        let path = proc.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, content)).doing(doing)
    };
    for name in FACTS {
        // A kernel or a container that does not tell it does not tell it here.
        if let Ok(content) = fs::read(Path::new("/proc").join(name)) {
            write(name, &content)?;
        }
    }
    let mounts: String =
        MOUNTS.iter().map(|(source, target, kind)| format!("{source} {target} {kind} rw 0 0\n")).collect();
    let details: String = MOUNTS
        .iter()
        .zip(1..)
        .map(|((source, target, kind), id)| {
            format!("{id} {} 0:{id} / {target} rw - {kind} {source} rw\n", i32::from(id > 1))
        })
        .collect();
    write("mounts", mounts.as_bytes())?;
    write("self/mounts", mounts.as_bytes())?;
    write("self/mountinfo", details.as_bytes())
}
