//! A client for OCI registries (distribution-spec 1.1).
//!
//! Ours rather than a crate's, because a push hangs on what no crate does: authentication that follows the
//! registry's challenge and renews itself in mid-flight, transfers in bounded memory that resume, uploads that can
//! be repeated, and retries that wait as long as the registry asks.
//!
//! A credential goes to the registry that it is for and to the token server that this registry names, and nowhere
//! else: not after a redirect, not to an upload location on another host.

mod auth;
mod challenge;
mod credentials;
mod error;
mod manifests;
mod pull;
mod transport;
mod upload;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

pub use credentials::{Credential, Credentials, CredentialsError};
pub use error::ClientError;
pub use manifests::ResolvedImage;
pub use upload::{BlobSource, Transfer};

use crate::oci::Host;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Who we are, at which registry.
    pub credentials: Credentials,
    /// Registries that are spoken to without TLS; loopback always is.
    pub plain_http: BTreeSet<Host>,
    /// How often a request is repeated after a failure that may pass.
    pub retries: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self { credentials: Credentials::none(), plain_http: BTreeSet::new(), retries: 5 }
    }
}

/// A registry client. Clones share connections and tokens; a process needs one.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ClientConfig,
    /// For loopback: no TLS, no proxy.
    loopback: OnceLock<reqwest::Client>,
    /// For everything else; made when it is first needed, since it reads the system's certificates.
    remote: OnceLock<reqwest::Client>,
    hosts: Mutex<HashMap<Host, Arc<auth::HostState>>>,
}

impl Client {
    /// A client that has not spoken to anybody yet.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        let (loopback, remote) = (OnceLock::new(), OnceLock::new());
        Self { shared: Arc::new(Shared { config, loopback, remote, hosts: Mutex::default() }) }
    }
}
