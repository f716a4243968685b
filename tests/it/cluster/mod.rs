//! On a real cluster of two architectures: `scripts/test-cluster` starts it and runs what is ignored otherwise.

mod chart;
mod cli;
mod controller;
mod defaults;
mod driver;
mod image;
mod installation;
mod place;
mod policy;
mod power;
mod rights;
mod router;
mod runtime;
mod store;
mod web_image;
mod whole;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::machine::Ran;

/// What the environment says of the cluster.
pub(crate) struct Setting {
    /// The registry that host, pods and nodes reach, over plain HTTP.
    pub(crate) registry: String,
    /// The address that node ports are reached at.
    pub(crate) node: String,
    /// hephy's own image there.
    pub(crate) image: String,
}

impl Setting {
    pub(crate) fn read() -> Self {
        let variable = |name: &str, otherwise: &str| {
            std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| otherwise.to_owned())
        };
        assert!(std::env::var_os("KUBECONFIG").is_some(), "KUBECONFIG is not set: run scripts/test-cluster");
        let registry = variable("HEPHY_TEST_REGISTRY", "10.88.0.1:5000");
        let node = variable("HEPHY_TEST_NODE", "10.88.0.1");
        let image = variable("HEPHY_TEST_IMAGE", &format!("{registry}/hephy:dev"));
        Self { registry, node, image }
    }
}

/// Whether no user namespace can be had (`scripts/test-cluster --strict`).
pub(crate) fn is_strict() -> bool {
    std::env::var_os("HEPHY_TEST_STRICT").is_some()
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, words: &[&str]) -> Ran {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    Ran::of(output.unwrap_or_else(|error| panic!("{program}: {error}")))
}

pub(crate) fn kubectl(words: &[&str]) -> Ran {
    run("kubectl", words)
}

pub(crate) fn helm(words: &[&str]) -> Ran {
    run("helm", words)
}

/// The chart.
pub(crate) fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("charts/hephy")
}
