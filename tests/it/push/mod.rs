//! The whole way of a push, with real git and ssh, into real namespaces, and over HTTP to the app.

mod deploys;
mod full_disk;
mod interrupted;
mod keys;
mod platforms;
mod refs;
mod rollout;
mod telemetry;
mod verbs;
