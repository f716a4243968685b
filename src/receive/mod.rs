//! Receives: the SSH server that pushes, fetches and remote verbs come in by.
//!
//! A key says who it is, whatever user name is given; a client without a known key is let in as nobody and
//! told which keys it offered and how one is added. Knows no app, no repository and no verb: what is asked
//! for is handed to a [`Handler`] as a [`Session`], and what it says goes back whole before its exit status.
//! Nothing a client sends is run by a shell.

mod admission;
mod channel;
mod closed;
mod command;
mod connection;
mod gate;
mod host_key;
pub mod key_files;
pub mod keys;
mod nobody;
mod server;
mod session;
mod streams;
mod wire;
mod words;

pub use closed::{Closed, Gone};
pub use command::{Command, CommandError, app_of_path};
pub use host_key::{HostKey, HostKeyError, new_host_key};
pub use server::{Limits, Server};
pub use session::{Directory, DirectoryError, Environment, Handler, KnownKey, Session, Terminal};
pub use streams::{Output, Stdin};
pub use words::WordsError;
