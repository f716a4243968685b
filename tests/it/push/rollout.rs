//! From a release to what serves.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::machine::{BUSYBOX, Machine, Repository, eventually};

fn app<'a>(machine: &'a Machine, name: &str, rest: &str) -> Repository<'a> {
    let repository = machine.repository(name, &[("Dockerfile", &format!("{BUSYBOX}{rest}"))]);
    repository.add_busybox();
    repository
}

#[test]
fn a_version_that_never_answers_is_rolled_back_with_the_apps_last_lines() {
    let machine = Machine::with_flags(&["--ready-timeout", "3s"]);
    let web = machine.web("bad", "good");
    web.push().succeeded();
    let dockerfile = std::fs::read_to_string(web.path.join("Dockerfile")).unwrap();
    let broken = dockerfile.replace("exec httpd -f -p $PORT -h /www", "echo I will not listen; sleep 1000");
    web.commit(&[("Dockerfile", &broken)]);
    web.push().failed_with(&["I will not listen", "[remote rejected]", "v1 still serves"]);
    assert_eq!(machine.get("bad", "/").unwrap(), (200, "good".to_owned()));
    let crash = dockerfile.replace("exec httpd -f -p $PORT -h /www", "echo I crash; exit 7");
    web.commit(&[("Dockerfile", &crash)]);
    web.push().failed_with(&["I crash", "7", "v1 still serves"]);
    machine.verb("releases -a bad").succeeded().says(&["v3", "rollout failed"]);
}

#[test]
fn one_that_listens_elsewhere_is_told_where_and_how_to_fix_it() {
    let machine = Machine::with_flags(&["--ready-timeout", "3s"]);
    let elsewhere =
        app(&machine, "elsewhere", "EXPOSE 8000\nCMD [\"httpd\", \"-f\", \"-p\", \"9000\", \"-h\", \"/\"]\n");
    elsewhere.push().failed_with(&["9000", "$PORT", "EXPOSE 9000"]);
    let loopback = app(
        &machine,
        "loopback",
        "EXPOSE 8000\nCMD [\"httpd\", \"-f\", \"-p\", \"127.0.0.1:8000\", \"-h\", \"/\"]\n",
    );
    loopback.push().failed_with(&["127.0.0.1", "0.0.0.0"]);
}

#[test]
fn port_comes_from_expose_else_5000_and_config_wins_and_low_ports_need_no_privilege() {
    let machine = Machine::start();
    let show = "CMD [\"/bin/sh\", \"-c\", \"mkdir /tmp; echo $PORT > /tmp/index.html; exec httpd -f -p $PORT -h /tmp\"]\n";
    app(&machine, "none", show).push().succeeded();
    assert_eq!(machine.get("none", "/").unwrap(), (200, "5000\n".to_owned()));
    app(&machine, "two", &format!("EXPOSE 1000 2000\n{show}")).push().succeeded();
    assert_eq!(machine.get("two", "/").unwrap(), (200, "5000\n".to_owned()));
    app(&machine, "low", &format!("EXPOSE 80\n{show}")).push().succeeded();
    assert_eq!(machine.get("low", "/").unwrap(), (200, "80\n".to_owned()));
    machine.verb("config set PORT=81 -a low").succeeded().says(&["Released v2"]);
    assert_eq!(machine.get("low", "/").unwrap(), (200, "81\n".to_owned()));
}

#[test]
fn no_request_fails_while_versions_change() {
    let machine = Machine::start();
    let web = machine.web("steady", "0");
    web.push().succeeded();
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                match machine.get("steady", "/") {
                    Ok((200, _)) => asked.fetch_add(1, Ordering::Relaxed),
                    other => {
                        return Err(format!(
                            "{other:?} after {} good answers",
                            asked.load(Ordering::Relaxed)
                        ));
                    }
                };
            }
            Ok(())
        });
        for version in 1..=3 {
            web.commit(&[("www/index.html", &version.to_string())]);
            web.push().succeeded();
        }
        let before = asked.load(Ordering::Relaxed);
        eventually("requests go on", || load.is_finished() || asked.load(Ordering::Relaxed) > before + 10);
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap().unwrap();
    });
    assert_eq!(machine.get("steady", "/").unwrap(), (200, "3".to_owned()));
}

#[test]
fn a_restart_of_the_server_takes_the_running_apps_over() {
    let machine = Machine::start();
    machine.web("stays", "here").push().succeeded();
    let since = machine.verb("ps -a stays --format json").succeeded().stdout;
    machine.signal("TERM");
    assert!(machine.wait().success());
    machine.up();
    assert_eq!(machine.get("stays", "/").unwrap(), (200, "here".to_owned()));
    assert_eq!(machine.verb("ps -a stays --format json").succeeded().stdout, since);
    machine.kill();
    machine.up();
    assert_eq!(machine.get("stays", "/").unwrap(), (200, "here".to_owned()));
    assert_eq!(machine.verb("ps -a stays --format json").succeeded().stdout, since);
}

#[test]
fn an_app_that_crashes_is_started_again() {
    let machine = Machine::start();
    let rest = "EXPOSE 8000\nCMD [\"/bin/sh\", \"-c\", \"mkdir -p /tmp; echo up > /tmp/index.html; (sleep 4; kill $$) & exec httpd -f -p 8000 -h /tmp\"]\n";
    app(&machine, "crashes", rest).push().succeeded();
    let restarts = || {
        let ps: serde_json::Value =
            serde_json::from_str(&machine.verb("ps -a crashes --format json").stdout).unwrap_or_default();
        ps[0]["restarts"].as_u64().unwrap_or_default()
    };
    eventually("the app was started again", || restarts() > 0);
    eventually("it answers again", || {
        std::thread::sleep(Duration::from_millis(50));
        matches!(machine.get("crashes", "/"), Ok((200, _)))
    });
}

#[test]
fn process_types_of_a_procfile_run_as_scaled() {
    let machine = Machine::start();
    let types = app(&machine, "types", "");
    types.commit(&[(
        "Procfile",
        "web: mkdir -p /tmp && echo web > /tmp/index.html && exec httpd -f -p $PORT -h /tmp\nworker: while true; do echo working; sleep 1; done\n",
    )]);
    types.push().succeeded().says(&["ps scale worker=1 -a types"]);
    machine.verb("ps scale worker=2 web=2 -a types").succeeded().says(&["web 2/2 ready", "worker 2/2 ready"]);
    machine.verb("ps -a types").succeeded().says(&["web.1", "web.2", "worker.1", "worker.2"]);
    eventually("the worker's lines are in the logs", || {
        machine.verb("logs -a types").stdout.contains("working")
    });
    machine.verb("ps scale web=1 worker=0 -a types").succeeded();
    let ps = machine.verb("ps -a types").succeeded().stdout;
    assert!(!ps.contains("worker.1") && !ps.contains("web.2"), "{ps}");
    assert_eq!(machine.get("types", "/").unwrap(), (200, "web\n".to_owned()));
    machine.verb("ps scale wurker=1 -a types").failed_with(&["no process type `wurker`"]);
}
