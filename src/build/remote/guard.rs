//! Whom the engine may ask for the sake of a Dockerfile.
//!
//! The engine sits beside what RUN is kept from: the machine's loopback, and the metadata service of its cloud. A
//! Dockerfile that may not reach them by RUN may not by ADD.

use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::RemoteError;
use crate::build::driver::NetworkMode;

/// Which addresses may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// All.
    Open,
    /// Neither this machine nor its link.
    Outward,
    /// None.
    Closed,
}

impl From<NetworkMode> for Guard {
    fn from(mode: NetworkMode) -> Self {
        match mode {
            NetworkMode::Host => Self::Open,
            NetworkMode::Isolated => Self::Outward,
            NetworkMode::None => Self::Closed,
        }
    }
}

impl Guard {
    /// Refuses an address that is forbidden by how it is written; names are looked at when they are resolved.
    pub(crate) fn check(self, url: &Url) -> Result<(), RemoteError> {
        let forbidden = |reason| {
            let host = url.host_str().unwrap_or_default().to_owned();
            Err(RemoteError::Forbidden { host, reason })
        };
        let ip = match url.host() {
            Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            Some(Host::Domain(_)) | None => None,
        };
        match self {
            Self::Closed => forbidden("it has no network"),
            Self::Outward if ip.is_some_and(|ip| !is_outward(ip)) => forbidden(OWN),
            Self::Open | Self::Outward => Ok(()),
        }
    }

    /// The addresses of a name that may be asked.
    pub(crate) async fn addresses(self, host: &str, port: u16) -> Result<Vec<SocketAddr>, RemoteError> {
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let found = tokio::net::lookup_host((name, port)).await;
        let found: Vec<SocketAddr> = found.map_err(RemoteError::io("resolve a host's name"))?.collect();
        let allowed: Vec<SocketAddr> =
            found.into_iter().filter(|address| self == Self::Open || is_outward(address.ip())).collect();
        if allowed.is_empty() {
            return Err(RemoteError::Forbidden { host: host.to_owned(), reason: OWN });
        }
        Ok(allowed)
    }
}

const OWN: &str = "it is this machine itself, or of its own link";

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = *self;
        Box::pin(async move {
            let addresses = guard.addresses(name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is neither this machine, nor of a link (where clouds keep their metadata), nor of many.
fn is_outward(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast())
                && ip.octets()[0] != 0
        }
        IpAddr::V6(ip) => match ip.to_ipv4() {
            // Mapped and compatible ones, among them `::` and `::1`.
            Some(mapped) => ip.to_ipv4_mapped().is_some() && is_outward(IpAddr::V4(mapped)),
            None => {
                !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local())
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_its_link_are_not_outward_however_they_are_written() {
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0/",
            "http://0.0.0.0/",
            "http://169.254.169.254/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::127.0.0.1]/",
            "http://[fe80::1]/",
            "http://224.0.0.1/",
        ] {
            let url = Url::parse(url).unwrap();
            assert!(Guard::Outward.check(&url).is_err(), "{url}");
            assert!(Guard::Open.check(&url).is_ok() && Guard::Closed.check(&url).is_err());
        }
        for url in
            ["http://10.0.0.1/", "http://93.184.216.34/", "http://[2001:db8::1]/", "http://example.com/"]
        {
            assert!(Guard::Outward.check(&Url::parse(url).unwrap()).is_ok(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_refused_when_it_is_resolved() {
        assert!(matches!(
            Guard::Outward.addresses("localhost", 80).await,
            Err(RemoteError::Forbidden { .. })
        ));
        assert!(!Guard::Open.addresses("localhost", 80).await.unwrap().is_empty());
    }
}
