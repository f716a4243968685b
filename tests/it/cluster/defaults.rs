//! The installation that the README shows, with nothing but the image and a key: hephy's own registry on a volume.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use serde_json::json;
use tempfile::TempDir;

use super::installation::{Installation, Repository};
use super::{Setting, kubectl, run};
use crate::machine::eventually;

/// A volume for whoever claims one. The directory is the test's: nodes are to see this machine's files.
struct Volume {
    name: String,
    directory: TempDir,
}

impl Volume {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("hephy-volume-").tempdir().unwrap();
        // The kubelet changes no owner of what is in a host's path.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let name = format!("hephy-test-{:08x}", rand::random::<u32>());
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
            "capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": directory.path()}}});
        let file = directory.path().with_extension("json");
        std::fs::write(&file, volume.to_string()).unwrap();
        let made = kubectl(&["apply", "-f", file.to_str().unwrap()]);
        std::fs::remove_file(&file).unwrap();
        made.succeeded();
        Self { name, directory }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(kubectl(&["delete", "pvc", "hephy-data", "-n", "hephy", "--ignore-not-found", "--wait=false"]));
        drop(kubectl(&["delete", "pv", &self.name, "--wait=false"]));
        drop(run("rm", &["-rf", self.directory.path().to_str().unwrap()]));
    }
}

#[test]
#[ignore = "needs a cluster: scripts/test-cluster"]
fn the_documented_installation_keeps_its_images_and_upgrades_under_a_build() {
    let _volume = Volume::new();
    let hephy = Installation::install_as_documented();
    give_it_a_base(&hephy);
    let app = hephy.web("hello", "one\n");
    app.push().succeeded().says(&["(2 platforms,", "Released v1"]);
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "one\n".to_owned()));
    an_upgrade_fails_no_build(&hephy, &app);
    an_installation_without_more_words_takes_up_what_one_left(&hephy, &app);
    builds_have_users_of_their_own_where_the_value_says(&hephy, &app);
}

/// No public registry is reached from the cluster: `FROM busybox` is found in the mirror.
fn give_it_a_base(hephy: &Installation) {
    let setting = Setting::read();
    let token = hephy.verb("registry token").succeeded().stdout;
    let credentials = format!("hephy:{}", token.trim());
    let from = format!("docker://{}/mirror/library/busybox:latest", setting.registry);
    let to = format!("docker://{}:30500/mirror/library/busybox:latest", setting.node);
    let flags = ["copy", "--all", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"];
    run("skopeo", &[&flags[..], &["--dest-creds", &credentials, &from, &to]].concat()).succeeded();
}

fn an_upgrade_fails_no_build(hephy: &Installation, app: &Repository<'_>) {
    let good = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    let slow = good.replace("RUN uname -m > /machine", "RUN sleep 15; uname -m > /machine");
    app.commit(&[("Dockerfile", &slow), ("www/index.html", "upgraded\n")]);
    let mut push = app.command(&["push", "deis", "main"]);
    let mut push = push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running =
        ["get", "pods", "-n", "hephy-builds", "--field-selector=status.phase=Running", "-o", "name"];
    eventually("both pods build", || kubectl(&running).stdout.lines().count() == 2);
    hephy.upgrade(&["server.logLevel=debug"]).succeeded();
    // It was told how to follow the build, or it saw its end.
    push.wait().unwrap();
    eventually("the build that ran through the upgrade is released", || {
        hephy.get("hello", "/").is_ok_and(|answer| answer == (200, "upgraded\n".to_owned()))
    });
    let jobs = kubectl(&["get", "jobs", "-n", "hephy-builds", "-o", "name"]).succeeded().stdout;
    assert!(!jobs.contains("--2\n"), "no build was made again:\n{jobs}");
}

fn an_installation_without_more_words_takes_up_what_one_left(hephy: &Installation, app: &Repository<'_>) {
    hephy.uninstall();
    hephy.upgrade(&[]).succeeded();
    eventually("the router answers again", || {
        hephy.get("hello", "/").is_ok_and(|answer| answer == (200, "upgraded\n".to_owned()))
    });
    app.commit(&[("www/index.html", "again\n")]);
    app.push().succeeded();
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "again\n".to_owned()));
}

fn builds_have_users_of_their_own_where_the_value_says(hephy: &Installation, app: &Repository<'_>) {
    hephy.upgrade(&["build.hostUsers=false"]).succeeded();
    let good = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    // What only they can: in a namespace of one's own root is another id outside.
    let shown = good.replace("RUN sleep 15;", "RUN cat /proc/self/uid_map;");
    // An emulated pod in a namespace of its own may neither mount nor make devices.
    let native = "[build]\nplatforms = [\"linux/amd64\"]\n";
    app.commit(&[("Dockerfile", &shown), ("www/index.html", "own users\n"), ("hephy.toml", native)]);
    app.push().succeeded();
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "own users\n".to_owned()));
    let pods = ["get", "pods", "-n", "hephy-builds", "-o", "jsonpath={.items[*].spec.hostUsers}"];
    assert!(kubectl(&pods).succeeded().stdout.contains("false"));
}
