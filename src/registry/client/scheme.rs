//! Whether a registry is spoken to by TLS or in plain HTTP.

use super::connections::Protocol;
use super::transport::base_url;
use super::{Client, ClientError};
use crate::oci::Host;

impl Client {
    /// `https`, or `http` where that is allowed and so.
    pub(super) async fn scheme(&self, host: &Host) -> Result<&'static str, ClientError> {
        let reach = &self.shared.connections.reach;
        if reach.plain.contains(host) || (host.is_loopback() && !reach.names_tls(host)) {
            return Ok("http");
        }
        if !reach.insecure.contains(host) {
            return Ok("https");
        }
        let state = self.host_state(host);
        state.scheme.get_or_try_init(|| self.try_schemes(host)).await.copied()
    }

    /// TLS, if it is spoken, also with a certificate that is not believed; else plain HTTP.
    async fn try_schemes(&self, host: &Host) -> Result<&'static str, ClientError> {
        match self.try_scheme(host, "https").await {
            Ok(()) => return Ok("https"),
            Err(error @ (ClientError::Certificate { .. } | ClientError::Tls { .. })) => return Err(error),
            Err(_) => {}
        }
        self.try_scheme(host, "http").await.map(|()| "http")
    }

    async fn try_scheme(&self, host: &Host, scheme: &str) -> Result<(), ClientError> {
        let url = base_url(host, scheme)?;
        let client = self.shared.connections.to(host, &url, Protocol::Http1)?;
        let asked =
            tokio::time::timeout(super::transport::ANSWER_LIMIT, client.get(url.clone()).send()).await;
        match asked {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(ClientError::unreachable(host, &url, error)),
            Err(_) => Err(ClientError::Silent { host: host.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Client, ClientConfig, Reach};

    #[tokio::test]
    async fn plain_http_is_spoken_to_loopback_and_to_whom_it_is_known_of() {
        let mut reach = Reach::plain("10.1.2.3:5000".parse().unwrap());
        reach.unverified = ["localhost:5001".parse().unwrap()].into_iter().collect();
        let client = Client::new(ClientConfig { reach, ..ClientConfig::default() });
        for (host, expected) in [
            ("127.0.0.1:5000", "http"),
            ("localhost", "http"),
            ("10.1.2.3:5000", "http"),
            ("10.1.2.3", "https"),
            ("localhost:5001", "https"),
            ("docker.io", "https"),
        ] {
            assert_eq!(client.scheme(&host.parse().unwrap()).await.unwrap(), expected, "{host}");
        }
    }
}
