//! Names: of bases as registries have them, of Debian's releases, architectures and packages.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::BaseError;
use crate::oci::Platform;

/// A base that can be assembled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// `debian:12`, `debian:bookworm-slim`.
    Debian {
        /// The release.
        release: Release,
        /// Without manuals, translations and documents, also of packages that are installed later.
        slim: bool,
    },
    /// `busybox`: one static program and its names.
    Busybox,
}

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    version: &'static str,
    codename: &'static str,
}

/// What can be assembled, newest last.
const RELEASES: [Release; 3] = [
    Release { version: "11", codename: "bullseye" },
    Release { version: "12", codename: "bookworm" },
    Release { version: "13", codename: "trixie" },
];

/// Not a base that can be assembled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot be assembled: use debian:11, debian:12, debian:13 (or bullseye, bookworm, trixie; with -slim after it), or busybox"
)]
pub struct BaseNameError(String);

/// The name of a Debian package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackageName(String);

/// Not the name of a package.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a Debian package: use a-z, 0-9, `+`, `-` and `.`")]
pub struct PackageNameError(String);

impl Release {
    /// `bookworm`.
    #[must_use]
    pub fn codename(self) -> &'static str {
        self.codename
    }

    pub(super) const fn of_busybox() -> Self {
        RELEASES[1]
    }
}

impl Base {
    /// The repository on Docker Hub, and below the mirror: `library/debian`.
    #[must_use]
    pub const fn repository(self) -> &'static str {
        match self {
            Self::Debian { .. } => "library/debian",
            Self::Busybox => "library/busybox",
        }
    }

    /// Every tag that an image of this base with these packages has, the one that people use first.
    ///
    /// With packages the tag names them, `12-with-git-python3`, so that the plain base stays what it is.
    #[must_use]
    pub fn tags(self, include: &[PackageName]) -> Vec<String> {
        let Self::Debian { release, slim } = self else {
            return vec!["latest".to_owned()];
        };
        let mut suffix = if slim { "-slim".to_owned() } else { String::new() };
        if !include.is_empty() {
            suffix += &with_packages(include);
        }
        [release.version, release.codename].map(|name| format!("{name}{suffix}")).to_vec()
    }
}

/// `-with-git-python3`, or a hash of the names where they are too long for a tag.
fn with_packages(include: &[PackageName]) -> String {
    let mut names: Vec<&str> = include.iter().map(PackageName::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let joined = names.join("-").replace('+', "_");
    if joined.len() <= 100 {
        return format!("-with-{joined}");
    }
    format!("-with-{}", hex::encode(&Sha256::digest(names.join(","))[..8]))
}

impl FromStr for Base {
    type Err = BaseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || BaseNameError(text.to_owned());
        let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
        match name {
            "busybox" if tag == "latest" => Ok(Self::Busybox),
            "debian" => {
                let (tag, slim) = tag.strip_suffix("-slim").map_or((tag, false), |tag| (tag, true));
                let release =
                    RELEASES.into_iter().find(|known| known.version == tag || known.codename == tag);
                Ok(Self::Debian { release: release.ok_or_else(error)?, slim })
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { release, slim } => {
                write!(f, "debian:{}{}", release.version, if *slim { "-slim" } else { "" })
            }
            Self::Busybox => f.write_str("busybox"),
        }
    }
}

impl PackageName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackageName {
    type Err = PackageNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Debian Policy 5.6.7.
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if text.len() >= 2 && text.len() <= 128 && first && text.bytes().all(good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PackageNameError(text.to_owned()))
        }
    }
}

/// Debian's name of an architecture.
pub(super) fn debian_architecture(platform: &Platform) -> Result<&'static str, BaseError> {
    let name = match (platform.os(), platform.architecture(), platform.variant()) {
        ("linux", "amd64", None) => "amd64",
        ("linux", "arm64", None) => "arm64",
        ("linux", "arm", Some("v7")) => "armhf",
        ("linux", "arm", Some("v5" | "v6")) => "armel",
        ("linux", "386", None) => "i386",
        ("linux", "ppc64le", None) => "ppc64el",
        ("linux", "riscv64", None) => "riscv64",
        ("linux", "s390x", None) => "s390x",
        _ => return Err(BaseError::Architecture(platform.clone())),
    };
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(names: &[&str]) -> Vec<PackageName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_release_goes_by_number_and_by_name() {
        for (text, shown, tags) in [
            ("debian:12", "debian:12", ["12", "bookworm"]),
            ("debian:bookworm", "debian:12", ["12", "bookworm"]),
            ("debian:trixie-slim", "debian:13-slim", ["13-slim", "trixie-slim"]),
        ] {
            let base: Base = text.parse().unwrap();
            assert_eq!(base.to_string(), shown);
            assert_eq!(base.tags(&[]), tags);
            assert_eq!(base.repository(), "library/debian");
        }
        let busybox: Base = "busybox".parse().unwrap();
        assert_eq!((busybox.repository(), busybox.tags(&[])), ("library/busybox", vec!["latest".to_owned()]));
    }

    #[test]
    fn what_debian_does_not_have_is_refused() {
        for text in
            ["debian", "debian:latest", "debian:9", "ubuntu:24.04", "busybox:1.36", "debian:12-fat", ""]
        {
            assert!(text.parse::<Base>().is_err(), "{text}");
        }
    }

    #[test]
    fn packages_are_in_the_tag_whatever_their_order() {
        let base: Base = "debian:12".parse().unwrap();
        let tags = ["12-with-g__-git", "bookworm-with-g__-git"];
        assert_eq!(base.tags(&packages(&["git", "g++", "git"])), tags);
        let long: Vec<String> = (0..50).map(|n| format!("package{n}")).collect();
        let long = packages(&long.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(base.tags(&long)[0].len(), "12-with-".len() + 16);
    }

    #[test]
    fn a_package_name_cannot_be_an_option_or_a_command() {
        for text in ["", "a", "-x", "a b", "A", "a,b", "a;b", "../x", "?essential"] {
            assert!(text.parse::<PackageName>().is_err(), "{text}");
        }
    }
}
