//! The variables that an app runs with.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{AppName, Kind, Object, ObjectName, ReleaseNumber, Secret};

/// The name of an environment variable: `[A-Za-z_][A-Za-z0-9_]*`, at most 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvName(String);

/// Why a text is not the name of a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a variable name: use letters, digits and `_`, not beginning with a digit")]
pub struct EnvNameError(String);

impl EnvName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EnvName {
    type Err = EnvNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let digit = text.starts_with(|c: char| c.is_ascii_digit());
        if text.is_empty() || text.len() > 128 || digit || !text.bytes().all(good) {
            return Err(EnvNameError(text.chars().take(128).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for EnvName {
    type Error = EnvNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EnvName> for String {
    fn from(name: EnvName) -> Self {
        name.0
    }
}

impl fmt::Display for EnvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An app's variables: the ones to release next, or those of one release, which never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The version of this object's format.
    pub format: u32,
    /// Whose variables.
    pub app: AppName,
    /// The release they are fixed for; absent for the ones to release next.
    pub release: Option<ReleaseNumber>,
    /// Name to value.
    pub variables: BTreeMap<EnvName, Secret<String>>,
}

impl Config {
    /// The name of the app's variables to release next.
    #[must_use]
    pub fn next_name(app: &AppName) -> ObjectName {
        ObjectName::of(app)
    }

    /// The name of the variables of a release.
    #[must_use]
    pub fn release_name(app: &AppName, release: ReleaseNumber) -> ObjectName {
        ObjectName::joined(app, &release)
    }
}

impl Object for Config {
    const KIND: Kind = Kind::Config;

    fn name(&self) -> ObjectName {
        self.release.map_or_else(|| Self::next_name(&self.app), |r| Self::release_name(&self.app, r))
    }
}
