//! Places that have the images of registries, and are asked before them.

use std::path::PathBuf;
use std::str::FromStr;

use crate::oci::{Host, NameError, Reference, Repository, RepositoryName};

/// A place to look for base images before their own registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mirror {
    /// A registry, or a namespace of one, that has the images of another.
    Registry {
        /// Whose images it has.
        of: Host,
        /// Where.
        at: Namespace,
    },
    /// An OCI image layout directory whose index names images.
    Layout(PathBuf),
}

/// A registry, or a part of one: `mirror.gcr.io`, `127.0.0.1:5000/mirror`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    host: Host,
    path: Option<RepositoryName>,
}

/// Where base images are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// In this order.
    pub places: Vec<Mirror>,
    /// Whether a registry that has a mirror is left aside itself.
    pub only: bool,
}

/// Why a text names no mirror.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// A part of it is no name.
    #[error("mirror `{text}`: {cause}")]
    Name {
        /// The text.
        text: String,
        /// What is wrong with the part.
        cause: NameError,
    },
    /// A URL.
    #[error("mirror `{0}`: leave out `{scheme}`; a registry that speaks plain HTTP is named with `--insecure-registry`", scheme = scheme(.0))]
    Scheme(String),
    /// Whose mirror it is is left open.
    #[error("`{0}` maps no registry: write `REGISTRY=PLACE`, as in `quay.io=mirror.example/quay`")]
    NoRegistry(String),
    /// A map of a part of a registry.
    #[error("`{0}`: only a whole registry is mapped, as in `quay.io=mirror.example/quay`")]
    Part(String),
}

fn scheme(text: &str) -> &str {
    let end = text.find("://").map_or(text.len(), |at| at + 3);
    let start = text[..end].rfind('=').map_or(0, |at| at + 1);
    &text[start..end]
}

impl FromStr for Mirror {
    type Err = MirrorError;

    /// `PLACE` has the images of docker.io, `REGISTRY=PLACE` those of another, `oci:DIRECTORY` any.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(directory) = text.strip_prefix("oci:").filter(|rest| !rest.starts_with("//")) {
            return Ok(Self::Layout(PathBuf::from(directory)));
        }
        if text.contains("://") {
            return Err(MirrorError::Scheme(text.to_owned()));
        }
        let (of, place) = text.split_once('=').unwrap_or(("docker.io", text));
        if of.contains('/') {
            return Err(MirrorError::Part(text.to_owned()));
        }
        let error = |cause| MirrorError::Name { text: text.to_owned(), cause };
        let of: Host = of.trim().parse().map_err(error)?;
        let of = match of.as_str() {
            "index.docker.io" | "registry-1.docker.io" => Host::docker_hub(),
            _ => of,
        };
        Ok(Self::Registry { of, at: place.trim().parse().map_err(error)? })
    }
}

/// As [`FromStr`] reads it.
impl std::fmt::Display for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry { of, at } => write!(f, "{of}={at}"),
            Self::Layout(directory) => write!(f, "oci:{}", directory.display()),
        }
    }
}

impl Mirror {
    /// Reads a map as kaniko's: `REGISTRY=PLACE`, several joined by `;`.
    pub fn parse_map(text: &str) -> Result<Vec<Self>, MirrorError> {
        let entries = text.split(';').map(str::trim).filter(|entry| !entry.is_empty());
        let parse = |entry: &str| {
            if entry.contains('=') { entry.parse() } else { Err(MirrorError::NoRegistry(entry.to_owned())) }
        };
        entries.map(parse).collect()
    }
}

impl FromStr for Namespace {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim_end_matches('/');
        let (host, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
        let host = match host.parse::<Host>()?.as_str() {
            "index.docker.io" | "registry-1.docker.io" => Host::docker_hub(),
            _ => host.parse()?,
        };
        Ok(Self { host, path: path.map(str::parse).transpose()? })
    }
}

impl Namespace {
    /// What an image is called here.
    pub(crate) fn image(&self, reference: &Reference) -> Result<Reference, NameError> {
        let name = &reference.repository.name;
        let name = self.path.as_ref().map_or_else(|| Ok(name.clone()), |path| path.join(name.as_str()))?;
        let repository = Repository { host: self.host.clone(), name };
        Ok(Reference { repository, ..reference.clone() })
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.host.fmt(f)?;
        self.path.as_ref().map_or(Ok(()), |path| write!(f, "/{path}"))
    }
}

impl Mirrors {
    /// Whether a registry is asked itself, after its mirrors.
    pub(crate) fn ask(&self, host: &Host) -> bool {
        let is_of = |place: &Mirror| match place {
            Mirror::Registry { of, .. } => of == host,
            Mirror::Layout(_) => true,
        };
        !(self.only && self.places.iter().any(is_of))
    }
}

impl From<Vec<Mirror>> for Mirrors {
    fn from(places: Vec<Mirror>) -> Self {
        Self { places, only: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(mirror: &str, reference: &str) -> Option<String> {
        let reference: Reference = reference.parse().unwrap();
        match mirror.parse().unwrap() {
            Mirror::Registry { of, at } if of == reference.repository.host => {
                Some(at.image(&reference).unwrap().to_string())
            }
            _ => None,
        }
    }

    #[test]
    fn a_mirror_has_the_names_of_its_registry_below_its_own() {
        for (mirror, reference, expected) in [
            ("127.0.0.1:5000/mirror", "debian:12", Some("127.0.0.1:5000/mirror/library/debian:12")),
            ("mirror.gcr.io", "debian:12", Some("mirror.gcr.io/library/debian:12")),
            ("mirror.gcr.io", "org/app", Some("mirror.gcr.io/org/app")),
            ("mirror.gcr.io/", "quay.io/org/app", None),
            ("quay.io=127.0.0.1/quay", "quay.io/org/app:1", Some("127.0.0.1/quay/org/app:1")),
            ("index.docker.io=a.test/the/project", "busybox", Some("a.test/the/project/library/busybox")),
            ("gcr.io=index.docker.io", "gcr.io/a/b", Some("docker.io/a/b")),
        ] {
            assert_eq!(image(mirror, reference).as_deref(), expected, "{mirror} {reference}");
        }
        assert_eq!("oci:/a/b".parse(), Ok(Mirror::Layout("/a/b".into())));
    }

    #[test]
    fn a_map_is_read_as_kaniko_writes_it() {
        let text =
            "index.docker.io=docker-io.mirrors.corp.net;index.docker.io=mirror.gcr.io;gcr.io=127.0.0.1";
        let map = Mirror::parse_map(text).unwrap();
        assert_eq!(map.len(), 3);
        assert_eq!(map[2], "gcr.io=127.0.0.1".parse().unwrap());
        for (text, said) in [
            ("mirror.gcr.io", "maps no registry"),
            ("quay.io/org=a.test", "only a whole registry"),
            ("quay.io=https://a.test", "leave out `https://`"),
            ("quay.io=", "is not `host`"),
        ] {
            let error = Mirror::parse_map(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_registry_without_a_mirror_is_asked_also_if_mirrors_are_all_there_is() {
        let hub = Host::docker_hub();
        let places = vec!["quay.io=a.test".parse().unwrap()];
        let mirrors = Mirrors { places, only: true };
        assert!(mirrors.ask(&hub) && !mirrors.ask(&"quay.io".parse().unwrap()));
        assert!(Mirrors { places: Vec::new(), only: true }.ask(&hub));
    }
}
