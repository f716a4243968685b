//! The installation that the README shows, with nothing but the image and a key: hephy's own registry on a volume.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use serde_json::json;
use tempfile::TempDir;

use super::installation::{Installation, Repository};
use super::{Setting, kubectl, run};
use crate::machine::eventually;

/// A volume for whoever claims one. The directory is the test's: nodes are to see this machine's files.
pub(super) struct Volume {
    name: String,
    directory: TempDir,
}

impl Volume {
    pub(super) fn new() -> Self {
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
    an_installation_ends_when_nodes_of_both_architectures_have_pulled();
    give_it_a_base(&hephy, "busybox:latest");
    let app = hephy.web("hello", "one\n");
    app.push().succeeded().says(&["(2 platforms,", "Released v1"]);
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "one\n".to_owned()));
    an_upgrade_fails_no_build(&hephy, &app);
    an_installation_without_more_words_takes_up_what_one_left(&hephy, &app);
    if !super::is_strict() {
        builds_have_users_of_their_own_where_the_value_says(&hephy, &app);
    }
    a_platform_without_a_node_is_made_on_another_if_nothing_of_it_is_executed(&hephy);
    builds_and_receivers_trust_what_the_value_says(&hephy);
    a_name_that_no_node_knows_ends_the_installation_with_the_value_to_change(&hephy);
}

/// The step of the chart is gone when it has succeeded; the server says what it saw.
fn an_installation_ends_when_nodes_of_both_architectures_have_pulled() {
    let logs = kubectl(&["logs", "deployment/hephy", "-n", "hephy"]).succeeded().stdout;
    let line = logs.lines().find(|line| line.contains("nodes can pull")).unwrap_or_else(|| panic!("{logs}"));
    for node in ["n1", "n2"] {
        assert!(line.contains(&format!("Pulled {{ node: \\\"{node}\\\" }}")), "{line}");
    }
    let left = ["get", "jobs,pods", "-A", "-l", "app.kubernetes.io/component=pull-check", "-o", "name"];
    assert_eq!(kubectl(&left).succeeded().stdout, "");
}

/// No public registry is reached from the cluster: a base is found in the mirror.
pub(super) fn give_it_a_base(hephy: &Installation, base: &str) {
    let setting = Setting::read();
    let token = hephy.verb("registry token").succeeded().stdout;
    let credentials = format!("hephy:{}", token.trim());
    let from = format!("docker://{}/mirror/library/{base}", setting.registry);
    let to = format!("docker://{}:30500/mirror/library/{base}", setting.node);
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
    let shown = good.replace(
        "RUN sleep 15;",
        "RUN test ! -e /proc/self/uid_map || cat /proc/self/uid_map; : >/dev/null;",
    );
    app.commit(&[("Dockerfile", &shown), ("www/index.html", "own users\n")]);
    app.push().succeeded().says(&["(2 platforms,"]);
    assert_eq!(hephy.get("hello", "/").unwrap(), (200, "own users\n".to_owned()));
    let pods = ["get", "pods", "-n", "hephy-builds", "-o", "jsonpath={.items[*].spec.hostUsers}"];
    assert!(kubectl(&pods).succeeded().stdout.contains("false"));
}

fn a_platform_without_a_node_is_made_on_another_if_nothing_of_it_is_executed(hephy: &Installation) {
    hephy.upgrade(&[r"build.nodeSelector.kubernetes\.io/arch=amd64"]).succeeded();
    let dockerfile = "FROM --platform=$BUILDPLATFORM busybox AS made\nARG TARGETARCH\n\
        RUN uname -m > /page && echo $TARGETARCH >> /page\n\
        FROM busybox\nCOPY --from=made /page /www/index.html\nEXPOSE 8000\nCMD exec httpd -f -p $PORT -h /www\n";
    let both = "[build]\nplatforms = [\"linux/amd64\", \"linux/arm64\"]\n";
    let app = hephy.repository("cross", &[("Dockerfile", dockerfile), ("hephy.toml", both)]);
    let refused =
        app.push().failed_with(&["nothing here builds natively for linux/arm64: there is linux/amd64"]);
    assert!(!refused.stderr.contains("Building"), "{}", refused.stderr);
    app.commit(&[("hephy.toml", &format!("{both}require_native_nodes = false\n"))]);
    app.push().succeeded().says(&[
        "linux/arm64 is made on linux/amd64, where nothing of it is executed",
        "Building on 1 node",
        "(2 platforms,",
    ]);
    let page = hephy.get("cross", "/").unwrap().1;
    assert!(page.starts_with("x86_64\n"), "it was made on an amd64 node: {page}");
    let executes = dockerfile.replace("FROM busybox\n", "FROM busybox\nRUN true\n");
    app.commit(&[("Dockerfile", &executes)]);
    app.push().failed_with(&["Dockerfile:5 executes a program of linux/arm64, and nothing is emulated"]);
    let lacks = dockerfile.replace("FROM busybox\n", "FROM busybox:none\n");
    app.commit(&[("Dockerfile", &lacks)]);
    let refused = app.push().failed_with(&[
        "Dockerfile:4 on linux/amd64",
        "Dockerfile:4 on linux/arm64",
        "busybox:none",
    ]);
    assert!(!refused.stderr.contains("Building"), "{}", refused.stderr);
}

fn builds_and_receivers_trust_what_the_value_says(hephy: &Installation) {
    let pem = hephy.path().join("company.pem");
    let company =
        "-----BEGIN CERTIFICATE-----\nb3Vycy1vZi10aGUtY29ycG9yYXRpb24=\n-----END CERTIFICATE-----\n";
    std::fs::write(&pem, company).unwrap();
    hephy.upgrade_with(&["--set-file", &format!("build.caBundle={}", pem.display())]).succeeded();
    let dockerfile = "FROM busybox\nRUN mkdir /www && cp $SSL_CERT_FILE /www/index.html\nEXPOSE 8000\nCMD exec httpd -f -p $PORT -h /www\n";
    let app = hephy.repository("trusting", &[("Dockerfile", dockerfile)]);
    app.push().succeeded();
    let page = hephy.get("trusting", "/").unwrap().1;
    assert!(page.contains(company.trim()), "{page}");
}

fn a_name_that_no_node_knows_ends_the_installation_with_the_value_to_change(hephy: &Installation) {
    let ended = hephy.upgrade(&["registry.embedded.pullHost=nowhere.invalid:5000"]);
    assert!(!ended.ok, "{}", ended.stdout);
    let logs = kubectl(&["logs", "-n", "hephy", "-l", "app.kubernetes.io/component=pull-check"]).succeeded();
    let said = format!("{}{}{}", ended.stderr, logs.stdout, logs.stderr);
    for text in
        ["pull-check", "leave registry.embedded.pullHost empty", "nowhere.invalid", "node n1", "node n2"]
    {
        assert!(said.contains(text), "`{text}` is not in:\n{said}");
    }
    hephy.upgrade(&[]).succeeded();
}
