//! Settings: of the server, and of an app's `hephy.toml`.

pub mod app;
pub mod address;
pub mod cluster;
pub mod server;
pub mod traces;
