//! A node that loses its power under a build. Not in the usual run: everything that is on the node is lost with it.

use std::process::{Command, Stdio};

use super::installation::Installation;
use super::kubectl;
use super::whole::{RUNNING, SERVER};
use crate::machine::{Ran, eventually};

#[test]
#[ignore = "needs a cluster, and a program that stops its nodes: HEPHY_CLUSTER=… scripts/test-cluster cluster::power"]
fn a_build_whose_node_loses_power_is_made_again() {
    let cluster = std::env::var_os("HEPHY_CLUSTER").unwrap();
    let cluster = |words: &[&str]| {
        // What it starts goes on, and would keep a pipe open.
        let status = Command::new(&cluster).args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.unwrap().success(), "{words:?}");
    };
    let hephy = Installation::install(&[]);
    let app = hephy.web("hello", "with power\n");
    let good = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    let slow = good.replace("RUN uname -m > /machine", "RUN sleep 11; uname -m > /machine");
    assert_ne!(slow, good);
    app.commit(&[("Dockerfile", &slow)]);
    let mut push = app.command(&["push", "deis", "main"]);
    let push = push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("both pods build", || kubectl(&RUNNING).stdout.lines().count() == 2);
    // The server is to be on the other one.
    let place = ["get", "pods", "-n", "hephy", "-l", SERVER, "-o", "jsonpath={.items[*].spec.nodeName}"];
    let lost = if kubectl(&place).succeeded().stdout == "n2" { "n1" } else { "n2" };
    cluster(&["stop-node", lost]);
    cluster(&["up"]);
    Ran::of(push.wait_with_output().unwrap()).succeeded().says(&["attempt 2 of 3"]);
    eventually("the app answers", || {
        hephy.get("hello", "/").is_ok_and(|answer| answer == (200, "with power\n".to_owned()))
    });
}
