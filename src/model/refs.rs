//! Names of git refs (`git help check-ref-format`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A full ref name below `refs/`, such as `refs/heads/main`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RefName(String);

/// Why a text is not a ref name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a valid ref name")]
pub struct RefNameError(String);

/// The longest ref name that is taken, in bytes.
const MAX_BYTES: usize = 250;

impl RefName {
    /// `refs/heads/<branch>`.
    pub fn branch(branch: &str) -> Result<Self, RefNameError> {
        format!("refs/heads/{branch}").parse()
    }

    /// The full name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The branch, if the ref is one.
    #[must_use]
    pub fn as_branch(&self) -> Option<&str> {
        self.0.strip_prefix("refs/heads/")
    }

    /// The tag, if the ref is one.
    #[must_use]
    pub fn as_tag(&self) -> Option<&str> {
        self.0.strip_prefix("refs/tags/")
    }

    /// The name as people write it: without `refs/heads/` or `refs/tags/`.
    #[must_use]
    pub fn short(&self) -> &str {
        self.as_branch().or_else(|| self.as_tag()).unwrap_or(&self.0)
    }
}

impl FromStr for RefName {
    type Err = RefNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || RefNameError(text.chars().take(MAX_BYTES).collect());
        let rest = text.strip_prefix("refs/").ok_or_else(error)?;
        let forbidden = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
        let bad_part = |part: &str| {
            let lock = std::path::Path::new(part).extension().is_some_and(|e| e == "lock") || part == ".lock";
            part.is_empty() || part.starts_with('.') || part.ends_with('.') || lock
        };
        let bad = text.len() > MAX_BYTES
            || !rest.contains('/')
            || text.contains(forbidden)
            || text.contains("..")
            || text.contains("@{")
            || rest.split('/').any(bad_part);
        if bad { Err(error()) } else { Ok(Self(text.to_owned())) }
    }
}

impl TryFrom<String> for RefName {
    type Error = RefNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RefName> for String {
    fn from(name: RefName) -> Self {
        name.0
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_git_refuses_are_refused() {
        for text in [
            "main",
            "refs/main",
            "refs/heads/",
            "refs/heads/../x",
            "refs/heads/a..b",
            "refs/heads/.a",
            "refs/heads/a.lock",
            "refs/heads/a b",
            "refs/heads/a\nb",
            "refs/heads/a@{1}",
            "refs//heads/a",
            "refs/heads/a\\b",
        ] {
            assert!(text.parse::<RefName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn short_names_are_what_people_write() {
        assert_eq!(RefName::branch("a/b").unwrap().short(), "a/b");
        assert_eq!("refs/tags/v1".parse::<RefName>().unwrap().as_tag(), Some("v1"));
    }
}
