//! Running `mmdebstrap` so that nothing but the archive's state decides the bytes.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::StatVfsMountFlags;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::archive::Mirrors;
use super::debian::{Base, PackageName, Release, debian_architecture};
use super::{BaseError, busybox};
use crate::oci::Platform;

/// What to assemble.
#[derive(Debug, Clone)]
pub struct Assembly {
    /// The base.
    pub base: Base,
    /// Packages beside those that it has.
    pub include: Vec<PackageName>,
    /// Where they come from.
    pub mirrors: Mirrors,
    /// An existing directory for what is made; some hundred megabytes.
    pub directory: PathBuf,
}

/// The files of one base for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFilesystem {
    /// For which platform.
    pub platform: Platform,
    /// Their tar, uncompressed: the one layer of the image.
    pub tar: PathBuf,
    /// When the archive was as it is, in seconds: nothing in the tar is newer.
    pub epoch: i64,
    /// The command of the image.
    pub command: Vec<String>,
    /// What the image's history says.
    pub created_by: String,
}

/// The last lines that an error shows.
const SHOWN_LINES: usize = 15;
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What `docker-library`'s images have too: no package lists in two sizes, no archives left in layers.
const CUSTOMIZE: &str = r#"set -e
rm -f "$1/etc/hostname" "$1/etc/resolv.conf"
printf '%s\n' 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };' 'APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };' 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' 'Acquire::GzipIndexes "true";' 'Acquire::Languages "none";' 'Apt::AutoRemove::SuggestsImportant "false";' > "$1/etc/apt/apt.conf.d/docker-clean"
chmod 644 "$1/etc/apt/apt.conf.d/docker-clean"
# With the caches turned off above, apt's own cleaning would leave those that it has made so far, and no two of them are equal.
rm -rf "$1"/var/cache/apt/*.bin "$1"/var/log/*.log "$1"/var/log/apt/* "$1"/var/cache/ldconfig/aux-cache "$1"/run/*
"#;

/// What `-slim` leaves out, now and of packages that are installed later.
const SLIM: [&str; 7] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/overrides/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/man/*",
];

/// Whether this machine can assemble `base` for `platform`, and what it lacks if not.
pub fn can_assemble(base: Base, platform: &Platform) -> Result<(), BaseError> {
    let architecture = debian_architecture(platform)?;
    for (program, package) in [("mmdebstrap", "mmdebstrap"), ("apt-get", "apt")] {
        if !is_installed(program) {
            return Err(BaseError::Program { program, package });
        }
    }
    if !Path::new(KEYRING).exists() {
        return Err(BaseError::Keyring(KEYRING.into()));
    }
    // Packages of busybox are only unpacked, nothing of them runs.
    if base == Base::Busybox || runs(architecture, platform) {
        return Ok(());
    }
    Err(BaseError::NotRunnable { platform: platform.clone() })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn runs(architecture: &str, platform: &Platform) -> bool {
    let native = Platform::native();
    let emulator = match architecture {
        "arm64" => "qemu-aarch64",
        "armhf" | "armel" => "qemu-arm",
        "i386" => "qemu-i386",
        "amd64" => "qemu-x86_64",
        "ppc64el" => "qemu-ppc64le",
        "riscv64" => "qemu-riscv64",
        _ => "qemu-s390x",
    };
    *platform == native
        || (architecture == "i386" && native.architecture() == "amd64")
        || Path::new("/proc/sys/fs/binfmt_misc").join(emulator).exists()
}

/// Assembles one base for one platform. `progress` is given the lines that `mmdebstrap` says.
///
/// The time of everything is that of the archive's newest index: the same state of the archive gives the same tar.
///
/// # Cancel safety
/// When dropped, the program is killed; what it left is in [`Assembly::directory`].
pub async fn assemble(
    assembly: &Assembly,
    platform: &Platform,
    progress: &(dyn Fn(&str) + Sync),
) -> Result<RootFilesystem, BaseError> {
    can_assemble(assembly.base, platform)?;
    if assembly.base == Base::Busybox && !assembly.include.is_empty() {
        return Err(BaseError::BusyboxInclude);
    }
    let architecture = debian_architecture(platform)?;
    let release = match assembly.base {
        Base::Debian { release, .. } => release,
        Base::Busybox => Release::of_busybox(),
    };
    let sources = sources(assembly, release);
    let mut epoch = 0;
    for (url, suite) in &sources {
        epoch = epoch.max(release_date(assembly, url, suite).await?);
    }
    let tar = assembly.directory.join(format!("{architecture}.tar"));
    run(&mut mmdebstrap(assembly, architecture, release, &tar, epoch), "mmdebstrap", progress).await?;
    let (tar, command) = match assembly.base {
        Base::Debian { .. } => (tar, "bash"),
        Base::Busybox => (busybox::rewrite(&tar, epoch)?, "sh"),
    };
    let created_by = format!("hephy base {}{}", assembly.base, included(&assembly.include));
    Ok(RootFilesystem {
        platform: platform.clone(),
        tar,
        epoch,
        command: vec![command.to_owned()],
        created_by,
    })
}

fn included(include: &[PackageName]) -> String {
    let names: Vec<&str> = include.iter().map(PackageName::as_str).collect();
    if names.is_empty() { String::new() } else { format!(" --include {}", names.join(",")) }
}

/// The suites of a release, each with its mirror.
fn sources(assembly: &Assembly, release: Release) -> Vec<(String, String)> {
    let debian = assembly.mirrors.debian.as_str().trim_end_matches('/').to_owned();
    let security = assembly.mirrors.security.as_str().trim_end_matches('/').to_owned();
    let name = release.codename();
    if assembly.base == Base::Busybox {
        return vec![(debian, name.to_owned())];
    }
    vec![
        (debian.clone(), name.to_owned()),
        (debian, format!("{name}-updates")),
        (security, format!("{name}-security")),
    ]
}

fn mmdebstrap(assembly: &Assembly, architecture: &str, release: Release, tar: &Path, epoch: i64) -> Command {
    let mode = if is_root() { "root" } else { "unshare" };
    // The files' modes must not depend on the caller's umask.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "umask 022 && exec mmdebstrap \"$@\"", "sh", "--format=tar", "--skip=output/dev"]);
    command.arg(format!("--mode={mode}")).arg(format!("--architectures={architecture}"));
    match assembly.base {
        Base::Debian { slim, .. } => {
            command.args(["--variant=minbase", "--dpkgopt=force-unsafe-io"]);
            command.arg(format!("--customize-hook={CUSTOMIZE}"));
            if slim {
                command.args(SLIM.map(|option| format!("--dpkgopt={option}")));
            }
        }
        Base::Busybox => {
            command.args(["--variant=extract", "--include=busybox-static"]);
        }
    }
    if !assembly.include.is_empty() {
        let names: Vec<&str> = assembly.include.iter().map(PackageName::as_str).collect();
        command.arg(format!("--include={}", names.join(",")));
    }
    command.arg(release.codename()).arg(tar);
    command.args(sources(assembly, release).iter().map(|(url, suite)| format!("deb {url} {suite} main")));
    environment(&mut command, assembly);
    command.env("SOURCE_DATE_EPOCH", epoch.to_string());
    command
}

/// Only what the programs need, and the proxies, so that nothing else of the caller's environment is in the result.
fn environment(command: &mut Command, assembly: &Assembly) {
    let kept =
        ["PATH", "HOME", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
    command.env_clear();
    command.envs(kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command
        .env("LC_ALL", "C.UTF-8")
        .env("TMPDIR", scratch(&assembly.directory))
        .env("DEBIAN_FRONTEND", "noninteractive");
    command.current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
}

/// Where `mmdebstrap` unpacks. Not in our directory if that is mounted `nodev`, as `/tmp` often is; and not as an ordinary user, when the
/// files are made by an id of a user namespace, which our directory does not let in.
fn scratch(directory: &Path) -> &Path {
    let forbidden = StatVfsMountFlags::NODEV | StatVfsMountFlags::NOSUID;
    let restricted = rustix::fs::statvfs(directory).is_ok_and(|found| found.f_flag.intersects(forbidden));
    if is_root() && !restricted { directory } else { Path::new("/var/tmp") }
}

/// The date of a suite's index.
async fn release_date(assembly: &Assembly, url: &str, suite: &str) -> Result<i64, BaseError> {
    let file = assembly.directory.join("InRelease");
    let url = format!("{url}/dists/{suite}/InRelease");
    // apt's own downloader, so that the machine's proxies and certificates count.
    let mut command = Command::new(APT_HELPER);
    command.args(["download-file", &url]).arg(&file);
    environment(&mut command, assembly);
    let said = run(&mut command, "apt-helper", &|_| ()).await;
    if let Err(BaseError::Failed { output, .. }) = &said {
        let line = |line: &&str| line.starts_with("E: ") || line.starts_with("Err:");
        let reason = output.lines().rfind(line).unwrap_or("it cannot be downloaded").to_owned();
        return Err(BaseError::Release { url, reason });
    }
    said?;
    let text = tokio::fs::read(&file).await.map_err(BaseError::file("read", &file))?;
    date(&String::from_utf8_lossy(&text)).ok_or(BaseError::ReleaseDate(url))
}

/// The `Date` of an index: `Sat, 11 Jul 2026 10:16:37 UTC`.
fn date(release: &str) -> Option<i64> {
    let date = release.lines().find_map(|line| line.strip_prefix("Date:"))?.trim();
    let date = date.strip_suffix("UTC").map_or(date.to_owned(), |date| format!("{date}+0000"));
    Some(jiff::fmt::rfc2822::parse(&date).ok()?.timestamp().as_second())
}

/// Runs a program to its end, passing on what it says.
async fn run(
    command: &mut Command,
    program: &'static str,
    progress: &(dyn Fn(&str) + Sync),
) -> Result<(), BaseError> {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(BaseError::file("start", program))?;
    let mut last: Vec<String> = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Some(line) = lines.next_segment().await.map_err(BaseError::file("read from", program))? {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            // Its bar of progress ends in a carriage return.
            let line = line.rsplit('\r').next().unwrap_or_default().to_owned();
            progress(&line);
            if last.len() == SHOWN_LINES {
                last.remove(0);
            }
            last.push(line);
        }
    }
    let status = child.wait().await.map_err(BaseError::file("wait for", program))?;
    if status.success() {
        return Ok(());
    }
    Err(BaseError::Failed { program, status: status.to_string(), output: last.join("\n") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembly(base: &str) -> Assembly {
        let mirrors = Mirrors {
            debian: "http://mirror.example/debian/".parse().unwrap(),
            security: "http://mirror.example/debian-security".parse().unwrap(),
        };
        let include = vec!["git".parse().unwrap()];
        Assembly { base: base.parse().unwrap(), include, mirrors, directory: "/tmp".into() }
    }

    #[test]
    fn the_date_of_an_index_is_read() {
        let text = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n";
        assert_eq!(date(text), Some(1_783_764_997));
        assert_eq!(date("Origin: Debian\n"), None);
        assert_eq!(date("Date: yesterday\n"), None);
    }

    #[test]
    fn every_suite_of_a_release_is_used() {
        let assembly = assembly("debian:12");
        let Base::Debian { release, .. } = assembly.base else { panic!() };
        let command = mmdebstrap(&assembly, "arm64", release, Path::new("/tmp/x.tar"), 5);
        let arguments: Vec<_> =
            command.as_std().get_args().filter_map(|argument| argument.to_str()).collect();
        let end = [
            "--include=git",
            "bookworm",
            "/tmp/x.tar",
            "deb http://mirror.example/debian bookworm main",
            "deb http://mirror.example/debian bookworm-updates main",
            "deb http://mirror.example/debian-security bookworm-security main",
        ];
        assert_eq!(arguments[arguments.len() - 6..], end);
        assert!(arguments.contains(&"--architectures=arm64"));
    }

    #[test]
    fn a_platform_that_debian_does_not_have_is_named() {
        let platform = "linux/loong64".parse().unwrap();
        let error = can_assemble("debian:12".parse().unwrap(), &platform).unwrap_err();
        assert_eq!(error.to_string(), "Debian has no architecture for linux/loong64");
    }
}
