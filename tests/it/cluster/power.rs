//! Nodes that lose their power under a build. Not in the usual run: everything that is on a node is lost with it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use super::installation::{Installation, Repository};
use super::kubectl;
use super::whole::{RUNNING, SERVER};
use crate::machine::{Ran, eventually};

/// An app that is in the middle of its builds on both nodes, and the push that waits for them.
fn building(hephy: &Installation) -> (Repository<'_>, Child) {
    let app = hephy.web("hello", "with power\n");
    let good = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    // Which no build has made before.
    let slow = format!("RUN : {:08x}; sleep 11; uname -m > /machine", rand::random::<u32>());
    let slow = good.replace("RUN uname -m > /machine", &slow);
    assert_ne!(slow, good);
    app.commit(&[("Dockerfile", &slow)]);
    let mut push = app.command(&["push", "deis", "main"]);
    let push = push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("both pods build", || kubectl(&RUNNING).stdout.lines().count() == 2);
    (app, push)
}

/// The node on which the server is not.
fn other_node() -> &'static str {
    let place = ["get", "pods", "-n", "hephy", "-l", SERVER, "-o", "jsonpath={.items[*].spec.nodeName}"];
    if kubectl(&place).succeeded().stdout == "n2" { "n1" } else { "n2" }
}

fn cluster(words: &[&str]) {
    // What it starts goes on, and would keep a pipe open.
    let mut command = Command::new(std::env::var_os("HEPHY_CLUSTER").unwrap());
    let status = command.args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success(), "{words:?}");
}

#[test]
#[ignore = "needs a cluster, and a program that stops its nodes: HEPHY_CLUSTER=… scripts/test-cluster cluster::power"]
fn a_build_whose_node_loses_power_is_made_again() {
    let hephy = Installation::install(&[]);
    let (_app, push) = building(&hephy);
    cluster(&["stop-node", other_node()]);
    cluster(&["up"]);
    Ran::of(push.wait_with_output().unwrap()).succeeded().says(&["attempt 2 of 3"]);
    eventually("the app answers", || {
        hephy.get("hello", "/").is_ok_and(|answer| answer == (200, "with power\n".to_owned()))
    });
}

#[test]
#[ignore = "needs a cluster, and a program that stops its nodes: HEPHY_CLUSTER=… scripts/test-cluster cluster::power"]
fn a_build_whose_node_is_given_up_waits_for_another() {
    let hephy = Installation::install(&[]);
    let (_app, mut push) = building(&hephy);
    cluster(&["stop-node", other_node()]);
    // The cluster gives the node up after 40 seconds, and the build's pod a minute later.
    let mut told = BufReader::new(push.stderr.take().unwrap()).lines().map_while(Result::ok);
    for expected in ["attempt 2 of 3", "takes the build: 0/2 nodes are available"] {
        assert!(told.any(|line| line.contains(expected)), "{expected}");
    }
    cluster(&["up"]);
    let rest: Vec<String> = told.collect();
    assert!(push.wait().unwrap().success(), "{rest:#?}");
    eventually("the app answers", || {
        hephy.get("hello", "/").is_ok_and(|answer| answer == (200, "with power\n".to_owned()))
    });
}
