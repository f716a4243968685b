//! Registry hosts, repository names and tags (OCI distribution-spec, "Pulling manifests").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a host, repository name or tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not `host[:port]`.
    #[error("registry `{0}` is not `host` or `host:port`")]
    Host(String),
    /// Not a repository name.
    #[error(
        "repository name `{0}` is not valid: lower-case letters and digits, `.`, `_` and `-` between them, parts joined by `/`, at most 255 bytes"
    )]
    Repository(String),
    /// Not a tag.
    #[error(
        "tag `{0}` is not valid: at most 128 of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`"
    )]
    Tag(String),
}

/// The longest text that an error repeats.
const SHOWN_BYTES: usize = 300;

/// Text from outside, as an error may show it.
pub(super) fn shown(text: &str) -> String {
    let mut end = text.len().min(SHOWN_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let head = text[..end].escape_debug();
    if end < text.len() { format!("{head}…") } else { head.to_string() }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $error:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(NameError::$error(shown(text))) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text_type!(
    /// A registry: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`.
    Host, Host, is_host
);
text_type!(
    /// The name of a repository in a registry: `library/debian`. Safe as a relative path.
    RepositoryName, Repository, is_repository
);
text_type!(
    /// A tag. Safe as a file name.
    Tag, Tag, is_tag
);

impl Host {
    /// Docker Hub, by the name that references use.
    #[must_use]
    pub fn docker_hub() -> Self {
        Self("docker.io".to_owned())
    }

    /// Whether this is this machine itself, which is spoken to in plain HTTP.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.without_port();
        host == "localhost"
            || host.ends_with(".localhost")
            || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The host without its port; an IPv6 address keeps its brackets.
    #[must_use]
    pub fn without_port(&self) -> &str {
        match self.0.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.0,
        }
    }
}

impl RepositoryName {
    /// `self/name`.
    pub fn join(&self, name: &str) -> Result<Self, NameError> {
        format!("{self}/{name}").parse()
    }
}

impl Tag {
    /// The tag that a reference without one means.
    #[must_use]
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_is_valid =
        port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|p| p > 0));
    let name_is_valid = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    text.len() <= 255 && port_is_valid && name_is_valid
}

fn is_repository(text: &str) -> bool {
    text.len() <= 255 && text.split('/').all(is_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_are_words = bytes.first().is_some_and(|b| word(*b)) && bytes.last().is_some_and(|b| word(*b));
    ends_are_words
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_that_could_leave_their_directory_are_refused() {
        let long = "a/".repeat(127) + "aa";
        for text in [
            "", ".", "..", "a/..", "../a", "a//b", "/a", "a/", "A", "a b", "a/_b", "_a", "a..b", "a._b",
            "a___b", "a-", "-a", "a\0b", "a%2fb", "a\\b", "ä", &long,
        ] {
            assert_eq!(text.parse::<RepositoryName>(), Err(NameError::Repository(shown(text))), "{text:?}");
        }
        for text in
            ["a", "library/debian", "a.b", "a_b", "a__b", "a---b", "0", "mirror/library/debian", &long[..255]]
        {
            assert_eq!(text.parse::<RepositoryName>().map(String::from), Ok(text.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn tags_are_file_names_and_nothing_else() {
        for text in ["", ".", "..", "-a", "a/b", "a:b", "a b", "ä", &"a".repeat(129)] {
            assert!(text.parse::<Tag>().is_err(), "{text:?}");
        }
        for text in ["latest", "v4", "_a", "1.2-rc.1", &"a".repeat(128)] {
            assert!(text.parse::<Tag>().is_ok(), "{text:?}");
        }
    }

    #[test]
    fn hosts_have_a_name_or_an_address_and_maybe_a_port() {
        for text in
            ["docker.io", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "[::1]", "A.example", "a:1"]
        {
            assert!(text.parse::<Host>().is_ok(), "{text:?}");
        }
        for text in [
            "", ":", "a:", "a:0", "a:70000", "a:b", "a b", "a/b", "u@a", "[x]:1", "::1", "-a.b", "a..b",
            "a:+1",
        ] {
            assert!(text.parse::<Host>().is_err(), "{text:?}");
        }
        let loopback = |text: &str| text.parse::<Host>().unwrap().is_loopback();
        assert!(
            loopback("localhost:5000")
                && loopback("127.9.9.9")
                && loopback("[::1]:80")
                && loopback("x.localhost")
        );
        assert!(
            !loopback("127.0.0.1.example") && !loopback("docker.io") && !loopback("localhost.example:80")
        );
    }

    #[test]
    fn an_error_shows_a_bounded_printable_part_of_what_was_given() {
        let text = format!("\u{1b}[2J{}", "x".repeat(10_000));
        let shown = text.parse::<Tag>().unwrap_err().to_string();
        assert!(shown.len() < 600 && !shown.contains('\u{1b}'), "{shown}");
    }
}
