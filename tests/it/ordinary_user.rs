//! The same tests by a user who is nobody in particular: root is not the only one who starts hephy.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::base;

/// Names the program that an ordinary user can execute.
const OTHER_EXECUTABLE: &str = "HEPHY_TEST_EXECUTABLE";
/// Names the busybox that an ordinary user can read.
const OTHER_BUSYBOX: &str = "HEPHY_TEST_BUSYBOX";

/// The program that is tested.
pub(crate) fn executable() -> PathBuf {
    std::env::var_os(OTHER_EXECUTABLE).map_or_else(|| env!("CARGO_BIN_EXE_hephy").into(), PathBuf::from)
}

/// The busybox that an ordinary user can read.
pub(crate) fn busybox() -> Option<PathBuf> {
    std::env::var_os(OTHER_BUSYBOX).map(PathBuf::from)
}

/// Runs tests of this binary again as a user made for it. Only root can; the user's own run is the test itself.
pub(crate) fn run_tests(tests: &[&str]) {
    const USER: &str = "hephy-test";
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let exists = Command::new("id").arg(USER).output().unwrap().status.success();
    if !exists {
        let made =
            Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", USER]).status().unwrap();
        assert!(made.success());
    }
    assert!(fs::read_to_string("/etc/subuid").unwrap().contains(USER), "useradd gives subordinate ids");
    // As udev has it everywhere else.
    fs::set_permissions("/dev/net/tun", fs::Permissions::from_mode(0o666)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build directory may not be theirs to enter.
    let copy = |from: &Path, name: &str| {
        let to = directory.path().join(name);
        fs::copy(from, &to).unwrap();
        to
    };
    let tests_binary = copy(&std::env::current_exe().unwrap(), "tests");
    let executable = copy(Path::new(env!("CARGO_BIN_EXE_hephy")), "hephy");
    let busybox = copy(&base::busybox(), "busybox");
    let output = Command::new("setpriv")
        .args(["--reuid", USER, "--regid", USER, "--init-groups", "--reset-env", "--"])
        .arg("env")
        .arg(format!("{}={}", OTHER_EXECUTABLE, executable.display()))
        .arg(format!("{}={}", OTHER_BUSYBOX, busybox.display()))
        .arg(tests_binary)
        .args(["--exact", "--test-threads=1"])
        .args(tests)
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains(&format!("{} passed", tests.len())), "{text}{errors}");
}
