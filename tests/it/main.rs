//! Integration tests: one binary, a module for each subject.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod architecture;
mod bases;
mod build;
mod chart;
mod cluster;
mod collector;
mod crds;
mod dependencies;
mod documents;
mod driver_conformance;
mod git;
mod in_part;
mod keeping;
mod layers;
mod leases;
mod logs;
mod publish;
mod registry;
mod examples;
mod fuzz;
mod machine;
mod ordinary_user;
mod push;
mod store_conformance;
mod router;
mod receive;
mod sandbox_conformance;
mod sources;
mod runtime_conformance;
mod runtime_processes;
