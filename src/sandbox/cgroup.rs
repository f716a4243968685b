//! Limits on memory, processor time and processes for a tree of processes, where control groups allow it.
//!
//! Version 2 needs a delegated group (`systemd-run --user --scope -p Delegate=yes`, or root); version 1 needs root.
//! Everything works without, unlimited; then the reason is known and told.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Pid};
use serde::{Deserialize, Serialize};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// The leaf that a process moves itself to, since on version 2 a group with processes cannot limit its children.
const LEADER: &str = "hephy-leader";
/// The controllers we use.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// The period over which processor time is measured out.
const PERIOD_MICROSECONDS: u64 = 100_000;

/// What a tree of processes may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory with page cache, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processor time, in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
}

/// Why there are no limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("control groups cannot be used: {why}")]
pub struct CgroupUnavailable {
    why: String,
}

/// Groups in which this process may make others.
#[derive(Debug, Clone)]
pub enum Delegation {
    /// One tree for all controllers.
    Unified(PathBuf),
    /// A tree for each controller.
    Separate(Vec<(&'static str, PathBuf)>),
}

/// A group made for one tree of processes, removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    directories: Vec<PathBuf>,
}

impl Delegation {
    /// Finds out where groups can be made.
    pub fn detect() -> Result<Self, CgroupUnavailable> {
        let own = fs::read_to_string("/proc/self/cgroup")
            .map_err(|error| because("read `/proc/self/cgroup`", &error))?;
        if Path::new(MOUNT).join("cgroup.controllers").exists() {
            return unified(&own);
        }
        separate(&own)
    }

    /// Moves this process to a leaf of its group, so that on version 2 its siblings can be limited. For the start of a
    /// long-lived process; without effect where it is not needed.
    pub fn adopt_self() -> Result<(), CgroupUnavailable> {
        if !Path::new(MOUNT).join("cgroup.controllers").exists() {
            return Ok(());
        }
        let own = fs::read_to_string("/proc/self/cgroup")
            .map_err(|error| because("read `/proc/self/cgroup`", &error))?;
        let group = own_unified(&own)?;
        if group.ends_with(LEADER) {
            return Ok(());
        }
        let leader = group.join(LEADER);
        fs::create_dir_all(&leader).map_err(|error| because("make a control group", &error))?;
        write(&leader.join("cgroup.procs"), &std::process::id().to_string())?;
        enable(&group)
    }

    /// Makes a group with these limits.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Cgroup, CgroupUnavailable> {
        let mut cgroup = Cgroup { directories: Vec::new() };
        match self {
            Self::Unified(parent) => {
                let directory = cgroup.make(parent, name)?;
                write_unified(&directory, limits)?;
            }
            Self::Separate(parents) => {
                for (controller, parent) in parents {
                    let directory = cgroup.make(parent, name)?;
                    write_separate(controller, &directory, limits)?;
                }
            }
        }
        Ok(cgroup)
    }
}

impl Cgroup {
    /// Puts a process, and with it all its later children, into the group.
    pub fn add(&self, process: Pid) -> Result<(), CgroupUnavailable> {
        self.directories
            .iter()
            .try_for_each(|directory| write(&directory.join("cgroup.procs"), &process.to_string()))
    }

    fn make(&mut self, parent: &Path, name: &str) -> Result<PathBuf, CgroupUnavailable> {
        let directory = parent.join(name);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(because(&format!("make `{}`", directory.display()), &error));
            }
            _ => self.directories.push(directory.clone()),
        }
        Ok(directory)
    }
}

/// How often the kernel has killed in this process's group because its memory was used up, and what that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryKills {
    count: u64,
    limit_bytes: Option<u64>,
}

/// What the kernel says where there is no limit: the largest number of pages.
const NO_LIMIT: u64 = 1 << 62;

impl MemoryKills {
    /// Reads it; `None` where the kernel does not say.
    #[must_use]
    pub fn read() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        memory_directories(&own).iter().find_map(|directory| Self::of(directory))
    }

    /// The limit, if the kernel has killed since `before`; `Some(None)` if the machine itself had no more.
    #[must_use]
    pub fn limit_since(self, before: Option<Self>) -> Option<Option<u64>> {
        (self.count > before?.count).then_some(self.limit_bytes)
    }

    fn of(directory: &Path) -> Option<Self> {
        let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
        let count = |text: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        };
        let (events, limit) = match read("memory.events") {
            Some(events) => (events, read("memory.max")),
            None => (read("memory.oom_control")?, read("memory.limit_in_bytes")),
        };
        let limit_bytes = limit.and_then(|text| text.trim().parse().ok()).filter(|bytes| *bytes < NO_LIMIT);
        Some(Self { count: count(&events)?, limit_bytes })
    }
}

/// Where the own group's memory may be: as it is named, or what a container sees as the root.
fn memory_directories(own: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in own.lines() {
        let Some((controllers, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':'))
        else {
            continue;
        };
        let mount = match controllers {
            "" => PathBuf::from(MOUNT),
            _ if controllers.split(',').any(|name| name == "memory") => Path::new(MOUNT).join("memory"),
            _ => continue,
        };
        found.extend([mount.join(path.trim_start_matches('/')), mount]);
    }
    found
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for directory in &self.directories {
            if let Err(error) = fs::remove_dir(directory) {
                // A process that is being ended may still be in it.
                tracing::debug!(directory = %directory.display(), %error, "a control group is left behind");
            }
        }
    }
}

fn unified(own: &str) -> Result<Delegation, CgroupUnavailable> {
    let group = own_unified(own)?;
    let parent = match group.parent() {
        Some(parent) if group.ends_with(LEADER) => parent.to_owned(),
        _ => group,
    };
    if nix::unistd::access(&parent.join("cgroup.subtree_control"), AccessFlags::W_OK).is_err() {
        return Err(lacking(&format!("`{}` is not delegated to this user", parent.display())));
    }
    enable(&parent)?;
    Ok(Delegation::Unified(parent))
}

fn own_unified(own: &str) -> Result<PathBuf, CgroupUnavailable> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"));
    let path = path.ok_or_else(|| lacking("this process is in no group"))?;
    Ok(Path::new(MOUNT).join(path.trim_start_matches('/')))
}

/// Lets the children of a group be limited; refused while the group itself has processes.
fn enable(group: &Path) -> Result<(), CgroupUnavailable> {
    let file = group.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).map_err(|error| because("read the controllers", &error))?;
    let missing: Vec<_> = CONTROLLERS
        .iter()
        .filter(|controller| !enabled.split_whitespace().any(|other| other == **controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    if missing.is_empty() { Ok(()) } else { write(&file, &missing.join(" ")) }
}

fn separate(own: &str) -> Result<Delegation, CgroupUnavailable> {
    let mut parents = Vec::new();
    for controller in CONTROLLERS {
        let path = own.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            names.split(',').any(|name| name == controller).then_some(path)
        });
        let path = path.ok_or_else(|| lacking(&format!("there is no `{controller}` controller")))?;
        let directory = Path::new(MOUNT).join(controller).join(path.trim_start_matches('/'));
        if nix::unistd::access(&directory, AccessFlags::W_OK).is_err() {
            return Err(lacking(&format!("`{}` is not writable", directory.display())));
        }
        parents.push((controller, directory));
    }
    Ok(Delegation::Separate(parents))
}

fn write_unified(directory: &Path, limits: &Limits) -> Result<(), CgroupUnavailable> {
    if let Some(bytes) = limits.memory_bytes {
        write(&directory.join("memory.max"), &bytes.to_string())?;
        // Not there without swap accounting.
        write(&directory.join("memory.swap.max"), "0")
            .or_else(|error| if directory.join("memory.swap.max").exists() { Err(error) } else { Ok(()) })?;
    }
    if let Some(millis) = limits.cpu_millis {
        write(&directory.join("cpu.max"), &format!("{} {PERIOD_MICROSECONDS}", quota(millis)))?;
    }
    limits.processes.map_or(Ok(()), |processes| write(&directory.join("pids.max"), &processes.to_string()))
}

fn write_separate(controller: &str, directory: &Path, limits: &Limits) -> Result<(), CgroupUnavailable> {
    match (controller, limits) {
        ("memory", Limits { memory_bytes: Some(bytes), .. }) => {
            write(&directory.join("memory.limit_in_bytes"), &bytes.to_string())
        }
        ("cpu", Limits { cpu_millis: Some(millis), .. }) => {
            write(&directory.join("cpu.cfs_period_us"), &PERIOD_MICROSECONDS.to_string())?;
            write(&directory.join("cpu.cfs_quota_us"), &quota(*millis).to_string())
        }
        ("pids", Limits { processes: Some(processes), .. }) => {
            write(&directory.join("pids.max"), &processes.to_string())
        }
        _ => Ok(()),
    }
}

/// The kernel takes no less than a millisecond a period.
fn quota(millis: u64) -> u64 {
    (millis.saturating_mul(PERIOD_MICROSECONDS) / 1000).max(1000)
}

fn write(file: &Path, text: &str) -> Result<(), CgroupUnavailable> {
    fs::write(file, text).map_err(|error| because(&format!("write `{}`", file.display()), &error))
}

fn because(doing: &str, error: &io::Error) -> CgroupUnavailable {
    CgroupUnavailable { why: format!("failed to {doing}: {error}") }
}

fn lacking(why: &str) -> CgroupUnavailable {
    CgroupUnavailable { why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_core_is_half_of_each_period_and_little_is_not_nothing() {
        assert_eq!(quota(500), 50_000);
        assert_eq!(quota(1), 1000);
    }

    #[test]
    fn what_was_killed_for_memory_is_read_on_both_versions() {
        let two = "7:memory,x:/kube/a\n3:cpu:/b\n0::/c\n";
        let expected = ["memory/kube/a", "memory", "c", ""].map(|name| Path::new(MOUNT).join(name));
        assert_eq!(memory_directories(two), expected);
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        assert_eq!(MemoryKills::of(directory.path()), None);
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        write("memory.limit_in_bytes", "9223372036854771712\n");
        let before = MemoryKills::of(directory.path());
        assert_eq!(before, Some(MemoryKills { count: 1, limit_bytes: None }));
        write("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n");
        write("memory.max", "100663296\n");
        let after = MemoryKills::of(directory.path()).unwrap();
        assert_eq!(after.limit_since(before), Some(Some(96 << 20)));
        assert_eq!(after.limit_since(Some(after)), None);
        assert_eq!(after.limit_since(None), None);
    }

    #[test]
    fn the_own_group_is_found_on_version_2() {
        let own = own_unified("0::/user.slice/app.scope\n").unwrap();
        assert_eq!(own, Path::new("/sys/fs/cgroup/user.slice/app.scope"));
        assert!(own_unified("4:memory:/x\n").is_err());
    }
}
