//! Flags of `hephy build` for registries: mirrors, TLS, credentials. The names are kaniko's.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::build::{CacheRepository, Mirror, MirrorError, Mirrors};
use crate::model::Secret;
use crate::oci::{Host, Reference};
use crate::registry::client::{Client, ClientConfig, Credentials, DockerConfig, Hosts, Reach};
use crate::registry::identity::{Cloud, Identities};

/// The largest Docker configuration that is read.
const MAX_DOCKER_CONFIG_BYTES: u64 = 1024 * 1024;

/// How registries are found, believed and spoken to.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Registries")]
pub struct RegistryArguments {
    /// Where base images of docker.io are looked for first: HOST:PORT/PREFIX, REGISTRY=PLACE for those of another, or
    /// oci:DIRECTORY; may be repeated
    #[arg(
        long,
        alias = "registry-mirror",
        env = "HEPHY_MIRROR",
        value_delimiter = ',',
        value_name = "PLACE"
    )]
    pub mirror: Vec<Mirror>,
    /// Where base images of a registry are looked for first; may be repeated, or joined by `;`
    #[arg(long, env = "KANIKO_REGISTRY_MAP", value_name = "REGISTRY=PLACE")]
    pub registry_map: Vec<RegistryMap>,
    /// Take base images from mirrors alone, where their registry has any
    #[arg(long)]
    pub skip_default_registry_fallback: bool,
    /// A registry that may be spoken to in plain HTTP (loopback always is); may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    pub insecure_registry: Vec<Host>,
    /// The registries of destinations and the cache may be spoken to in plain HTTP
    #[arg(long)]
    pub insecure: bool,
    /// All registries but those of destinations and the cache may be spoken to in plain HTTP
    #[arg(long)]
    pub insecure_pull: bool,
    /// A registry whose certificate is not looked at; may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    pub skip_tls_verify_registry: Vec<Host>,
    /// The certificates of destinations' and the cache's registries are not looked at
    #[arg(long)]
    pub skip_tls_verify: bool,
    /// The certificates of all other registries are not looked at
    #[arg(long)]
    pub skip_tls_verify_pull: bool,
    /// The certificate of a registry, or of the authority that signed it; may be repeated
    #[arg(long, value_name = "HOST=FILE")]
    pub registry_certificate: Vec<HostFiles<1>>,
    /// A certificate of ours and its key, for a registry that wants one; may be repeated
    #[arg(long, value_name = "HOST=CERTIFICATE,KEY")]
    pub registry_client_cert: Vec<HostFiles<2>>,
    /// How often a push is tried again after a failure that may pass [default: 5]
    #[arg(long, value_name = "TIMES")]
    pub push_retry: Option<usize>,
    /// How often a pull is tried again after a failure that may pass [default: 5]
    #[arg(long, value_name = "TIMES")]
    pub image_download_retry: Option<usize>,
    /// At which clouds this machine's identity is used: ecr, google, acr [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub credential_helpers: Vec<String>,
    /// Read registry credentials from standard input, as a Docker configuration
    #[arg(long, hide = true)]
    pub docker_config_stdin: bool,
    /// A Docker configuration that was had for a ticket, or read from standard input.
    #[arg(skip)]
    pub docker_config: Option<DockerConfig>,
}

/// Mirrors of registries: `quay.io=mirror.example/quay;gcr.io=127.0.0.1:5000`.
#[derive(Debug, Clone)]
pub struct RegistryMap(Vec<Mirror>);

/// Files for one registry: `registry.example=/etc/ca.pem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFiles<const FILES: usize> {
    host: Host,
    files: [PathBuf; FILES],
}

impl FromStr for RegistryMap {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Mirror::parse_map(text).map(Self)
    }
}

impl<const FILES: usize> FromStr for HostFiles<FILES> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || {
            let files = if FILES == 1 { "FILE" } else { "CERTIFICATE,KEY" };
            format!("`{text}` is not `HOST={files}`")
        };
        let (host, files) = text.split_once('=').ok_or_else(expected)?;
        let host = host.parse().map_err(|error| format!("{error}"))?;
        let files: Vec<PathBuf> = if FILES == 1 {
            vec![PathBuf::from(files)]
        } else {
            files.split(',').map(PathBuf::from).collect()
        };
        if files.iter().any(|file| file.as_os_str().is_empty()) {
            return Err(expected());
        }
        Ok(Self { host, files: files.try_into().map_err(|_| expected())? })
    }
}

impl RegistryArguments {
    /// Where base images are looked for.
    pub(in crate::cli) fn mirrors(&self) -> Result<Mirrors, String> {
        let mut places = self.mirror.clone();
        if places.is_empty()
            && let Ok(text) = std::env::var("KANIKO_REGISTRY_MIRROR")
        {
            let parts = text.split([',', ';']).filter(|part| !part.trim().is_empty());
            let parsed: Result<Vec<Mirror>, _> = parts.map(|part| part.trim().parse()).collect();
            places = parsed.map_err(|error| format!("`KANIKO_REGISTRY_MIRROR`: {error}"))?;
        }
        places.extend(self.registry_map.iter().flat_map(|map| map.0.iter().cloned()));
        Ok(Mirrors { places, only: self.skip_default_registry_fallback })
    }

    /// Reads the credentials that come on standard input, once.
    pub(in crate::cli) fn read_docker_config(&mut self) -> Result<(), String> {
        if !self.docker_config_stdin || self.docker_config.is_some() {
            return Ok(());
        }
        let mut text = String::new();
        let read = io::stdin().lock().take(MAX_DOCKER_CONFIG_BYTES).read_to_string(&mut text);
        read.map_err(|error| format!("failed to read credentials: {error}"))?;
        let config = DockerConfig::parse(Secret::new(text));
        self.docker_config = Some(config.map_err(|error| crate::build::chain(&error).join(": "))?);
        Ok(())
    }

    /// A client that reaches registries as these flags say, to push to these places.
    pub(in crate::cli) fn client(
        &self,
        destinations: &[Reference],
        cache: Option<&CacheRepository>,
        trusted: Option<&str>,
    ) -> Result<Client, String> {
        let destinations = destinations.iter().map(|destination| &destination.repository);
        let pushed_to = destinations.chain(cache.map(|cache| &cache.repository));
        let pushed_to = pushed_to.map(|repository| repository.host.clone()).collect();
        let clouds = clouds(&self.credential_helpers)?;
        let credentials = if let Some(config) = &self.docker_config {
            // Who gives these has said all that this build may be.
            Credentials::live(config.clone())
        } else {
            let found = Credentials::from_environment();
            let found = found.map_err(|error| crate::build::chain(&error).join(": "))?;
            found.or(Identities::from_environment().at(&clouds))
        };
        let reach = self.reach(&pushed_to)?;
        // A company's proxy stands before registries too.
        let reach = if let Some(pem) = trusted { reach.trusting(pem) } else { reach };
        let usual = ClientConfig::default();
        let given = [self.push_retry, self.image_download_retry].into_iter().flatten().max();
        let retries = given.map_or(usual.retries, |given| given.max(usual.retries));
        Ok(Client::new(ClientConfig { credentials, reach, retries, ..usual }))
    }

    fn reach(&self, pushed_to: &BTreeSet<Host>) -> Result<Reach, String> {
        let mut reach = Reach::default();
        reach.insecure = hosts(&self.insecure_registry, self.insecure, self.insecure_pull, pushed_to);
        reach.unverified =
            hosts(&self.skip_tls_verify_registry, self.skip_tls_verify, self.skip_tls_verify_pull, pushed_to);
        for HostFiles { host, files: [file] } in &self.registry_certificate {
            let trusted = reach.trust(Some(host.clone()), file);
            trusted.map_err(|error| told("--registry-certificate", &error))?;
        }
        for HostFiles { host, files: [certificate, key] } in &self.registry_client_cert {
            let known = reach.identify(host.clone(), certificate, key);
            known.map_err(|error| told("--registry-client-cert", &error))?;
        }
        Ok(reach)
    }
}

/// The clouds whose helpers, as kaniko calls them, are named; all if nothing is said, and none if that is said.
fn clouds(helpers: &[String]) -> Result<Vec<Cloud>, String> {
    if helpers.is_empty() {
        return Ok(vec![Cloud::Aws, Cloud::Google, Cloud::Azure]);
    }
    let cloud = |helper: &String| match helper.as_str() {
        // What a job of GitLab's has is always looked at.
        "" | "gitlab" => None,
        "ecr" => Some(Ok(Cloud::Aws)),
        "google" => Some(Ok(Cloud::Google)),
        "acr" => Some(Ok(Cloud::Azure)),
        other => Some(Err(format!(
            "`--credential-helpers {other}` is not done: `ecr`, `google`, `acr` and `gitlab` are built in; install `docker-credential-{other}` \
             and name it in `~/.docker/config.json`: {{\"credHelpers\":{{\"HOST\":\"{other}\"}}}}"
        ))),
    };
    helpers.iter().filter_map(cloud).collect()
}

fn told(flag: &str, error: &dyn std::error::Error) -> String {
    format!("`{flag}`: {}", crate::build::chain(error).join(": "))
}

/// The registries that are named, those pushed to if `push`, and all others if `pull`.
fn hosts(named: &[Host], push: bool, pull: bool, pushed_to: &BTreeSet<Host>) -> Hosts {
    let mut these: BTreeSet<Host> = named.iter().cloned().collect();
    if push {
        these.extend(pushed_to.iter().cloned());
    }
    if pull { Hosts::AllBut(pushed_to.difference(&these).cloned().collect()) } else { Hosts::These(these) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    #[test]
    fn helpers_are_named_as_kaniko_names_them() {
        let of = |names: &[&str]| clouds(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), [Cloud::Aws, Cloud::Google, Cloud::Azure]);
        assert_eq!(of(&["acr", "gitlab", "ecr"]).unwrap(), [Cloud::Azure, Cloud::Aws]);
        assert_eq!(of(&[""]).unwrap(), []);
        assert!(of(&["env"]).unwrap_err().contains("docker-credential-env"));
    }

    #[test]
    fn what_is_said_of_pulls_does_not_hold_for_where_images_are_pushed() {
        let pushed_to: BTreeSet<Host> = [host("push.test")].into();
        let contains =
            |hosts: &Hosts| ["push.test", "named.test", "other.test"].map(|name| hosts.contains(&host(name)));
        let named = [host("named.test")];
        assert_eq!(contains(&hosts(&named, false, false, &pushed_to)), [false, true, false]);
        assert_eq!(contains(&hosts(&named, true, false, &pushed_to)), [true, true, false]);
        assert_eq!(contains(&hosts(&named, false, true, &pushed_to)), [false, true, true]);
        assert_eq!(contains(&hosts(&named, true, true, &pushed_to)), [true, true, true]);
        assert_eq!(contains(&hosts(&[host("push.test")], false, true, &pushed_to)), [true, true, true]);
    }

    #[test]
    fn files_are_for_a_host_and_as_many_as_there_should_be() {
        let one: HostFiles<1> = "a.test:5000=/etc/x=y,z.pem".parse().unwrap();
        assert_eq!(one, HostFiles { host: host("a.test:5000"), files: ["/etc/x=y,z.pem".into()] });
        let two: HostFiles<2> = "a.test=c.pem,k.pem".parse().unwrap();
        assert_eq!(two.files, [PathBuf::from("c.pem"), PathBuf::from("k.pem")]);
        for text in ["a.test", "a.test=", "a.test=c.pem", "a.test=c,k,x", "a.test=c,", "/x=c,k"] {
            assert!(text.parse::<HostFiles<2>>().is_err(), "{text}");
        }
    }
}
