//! What the caller of a build gives its RUN steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Secrets, agents and permissions of a build.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// `--secret`, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// `--ssh`: the socket of an agent, by id.
    pub agents: BTreeMap<String, PathBuf>,
    /// `--allow`.
    pub allowed: BTreeSet<Entitlement>,
    /// Whose cache mounts these are: builds of one scope share them, and no others do.
    pub cache_scope: String,
    /// Certificates that RUN trusts beside those of its image, as PEM.
    pub ca_bundle: Option<String>,
    /// How large a cache mount may be that is saved in the cache repository, as a tar; 0: none is.
    pub max_saved_bytes: u64,
    /// How large the cache mounts of all scopes may be together; the longest unused go first.
    pub max_cache_bytes: u64,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            secrets: BTreeMap::new(),
            agents: BTreeMap::new(),
            allowed: BTreeSet::new(),
            cache_scope: String::new(),
            ca_bundle: None,
            max_saved_bytes: 1 << 30,
            max_cache_bytes: 20 << 30,
        }
    }
}

/// Where a secret is, until a step needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file.
    File(PathBuf),
    /// In a variable of the engine's environment.
    Environment(String),
}

/// What a Dockerfile may ask for only if the caller says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// `RUN --security=insecure`
    SecurityInsecure,
    /// `RUN --network=host`, where the build itself has the host's network.
    NetworkHost,
}

impl fmt::Display for Entitlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SecurityInsecure => "security.insecure",
            Self::NetworkHost => "network.host",
        })
    }
}

impl FromStr for Entitlement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = [Self::SecurityInsecure, Self::NetworkHost];
        known.into_iter().find(|known| known.to_string() == text).ok_or_else(|| {
            format!("`{text}` is no entitlement: they are `security.insecure` and `network.host`")
        })
    }
}
