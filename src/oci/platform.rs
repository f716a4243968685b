//! Platforms: `os/architecture[/variant]`, always in one canonical spelling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and architecture, in the canonical spelling of OCI indexes.
///
/// `arm64/v8` is `arm64`, `aarch64` is `arm64`, `x86_64` is `amd64`, `arm` is `arm/v7`: two values are equal
/// exactly when a node of one runs images of the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform `{0}` is not `os/architecture[/variant]`, as in `linux/arm64`")]
pub struct PlatformError(String);

impl Platform {
    /// The platform from the parts that an image config or an index descriptor names.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Result<Self, PlatformError> {
        let whole = || PlatformError(format!("{os}/{architecture}"));
        let word = |text: &str| {
            let ok =
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            if ok { Ok(text.to_ascii_lowercase()) } else { Err(whole()) }
        };
        let os = word(os)?;
        let variant = variant.filter(|v| !v.is_empty()).map(word).transpose()?;
        let (architecture, variant) = canonical(&word(architecture)?, variant);
        Ok(Self { os, architecture, variant })
    }

    /// The platform that this program was compiled for, which is the one whose programs run here natively.
    #[must_use]
    pub fn native() -> Self {
        let (architecture, variant) = canonical(std::env::consts::ARCH, None);
        Self { os: "linux".to_owned(), architecture, variant }
    }

    /// `linux`.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Go's name of the architecture: `amd64`, `arm64`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `v7` for 32-bit arm; absent where the architecture has one baseline.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }
}

fn canonical(architecture: &str, variant: Option<String>) -> (String, Option<String>) {
    match (architecture, variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64".to_owned(), None),
        ("x86_64" | "x86-64", _) => ("amd64".to_owned(), variant),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64".to_owned(), None),
        ("aarch64", _) => ("arm64".to_owned(), variant),
        ("armhf", _) | ("arm", None | Some("7" | "v7")) => ("arm".to_owned(), Some("v7".to_owned())),
        ("armel", _) | ("arm", Some("6")) => ("arm".to_owned(), Some("v6".to_owned())),
        ("powerpc64le", _) => ("ppc64le".to_owned(), variant),
        _ => (architecture.to_owned(), variant),
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) => Self::new(os, architecture, variant),
            _ => Err(PlatformError(text.to_owned())),
        }
        .map_err(|_| PlatformError(text.to_owned()))
    }
}

impl TryFrom<String> for Platform {
    type Error = PlatformError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_platform_are_equal() {
        for (one, other) in [
            ("linux/arm64/v8", "linux/aarch64"),
            ("linux/x86_64", "linux/amd64/v1"),
            ("linux/arm", "linux/armhf"),
        ] {
            assert_eq!(one.parse::<Platform>(), other.parse::<Platform>());
        }
        assert_ne!("linux/amd64/v3".parse::<Platform>(), "linux/amd64".parse::<Platform>());
    }

    #[test]
    fn what_is_not_a_platform_is_refused() {
        for text in ["", "linux", "linux/", "linux/arm/v7/x", "lin ux/arm", "/arm64"] {
            assert_eq!(text.parse::<Platform>(), Err(PlatformError(text.to_owned())), "{text}");
        }
    }
}
