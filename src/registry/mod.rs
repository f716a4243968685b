//! OCI registries: a client for anybody's, who we are at a cloud's, and one of our own.
//!
//! Neither knows what is in a layer, what a build or a release is; the server knows apps by name only, for the
//! scopes of its tokens.

pub mod client;
pub mod identity;
pub mod server;
