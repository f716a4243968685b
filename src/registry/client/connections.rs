//! Connections: which of them a request goes over.
//!
//! Blobs go over HTTP/1.1, a connection each: by HTTP/2 they would share one, its window and its end. Everything else
//! shares a connection where the registry speaks HTTP/2.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::Url;

use super::ClientError;
use super::host::lock;
use super::reach::Reach;
use super::tls::{TlsError, Trust, configuration};
use crate::oci::Host;

/// How long it may take until there is a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// What may be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    Http1,
    /// HTTP/2 if the registry does, else HTTP/1.1.
    Any,
}

/// Connections that may be used for one another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// To this machine: no TLS, no proxy.
    Loopback,
    /// Without TLS.
    Plain,
    /// By TLS, as the system would.
    Usual(Protocol),
    /// For a registry of which something is said; to itself with a certificate of ours, if there is one.
    Special { host: Host, to_itself: bool, protocol: Protocol },
}

/// All connections of a client.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) reach: Reach,
    clients: Mutex<HashMap<Kind, reqwest::Client>>,
}

impl Connections {
    pub(super) fn new(reach: Reach) -> Self {
        Self { reach, clients: Mutex::default() }
    }

    /// Those for a request on behalf of the registry `host` to `url`.
    ///
    /// What is said of a registry's TLS holds for whom it sends us to as well: whoever could stand in for the registry could
    /// name any other. A certificate of ours is shown to the registry alone.
    pub(super) fn to(
        &self,
        host: &Host,
        url: &Url,
        protocol: Protocol,
    ) -> Result<reqwest::Client, ClientError> {
        let kind = self.kind(host, url, protocol);
        if let Some(client) = lock(&self.clients).get(&kind) {
            return Ok(client.clone());
        }
        let tls = |source| ClientError::Tls { host: host.clone(), source };
        let client = self.connect(&kind).map_err(tls)?;
        Ok(lock(&self.clients).entry(kind).or_insert(client).clone())
    }

    fn kind(&self, host: &Host, url: &Url, protocol: Protocol) -> Kind {
        if url.scheme() == "http" {
            if is_loopback(url) { Kind::Loopback } else { Kind::Plain }
        } else if self.reach.is_special(host) {
            Kind::Special { host: host.clone(), to_itself: names(host, url), protocol }
        } else {
            Kind::Usual(protocol)
        }
    }

    fn connect(&self, kind: &Kind) -> Result<reqwest::Client, TlsError> {
        let reach = &self.reach;
        let (trust, own, protocol) = match kind {
            // A proxy that is spoken to by TLS is not among these.
            Kind::Loopback | Kind::Plain => (Trust::Nobody, None, Protocol::Http1),
            Kind::Usual(protocol) => (Trust::Authorities(reach.authorities_everywhere()), None, *protocol),
            Kind::Special { host, to_itself, protocol } => {
                let trust = if reach.unverified.contains(host) {
                    Trust::Anybody
                } else {
                    Trust::Authorities(reach.authorities(host))
                };
                (trust, reach.identity(host).filter(|_| *to_itself), *protocol)
            }
        };
        let mut tls = configuration(trust, own)?;
        let protocols: &[&[u8]] = match protocol {
            Protocol::Http1 => &[b"http/1.1"],
            Protocol::Any => &[b"h2", b"http/1.1"],
        };
        tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let builder = reqwest::Client::builder()
            .user_agent(concat!("hephy/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .tls_backend_preconfigured(tls)
            // Followed by ourselves, who know what may go where.
            .redirect(reqwest::redirect::Policy::none());
        let builder = if protocol == Protocol::Http1 { builder.http1_only() } else { builder };
        let builder = if *kind == Kind::Loopback { builder.no_proxy() } else { builder };
        builder.build().map_err(TlsError::Http)
    }
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().and_then(|host| host.parse::<Host>().ok()).is_some_and(|host| host.is_loopback())
}

/// Whether a URL is of the registry itself.
fn names(host: &Host, url: &Url) -> bool {
    let own = super::transport::base_url(host, url.scheme());
    own.is_ok_and(|own| super::transport::same_origin(&own, url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_of_ours_is_shown_to_the_registry_alone() {
        let host: Host = "a.test:5000".parse().unwrap();
        let mut reach = Reach::default();
        reach.unverified = [host.clone()].into_iter().collect();
        let connections = Connections::new(reach);
        let kind = |url: &str| connections.kind(&host, &url.parse().unwrap(), Protocol::Any);
        let special = |to_itself| Kind::Special { host: host.clone(), to_itself, protocol: Protocol::Any };
        assert_eq!(kind("https://a.test:5000/v2/"), special(true));
        for other in ["https://a.test/token", "https://b.test:5000/v2/", "https://a.test.b.test:5000/"] {
            assert_eq!(kind(other), special(false), "{other}");
        }
        assert_eq!(kind("http://127.0.0.1:1/"), Kind::Loopback);
        assert_eq!(kind("http://a.test:5000/"), Kind::Plain);
        let other = connections.kind(
            &"b.test".parse().unwrap(),
            &"https://a.test:5000/".parse().unwrap(),
            Protocol::Any,
        );
        assert_eq!(other, Kind::Usual(Protocol::Any));
    }
}
