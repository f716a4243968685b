//! Names and numbers as types: text becomes one of these once, at the edge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not the name it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A name with a character, a length or a place of `-` that is not allowed.
    #[error(
        "{what} `{text}` is not valid: use 1 to {max_bytes} of a-z, 0-9 and single `-` between them, beginning with a letter"
    )]
    Name {
        /// What the text should name.
        what: &'static str,
        /// The text.
        text: String,
        /// The longest allowed.
        max_bytes: usize,
    },
    /// Not 40 lower-case hexadecimal digits.
    #[error("commit `{0}` is not 40 lower-case hexadecimal digits")]
    Commit(String),
    /// Not a number of this kind.
    #[error("`{text}` is not a {what} number such as `{example}`")]
    Number {
        /// What the text should number.
        what: &'static str,
        /// The text.
        text: String,
        /// One that is.
        example: &'static str,
    },
}

/// `[a-z][a-z0-9]*(-[a-z0-9]+)*`: a DNS label without `--`, so that joined names cannot collide.
fn is_label(text: &str, max_bytes: usize) -> bool {
    text.len() <= max_bytes
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.split('-').all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        })
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max_bytes:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if is_label(text, $max_bytes) {
                    Ok(Self(text.to_owned()))
                } else {
                    let text = text.to_owned();
                    Err(NameError::Name { what: $what, text, max_bytes: $max_bytes })
                }
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

label!(
    /// The name of an app: also its repository, its host name and a part of its objects' names.
    AppName, "app name", 30
);
label!(
    /// The name of a process type, as in a `Procfile`.
    ProcessType, "process type", 20
);
label!(
    /// The name of a user.
    UserName, "user name", 30
);

impl ProcessType {
    /// The type that answers HTTP.
    #[must_use]
    pub fn web() -> Self {
        Self("web".to_owned())
    }

    /// The type that a command is run as once, beside what the app is scaled to.
    #[must_use]
    pub fn run() -> Self {
        Self("run".to_owned())
    }
}

/// A git commit (SHA-1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId([u8; 20]);

impl CommitId {
    /// The first seven digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(7);
        text
    }
}

impl FromStr for CommitId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 20];
        let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut id) {
            Ok(()) if lower => Ok(Self(id)),
            _ => Err(NameError::Commit(text.to_owned())),
        }
    }
}

impl TryFrom<String> for CommitId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CommitId> for String {
    fn from(id: CommitId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!("{}{}", $prefix, self.0))
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let digits = text.strip_prefix($prefix).unwrap_or(text);
                match digits.parse() {
                    Ok(number) if number > 0 && digits.starts_with(|c: char| c.is_ascii_digit()) => Ok(Self(number)),
                    _ => Err(NameError::Number { what: $what, text: text.to_owned(), example: $example }),
                }
            }
        }
    };
}

number!(
    /// The number of a build in its app, shown `#17`; from 1, never reused.
    BuildNumber, "build", "#", "17"
);
number!(
    /// The number of a release in its app, shown `v4`; from 1, never reused.
    ReleaseNumber, "release", "v", "v4"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_collide_or_escape_are_refused() {
        for text in ["", "a--b", "-a", "a-", "A", "1a", "a/b", "a.b", "..", "a b", &"a".repeat(31)] {
            assert!(text.parse::<AppName>().is_err(), "{text}");
        }
        for text in ["a", "a-b", "hello2", &"a".repeat(30)] {
            assert_eq!(text.parse::<AppName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn numbers_read_with_and_without_their_prefix() {
        assert_eq!("v4".parse(), Ok(ReleaseNumber(4)));
        assert_eq!("4".parse(), Ok(ReleaseNumber(4)));
        assert_eq!("#17".parse::<BuildNumber>().unwrap().to_string(), "#17");
        for text in ["0", "v", "+4", "-1", "v+4", "x4"] {
            assert!(text.parse::<ReleaseNumber>().is_err(), "{text}");
        }
    }
}
