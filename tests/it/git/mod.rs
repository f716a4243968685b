//! The stock `git` client against our side of its protocol, over TCP as `git://` has it.

mod fetch;
mod hostile;
mod push;
pub(crate) mod server;
mod shallow;
mod source;
