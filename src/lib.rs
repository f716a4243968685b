//! hephy: `git push deis main`, and your code runs.
//!
//! The modules are listed in reading order: formats know no IO, mechanisms know no stage, stages are the
//! steps of a push, and `push` is the one function that names every stage. An arrow that runs back up this
//! list fails `tests/it/architecture.rs`.

pub mod oci;
pub mod model;
pub mod config;
pub mod dockerfile;
pub mod buildpack;
pub mod git;
pub mod sandbox;
pub mod layers;
pub mod registry;
pub mod router;
pub mod kubernetes;
pub mod bases;
pub mod traces;
pub mod profile;
pub mod receive;
pub mod detect;
pub mod plan;
pub mod build;
pub mod publish;
pub mod release;
pub mod rollout;
pub mod driver;
pub mod runtime;
pub mod store;
pub mod push;
pub mod serve;
pub mod cli;
