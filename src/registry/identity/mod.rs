//! Who this machine is at a cloud, and what a registry of that cloud takes from it.
//!
//! Amazon's, Google's and Azure's registries take no password that somebody keeps: whoever runs there has an identity (a
//! role, a service account) from the environment or from a metadata service, and exchanges it for one that is good at the
//! registry for some hours. A cloud is asked only when a registry of that cloud asks for credentials, and what it gives goes to
//! that registry alone. Object stores of the same clouds are read as the same identities.

pub(crate) mod aws;
pub(crate) mod azure;
mod ecr;
pub(crate) mod google;
mod http;
mod host;
mod kept;
pub(crate) mod sigv4;
mod variables;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;

pub use host::Cloud;
pub(crate) use http::{Http, element};
pub(crate) use variables::Variables;

use kept::Kept;

use crate::model::Secret;
use crate::oci::Host;
use crate::registry::client::Reach;

/// Why a cloud gives nothing. No text has a secret in it.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It says no.
    #[error("{service} refuses {who}: {status}{}", said(.message))]
    Refused {
        /// Which part of a cloud.
        service: String,
        /// Who asked.
        who: String,
        /// Its answer.
        status: u16,
        /// What it says.
        message: String,
    },
    /// It does not answer.
    #[error("{service} cannot be reached")]
    Unreachable {
        /// Which part of a cloud.
        service: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Its answer is not what it documents.
    #[error("{service} answers with something else than {expected}")]
    Answer {
        /// Which part of a cloud.
        service: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// A file with an identity cannot be read.
    #[error("cannot read `{path}`, which {named_by} names")]
    Read {
        /// The file.
        path: String,
        /// The variable or the convention.
        named_by: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file or variable is not what it should be.
    #[error("{what} cannot be used: {problem}")]
    Unusable {
        /// Which.
        what: String,
        /// Why.
        problem: String,
    },
    /// TLS could not be set up on our side.
    #[error("TLS cannot be set up")]
    Tls(#[source] crate::registry::client::TlsError),
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(", {message}") }
}

/// What a registry takes, for some time.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret<String>,
    /// How long it is good from when it was given.
    pub valid: Duration,
    /// Which identity is behind it, for an error.
    pub origin: String,
}

impl Issued {
    /// The text of a Docker configuration with it for one registry.
    #[must_use]
    pub fn docker_config(&self, host: &Host) -> Secret<String> {
        let auth = STANDARD.encode(format!("{}:{}", self.username, self.password.reveal()));
        Secret::new(serde_json::json!({ "auths": { host.as_str(): { "auth": auth } } }).to_string())
    }
}

/// A token of a cloud.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) value: Secret<String>,
    pub(crate) valid: Duration,
    pub(crate) origin: String,
}

/// The identities of this machine. Clones share what was given.
#[derive(Debug, Clone)]
pub struct Identities {
    variables: Variables,
    http: Arc<Http>,
    kept: Arc<Kept>,
    clouds: Arc<[Cloud]>,
}

impl Identities {
    /// Those that this process's environment, its home and the metadata services around it tell of.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::new(Variables::from_environment())
    }

    pub(crate) fn new(variables: Variables) -> Self {
        let clouds = Arc::new([Cloud::Aws, Cloud::Google, Cloud::Azure]);
        Self { variables, http: Arc::new(Http::new(Vec::new())), kept: Arc::default(), clouds }
    }

    /// Whether a registry is one of a cloud that knows machines.
    #[must_use]
    pub fn know(host: &Host) -> bool {
        host::Registry::of(host).is_some()
    }

    /// Those at these clouds alone.
    #[must_use]
    pub fn at(self, clouds: &[Cloud]) -> Self {
        Self { clouds: clouds.into(), ..self }
    }

    /// The same, trusting whom a client that reaches registries so trusts everywhere.
    #[must_use]
    pub fn reached_as(self, reach: &Reach) -> Self {
        self.trusting(reach.authorities_everywhere())
    }

    /// The same, trusting these authorities too: a company's proxy may stand before a cloud.
    pub(in crate::registry) fn trusting(self, authorities: Vec<CertificateDer<'static>>) -> Self {
        if authorities.is_empty() { self } else { Self { http: Arc::new(Http::new(authorities)), ..self } }
    }

    /// What `host` takes from us: `None` if it is no cloud's, or we are nobody there. Kept until shortly before it ends.
    ///
    /// # Cancel safety
    /// What was asked is asked again.
    pub async fn find(&self, host: &Host) -> Result<Option<Issued>, Arc<IdentityError>> {
        let Some(registry) = host::Registry::of(host).filter(|it| self.clouds.contains(&it.cloud())) else {
            return Ok(None);
        };
        self.kept.get(host, || self.ask(host, &registry)).await
    }

    /// Asks anew what `host` takes, for somebody who keeps it himself.
    pub async fn renew(&self, host: &Host) -> Result<Option<Issued>, Arc<IdentityError>> {
        let Some(registry) = host::Registry::of(host) else { return Ok(None) };
        self.ask(host, &registry).await.map_err(Arc::new)
    }

    async fn ask(&self, host: &Host, registry: &host::Registry) -> Result<Option<Issued>, IdentityError> {
        let (variables, http) = (&self.variables, &*self.http);
        match registry {
            host::Registry::Ecr(ecr) => ecr::token(variables, http, ecr).await,
            host::Registry::Google => {
                let token = google::token(variables, http, google::CLOUD_PLATFORM).await?;
                Ok(token.map(|token| issued("oauth2accesstoken", token)))
            }
            host::Registry::Azure(sovereign) => {
                let Some(token) = azure::token(variables, http, *sovereign, azure::For::Registry).await?
                else {
                    return Ok(None);
                };
                let at = azure::registry_url(host)?;
                azure::exchange(http, &at, host.as_str(), &token).await.map(Some)
            }
        }
    }
}

fn issued(username: &str, token: Token) -> Issued {
    Issued { username: username.to_owned(), password: token.value, valid: token.valid, origin: token.origin }
}

#[cfg(test)]
mod tests;
