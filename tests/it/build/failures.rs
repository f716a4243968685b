//! Builds that end without an image: where, whose fault, and what is left behind.

use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use hephy::build::{BuildFailure, Outcome};
use rustix::process::{Pid, Signal, kill_process};

use super::{Place, runs};

#[test]
fn a_failing_command_is_told_with_its_line_status_and_last_lines() {
    let place = Place::new();
    let built = place.build("FROM busybox:1\n\nRUN echo some output; \\\n  exit 3\n");
    let failure = built.app_failure();
    assert_eq!(failure.at.as_ref().unwrap().to_string(), "Dockerfile:3");
    assert_eq!(
        (failure.exit_status, failure.last_lines.as_slice()),
        (Some(3), &["some output".to_owned()][..])
    );
    assert!(failure.heading.ends_with("exit status 3"), "{failure:?}");
    assert_eq!(built.steps(), ["cached", "failed"]);
    assert_eq!(place.left_over(), [""; 0]);
}

#[test]
fn what_is_not_supported_is_named_with_its_line() {
    for (dockerfile, line, word) in [
        ("FROM busybox:1\nRUN --device=vendor.com/gpu true\n", 2, "--device"),
        ("FROM busybox:1\nRUN --security=insecure true\n", 2, "--security"),
        ("FROM busybox:1\n\nRUM true\n", 3, "RUM"),
        ("FROM busybox:1\nSTOPSIGNAL NOPE\n", 2, "NOPE"),
    ] {
        let built = Place::new().build(dockerfile);
        let failure = built.app_failure();
        assert_eq!(failure.at.as_ref().map(|at| at.line), Some(line), "{failure:?}");
        assert!(failure.heading.contains(word), "{failure:?}");
    }
}

#[test]
fn a_base_that_is_nowhere_is_told_with_both_ways_to_have_it() {
    let built = Place::new().build("FROM nowhere.invalid/base:1\n");
    let failure = built.app_failure();
    assert!(failure.heading.contains("`nowhere.invalid/base:1` was not found"), "{failure:?}");
    let hint = failure.hint.as_ref().unwrap();
    assert!(hint.contains("hephy base") && hint.contains("--mirror"), "{hint}");
}

#[test]
fn another_platform_is_refused_unless_forced() {
    let place = Place::new();
    let built = place.build_with("FROM scratch\nENV A=1\n", &["--custom-platform", "linux/s390x"]);
    assert_eq!(built.output.status.code(), Some(2));
    let forced =
        place.build_with("FROM scratch\nENV A=1\n", &["--custom-platform", "linux/s390x", "--force"]).ok();
    assert_eq!(forced.config().architecture, "s390x");
}

#[test]
fn a_build_that_is_told_to_stop_stops_with_all_its_processes() {
    let place = Place::new();
    let word = "31415926";
    let dockerfile = format!("FROM busybox:1\nRUN (sleep {word} &); echo begun; sleep {word}\n");
    let mut command = place.command(&dockerfile, &["--no-push"]);
    let mut engine = command.spawn().unwrap();
    wait_for(|| place.events().iter().any(|event| event.lines().iter().any(|line| line.contains("begun"))));
    let clock = Instant::now();
    kill_process(Pid::from_child(&engine), Signal::TERM).unwrap();
    let status = engine.wait().unwrap();
    assert!(clock.elapsed() < Duration::from_secs(2), "{:?}", clock.elapsed());
    assert_eq!(status.code(), Some(130));
    assert!(!runs(word));
    // What was not in time to give its lease up is dead, and the next build sees that.
    place.build_with("FROM busybox:1\nRUN true\n", &["--no-push"]).ok();
    assert_eq!(place.left_over(), [""; 0]);
}

#[test]
fn an_engine_that_is_killed_leaves_no_process_behind() {
    let place = Place::new();
    let word = "27182818";
    let mut engine = place
        .command(&format!("FROM busybox:1\nRUN echo begun; sleep {word}\n"), &["--no-push"])
        .spawn()
        .unwrap();
    wait_for(|| runs(word));
    engine.kill().unwrap();
    engine.wait().unwrap();
    wait_for(|| !runs(word));
}

#[test]
fn a_build_that_takes_too_long_is_ended() {
    let built = Place::new().build_with("FROM busybox:1\nRUN sleep 600\n", &["--time-limit", "1s"]);
    assert_eq!(built.output.status.code(), Some(124));
    assert!(
        matches!(built.result.outcome, Outcome::Failed(BuildFailure::TimedOut { .. })),
        "{:?}",
        built.result
    );
}

#[test]
fn plain_progress_reads_as_lines_on_standard_error() {
    let place = Place::new();
    place.file("Dockerfile", "FROM busybox:1\nRUN echo hi\n");
    let mut command = std::process::Command::new(crate::ordinary_user::executable());
    command
        .args(["build", "--no-push", "--context"])
        .arg(place.path("context"))
        .arg("--data")
        .arg(place.path("data"));
    command.arg("--mirror").arg(format!("oci:{}", super::base::layout().display()));
    let output = command.output().unwrap();
    let lines: Vec<String> = BufReader::new(&output.stderr[..]).lines().map(Result::unwrap).collect();
    assert_eq!(lines[0], "1/2 FROM busybox:1                      cached");
    assert_eq!(lines[1..3], ["2/2 RUN echo hi", "    hi"]);
    let seconds =
        lines[3].strip_prefix("2/2 RUN echo hi                         ").unwrap().strip_suffix('s');
    assert!(seconds.unwrap().parse::<f64>().is_ok(), "{lines:?}");
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("sha256:"));
}

/// Looks until something is so; a minute at most.
pub(crate) fn wait_for(mut is_so: impl FnMut() -> bool) {
    let clock = Instant::now();
    while !is_so() {
        assert!(clock.elapsed() < Duration::from_mins(1), "waited in vain");
        std::thread::yield_now();
    }
}
