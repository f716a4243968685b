//! The whole way of a push on a cluster: Jobs on nodes of both architectures, one index, a rollout, the router.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::installation::Installation;
use super::{Setting, kubectl};
use crate::machine::{Ran, eventually};

#[test]
#[ignore = "needs a cluster: scripts/test-cluster"]
fn a_push_is_built_on_both_architectures_and_rolled_out() {
    let hephy = Installation::install(&[]);
    let app = hephy.web("hello", "one\n");
    let line = format!("curl -H 'Host: hello.hephy.local' http://{}:30080/", Setting::read().node);
    let pushed = app.push().succeeded().says(&[
        "platforms linux/amd64, linux/arm64 (the ready nodes' architectures)",
        "-----> Building on 2 nodes",
        "[amd64]",
        "[arm64]",
        "(2 platforms,",
        "Released v",
        &line,
    ]);
    drop(pushed);
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "one\n".to_owned()));

    a_change_loses_no_request(&hephy, &app);
    a_failing_build_leaves_what_serves(&hephy, &app);
    a_failing_rollout_leaves_what_serves(&hephy, &app);
    both_architectures_run(&hephy);
    an_uninstall_leaves_the_apps_and_an_install_adopts_them(&hephy, &app);
    a_build_whose_server_is_killed_is_finished_by_the_next(&hephy, &app);
    a_rollout_whose_server_is_killed_is_finished_by_the_next(&hephy, &app);
    a_stranger_is_told_the_command_that_adds_the_key(&hephy);
    two_servers_share_the_work_and_are_replaced_under_a_push(&hephy, &app);
}

fn a_stranger_is_told_the_command_that_adds_the_key(hephy: &Installation) {
    hephy.verb_as("id_stranger", "apps").failed_with(&["SHA256:", "keys add"]);
    // Whoever may write the records needs no admin.
    let mut add = Command::new(env!("CARGO_BIN_EXE_hephy"));
    add.args(["keys", "add", "--kube", "--user", "bob"]).arg(hephy.path().join("id_stranger.pub"));
    Ran::of(add.output().unwrap()).succeeded().says(&["bob has the key"]);
    hephy.verb_as("id_stranger", "apps").succeeded();
}

fn two_servers_share_the_work_and_are_replaced_under_a_push(
    hephy: &Installation,
    app: &super::installation::Repository<'_>,
) {
    hephy.upgrade(&["replicas=2"]).succeeded();
    // Each connection may come to either.
    for page in ["four\n", "five\n", "six\n"] {
        app.commit(&[("www/index.html", page)]);
        app.push().succeeded();
        assert_eq!(hephy.get("hello", "/").unwrap(), (200, page.to_owned()));
    }
    for _ in 0..6 {
        hephy.verb("builds log -a hello").succeeded().says(&["Published", "Released v"]);
    }
    // The server that was pushed to waits for the push before it goes.
    let good = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    let slow = format!("{good}RUN sleep 7\n");
    app.commit(&[("Dockerfile", &slow), ("www/index.html", "replaced\n")]);
    let mut push = app.command(&["push", "deis", "main"]);
    let push = push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("both pods build", || kubectl(&RUNNING).stdout.lines().count() == 2);
    kubectl(&["rollout", "restart", "deployment/hephy", "-n", "hephy"]).succeeded();
    let pushed = push.wait_with_output().unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "replaced\n".to_owned()));
    kubectl(&["rollout", "status", "deployment/hephy", "-n", "hephy", "--timeout=120s"]).succeeded();
}

pub(super) const SERVER: &str = "app.kubernetes.io/component=server";
/// Lists the builds' pods that run.
pub(super) const RUNNING: [&str; 7] =
    ["get", "pods", "-n", "hephy-builds", "--field-selector=status.phase=Running", "-o", "name"];

fn a_change_loses_no_request(hephy: &Installation, app: &super::installation::Repository<'_>) {
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let good = matches!(hephy.get("hello", "/"), Ok((200, _)));
                    asked.fetch_add(1, Ordering::Relaxed);
                    failed.fetch_add(u32::from(!good), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
        app.commit(&[("www/index.html", "two\n")]);
        let pushed = app.push();
        stop.store(true, Ordering::Relaxed);
        pushed.succeeded();
    });
    assert!(asked.load(Ordering::Relaxed) > 20, "there was a load");
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {} requests", asked.load(Ordering::Relaxed));
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "two\n".to_owned()));
}

fn a_failing_build_leaves_what_serves(hephy: &Installation, app: &super::installation::Repository<'_>) {
    let good = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    app.commit(&[("Dockerfile", "FROM busybox\nRUN echo so it goes; exit 7\n")]);
    app.push().failed_with(&["so it goes", "Dockerfile:2", "still serves", "[remote rejected]"]);
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "two\n".to_owned()));
    app.commit(&[("Dockerfile", &good)]);
}

fn a_failing_rollout_leaves_what_serves(hephy: &Installation, app: &super::installation::Repository<'_>) {
    let good = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    let bad = good.replace("CMD exec httpd -f -p $PORT -h /www", "CMD echo no luck today; exit 3");
    app.commit(&[("Dockerfile", &bad)]);
    app.push().failed_with(&["no luck today", "still serves", "[remote rejected]"]);
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "two\n".to_owned()));
    app.commit(&[("Dockerfile", &good)]);
}

fn both_architectures_run(hephy: &Installation) {
    // The node that has the first instance takes no other.
    let node = [
        "get",
        "pods",
        "-n",
        "hephy-apps",
        "-l",
        "hephy.dev/app=hello",
        "-o",
        "jsonpath={.items[0].spec.nodeName}",
    ];
    // Instances of the rollout before may be on their way out, on another one.
    let names = ["get", "pods", "-n", "hephy-apps", "-l", "hephy.dev/app=hello", "-o", "name"];
    eventually("one instance is left", || kubectl(&names).succeeded().stdout.lines().count() == 1);
    let node = kubectl(&node).succeeded().stdout;
    kubectl(&["cordon", &node]).succeeded();
    let scaled = hephy.verb("ps scale web=2 -a hello");
    kubectl(&["uncordon", &node]).succeeded();
    scaled.succeeded();
    let mut machines = std::collections::BTreeSet::new();
    eventually("both architectures answer", || {
        machines.extend(hephy.get("hello", "/machine").map(|(_, body)| body));
        machines.len() == 2
    });
    assert_eq!(machines.iter().map(|machine| machine.trim()).collect::<Vec<_>>(), ["aarch64", "x86_64"]);
}

fn an_uninstall_leaves_the_apps_and_an_install_adopts_them(
    hephy: &Installation,
    app: &super::installation::Repository<'_>,
) {
    hephy.uninstall();
    kubectl(&["get", "deployment", "hello--web", "-n", "hephy-apps"]).succeeded();
    kubectl(&["get", "apps.hephy.dev", "hello", "-n", "hephy-apps"]).succeeded();
    hephy.upgrade(&[]).succeeded();
    // The nodes learn of a new Service a moment after its pods are ready.
    eventually("the router answers again", || {
        hephy.get("hello", "/").is_ok_and(|answer| answer == (200, "two\n".to_owned()))
    });
    app.commit(&[("www/index.html", "three\n")]);
    app.push().succeeded();
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "three\n".to_owned()));
}

fn a_build_whose_server_is_killed_is_finished_by_the_next(
    hephy: &Installation,
    app: &super::installation::Repository<'_>,
) {
    let good = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    let slow = good.replace("RUN uname -m > /machine", "RUN sleep 8; uname -m > /machine");
    app.commit(&[("Dockerfile", &slow), ("www/index.html", "adopted\n")]);
    let mut push = app.command(&["push", "deis", "main"]);
    let mut push = push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("both pods build", || kubectl(&RUNNING).stdout.lines().count() == 2);
    kill_servers();
    assert!(!push.wait().unwrap().success());
    eventually("the next server finishes the build", || {
        hephy.get("hello", "/").is_ok_and(|answer| answer == (200, "adopted\n".to_owned()))
    });
    let jobs = kubectl(&["get", "jobs", "-n", "hephy-builds", "-o", "name"]).succeeded().stdout;
    assert!(!jobs.contains("--2\n"), "no build was made again:\n{jobs}");
    // It follows the build to its end, or finds it there.
    app.push().succeeded();
}

fn a_rollout_whose_server_is_killed_is_finished_by_the_next(
    hephy: &Installation,
    app: &super::installation::Repository<'_>,
) {
    let good = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    let slow = good.replace("CMD exec httpd", "CMD sleep 5; exec httpd");
    assert_ne!(slow, good);
    app.commit(&[("Dockerfile", &slow), ("www/index.html", "rolled out\n")]);
    let mut push = app.command(&["push", "deis", "main"]);
    let mut push = push.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let told = BufReader::new(push.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut told = told.skip_while(|line| !line.contains("Published"));
    assert!(told.next().is_some(), "an index is published");
    kill_servers();
    let _until_the_end = told.count();
    assert!(!push.wait().unwrap().success());
    let commit = app.git(&["rev-parse", "HEAD"]).succeeded().stdout;
    eventually("the next server finishes the rollout", || {
        hephy.verb("apps info -a hello").stdout.contains(commit.trim())
    });
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "rolled out\n".to_owned()));
    app.commit(&[("Dockerfile", &good), ("www/index.html", "and on\n")]);
    app.push().succeeded();
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "and on\n".to_owned()));
}

/// Kills them soon: one that is deleted by force has all the time of its pod to end its work.
fn kill_servers() {
    kubectl(&["delete", "pod", "-n", "hephy", "-l", SERVER, "--grace-period=1"]).succeeded();
}
