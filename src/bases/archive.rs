//! Which mirrors of Debian's archive to use: those that the machine's own apt is told to use, where they are Debian's.

use std::fs;
use std::path::{Path, PathBuf};

use url::Url;

const DEBIAN: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";
/// Larger than any list of sources that people write.
const MAX_SOURCES_BYTES: u64 = 1 << 20;

/// Where Debian's packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// Of the releases and their updates.
    pub debian: Url,
    /// Of security updates.
    pub security: Url,
}

/// Why mirrors are not to be used.
#[derive(Debug, thiserror::Error)]
pub enum MirrorsError {
    /// Not a URL that apt takes.
    #[error("mirror `{0}` is not an http:// or https:// URL without a password")]
    Url(String),
    /// A list of sources could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The list.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl Mirrors {
    /// Those given, else those of the machine's apt, else Debian's own.
    pub fn find(debian: Option<&str>, security: Option<&str>) -> Result<Self, MirrorsError> {
        Self::find_in(Path::new("/etc/apt"), debian, security)
    }

    fn find_in(apt: &Path, debian: Option<&str>, security: Option<&str>) -> Result<Self, MirrorsError> {
        let configured = configured(apt)?;
        let named = |name: &str| configured.iter().find(|url| last_segment(url) == Some(name)).cloned();
        let choose = |given: Option<&str>, name, default: &str| match given {
            Some(text) => usable(text).ok_or_else(|| MirrorsError::Url(text.to_owned())),
            None => {
                named(name).or_else(|| usable(default)).ok_or_else(|| MirrorsError::Url(default.to_owned()))
            }
        };
        Ok(Self {
            debian: choose(debian, "debian", DEBIAN)?,
            security: choose(security, "debian-security", SECURITY)?,
        })
    }
}

/// A URL that may also stand in an image: one without a password.
fn usable(text: &str) -> Option<Url> {
    let url: Url = text.parse().ok()?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    Some(url).filter(|url| matches!(url.scheme(), "http" | "https") && plain && url.has_host())
}

fn last_segment(url: &Url) -> Option<&str> {
    url.path_segments()?.rfind(|segment| !segment.is_empty())
}

/// Every URL of the machine's sources, in their order.
fn configured(apt: &Path) -> Result<Vec<Url>, MirrorsError> {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
        let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut urls = Vec::new();
    for path in files {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let text = match fs::metadata(&path) {
            Ok(found) if found.len() <= MAX_SOURCES_BYTES => fs::read_to_string(&path),
            _ => continue,
        };
        let text = text.map_err(|source| MirrorsError::Read { path: path.clone(), source })?;
        match extension {
            Some("list") => urls.extend(one_line_style(&text)),
            Some("sources") => urls.extend(deb822_style(&text)),
            _ => {}
        }
    }
    Ok(urls)
}

/// `deb [options] URL suite component…` (sources.list(5)).
fn one_line_style(text: &str) -> Vec<Url> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("deb "));
    let url = |line: &str| {
        let rest = line.trim_start();
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
        usable(rest.split_whitespace().next()?)
    };
    lines.filter_map(url).collect()
}

/// `URIs: URL…` in stanzas that are not disabled.
fn deb822_style(text: &str) -> Vec<Url> {
    let enabled = |stanza: &&str| !stanza.lines().any(|line| line.trim().eq_ignore_ascii_case("enabled: no"));
    let uris = |line: &str| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case("uris")
            .then(|| value.split_whitespace().filter_map(usable).collect::<Vec<_>>())
    };
    text.split("\n\n")
        .filter(enabled)
        .flat_map(|stanza| stanza.lines().filter_map(uris).flatten().collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(files: &[(&str, &str)]) -> (String, String) {
        let apt = tempfile::tempdir().unwrap();
        fs::create_dir(apt.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(apt.path().join(name), text).unwrap();
        }
        let found = Mirrors::find_in(apt.path(), None, None).unwrap();
        (found.debian.to_string(), found.security.to_string())
    }

    #[test]
    fn the_mirrors_of_the_machine_are_used_where_they_are_debians() {
        let deb822 = "Types: deb\nURIs: https://mirror.example/debian\nSuites: bookworm\n\nTypes: deb\nURIs: http://mirror.example/debian-security/\n";
        let expected =
            ("https://mirror.example/debian".to_owned(), "http://mirror.example/debian-security/".to_owned());
        assert_eq!(mirrors(&[("sources.list.d/debian.sources", deb822)]), expected);
        let one_line = "# deb http://no.example/debian x main\ndeb https://packages.example/apt cloud main\n\
            deb [signed-by=/k.gpg arch=amd64] https://mirror.example/debian bookworm main\n\
            deb http://mirror.example/debian-security/ bookworm-security main\n";
        assert_eq!(mirrors(&[("sources.list", one_line)]), expected);
    }

    #[test]
    fn others_disabled_ones_and_those_with_passwords_are_not() {
        let default = (DEBIAN.to_owned(), SECURITY.to_owned());
        assert_eq!(mirrors(&[]), default);
        assert_eq!(
            mirrors(&[("sources.list", "deb http://archive.ubuntu.com/ubuntu noble main\n")]),
            default
        );
        let disabled = "Enabled: no\nURIs: http://mirror.example/debian\n";
        assert_eq!(mirrors(&[("sources.list.d/x.sources", disabled)]), default);
        assert_eq!(
            mirrors(&[("sources.list", "deb https://u:p@mirror.example/debian bookworm main\n")]),
            default
        );
    }

    #[test]
    fn a_mirror_that_is_given_wins_if_it_is_one() {
        let apt = tempfile::tempdir().unwrap();
        let found = Mirrors::find_in(apt.path(), Some("http://own.example/d"), None).unwrap();
        assert_eq!(found.debian.as_str(), "http://own.example/d");
        for text in ["own.example", "file:///srv", "http://u:p@own.example/debian"] {
            assert!(Mirrors::find_in(apt.path(), Some(text), None).is_err(), "{text}");
        }
    }
}
