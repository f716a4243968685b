//! Pushes that meet each other, are cancelled, or lose the server.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::machine::{BUSYBOX, Machine, Repository, eventually};

/// An app whose build takes as long as the file `/slow` in its context says, in seconds.
fn slow<'a>(machine: &'a Machine, name: &str, seconds: u32) -> Repository<'a> {
    let dockerfile = format!(
        "{BUSYBOX}COPY seconds /seconds\nRUN echo building; sleep $(cat /seconds)\nRUN mkdir /www; cp /seconds /www/index.html\nEXPOSE 8000\nCMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/www\"]\n"
    );
    let repository =
        machine.repository(name, &[("Dockerfile", &dockerfile), ("seconds", &seconds.to_string())]);
    repository.add_busybox();
    repository
}

fn begin(repository: &Repository<'_>, options: &[&str]) -> Child {
    let mut words = vec!["push"];
    words.extend(options.iter().flat_map(|option| ["-o", option]));
    words.extend(["deis", "main"]);
    repository.command(&words).process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn builds(machine: &Machine, app: &str) -> Vec<serde_json::Value> {
    serde_json::from_str(&machine.verb(&format!("builds -a {app} --format json")).stdout).unwrap_or_default()
}

fn is_building(machine: &Machine, app: &str, number: u64) -> bool {
    let log = machine.verb(&format!("builds log {number} -a {app} --no-follow")).stdout;
    log.contains("    building")
}

#[test]
fn a_busy_app_refuses_at_once_and_says_who_and_how_to_follow() {
    let machine = Machine::start();
    let app = slow(&machine, "busy", 600);
    let first = begin(&app, &[]);
    eventually("the first build runs", || is_building(&machine, "busy", 1));
    app.commit(&[("seconds", "0")]);
    app.push().failed_with(&[
        "busy: ",
        "is pushing, build #1 of",
        "builds log 1 -a busy",
        "git push -o supersede deis main",
    ]);
    app.git(&["push", "-o", "supersede", "deis", "main"]).succeeded();
    let first = first.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&first.stderr);
    assert!(!first.status.success() && said.contains("a newer push took its place"), "{said}");
    assert_eq!(machine.get("busy", "/").unwrap(), (200, "0".to_owned()));
}

#[test]
fn of_pushes_that_wait_the_newest_goes_next() {
    let machine = Machine::start();
    let app = slow(&machine, "queue", 5);
    let first = begin(&app, &[]);
    eventually("the first build runs", || is_building(&machine, "queue", 1));
    app.commit(&[("seconds", "0")]);
    let second = begin(&app, &["wait"]);
    eventually("the second waits", || app.git(&["rev-parse", "HEAD"]).ok);
    std::thread::sleep(Duration::from_millis(500));
    app.commit(&[("seconds", "1")]);
    let third = begin(&app, &["wait"]);
    assert!(first.wait_with_output().unwrap().status.success());
    let second = second.wait_with_output().unwrap();
    assert!(!second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    let third = third.wait_with_output().unwrap();
    assert!(third.status.success(), "{}", String::from_utf8_lossy(&third.stderr));
    assert_eq!(machine.get("queue", "/").unwrap(), (200, "1".to_owned()));
}

#[test]
fn control_c_in_git_cancels_within_two_seconds_and_frees_the_app() {
    let machine = Machine::start();
    let app = slow(&machine, "ctrl-c", 600);
    let push = begin(&app, &[]);
    eventually("the build runs", || is_building(&machine, "ctrl-c", 1));
    let interrupted = Instant::now();
    // As a terminal does it: to git and to the ssh that it started.
    std::process::Command::new("kill").args(["-INT", "--", &format!("-{}", push.id())]).status().unwrap();
    eventually("the build is cancelled", || {
        builds(&machine, "ctrl-c")[0]["outcome"]["cancelled"].is_object()
    });
    let took = interrupted.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    drop(push.wait_with_output());
    app.commit(&[("seconds", "0")]);
    app.push().succeeded();
}

#[test]
fn a_detached_push_is_answered_at_once_and_goes_on_alone() {
    let machine = Machine::start();
    let app = slow(&machine, "detached", 3);
    app.git(&["push", "-o", "detach", "deis", "main"]).succeeded().says(&["builds log 1 -a detached"]);
    assert_eq!(app.git(&["ls-remote", "deis"]).stdout, "", "the ref moves when the rollout succeeds");
    machine.verb("builds log 1 -a detached").succeeded().says(&["building", "Released v1"]);
    assert!(app.git(&["ls-remote", "deis"]).stdout.contains("refs/heads/main"));
    assert_eq!(machine.get("detached", "/").unwrap(), (200, "3".to_owned()));
}

#[test]
fn a_server_killed_at_any_stage_leaves_a_state_from_which_the_next_push_works() {
    let machine = Machine::start();
    let app = slow(&machine, "killed", 0);
    app.push().succeeded();
    for (round, milliseconds) in [50u64, 200, 400, 700, 1000, 1500, 2200].into_iter().enumerate() {
        app.commit(&[("seconds", &format!("0.{round}"))]);
        let push = begin(&app, &[]);
        std::thread::sleep(Duration::from_millis(milliseconds));
        machine.kill();
        drop(push.wait_with_output());
        machine.up();
        let (status, _) = machine.get("killed", "/").unwrap();
        assert_eq!(status, 200, "after {milliseconds} ms");
        let text = format!("0.{round}");
        eventually("the same push works", || {
            app.git(&["push", "-o", "wait", "deis", "main"]).ok
                && matches!(machine.get("killed", "/"), Ok((200, body)) if body == text)
        });
        let last = &builds(&machine, "killed")[0];
        assert!(last["outcome"]["succeeded"].is_object(), "{last}");
    }
}

/// An app whose build waits before it takes the page from the context.
fn late<'a>(machine: &'a Machine, name: &str, page: &str) -> Repository<'a> {
    let dockerfile = format!(
        "{BUSYBOX}RUN echo building; sleep 3\nCOPY www /www\nEXPOSE 8000\nCMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/www\"]\n"
    );
    let repository = machine.repository(name, &[("Dockerfile", &dockerfile), ("www/index.html", page)]);
    repository.add_busybox();
    repository
}

#[test]
fn a_build_that_outlives_its_server_keeps_the_files_that_it_is_yet_to_copy() {
    let machine = Machine::start();
    let app = late(&machine, "late", "page");
    let push = begin(&app, &[]);
    eventually("the build runs", || is_building(&machine, "late", 1));
    machine.kill();
    drop(push.wait_with_output());
    machine.up();
    eventually("the build goes on to its end", || builds(&machine, "late")[0]["outcome"].is_object());
    let last = &builds(&machine, "late")[0];
    assert!(last["outcome"]["succeeded"].is_object(), "{last}");
    assert_eq!(machine.get("late", "/").unwrap(), (200, "page".to_owned()));
}

#[test]
fn a_build_that_ended_while_its_server_was_away_is_done_again() {
    let machine = Machine::start();
    let app = late(&machine, "away", "page");
    let push = begin(&app, &[]);
    eventually("the build runs", || is_building(&machine, "away", 1));
    machine.kill();
    drop(push.wait_with_output());
    let results = || {
        let found = walkdir::WalkDir::new(machine.data().join("builds/away")).into_iter();
        found.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name() == "result.json")).count()
    };
    eventually("the engine ends alone", || results() == 1);
    machine.up();
    eventually("the build is done again", || builds(&machine, "away")[0]["outcome"].is_object());
    let last = &builds(&machine, "away")[0];
    assert!(last["outcome"]["succeeded"].is_object(), "{last}");
    assert_eq!(machine.get("away", "/").unwrap(), (200, "page".to_owned()));
}

#[test]
fn a_stopped_server_is_drained_and_a_second_signal_stops_now() {
    let machine = Machine::start();
    let app = slow(&machine, "drained", 2);
    let push = begin(&app, &[]);
    eventually("the build runs", || is_building(&machine, "drained", 1));
    machine.signal("TERM");
    assert!(machine.wait().success());
    let pushed = push.wait_with_output().unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    machine.up();
    let app = slow(&machine, "undrained", 600);
    let push = begin(&app, &[]);
    eventually("the build runs", || is_building(&machine, "undrained", 1));
    machine.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    machine.signal("TERM");
    machine.wait();
    drop(push.wait_with_output());
    machine.up();
    machine.verb("builds cancel 1 -a undrained").succeeded();
}
