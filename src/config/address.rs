//! Where people reach things: every URL and command that is ever printed is made here, and runs as pasted.

use super::server::{Domain, HostPort, Settings};
use crate::model::{AppName, BuildNumber};

/// The addresses that pushers use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    domain: Domain,
    apps: Apps,
    ssh: HostPort,
    registry: String,
}

/// How the apps are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Apps {
    /// At `<scheme>://<app>.<domain>:<port>`.
    ByName {
        /// `http` or `https`.
        scheme: &'static str,
        /// The port.
        port: u16,
    },
    /// At this URL, with the app's name in the Host header: nobody has given the apps a domain.
    ByHeader(String),
}

impl Addresses {
    /// The addresses of a server with these settings.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        Self {
            domain: settings.domain.clone(),
            apps: Apps::ByName { scheme: "http", port: settings.http.port() },
            ssh: settings.public_ssh.clone().unwrap_or_else(|| HostPort::reachable(settings.ssh)),
            registry: HostPort::reachable(settings.registry).to_string(),
        }
    }

    /// The addresses of a server on a cluster; `registry` is what image names begin with.
    #[must_use]
    pub const fn of_cluster(domain: Domain, apps: Apps, ssh: HostPort, registry: String) -> Self {
        Self { domain, apps, ssh, registry }
    }

    /// `http://hello.localhost:8080`, or the command that reaches the app.
    #[must_use]
    pub fn app_url(&self, app: &AppName) -> String {
        self.url(app.as_str())
    }

    /// `http://APP.localhost:8080`, for people to fill in.
    #[must_use]
    pub fn app_url_pattern(&self) -> String {
        self.url("APP")
    }

    fn url(&self, app: &str) -> String {
        let domain = self.domain.as_str();
        match &self.apps {
            Apps::ByName { scheme: scheme @ "http", port: 80 }
            | Apps::ByName { scheme: scheme @ "https", port: 443 } => {
                format!("{scheme}://{app}.{domain}")
            }
            Apps::ByName { scheme, port } => format!("{scheme}://{app}.{domain}:{port}"),
            Apps::ByHeader(url) => format!("curl -H 'Host: {app}.{domain}' {url}"),
        }
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

    /// What image names begin with: `127.0.0.1:5000`, `registry.example/team`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
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
        let by_header = Apps::ByHeader("http://10.0.0.1:30080/".to_owned());
        let domain = "hephy.local".parse().unwrap();
        let addresses =
            Addresses::of_cluster(domain, by_header, addresses.ssh().clone(), "r.example".to_owned());
        assert_eq!(addresses.app_url(&app), "curl -H 'Host: hello.hephy.local' http://10.0.0.1:30080/");
    }
}
