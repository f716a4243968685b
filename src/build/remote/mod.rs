//! What `ADD` and contexts take from elsewhere: files over HTTP, and git repositories.
//!
//! Fetched by the engine, which has a network, and handed on as descriptors: the sandbox's worker never connects to
//! anything. Where the build's network is its own, nothing is asked that its RUN steps could not ask either.

mod address;
mod git;
mod guard;
mod http;
mod object;

use std::io;
use std::time::Duration;

use url::Url;

pub(crate) use address::{Address, GitAddress, GitRemote, http_name};
pub(crate) use git::{Git, GitCredentials, GitOptions};
pub(crate) use guard::Guard;
pub(crate) use http::{Answer, Download, MAX_DOWNLOAD_BYTES, Validators, Web};
pub(crate) use object::{Object, Objects};

use crate::oci::Digest;
use crate::registry::client::TlsError;
use crate::registry::identity::IdentityError;

/// Why something from elsewhere could not be had. No text has a user, a password or a query of an address in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    /// Not an address that can be fetched.
    #[error("`{address}` is not an address to fetch: {reason}")]
    Address { address: String, reason: String },
    /// Not for a build whose network is its own.
    #[error("`{host}` is not reachable from this build: {reason}")]
    Forbidden { host: String, reason: &'static str },
    /// Nobody answers.
    #[error("failed to fetch `{address}`")]
    Web { address: String, source: reqwest::Error },
    /// The other end answers with something else than the file.
    #[error("`{address}` answers {status}")]
    Status { address: String, status: reqwest::StatusCode },
    /// A store does not give an object.
    #[error("`{address}` answers {status} to {who}{}", said(.message))]
    Object { address: String, status: reqwest::StatusCode, who: String, message: String },
    /// Whom a store would know is not to be found out.
    #[error("cannot ask for `{address}` as this machine")]
    Identity { address: String, source: IdentityError },
    /// The other end fell silent.
    #[error("`{address}` sent nothing for {}", humantime::format_duration(*.limit))]
    Stalled { address: String, limit: Duration },
    /// More than is accepted.
    #[error("`{address}` is larger than {max_bytes} bytes, the limit of a download")]
    TooLarge { address: String, max_bytes: u64 },
    /// Less than was announced.
    #[error("`{address}` ended before all of it was there")]
    Cut { address: String },
    /// Not what was asked for.
    #[error("`{address}` is {found}, and `--checksum` says {expected}")]
    Checksum { address: String, expected: String, found: String },
    /// Not what it was a moment ago.
    #[error("`{address}` changed while it was built: it was {before}, and is {now}")]
    Changed { address: String, before: Digest, now: Digest },
    /// Something that `git` could not do.
    #[error("failed to {what} `{address}`{}", said(.message))]
    Git { what: &'static str, address: String, message: String },
    /// A branch, tag or commit that the repository does not have.
    #[error("`{address}` has no branch, tag or commit `{reference}`")]
    NoReference { address: String, reference: String },
    /// Nobody could be believed.
    #[error("nothing can be fetched by HTTPS")]
    Tls(#[source] TlsError),
    /// Files of our own.
    #[error("failed to {what}")]
    Io { what: &'static str, source: io::Error },
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl RemoteError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Whether who wrote the Dockerfile can do something about it.
    pub(crate) const fn is_app(&self) -> bool {
        !matches!(self, Self::Tls(_) | Self::Io { .. })
    }
}

/// An address without what may be secret in it.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Neither can fail for an address that has a host.
    let _no_user = url.set_username("");
    let _no_password = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}
