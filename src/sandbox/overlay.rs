//! Overlay mounts: by the new mount API, which takes 500 layers, else by `mount(2)`, which takes 4 KiB of names.
//!
//! `userxattr` because a user namespace may not write `trusted.*`: without it a directory that is removed and made
//! again cannot be marked opaque. `volatile` because an upper is thrown away after a crash in any case, and
//! unmounting without it writes back the whole file system that it is on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::error::Doing;
use super::{RootSpec, SandboxError};

/// What fits in the page that `mount(2)` reads, with room for the end.
const MAX_OPTION_BYTES: usize = 4000;

/// Makes the directories of `spec` and mounts the overlay.
pub(super) fn mount(spec: &RootSpec) -> Result<(), SandboxError> {
    make_directories(spec)?;
    let lowers = lowers(spec);
    let result = match mount_by_fsconfig(spec, &lowers, true) {
        Err(Errno::INVAL | Errno::NOSYS) => mount_by_option_string(spec, &lowers),
        other => other,
    };
    result.map_err(|error| SandboxError::Overlay {
        lowers: spec.lowers.len(),
        upper: spec.upper.clone(),
        hint: hint(error, spec),
        source: error.into(),
    })
}

/// Unmounts it; what still uses it keeps it alive, unseen.
pub(super) fn unmount(mount_point: &Path) -> Result<(), SandboxError> {
    nix::mount::umount2(mount_point, MntFlags::MNT_DETACH)
        .doing(|| format!("unmount `{}`", mount_point.display()))
}

/// An upper gets the attributes of the directory that it hides, so that `/` does not change by being mounted.
fn make_directories(spec: &RootSpec) -> Result<(), SandboxError> {
    let make = |path: &Path, mode| {
        let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        made.doing(|| format!("make the directory `{}`", path.display()))
    };
    make(&spec.work, 0o700)?;
    make(&spec.mount_point, 0o755)?;
    if spec.upper.is_dir() {
        return Ok(());
    }
    make(&spec.upper, 0o755)?;
    let Some(top) = spec.lowers.last() else {
        return Ok(());
    };
    copy_attributes(top, &spec.upper).doing(|| format!("read the layer `{}`", top.display()))
}

fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    let times = fs::FileTimes::new().set_accessed(metadata.accessed()?).set_modified(metadata.modified()?);
    fs::File::open(to)?.set_times(times)
}

/// Top first, as the kernel wants them; an image without layers stands on an empty directory.
///
/// A layer that is there twice is mounted once, where it is topmost: of what it has further down nothing shows. The kernel
/// refuses the same directory twice (`ELOOP`).
fn lowers(spec: &RootSpec) -> Vec<PathBuf> {
    if spec.lowers.is_empty() {
        return vec![spec.mount_point.clone()];
    }
    let mut seen = BTreeSet::new();
    spec.lowers.iter().rev().filter(|lower| seen.insert(*lower)).cloned().collect()
}

fn mount_by_fsconfig(spec: &RootSpec, lowers: &[PathBuf], volatile: bool) -> rustix::io::Result<()> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string};
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in lowers {
        fsconfig_set_string(&context, "lowerdir+", lower)?;
    }
    fsconfig_set_string(&context, "upperdir", &spec.upper)?;
    fsconfig_set_string(&context, "workdir", &spec.work)?;
    fsconfig_set_flag(&context, "userxattr")?;
    if volatile {
        fsconfig_set_flag(&context, "volatile")?;
    }
    fsconfig_create(&context)?;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", rustix::fs::CWD, &spec.mount_point, flags)
}

/// For kernels before 6.5; long names are replaced by links, so that about a thousand layers fit.
fn mount_by_option_string(spec: &RootSpec, lowers: &[PathBuf]) -> rustix::io::Result<()> {
    let short = fs::canonicalize(&spec.work).ok().map(|work| work.with_extension("lowers"));
    let mut options = options(spec, lowers);
    let mut links = None;
    if options.len() > MAX_OPTION_BYTES {
        let directory = short.ok_or(Errno::NAMETOOLONG)?;
        let here = std::env::current_dir().map_err(|_| Errno::NOENT)?;
        make_links(&here, &directory, lowers).map_err(|_| Errno::NAMETOOLONG)?;
        let names: Vec<_> = (0..lowers.len()).map(|index| PathBuf::from(index.to_string())).collect();
        options = absolute_options(spec, &here, &names);
        links = Some((here, directory));
    }
    if let Some((_, directory)) = &links {
        rustix::process::chdir(directory)?;
    }
    let target =
        links.as_ref().map_or_else(|| spec.mount_point.clone(), |(here, _)| here.join(&spec.mount_point));
    let mount = |options: &str| {
        let result =
            nix::mount::mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options));
        result.map_err(|error| Errno::from_raw_os_error(error as i32))
    };
    // `volatile` is younger (5.10) than the rest.
    let result = mount(&format!("{options},volatile")).or_else(|_| mount(&options));
    if let Some((here, directory)) = links {
        rustix::process::chdir(&here)?;
        fs::remove_dir_all(directory).map_err(|_| Errno::IO)?;
    }
    result
}

fn make_links(here: &Path, directory: &Path, lowers: &[PathBuf]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    lowers
        .iter()
        .enumerate()
        .try_for_each(|(index, lower)| symlink(here.join(lower), directory.join(index.to_string())))
}

fn absolute_options(spec: &RootSpec, here: &Path, names: &[PathBuf]) -> String {
    let spec = RootSpec { upper: here.join(&spec.upper), work: here.join(&spec.work), ..spec.clone() };
    options(&spec, names)
}

fn options(spec: &RootSpec, lowers: &[PathBuf]) -> String {
    let lowers: Vec<_> = lowers.iter().map(|lower| escape(lower)).collect();
    let (upper, work) = (escape(&spec.upper), escape(&spec.work));
    format!("lowerdir={},upperdir={upper},workdir={work},userxattr", lowers.join(":"))
}

fn escape(path: &Path) -> String {
    let mut escaped = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | ',' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

fn hint(error: Errno, spec: &RootSpec) -> &'static str {
    match error {
        Errno::INVAL if spec.lowers.len() > 500 => "; the kernel takes at most 500 layers",
        Errno::INVAL => "; is the data directory itself on an overlay? Put it on a volume",
        Errno::NODEV => "; this kernel has no overlay file system (`sudo modprobe overlay`)",
        Errno::PERM => "; this kernel (before 5.11) has no overlay in user namespaces",
        Errno::NOSPC => "; the disk or the limit of mounts is full",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_names_are_escaped() {
        assert_eq!(escape(Path::new("a:b,c\\d")), "a\\:b\\,c\\\\d");
    }

    #[test]
    fn the_top_layer_is_first_for_the_kernel() {
        let spec = RootSpec {
            lowers: vec!["base".into(), "top".into()],
            upper: "u".into(),
            work: "w".into(),
            mount_point: "m".into(),
        };
        assert_eq!(options(&spec, &lowers(&spec)), "lowerdir=top:base,upperdir=u,workdir=w,userxattr");
    }

    #[test]
    fn a_layer_that_is_there_twice_is_mounted_once_where_it_is_topmost() {
        let spec = RootSpec {
            lowers: ["base", "same", "other", "same"].map(PathBuf::from).to_vec(),
            upper: "u".into(),
            work: "w".into(),
            mount_point: "m".into(),
        };
        assert_eq!(lowers(&spec), ["same", "other", "base"].map(PathBuf::from));
    }
}
