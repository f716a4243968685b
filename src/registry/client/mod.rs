//! A client for OCI registries (distribution-spec 1.1).
//!
//! Ours rather than a crate's, because a push hangs on what no crate does: authentication that follows the
//! registry's challenge and renews itself in mid-flight, transfers in bounded memory that resume, uploads that can
//! be repeated, and retries that wait as long as the registry asks.
//!
//! A credential goes to the registry that it is for and to the token server that this registry names, and nowhere
//! else: not after a redirect, not to an upload location on another host.

mod advice;
mod answer;
mod auth;
mod blob;
mod call;
mod challenge;
mod chunks;
mod connections;
mod credentials;
mod error;
mod host;
mod manifests;
mod part;
mod pull;
mod reach;
mod scheme;
mod tls;
mod transport;
mod upload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

pub use advice::{CertificateProblem, Given};
pub use blob::{BlobSource, Transfer};
pub(in crate::registry) use credentials::shown;
pub use credentials::{Credential, Credentials, CredentialsError, DockerConfig, registry_key};
pub use error::ClientError;
pub use manifests::ResolvedImage;
pub use reach::{Hosts, Reach, ReachError};
pub use tls::TlsError;
pub(crate) use tls::{Trust, certificates_of, system_bundle_file, tls_configuration};

use connections::Connections;
use host::{HostState, lock};

use crate::oci::Host;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Who we are, at which registry.
    pub credentials: Credentials,
    /// Which registries are reached how.
    pub reach: Reach,
    /// How often a request is repeated after a failure that may pass.
    pub retries: usize,
    /// How many requests to one registry may be under way at once.
    pub requests_per_host: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        let (credentials, reach) = (Credentials::none(), Reach::default());
        Self { credentials, reach, retries: 5, requests_per_host: 16 }
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
    connections: Connections,
    hosts: Mutex<HashMap<Host, Arc<HostState>>>,
}

impl Client {
    /// A client that has not spoken to anybody yet.
    #[must_use]
    pub fn new(mut config: ClientConfig) -> Self {
        config.credentials = config.credentials.trusting(config.reach.authorities_everywhere());
        let connections = Connections::new(config.reach.clone());
        Self { shared: Arc::new(Shared { config, connections, hosts: Mutex::default() }) }
    }

    fn host_state(&self, host: &Host) -> Arc<HostState> {
        let new = || Arc::new(HostState::new(self.shared.config.requests_per_host));
        lock(&self.shared.hosts).entry(host.clone()).or_insert_with(new).clone()
    }
}
