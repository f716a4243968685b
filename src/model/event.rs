//! What the pusher sees, before it is put into words for a terminal.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::oci::Platform;

/// One thing to tell the pusher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PushEvent {
    /// A stage begins: `-----> Building`.
    Heading(String),
    /// Something below the heading.
    Line(String),
    /// A line of the build for a platform: `[amd64] …`.
    Platform {
        /// Whose line.
        platform: Platform,
        /// The line.
        text: String,
    },
    /// What went wrong, or what needs attention: ` !     …`.
    Problem(String),
}

/// A numbered line of a build's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// From 1; a follower asks for the lines after the last number it has.
    pub number: u64,
    /// When it was written.
    pub at: Timestamp,
    /// What it says.
    pub event: PushEvent,
}

impl PushEvent {
    /// The event as lines in Heroku's grammar, without line ends.
    #[must_use]
    pub fn render(&self) -> Vec<String> {
        match self {
            Self::Heading(text) => text.lines().map(|line| format!("-----> {line}")).collect(),
            Self::Line(text) => text.lines().map(|line| format!("       {line}")).collect(),
            Self::Platform { platform, text } => {
                let name = platform.variant().map_or_else(
                    || platform.architecture().to_owned(),
                    |variant| format!("{}/{variant}", platform.architecture()),
                );
                text.lines().map(|line| format!("       [{name}] {line}")).collect()
            }
            Self::Problem(text) => text.lines().map(|line| format!(" !     {line}")).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_shown_in_herokus_grammar() {
        let platform = Platform::new("linux", "arm64", None).unwrap();
        assert_eq!(PushEvent::Heading("Building".into()).render(), ["-----> Building"]);
        assert_eq!(PushEvent::Line("a\nb".into()).render(), ["       a", "       b"]);
        assert_eq!(PushEvent::Problem("no".into()).render(), [" !     no"]);
        assert_eq!(PushEvent::Platform { platform, text: "x".into() }.render(), ["       [arm64] x"]);
    }
}
