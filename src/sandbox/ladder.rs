//! Which isolation this machine offers: the strictest that works, found by trying what is cheap to try.
//!
//! In this order: the user namespace that this process is in, where it may mount in it and its root is not the host's; a
//! new user namespace; a plain directory of this container. Whoever has the host's root gets a new user namespace or
//! nothing: in place, a step would be the host's root.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::thread::CapabilitySet;

use super::error::Doing;
use super::{IdMap, Isolation, NetworkMode, SandboxError, WORKER_COMMAND, in_place};

/// The name of the body that tries to make namespaces.
pub const PROBE: &str = "probe";
/// Its argument where a user namespace is there already.
const HERE: &str = "here";
/// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
const OVERLAY: u64 = 0x794c_7630;

/// What isolation is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The strictest there is.
    Any,
    /// This one.
    One(Isolation),
}

/// What a choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The data directory, where roots are made.
    pub data: &'a Path,
    /// Our own binary.
    pub executable: &'a Path,
    /// What steps are to see of the network.
    pub network: NetworkMode,
    /// Whether in-place isolation is wanted also as the host's root.
    pub force: bool,
}

/// The rung that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rung {
    /// How steps are kept apart.
    pub isolation: Isolation,
    /// The ids of the sandbox.
    pub ids: IdMap,
    /// Why it is not the usual one.
    pub why: Option<String>,
}

/// For people.
impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.isolation {
            Isolation::Userns => "userns",
            Isolation::InPlace => "in-place",
        })?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

/// Chooses how steps are kept apart.
pub fn choose(wish: Wish, here: &Circumstances<'_>) -> Result<Rung, SandboxError> {
    match wish {
        Wish::One(Isolation::Userns) => userns(here),
        Wish::One(Isolation::InPlace) => {
            let ids = in_place(here).map_err(SandboxError::Reported)?;
            Ok(Rung { isolation: Isolation::InPlace, ids, why: None })
        }
        Wish::Any => userns(here).or_else(|error| match in_place(here) {
            Ok(ids) => Ok(Rung { isolation: Isolation::InPlace, ids, why: Some(error.chain()) }),
            Err(in_place) => Err(SandboxError::NoIsolation { userns: Box::new(error), in_place }),
        }),
    }
}

fn userns(here: &Circumstances<'_>) -> Result<Rung, SandboxError> {
    let ids = IdMap::choose(&here.data.join("idmap.json"))?;
    on_no_overlay(here.data)?;
    let mut command = Command::new(here.executable);
    command.args([WORKER_COMMAND, PROBE]).args(ids.is_in_force().then_some(HERE)).env_clear();
    let output = command.stdin(Stdio::null()).output().doing(|| "try to make namespaces".to_owned())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(SandboxError::Reported(text));
    }
    let why = ids.is_in_force().then(|| "in the user namespace of this container".to_owned());
    Ok(Rung { isolation: Isolation::Userns, ids, why })
}

fn on_no_overlay(data: &Path) -> Result<(), SandboxError> {
    let found = rustix::fs::statfs(data).doing(|| format!("inspect `{}`", data.display()))?;
    if u64::try_from(found.f_type).is_ok_and(|kind| kind == OVERLAY) {
        return Err(SandboxError::OnOverlay { data: data.to_owned() });
    }
    Ok(())
}

fn in_place(here: &Circumstances<'_>) -> Result<IdMap, String> {
    if here.network != NetworkMode::Host {
        return Err("in-place isolation leaves RUN in this container's network".to_owned());
    }
    if let Some(why) = in_place::lacking() {
        return Err(why);
    }
    if !here.force && is_host_root() {
        let why = "this is the host's root, not a container's, and RUN would have its rights over the host";
        return Err(format!("{why}; give `--force` if it may"));
    }
    Ok(IdMap::in_force())
}

/// Whether this process may administer the host: a container's root may not, nor may that of a user namespace.
fn is_host_root() -> bool {
    may_mount() && !fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| is_foreign(&map))
}

/// Whether a map gives its root another id than the host's root.
fn is_foreign(map: &str) -> bool {
    let mut lines = map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.all(|fields| fields.get(1).is_some_and(|outside| *outside != "0"))
}

pub(super) fn may_mount() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// The body of the probe: makes the namespaces of a worker and ends, with what went wrong on standard error.
#[must_use]
#[expect(clippy::print_stderr, reason = "a child of ours, which reads it")]
pub fn probe_main(argument: Option<&str>) -> ExitCode {
    match probe(argument == Some(HERE)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn probe(here: bool) -> Result<(), SandboxError> {
    // qemu has none, and every mount of a step is placed by it.
    let (flags, resolve) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::IN_ROOT);
    drop(
        rustix::fs::openat2(rustix::fs::CWD, "/", flags, Mode::empty(), resolve)
            .doing(|| "resolve a path in a root".to_owned())?,
    );
    if !here {
        nix::sched::unshare(CloneFlags::CLONE_NEWUSER).doing(|| "make a user namespace".to_owned())?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::unshare(namespaces).doing(|| "make a mount namespace".to_owned())?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .doing(|| "keep mounts to ourselves".to_owned())?;
    // A program without a profile is left without rights here by AppArmor.
    nix::mount::mount(Some("tmpfs"), "/", Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .doing(|| "mount in a user namespace".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_foreign_unless_it_holds_the_hosts_root() {
        assert!(!is_foreign("         0          0 4294967295\n"));
        assert!(is_foreign("         0 1965293568      65536\n"));
        assert!(!is_foreign("0 100000 1\n1 0 1\n"));
    }

    #[test]
    fn a_rung_is_told_with_its_reason() {
        let rung = Rung { isolation: Isolation::InPlace, ids: IdMap::in_force(), why: Some("x".to_owned()) };
        assert_eq!(rung.to_string(), "in-place (x)");
        assert_eq!(Rung { why: None, ..rung }.to_string(), "in-place");
    }
}
