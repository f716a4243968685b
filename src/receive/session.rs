//! The seams of the receiver: who holds a key, and what a session does.

use std::error::Error;
use std::net::SocketAddr;

use async_trait::async_trait;

use crate::model::{Fingerprint, PublicKey, UserName};

use super::{Closed, Command, Output, Stdin};

/// A key that is known, and whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// Whose it is.
    pub user: UserName,
    /// What the user calls it.
    pub key_name: String,
}

/// The users could not be looked at; nothing is known about the key.
#[derive(Debug, thiserror::Error)]
#[error("the users cannot be read")]
pub struct DirectoryError(#[source] pub Box<dyn Error + Send + Sync>);

/// Knows the users' keys.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Who holds a key. Asked for each key that a client offers, and again when it has proved to hold it.
    async fn user_of(&self, key: &PublicKey) -> Result<Option<KnownKey>, DirectoryError>;

    /// The lines that tell a stranger how one of these keys is added: the literal command, as pasted.
    /// There may be no keys, if the client offered none that could be added.
    fn how_to_add(&self, keys: &[PublicKey]) -> Vec<String>;
}

/// Does what authenticated clients ask for.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Does it, and returns the exit status. What was written before is delivered before the status.
    ///
    /// Not cancelled when the client goes away, which [`Session::closed`] tells; dropped at any await only when
    /// the server stops and its grace is over.
    async fn run(&self, session: Session) -> u8;
}

/// One command of one client.
#[derive(Debug)]
pub struct Session {
    /// Who it is.
    pub user: UserName,
    /// The key it proved to hold, by the user's name for it.
    pub key_name: String,
    /// The key's fingerprint.
    pub fingerprint: Fingerprint,
    /// Where it comes from.
    pub remote: SocketAddr,
    /// The user name in `ssh name@host`. Means nothing: the key says who it is.
    pub login: String,
    /// What it asks for.
    pub command: Command,
    /// What it says about itself.
    pub environment: Environment,
    /// The terminal it asked for. Line ends are translated on the way; standard error is standard output then.
    pub terminal: Option<Terminal>,
    /// What it sends. Ends when the client has no more to send: `git push` says so after each pack, so the
    /// end is no sign that it has gone. Drop it when it is not to be read, or a client that sends stops.
    pub stdin: Stdin,
    /// What it prints.
    pub stdout: Output,
    /// What it prints as errors.
    pub stderr: Output,
    /// Whether it is still there.
    pub closed: Closed,
}

/// The variables of a client's environment that are looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `GIT_PROTOCOL`, such as `version=2`.
    pub git_protocol: Option<String>,
    /// `LANG`.
    pub lang: Option<String>,
    /// `COLUMNS`.
    pub columns: Option<u16>,
}

impl Environment {
    /// Takes a variable if it is one of these and its value is harmless; says whether it did.
    pub(super) fn set(&mut self, name: &str, value: &str) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || "=:.,-_@".contains(c);
        if value.len() > 256 || !value.chars().all(plain) {
            return false;
        }
        match name {
            "GIT_PROTOCOL" => self.git_protocol = Some(value.to_owned()),
            "LANG" => self.lang = Some(value.to_owned()),
            "COLUMNS" => self.columns = value.parse().ok(),
            _ => return false,
        }
        true
    }
}

/// A client's terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// `TERM`.
    pub kind: String,
    /// Its width in characters, 0 if not known.
    pub columns: u16,
    /// Its height in lines, 0 if not known.
    pub rows: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_variables_are_kept() {
        let mut environment = Environment::default();
        assert!(environment.set("GIT_PROTOCOL", "version=2:agent=git/2".replace('/', "-").as_str()));
        assert!(environment.set("COLUMNS", "80"));
        for (name, value) in
            [("GIT_PROTOCOL", "version=2\nx"), ("LANG", "$(x)"), ("LD_PRELOAD", "x"), ("PATH", "x")]
        {
            assert!(!environment.set(name, value), "{name}");
        }
        assert_eq!(environment.git_protocol.as_deref(), Some("version=2:agent=git-2"));
        assert_eq!(environment.columns, Some(80));
    }
}
