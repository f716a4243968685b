//! What depends on the machine: limits, and the checks before anything is started.

use std::path::Path;

use hephy::sandbox::cgroup::Delegation;
use hephy::sandbox::preflight::{self, Needs, Severity};
use hephy::sandbox::{Limits, NetworkMode};

use super::bench::{Bench, executable, readable_directory};

/// Where groups cannot be made the checks say so, which the test below looks at.
#[test]
fn a_step_cannot_make_more_processes_than_it_may() {
    let limits = Limits { processes: Some(8), ..Limits::default() };
    let mut bench = Bench::with(NetworkMode::None, Some(limits));
    let in_force = bench.worker.limits_in_force().is_ok();
    assert_eq!(in_force, Delegation::detect().is_ok());
    if in_force {
        let (_, output) = bench.shell("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done 2>&1");
        assert!(output.contains("annot fork"), "{output}");
    }
}

#[test]
fn a_machine_that_runs_these_tests_lacks_nothing_vital() {
    let directory = readable_directory();
    let findings = preflight::check(Needs { data: directory.path(), executable: &executable() });
    let fatal: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Fatal).collect();
    assert!(fatal.is_empty(), "{fatal:?}");
    assert_eq!(
        findings.iter().any(|finding| finding.lacking.contains("control groups")),
        Delegation::detect().is_err()
    );
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "idmap.json"), "{left:?}");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_said_with_its_name() {
    let findings = preflight::check(Needs { data: Path::new("/proc/no-such"), executable: &executable() });
    let found = findings.iter().find(|finding| finding.severity == Severity::Fatal).unwrap();
    assert!(found.lacking.contains("/proc/no-such"), "{found:?}");
}
