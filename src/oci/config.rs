//! Image configs (OCI image-spec, `config.md`, and Docker's fields that are in use).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::descriptor::null_as_default;
use super::manifest::to_json;
use super::{Digest, Platform, PlatformError};

/// The largest image config that is read.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Why bytes are not an image config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Too large.
    #[error("image config of {0} bytes is larger than {MAX_BYTES}")]
    Size(usize),
    /// Not JSON, or not of the form.
    #[error("image config is not valid")]
    Json(#[from] serde_json::Error),
}

/// What an image is made of, and how it is run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When it was made; what is not a time in a foreign config counts as absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient_time")]
    pub created: Option<Timestamp>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The architecture, in Go's spelling.
    #[serde(default)]
    pub architecture: String,
    /// The operating system.
    #[serde(default)]
    pub os: String,
    /// The version of a Windows.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// The variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// How it is run.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: RunConfig,
    /// The layers' uncompressed digests.
    pub rootfs: RootFs,
    /// How each layer came to be, lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub history: Vec<History>,
}

/// The layers of an image by the digests of their tars.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests, lowest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// How an image is run. Docker's capitals.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user[:group]`, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `5000/tcp`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty", with = "keys")]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=value`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// The command, or the beginning of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The command's arguments, or the whole of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Directories whose content is not the image's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty", with = "keys")]
    pub volumes: BTreeSet<String>,
    /// Where the command starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// What runs shell commands in builds on this image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// How to see whether it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions for builds on this image.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub on_build: Vec<String>,
    /// Windows: the command is one line, already escaped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
}

/// How to see whether a container is well. Times are in nanoseconds, as Docker writes them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", line]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<u64>,
    /// After which a check has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// In which a failure does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period: Option<u64>,
    /// Between two checks in the start period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_interval: Option<u64>,
    /// Failures in a row that make it unwell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

/// How one layer, or one change without a layer, came to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient_time")]
    pub created: Option<Timestamp>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// No layer belongs to this entry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// The config of an empty image.
    #[must_use]
    pub fn new(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture().to_owned(),
            os: platform.os().to_owned(),
            variant: platform.variant().map(str::to_owned),
            ..Self::default()
        }
    }

    /// Reads a config.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > MAX_BYTES {
            return Err(ConfigError::Size(bytes.len()));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The config as it is stored; the same value always gives the same bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// The platform that the config names.
    pub fn platform(&self) -> Result<Platform, PlatformError> {
        Platform::new(&self.os, &self.architecture, self.variant.as_deref())
    }
}

fn lenient_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.and_then(|text| text.parse().ok()))
}

/// A set that is written as Go writes `map[string]struct{}`.
mod keys {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(set: &BTreeSet<String>, to: S) -> Result<S::Ok, S::Error> {
        let empty = serde_json::Map::new();
        to.collect_map(set.iter().map(|key| (key, &empty)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, serde_json::Value>>::deserialize(from)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_writes_is_read() {
        let text = r#"{"architecture":"arm64","variant":"v8","os":"linux","created":"2026-01-02T03:04:05.678901234Z",
            "container":"x","config":{"Hostname":"","User":"","ExposedPorts":{"5000/tcp":{}},"Env":["PATH=/bin"],
            "Cmd":["sh"],"Volumes":null,"Entrypoint":null,"OnBuild":null,"Labels":null,"Healthcheck":{"Test":["CMD","x"],"Interval":30000000000}},
            "rootfs":{"type":"layers","diff_ids":null},"history":[{"created":"never","created_by":"x","empty_layer":true}]}"#;
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.platform().unwrap().to_string(), "linux/arm64");
        assert_eq!(config.config.exposed_ports, BTreeSet::from(["5000/tcp".to_owned()]));
        assert_eq!(config.config.healthcheck.as_ref().unwrap().interval, Some(30_000_000_000));
        assert_eq!(config.history[0].created, None);
        assert_eq!(config.created.unwrap().subsec_nanosecond(), 678_901_234);
        assert!(ImageConfig::parse(br#"{"rootfs":{"type":"layers"},"config":null}"#).is_ok());
    }

    #[test]
    fn our_configs_are_written_in_one_order_with_nothing_empty() {
        let mut config = ImageConfig::new(&"linux/arm/v7".parse().unwrap());
        config.created = Some(Timestamp::UNIX_EPOCH);
        config.config.exposed_ports.insert("80/tcp".to_owned());
        config.rootfs.diff_ids.push(Digest::of(""));
        let expected = format!(
            r#"{{"created":"1970-01-01T00:00:00Z","architecture":"arm","os":"linux","variant":"v7","config":{{"ExposedPorts":{{"80/tcp":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            Digest::of("")
        );
        assert_eq!(config.to_bytes(), expected.as_bytes());
        assert_eq!(ImageConfig::parse(expected.as_bytes()).unwrap(), config);
    }
}
