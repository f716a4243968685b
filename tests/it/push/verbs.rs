//! The verbs, over SSH and by the command line.

use std::process::{Command, Stdio};

use crate::machine::{Machine, Ran};

#[test]
fn config_is_released_and_a_release_can_be_gone_back_to() {
    let machine = Machine::start();
    let web = machine.web("config", "page");
    machine.verb("config set A=early -a config").failed_with(&["no app `config`"]);
    web.push().succeeded();
    machine.verb("config set A=one \"B='two words'\" -a config").succeeded().says(&["Released v2"]);
    machine.verb("config set A=one -a config").failed_with(&["already"]);
    assert_eq!(machine.verb("config list -a config").succeeded().stdout, "A=one\nB=two words\n");
    machine.verb("config unset B -a config").succeeded().says(&["Released v3"]);
    machine.verb("config unset B -a config").failed_with(&["`B` is not set"]);
    machine.verb("config set 1A=x -a config").failed_with(&["not a variable name"]);
    machine.verb("config set A=1 A=2 -a config").failed_with(&["`A` is given twice"]);
    machine.verb("apps create config").failed_with(&["your app config already"]);
    machine.verb("releases rollback v2 -a config").succeeded().says(&["Released v4"]);
    assert_eq!(
        machine.verb("config -a config --format json").succeeded().stdout,
        "{\n  \"A\": \"one\",\n  \"B\": \"two words\"\n}\n"
    );
    assert_eq!(machine.get("config", "/").unwrap(), (200, "page".to_owned()));
}

#[test]
fn the_command_line_finds_server_and_app_from_the_git_remote() {
    let machine = Machine::start();
    let web = machine.web("remote", "page");
    web.push().succeeded();
    let here = |words: &[&str]| {
        let mut command = Command::new(crate::ordinary_user::executable());
        let path = format!("{}:{}", wrapper(&machine).display(), std::env::var("PATH").unwrap());
        command.args(words).current_dir(&web.path).env("PATH", path).env("HOME", machine.path().join("home"));
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (ok, builds) = here(&["builds"]);
    assert!(ok && builds.contains("#1") && builds.contains("released as v1"), "{builds}");
    let (ok, info) = here(&["apps", "info"]);
    assert!(ok && info.contains("http://remote.localhost:"), "{info}");
    let (_, json) = here(&["apps", "info", "--format", "json"]);
    let app: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(app["scale"], serde_json::json!({"web": 1}), "what runs, whoever has said it");
    let (ok, json) = here(&["releases", "--format", "json"]);
    let releases: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(ok && releases[0]["summary"].as_str().unwrap().contains("deployed"), "{json}");
}

/// An `ssh` that uses the test's key, as a user's own configuration would.
fn wrapper(machine: &Machine) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = machine.path().join("bin");
    std::fs::create_dir_all(&directory).unwrap();
    let ssh = directory.join("ssh");
    let real = machine.ssh_command("id_ed25519").replacen("ssh ", "/usr/bin/ssh ", 1);
    std::fs::write(&ssh, format!("#!/bin/sh\nexec {real} \"$@\"\n")).unwrap();
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

#[test]
fn a_greeting_help_and_mistakes_are_friendly() {
    let machine = Machine::start();
    machine.verb("").succeeded().says(&["there is no shell here", "git remote add deis ssh://hephy@"]);
    machine.verb("--help").succeeded().says(&["apps", "builds", "config"]);
    machine.verb("bilds").failed_with(&["builds"]);
    machine.verb("logs").failed_with(&["which app?"]);
    machine.verb("apps --format json").succeeded().says(&["[]"]);
}

#[test]
fn destroying_an_app_removes_all_of_it() {
    let machine = Machine::start();
    let web = machine.web("gone", "page");
    web.push().succeeded();
    machine.verb("apps destroy -a gone --confirm other").failed_with(&["is not the app's name"]);
    machine.verb("apps destroy -a gone --confirm gone").succeeded();
    assert_eq!(machine.get("gone", "/").unwrap().0, 404);
    assert!(!machine.data().join("repositories/gone.git").exists());
    web.push().succeeded().says(&["build #1"]);
    assert_eq!(machine.get("gone", "/").unwrap(), (200, "page".to_owned()));
}

#[test]
fn the_image_of_an_app_is_read_and_written_by_other_peoples_clients() {
    let machine = Machine::start();
    machine.web("image", "page").push().succeeded();
    let registry = machine.address("registry");
    let run = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let image = format!("docker://{registry}/image:v1");
    let (ok, raw) = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &image]);
    let index: serde_json::Value = serde_json::from_str(&raw).unwrap();
    assert!(ok && index["mediaType"] == "application/vnd.oci.image.index.v1+json", "{raw}");
    let copy = format!("docker://{registry}/image:copy");
    let refused = run(
        "skopeo",
        &["copy", "-q", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", &image, &copy],
    );
    assert!(!refused.0, "{}", refused.1);
    let token = machine.verb("registry token").succeeded().stdout;
    let credentials = format!("--dest-creds=hephy:{}", token.trim());
    let copied = run(
        "skopeo",
        &[
            "copy",
            "-q",
            "--all",
            &credentials,
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            &image,
            &copy,
        ],
    );
    assert!(copied.0, "{}", copied.1);
    let (ok, inspected) = run("skopeo", &["inspect", "--tls-verify=false", &copy]);
    assert!(ok && inspected.contains("image"), "{inspected}");
}

#[test]
fn a_verb_reaches_the_server_as_git_does() {
    let machine = Machine::start();
    let app = machine.web("hello", "page");
    app.push().succeeded();
    let mut command = Command::new(crate::ordinary_user::executable());
    command.args(["config", "--format", "json"]).current_dir(&app.path).stdin(Stdio::null());
    command.env("HOME", "/nonexistent").env("GIT_SSH_COMMAND", machine.ssh_command("id_ed25519"));
    let shown = Ran::of(command.output().unwrap()).succeeded();
    assert!(shown.stdout.trim_start().starts_with(['{', '[']), "{shown:?}");
}
