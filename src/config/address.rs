//! Where people reach things: every URL and command that is ever printed is made here, and runs as pasted.

use std::net::SocketAddr;

use super::server::{Domain, HostPort, Settings};
use crate::model::{AppName, BuildNumber};

/// The addresses that pushers use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    domain: Domain,
    http: SocketAddr,
    ssh: HostPort,
    registry: SocketAddr,
}

impl Addresses {
    /// The addresses of a server with these settings.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        Self {
            domain: settings.domain.clone(),
            http: settings.http,
            ssh: settings.public_ssh.clone().unwrap_or_else(|| HostPort::reachable(settings.ssh)),
            registry: settings.registry,
        }
    }

    /// `http://hello.localhost:8080`.
    #[must_use]
    pub fn app_url(&self, app: &AppName) -> String {
        let port = match self.http.port() {
            80 => String::new(),
            port => format!(":{port}"),
        };
        format!("http://{app}.{}{port}", self.domain.as_str())
    }

    /// `http://APP.localhost:8080`, for people to fill in.
    #[must_use]
    pub fn app_url_pattern(&self) -> String {
        let port = match self.http.port() {
            80 => String::new(),
            port => format!(":{port}"),
        };
        format!("http://APP.{}{port}", self.domain.as_str())
    }

    /// `ssh://hephy@127.0.0.1:2222/hello.git`.
    #[must_use]
    pub fn remote_url(&self, app: &str) -> String {
        format!("ssh://hephy@{}/{app}.git", self.ssh)
    }

    /// The command that runs a verb: `ssh -p 2222 hephy@127.0.0.1 <verb>`.
    #[must_use]
    pub fn verb(&self, verb: &str) -> String {
        match self.ssh.port {
            22 => format!("ssh hephy@{} {verb}", self.ssh.host),
            port => format!("ssh -p {port} hephy@{} {verb}", self.ssh.host),
        }
    }

    /// The command that shows a build's log, and follows it.
    #[must_use]
    pub fn follow(&self, app: &AppName, build: BuildNumber) -> String {
        self.verb(&format!("builds log {} -a {app}", build.0))
    }

    /// `127.0.0.1:5000`, what image names begin with on this machine.
    #[must_use]
    pub fn registry(&self) -> String {
        HostPort::reachable(self.registry).to_string()
    }

    /// What pushers connect to.
    #[must_use]
    pub const fn ssh(&self) -> &HostPort {
        &self.ssh
    }

    /// What apps are below.
    #[must_use]
    pub const fn domain(&self) -> &Domain {
        &self.domain
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::GivenSettings;
    use super::*;

    #[test]
    fn what_is_printed_runs_as_pasted() {
        let addresses = Addresses::of(
            &GivenSettings::default().resolve(GivenSettings::default(), Some("/d".into())).unwrap(),
        );
        let app = "hello".parse().unwrap();
        assert_eq!(addresses.app_url(&app), "http://hello.localhost:8080");
        assert_eq!(addresses.remote_url("hello"), "ssh://hephy@127.0.0.1:2222/hello.git");
        assert_eq!(
            addresses.follow(&app, BuildNumber(7)),
            "ssh -p 2222 hephy@127.0.0.1 builds log 7 -a hello"
        );
        assert_eq!(addresses.registry(), "127.0.0.1:5000");
    }
}
