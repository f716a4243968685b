//! The settings of `hephy up`: each is a flag, an environment variable and a key of the config file.
//!
//! One struct is all three, so that none can be forgotten. A flag wins over its variable, which wins over the file.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::traces::Endpoint;

/// Settings as they were given: all may be absent.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GivenSettings {
    /// Where git and the command line connect [default: 127.0.0.1:2222]
    #[arg(long, env = "HEPHY_SSH", value_name = "ADDRESS")]
    pub ssh: Option<SocketAddr>,
    /// Where images are pulled from [default: 127.0.0.1:5000]
    #[arg(long, env = "HEPHY_REGISTRY", value_name = "ADDRESS")]
    pub registry: Option<SocketAddr>,
    /// Where the apps answer, by Host header [default: 127.0.0.1:8080]
    #[arg(long, env = "HEPHY_HTTP", value_name = "ADDRESS")]
    pub http: Option<SocketAddr>,
    /// Apps are at APP.DOMAIN [default: localhost]
    #[arg(long, env = "HEPHY_DOMAIN", value_name = "DOMAIN")]
    pub domain: Option<Domain>,
    /// What pushers connect to, where it is not the SSH address itself
    #[arg(long, env = "HEPHY_PUBLIC_SSH", value_name = "HOST:PORT")]
    pub public_ssh: Option<HostPort>,
    /// Where everything is kept [default: $XDG_DATA_HOME/hephy]
    #[arg(long, env = "HEPHY_DATA", value_name = "DIRECTORY")]
    pub data: Option<PathBuf>,
    /// The branch that deploys [default: main, or master where there is no main]
    #[arg(long, env = "HEPHY_DEPLOY_BRANCH", value_name = "BRANCH")]
    pub deploy_branch: Option<String>,
    /// How many builds run at once [default: 2]
    #[arg(long, env = "HEPHY_BUILDS", value_name = "NUMBER")]
    pub builds: Option<usize>,
    /// How long a build may take [default: 1h]
    #[arg(long, env = "HEPHY_BUILD_TIMEOUT", value_name = "DURATION")]
    pub build_timeout: Option<Span>,
    /// How much memory a build may use, where cgroups are delegated [default: no limit]
    #[arg(long, env = "HEPHY_BUILD_MEMORY", value_name = "BYTES")]
    pub build_memory: Option<Size>,
    /// How many processors a build may use, where cgroups are delegated [default: no limit]
    #[arg(long, env = "HEPHY_BUILD_CPUS", value_name = "NUMBER")]
    pub build_cpus: Option<f64>,
    /// How much disk the layer store may use, beyond what apps and builds need at the time [default: 20GiB]
    #[arg(long, env = "HEPHY_CACHE_SIZE", value_name = "BYTES")]
    pub cache_size: Option<Size>,
    /// A PEM file with certificates that RUN trusts beside those of its image, and ADD and registries are believed by
    #[arg(long, env = "HEPHY_CA_BUNDLE", value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// The largest pack that is received [default: 2GiB]
    #[arg(long, env = "HEPHY_MAX_PACK", value_name = "BYTES")]
    pub max_pack: Option<Size>,
    /// How long a new version may take to answer [default: 60s]
    #[arg(long, env = "HEPHY_READY_TIMEOUT", value_name = "DURATION")]
    pub ready_timeout: Option<Span>,
    /// How long a new version must have been up [default: 1s]
    #[arg(long, env = "HEPHY_MINIMUM_READY", value_name = "DURATION")]
    pub minimum_ready: Option<Span>,
    /// How long an old version has after SIGTERM [default: 30s]
    #[arg(long, env = "HEPHY_STOP_GRACE", value_name = "DURATION")]
    pub stop_grace: Option<Span>,
    /// How long `hephy up` waits for running builds and requests when it stops [default: 30s]
    #[arg(long, env = "HEPHY_DRAIN", value_name = "DURATION")]
    pub drain: Option<Span>,
    /// Where health and metrics are asked for [default: nowhere]
    #[arg(long, env = "HEPHY_HEALTH", value_name = "ADDRESS")]
    pub health: Option<SocketAddr>,
    /// Where profiles of the server are taken, an address of loopback [default: nowhere]
    #[arg(long, env = "HEPHY_PPROF", value_name = "ADDRESS")]
    pub pprof: Option<LoopbackAddress>,
    /// Where traces of pushes are sent, by OTLP over HTTP [default: where OTEL_EXPORTER_OTLP_ENDPOINT says, or nowhere]
    #[arg(long, env = "HEPHY_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<Endpoint>,
}

/// Settings with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where git and the command line connect.
    pub ssh: SocketAddr,
    /// Where images are pulled from.
    pub registry: SocketAddr,
    /// Where the apps answer.
    pub http: SocketAddr,
    /// Apps are at `<app>.<domain>`.
    pub domain: Domain,
    /// What pushers connect to, where it is not the SSH address itself.
    pub public_ssh: Option<HostPort>,
    /// Where everything is kept.
    pub data: PathBuf,
    /// The branch that deploys; `None`: `main`, or `master` where there is no `main`.
    pub deploy_branch: Option<String>,
    /// How many builds run at once.
    pub builds: usize,
    /// How long a build may take.
    pub build_timeout: Duration,
    /// How much memory a build may use.
    pub build_memory_bytes: Option<u64>,
    /// How many processors a build may use.
    pub build_cpus: Option<f64>,
    /// How much disk the layer store may use, beyond what apps and builds need at the time.
    pub cache_bytes: u64,
    /// Certificates that RUN trusts beside those of its image.
    pub ca_bundle: Option<PathBuf>,
    /// The largest pack that is received.
    pub max_pack_bytes: u64,
    /// How long a new version may take to answer.
    pub ready_timeout: Duration,
    /// How long a new version must have been up.
    pub minimum_ready: Duration,
    /// How long an old version has after SIGTERM.
    pub stop_grace: Duration,
    /// How long running builds and requests are waited for at the end.
    pub drain: Duration,
    /// Where health and metrics are asked for.
    pub health: Option<SocketAddr>,
    /// Where profiles are taken.
    pub pprof: Option<SocketAddr>,
    /// Where traces are sent; `None`: where OpenTelemetry's variables say.
    pub otlp_endpoint: Option<Endpoint>,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The config file cannot be read.
    #[error("cannot read the config file `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The config file says something else than settings.
    #[error("the config file `{path}` is not valid: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// What the parser said, with the line.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A JSON file says something else than it should.
    #[error("`{path}` is not valid: {source}")]
    Json {
        /// Which.
        path: PathBuf,
        /// What the parser said, with the line.
        #[source]
        source: Box<serde_json::Error>,
    },
    /// No branch can have the name.
    #[error("--deploy-branch: {0}")]
    Branch(#[from] crate::model::RefNameError),
    /// Nothing says where the data is.
    #[error("neither `--data`, XDG_DATA_HOME nor HOME says where to keep the data: give `--data DIRECTORY`")]
    NoData,
}

impl GivenSettings {
    /// Reads the config file; one that is only the default place may be missing.
    pub fn read(path: &Path, required: bool) -> Result<Self, SettingsError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => return Err(SettingsError::Read { path: path.to_owned(), source }),
        };
        toml::from_str(&text)
            .map_err(|source| SettingsError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    /// Fills in, in this order: what `self` gives, what `file` gives, the defaults.
    pub fn resolve(self, file: Self, default_data: Option<PathBuf>) -> Result<Settings, SettingsError> {
        const GIB: u64 = 1024 * 1024 * 1024;
        let seconds = |span: Option<Span>, default| span.map_or(Duration::from_secs(default), |span| span.0);
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let deploy_branch = self.deploy_branch.or(file.deploy_branch);
        deploy_branch.as_deref().map(crate::model::RefName::branch).transpose()?;
        Ok(Settings {
            ssh: self.ssh.or(file.ssh).unwrap_or_else(|| loopback(2222)),
            registry: self.registry.or(file.registry).unwrap_or_else(|| loopback(5000)),
            http: self.http.or(file.http).unwrap_or_else(|| loopback(8080)),
            domain: self.domain.or(file.domain).unwrap_or_else(|| Domain("localhost".to_owned())),
            public_ssh: self.public_ssh.or(file.public_ssh),
            data: self.data.or(file.data).or(default_data).ok_or(SettingsError::NoData)?,
            deploy_branch,
            builds: self.builds.or(file.builds).unwrap_or(2).max(1),
            build_timeout: seconds(self.build_timeout.or(file.build_timeout), 3600),
            build_memory_bytes: self.build_memory.or(file.build_memory).map(|size| size.0),
            build_cpus: self.build_cpus.or(file.build_cpus),
            cache_bytes: self.cache_size.or(file.cache_size).map_or(20 * GIB, |size| size.0),
            ca_bundle: self.ca_bundle.or(file.ca_bundle),
            max_pack_bytes: self.max_pack.or(file.max_pack).map_or(2 * GIB, |size| size.0),
            ready_timeout: seconds(self.ready_timeout.or(file.ready_timeout), 60),
            minimum_ready: seconds(self.minimum_ready.or(file.minimum_ready), 1),
            stop_grace: seconds(self.stop_grace.or(file.stop_grace), 30),
            drain: seconds(self.drain.or(file.drain), 30),
            health: self.health.or(file.health),
            pprof: self.pprof.or(file.pprof).map(|address| address.0),
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
        })
    }
}

macro_rules! text {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A domain that apps are below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(String);
text!(Domain);

impl Domain {
    /// The domain, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = |label: &str| {
            let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
        };
        let domain = text.trim_end_matches('.').to_ascii_lowercase();
        if domain.len() <= 200 && domain.split('.').all(label) {
            Ok(Self(domain))
        } else {
            Err(format!("`{text}` is not a domain such as `apps.example.org`"))
        }
    }
}

/// A host and a port, as `example.org:2222` or `[::1]:2222`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The name or address, an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}
text!(HostPort);

impl HostPort {
    /// What a client on this machine connects to where `address` is listened on.
    #[must_use]
    pub fn reachable(address: SocketAddr) -> Self {
        let host = match address.ip() {
            ip if !ip.is_unspecified() => ip.to_string(),
            std::net::IpAddr::V4(_) => "127.0.0.1".to_owned(),
            std::net::IpAddr::V6(_) => "::1".to_owned(),
        };
        Self { host, port: address.port() }
    }

    /// The host as a URL writes it.
    #[must_use]
    pub fn url_host(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.url_host(), self.port)
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || format!("`{text}` is not HOST:PORT, as in `example.org:2222`");
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = port.parse().map_err(|_| error())?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().map_err(|_| error())?.to_string(),
            None => host.parse::<Domain>().map_err(|_| error())?.0,
        };
        Ok(Self { host, port })
    }
}

/// An address that only programs of the same machine, or of the same pod, reach: `127.0.0.1:6060`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopbackAddress(pub SocketAddr);
text!(LoopbackAddress);

impl FromStr for LoopbackAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.ip().is_loopback());
        address
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no address of loopback such as `127.0.0.1:6060`"))
    }
}

/// A duration, as `30s` or `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);
text!(Span);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|error| format!("`{text}` is not a duration such as `30s` or `1h`: {error}"))
    }
}

/// A number of bytes, as `512MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);
text!(Size);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || format!("`{text}` is not a size such as `512MiB` or `2GiB`");
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim() {
            "" | "B" => 0,
            "K" | "Ki" | "KiB" => 10,
            "M" | "Mi" | "MiB" => 20,
            "G" | "Gi" | "GiB" => 30,
            _ => return Err(error()),
        };
        let number: u64 = number.parse().map_err(|_| error())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<GivenSettings, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn a_flag_wins_over_the_file_which_wins_over_the_default() {
        let given =
            GivenSettings { domain: Some("apps.example.org".parse().unwrap()), ..GivenSettings::default() };
        let file =
            file("domain = \"x.org\"\nbuilds = 5\nbuild_timeout = \"10m\"\nbuild_memory = \"1GiB\"").unwrap();
        let settings = given.resolve(file, Some("/data".into())).unwrap();
        assert_eq!(settings.domain.as_str(), "apps.example.org");
        assert_eq!((settings.builds, settings.build_timeout), (5, Duration::from_secs(600)));
        assert_eq!(settings.build_memory_bytes, Some(1 << 30));
        assert_eq!(settings.ssh.to_string(), "127.0.0.1:2222");
        assert_eq!(settings.ready_timeout, Duration::from_secs(60));
    }

    #[test]
    fn an_unknown_key_of_the_file_is_an_error_with_its_line() {
        let error = file("builds = 2\nhtpp = \"127.0.0.1:80\"").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("htpp"), "{error}");
    }

    #[test]
    fn hosts_domains_and_sizes_are_read_strictly() {
        assert_eq!("[::1]:22".parse::<HostPort>().unwrap().to_string(), "[::1]:22");
        for text in ["example.org", "a b:1", "x:99999", ":1", "[x]:1", "-o:1"] {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
        for text in ["", "a..b", "-a.org", "a/b"] {
            assert!(text.parse::<Domain>().is_err(), "{text}");
        }
        for text in ["0.0.0.0:6060", "10.0.0.1:6060", "127.0.0.1", "localhost:6060"] {
            assert!(text.parse::<LoopbackAddress>().is_err(), "{text}");
        }
        assert!("[::1]:6060".parse::<LoopbackAddress>().is_ok());
        for text in ["", "1TB", "MiB", "99999999999999GiB", "-1"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
