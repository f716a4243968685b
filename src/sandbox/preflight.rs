//! What this machine lacks, found by trying, and for each lack the one command that provides it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, User};
use serde::{Deserialize, Serialize};

use super::cgroup::Delegation;
use super::steps::{self, Answer, Request};
use super::{IdMap, NetworkMode, RootSpec, SandboxError, Worker, WorkerSpec, ids};

/// What is lacking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whether anything works without.
    pub severity: Severity,
    /// What is lacking and what it is for.
    pub lacking: String,
    /// What to run, as it stands; none where no one command helps.
    pub command: Option<String>,
}

/// How bad a lack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing can be built or run.
    Fatal,
    /// Something is weaker than it could be.
    Limit,
}

/// What the checks are about.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// The data directory; an attempt is made in it.
    pub data: &'a Path,
    /// Our own binary.
    pub executable: &'a Path,
}

/// Checks everything that a sandbox, its network and a receiver need. The list is empty on a machine that lacks nothing.
#[must_use]
pub fn check(needs: Needs<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !Uid::effective().is_root() {
        findings.extend(user_namespaces(Path::new("/proc/sys")));
        findings.extend(map_programs());
        findings.extend(subordinate_ids());
    }
    findings.extend(program("slirp4netns", "the network of builds and apps", "slirp4netns"));
    findings.extend(program("git", "receiving pushes", "git"));
    findings.extend(tun(Path::new("/dev/net/tun")));
    // With something known to be missing an attempt would only say it again, less clearly.
    if findings.iter().all(|finding| finding.severity != Severity::Fatal)
        && let Err(error) = attempt(needs)
    {
        findings.push(from_attempt(&error, needs.data));
    }
    findings.extend(control_groups());
    findings
}

fn fatal(lacking: impl Into<String>, command: impl Into<String>) -> Finding {
    Finding { severity: Severity::Fatal, lacking: lacking.into(), command: Some(command.into()) }
}

/// The switches with which distributions take user namespaces from ordinary users.
fn user_namespaces(sysctls: &Path) -> Vec<Finding> {
    let switches = [
        ("user/max_user_namespaces", "0", "user namespaces are limited to none", "15000"),
        ("kernel/unprivileged_userns_clone", "0", "user namespaces are root's alone", "1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "AppArmor takes the rights in user namespaces from programs without a profile",
            "0",
        ),
    ];
    switches
        .iter()
        .filter(|(file, bad, ..)| {
            fs::read_to_string(sysctls.join(file)).is_ok_and(|value| value.trim() == *bad)
        })
        .map(|(file, _, lacking, good)| {
            fatal(*lacking, format!("sudo sysctl -w {}={good}", file.replace('/', ".")))
        })
        .collect()
}

fn map_programs() -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in ["newuidmap", "newgidmap"] {
        let Some(path) = find_program(name) else {
            return vec![fatal(
                format!("`{name}` is not installed; it gives a sandbox its users"),
                "sudo apt-get install -y uidmap",
            )];
        };
        if !may_set_ids(&path) {
            findings.push(fatal(
                format!("`{}` has no right to set ids", path.display()),
                format!("sudo chown root:root {0} && sudo chmod u+s {0}", path.display()),
            ));
        }
    }
    findings
}

/// Set-user-id root, or with the capability in a file attribute.
fn may_set_ids(path: &Path) -> bool {
    let set_user_id =
        fs::metadata(path).is_ok_and(|file| file.uid() == 0 && file.permissions().mode() & 0o4000 != 0);
    let mut attribute = [0_u8; 64];
    set_user_id || rustix::fs::getxattr(path, "security.capability", &mut attribute).is_ok()
}

fn subordinate_ids() -> Vec<Finding> {
    let uid = Uid::effective();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    ["/etc/subuid", "/etc/subgid"]
        .into_iter()
        .filter_map(|file| match ids::subordinate_range(file, name.as_deref(), uid.as_raw()) {
            Err(SandboxError::Ids { why, next }) => {
                Some(fatal(why, next.trim_start_matches("run ").trim_matches('`')))
            }
            Err(error) => Some(Finding { severity: Severity::Fatal, lacking: error.chain(), command: None }),
            Ok((_, count)) if count < 65_535 => Some(Finding {
                severity: Severity::Limit,
                lacking: format!(
                    "`{file}` gives only {count} ids; images with users above that cannot be unpacked"
                ),
                command: None,
            }),
            Ok(_) => None,
        })
        .collect()
}

fn program(name: &str, purpose: &str, package: &str) -> Option<Finding> {
    if find_program(name).is_some() {
        return None;
    }
    Some(fatal(
        format!("`{name}` is not installed; it is needed for {purpose}"),
        format!("sudo apt-get install -y {package}"),
    ))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file() && nix::unistd::access(file, AccessFlags::X_OK).is_ok())
}

fn tun(device: &Path) -> Option<Finding> {
    if !device.exists() {
        return Some(fatal(
            format!("`{}` is not there; slirp4netns needs it", device.display()),
            "sudo modprobe tun",
        ));
    }
    if nix::unistd::access(device, AccessFlags::R_OK | AccessFlags::W_OK).is_ok() {
        return None;
    }
    Some(fatal(
        format!("`{}` cannot be opened by this user; slirp4netns needs it", device.display()),
        format!("sudo chmod 0666 {}", device.display()),
    ))
}

/// Makes a sandbox and a root in it.
fn attempt(needs: Needs<'_>) -> Result<(), SandboxError> {
    let directory = needs.data.join("preflight");
    let mut worker = Worker::start(&WorkerSpec {
        isolation: super::Isolation::Userns,
        executable: needs.executable.to_owned(),
        body: steps::BODY.to_owned(),
        ids: IdMap::choose(&needs.data.join("idmap.json"))?,
        directory: directory.clone(),
        network: NetworkMode::None,
        limits: None,
        environment: Vec::new(),
    })?;
    let root = RootSpec {
        lowers: Vec::new(),
        upper: "upper".into(),
        work: "work".into(),
        mount_point: "root".into(),
    };
    let opened = ask(&mut worker, &Request::Open(root)).and_then(|()| ask(&mut worker, &Request::Close));
    let made = ["upper", "work", "root"].map(PathBuf::from).to_vec();
    let removed = ask(&mut worker, &Request::Remove(made));
    worker.close()?;
    if let Err(error) = fs::remove_dir(&directory) {
        tracing::debug!(%error, "the directory of the attempt is left behind");
    }
    opened.and(removed)
}

fn ask(worker: &mut Worker, request: &Request) -> Result<(), SandboxError> {
    match worker.call(request, &[])?.message {
        Answer::Done => Ok(()),
        Answer::Failed(why) => Err(SandboxError::Reported(why)),
        other => Err(SandboxError::Reported(format!("unexpected: {other:?}"))),
    }
}

fn from_attempt(error: &SandboxError, data: &Path) -> Finding {
    let text = error.chain();
    let command = if text.contains("overlay file system") {
        Some("sudo modprobe overlay".to_owned())
    } else if text.contains("make a user namespace") {
        Some("sudo sysctl -w user.max_user_namespaces=15000".to_owned())
    } else {
        None
    };
    let lacking = format!("a sandbox could not be made in `{}`: {text}", data.display());
    Finding { severity: Severity::Fatal, lacking, command }
}

fn control_groups() -> Option<Finding> {
    let error = Delegation::detect().err()?;
    let version_2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    Some(Finding {
        severity: Severity::Limit,
        lacking: format!("builds and apps run without limits on memory and processors: {error}"),
        command: version_2.then(|| "systemd-run --user --scope -p Delegate=yes hephy up".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_switch_has_the_command_that_turns_it() {
        let sysctls = tempfile::tempdir().unwrap();
        fs::create_dir_all(sysctls.path().join("user")).unwrap();
        fs::create_dir_all(sysctls.path().join("kernel")).unwrap();
        fs::write(sysctls.path().join("user/max_user_namespaces"), "0\n").unwrap();
        fs::write(sysctls.path().join("kernel/apparmor_restrict_unprivileged_userns"), "1\n").unwrap();
        let commands: Vec<_> =
            user_namespaces(sysctls.path()).into_iter().filter_map(|found| found.command).collect();
        assert_eq!(
            commands,
            [
                "sudo sysctl -w user.max_user_namespaces=15000",
                "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
            ]
        );
    }

    #[test]
    fn a_machine_without_the_switches_lacks_nothing() {
        let sysctls = tempfile::tempdir().unwrap();
        assert!(user_namespaces(sysctls.path()).is_empty());
    }

    #[test]
    fn a_missing_device_and_a_missing_program_are_named() {
        let found = tun(Path::new("/dev/net/no-such-device")).unwrap();
        assert_eq!(found.command.as_deref(), Some("sudo modprobe tun"));
        let found = program("no-such-program-anywhere", "testing", "nothing").unwrap();
        assert!(found.lacking.contains("no-such-program-anywhere"));
    }
}
