//! Image references: `[host[:port]/]name[:tag][@digest]`, with Docker's normalisation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::shown;
use super::{Digest, DigestError, Host, NameError, RepositoryName, Tag};

/// The longest text that is looked at as a reference.
const MAX_BYTES: usize = 1024;

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// A part is not valid.
    #[error("image reference `{text}`: {cause}")]
    Name {
        /// The reference.
        text: String,
        /// What is wrong with the part.
        cause: NameError,
    },
    /// The digest is not valid.
    #[error("image reference `{text}`: {cause}")]
    Digest {
        /// The reference.
        text: String,
        /// What is wrong with the digest.
        cause: DigestError,
    },
    /// Too long to be one.
    #[error("image reference `{0}` is longer than {MAX_BYTES} bytes")]
    Length(String),
}

/// A repository in a registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository {
    /// The registry.
    pub host: Host,
    /// The name there.
    pub name: RepositoryName,
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A name that may move.
    Tag(Tag),
    /// The content itself.
    Digest(Digest),
}

/// An image: a repository, and maybe a tag and a digest.
///
/// `debian:12` reads as `docker.io/library/debian:12`. The first part is a host only if it has a `.` or a `:`, or
/// is `localhost`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    /// Where the image is.
    pub repository: Repository,
    /// The tag, if the text has one.
    pub tag: Option<Tag>,
    /// The digest, if the text has one.
    pub digest: Option<Digest>,
}

impl Reference {
    /// What to ask the registry for: the digest if there is one, else the tag, else `latest`.
    #[must_use]
    pub fn target(&self) -> Target {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => Target::Digest(*digest),
            (None, Some(tag)) => Target::Tag(tag.clone()),
            (None, None) => Target::Tag(Tag::latest()),
        }
    }

    /// The short spelling that people use: `debian:12`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let text = self.to_string();
        let short = text.strip_prefix("docker.io/").map(|path| path.strip_prefix("library/").unwrap_or(path));
        short.map_or(text.clone(), str::to_owned)
    }
}

impl Repository {
    /// The reference of `target` in this repository.
    #[must_use]
    pub fn with(&self, target: &Target) -> Reference {
        let (tag, digest) = match target {
            Target::Tag(tag) => (Some(tag.clone()), None),
            Target::Digest(digest) => (None, Some(*digest)),
        };
        Reference { repository: self.clone(), tag, digest }
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, path) = match text.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (first.parse()?, rest)
            }
            _ => (Host::docker_hub(), text),
        };
        let host = match host.as_str() {
            "index.docker.io" | "registry-1.docker.io" => Host::docker_hub(),
            _ => host,
        };
        let name = if host == Host::docker_hub() && !path.contains('/') {
            format!("library/{path}").parse().map_err(|_| NameError::Repository(shown(path)))?
        } else {
            path.parse()?
        };
        Ok(Self { host, name })
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_BYTES {
            return Err(ReferenceError::Length(shown(text)));
        }
        let name_error = |cause| ReferenceError::Name { text: shown(text), cause };
        let digest_error = |cause| ReferenceError::Digest { text: shown(text), cause };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(digest_error)?)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before it is a port's.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.parse().map_err(name_error)?)),
            _ => (rest, None),
        };
        let repository = path.parse().map_err(name_error)?;
        Ok(Self { repository, tag, digest })
    }
}

impl FromStr for Target {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Digest).or_else(|_| text.parse().map(Self::Tag))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl TryFrom<String> for Repository {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Repository> for String {
    fn from(repository: Repository) -> Self {
        repository.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_docker_hubs() {
        let digest = Digest::of("");
        for (text, canonical, familiar) in [
            ("debian", "docker.io/library/debian", "debian"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("docker.io/debian:12", "docker.io/library/debian:12", "debian:12"),
            ("index.docker.io/library/debian", "docker.io/library/debian", "debian"),
            ("ada/app", "docker.io/ada/app", "ada/app"),
            ("localhost/x", "localhost/x", "localhost/x"),
            ("localhost:5000/x", "localhost:5000/x", "localhost:5000/x"),
            ("127.0.0.1:5000/a/b:v4", "127.0.0.1:5000/a/b:v4", "127.0.0.1:5000/a/b:v4"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("ghcr.io/a/b", "ghcr.io/a/b", "ghcr.io/a/b"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), canonical);
            assert_eq!(reference.familiar(), familiar);
            let pinned: Reference = format!("{text}@{digest}").parse().unwrap();
            assert_eq!(pinned.to_string(), format!("{canonical}@{digest}"));
            assert_eq!(pinned.target(), Target::Digest(digest));
        }
    }

    #[test]
    fn what_is_not_a_reference_is_refused() {
        let upper = format!("a@sha256:{}", "A".repeat(64));
        for text in [
            "",
            ":",
            "a:",
            "a@",
            "a@sha256:00",
            &upper,
            "A",
            "a/B",
            "a b",
            "http://a/b",
            "a:b:c",
            "../a",
            "a/../b",
            "host:x/a",
            "a@b@c",
            "-",
            "library/",
            "/debian",
            "x.y/",
            "user@host.x/a",
            &"a/".repeat(600),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_reference_reads_back_as_itself_and_its_name_stays_in_its_directory(text in "[a-zA-Z0-9./:@_\\-\\[\\] ]{0,60}|\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                proptest::prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
                let path = std::path::Path::new(reference.repository.name.as_str());
                proptest::prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }
    }
}
