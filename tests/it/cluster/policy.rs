//! What builds reach where the network enforces policies. Tried where `kube-router` is in the PATH, which is started as the
//! one that does so on the node `n1`.

use std::process::{Child, Command, Stdio};

use super::defaults::{Volume, give_it_a_base};
use super::installation::{Installation, Repository};
use super::kubectl;
use crate::machine::eventually;

/// What is outside, and what a build needs.
const OPEN: [&str; 2] = ["hephy-internal.hephy:8080", "deb.debian.org:80"];

/// Enforces the policies of the cluster until it is dropped.
struct KubeRouter(Child);

impl KubeRouter {
    fn start() -> Self {
        let config = std::env::var("KUBECONFIG").unwrap();
        let mut command = Command::new("kube-router");
        command
            .args([
                "--run-router=false",
                "--run-service-proxy=false",
                "--run-firewall=true",
                "--health-port=0",
            ])
            .args(["--hostname-override=n1", "--iptables-sync-period=1s", "--kubeconfig", &config])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for KubeRouter {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
        drop(super::run("kube-router", &["--cleanup-config"]));
    }
}

/// Which of these a build can connect to.
fn reached<'a>(app: &Repository<'_>, addresses: &[&'a str]) -> Vec<&'a str> {
    let asks = addresses.iter().map(|address| {
        let (host, port) = address.rsplit_once(':').unwrap();
        let connects = format!("timeout 4 bash -c '</dev/tcp/{host}/{port}'");
        format!("RUN if {connects}; then is=open; else is=closed; fi; echo {address} is $is\n")
    });
    // The file is another each time, so that all are asked.
    let dockerfile = format!("FROM debian:12\nCOPY now /\n{}CMD exec sleep 1000\n", asks.collect::<String>());
    app.commit(&[("Dockerfile", &dockerfile), ("now", &format!("{:?}", std::time::SystemTime::now()))]);
    let pushed = app.push().succeeded();
    addresses
        .iter()
        .copied()
        .filter(|address| {
            let is = |what: &str| pushed.stderr.contains(&format!("{address} is {what}"));
            assert!(is("open") != is("closed"), "{address}: {}", pushed.stderr);
            is("open")
        })
        .collect()
}

#[test]
#[ignore = "needs a cluster and who enforces policies: scripts/test-cluster cluster::policy"]
fn builds_reach_what_is_outside_and_hephy_and_nothing_else() {
    if Command::new("kube-router").arg("--version").output().is_err() {
        eprintln!("there is no kube-router in the PATH: not tried");
        return;
    }
    let _volume = Volume::new();
    let hephy = Installation::install_as_documented();
    give_it_a_base(&hephy, "busybox:latest");
    give_it_a_base(&hephy, "debian:12");
    hephy.web("hello", "inside\n").push().succeeded();
    let server = kubectl(&["get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[0].addresses[0].ip}"]);
    let node = server.succeeded().stdout;
    // Names are answered by no pod here, but at that address.
    let dns = format!("networkPolicy.dns.peers[0].ipBlock.cidr={node}/32");
    hephy.upgrade(&[&dns]).succeeded();
    let node = format!("{node}:5000");
    let closed = ["kubernetes.default:443", "hello--web.hephy-apps:80", "hephy-router.hephy:80", &node];
    let all = [&OPEN[..], &closed].concat();
    let toml = "[build]\nplatforms = [\"linux/amd64\"]\n";
    let app = hephy.repository("curious", &[("hephy.toml", toml), ("Procfile", "worker: sleep 1000\n")]);
    assert_eq!(reached(&app, &all), all, "nobody enforces anything");
    let _enforcing = KubeRouter::start();
    eventually("it enforces", || super::run("iptables", &["-S", "KUBE-ROUTER-FORWARD"]).ok);
    assert_eq!(reached(&app, &all), OPEN);
}
