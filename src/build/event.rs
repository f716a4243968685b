//! What a build tells while it runs: one JSON line each for programs, plain lines for people.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::build::driver::{BuildFailure, Location};
use crate::model::PlatformImage;
use crate::oci::Platform;

/// The longest line of a RUN step that is passed on; the rest of it is cut.
pub const MAX_LINE_BYTES: usize = 8 * 1024;

/// The width of the column of a step's text.
const TEXT_COLUMNS: usize = 39;

/// Between why an attempt was lost and which is next.
const ANOTHER: &str = "; attempt ";

/// One thing that a build tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum BuildEvent {
    /// Nothing was told of this engine before. A driver tells it, and no engine: what is told without it before may have
    /// been told to somebody else.
    Begun,
    /// The plan is made.
    Started {
        /// What is built.
        platform: Platform,
        /// How many steps there are.
        steps: u32,
        /// The rung of the isolation ladder.
        isolation: String,
    },
    /// A step began or ended.
    Step {
        /// From 1.
        number: u32,
        /// How many there are.
        of: u32,
        /// The stage's name, if the Dockerfile has several.
        stage: Option<String>,
        /// The instruction, on one line.
        text: String,
        /// Where it is written.
        at: Location,
        /// What happened.
        state: StepState,
        /// When, by the clock of whoever builds; older engines do not say it.
        #[serde(default)]
        time: Option<Timestamp>,
    },
    /// A line printed by a RUN step.
    Output {
        /// Which step.
        step: u32,
        /// Its stage's name, if the Dockerfile has several: they run at the same time.
        stage: Option<String>,
        /// At most [`MAX_LINE_BYTES`], valid UTF-8, no control characters but tabs and escapes.
        line: String,
    },
    /// Something worth a line: a download, a warning.
    Note {
        /// The line.
        text: String,
    },
    /// The image is made and pushed.
    Finished {
        /// It.
        image: Box<PlatformImage>,
    },
    /// There is no image.
    Failed {
        /// Why.
        failure: Box<BuildFailure>,
    },
}

/// An event with its number, as a line on a pod's standard output: so that whoever reads it again from the beginning knows
/// what was read before, and what is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedEvent {
    /// From 1, without a gap.
    pub number: u64,
    /// It.
    pub event: BuildEvent,
}

/// What happened to a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum StepState {
    /// It runs.
    Started,
    /// Its result was known.
    Cached,
    /// It ran.
    Done {
        /// For how long.
        millis: u64,
        /// Why its result was not known, where that is told: `changed: app.py`.
        #[serde(default)]
        why: Option<String>,
    },
    /// It failed.
    Failed {
        /// After how long.
        millis: u64,
        /// The exit status of RUN's command.
        exit_status: Option<i32>,
    },
}

impl BuildEvent {
    /// The event as plain lines, without a prefix. A step is told when it ends; a RUN also when it begins, since its output follows.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Started { isolation, .. } if isolation != "userns" => {
                vec![format!("isolation: {isolation}")]
            }
            Self::Begun | Self::Started { .. } | Self::Finished { .. } => Vec::new(),
            Self::Step { number, of, text, state, .. } => {
                step_line(*number, *of, text, state).into_iter().collect()
            }
            Self::Output { stage: Some(stage), line, .. } => vec![format!("    {stage} | {line}")],
            Self::Output { line, .. } => vec![format!("    {line}")],
            Self::Note { text } => vec![text.clone()],
            Self::Failed { failure } => failure_lines(failure),
        }
    }
}

/// The line that says that an engine was lost and another begins.
#[must_use]
pub fn another_attempt(reason: &str, number: u32, of: u32) -> String {
    format!("{reason}{ANOTHER}{number} of {of}")
}

/// Whether a line is one of [`another_attempt`].
#[must_use]
pub fn begins_attempt(line: &str) -> bool {
    let numbers = line.rsplit_once(ANOTHER).and_then(|(_, numbers)| numbers.split_once(" of "));
    // What a command prints is indented.
    !line.starts_with(' ')
        && numbers.is_some_and(|(number, of)| number.parse::<u32>().is_ok() && of.parse::<u32>().is_ok())
}

fn step_line(number: u32, of: u32, text: &str, state: &StepState) -> Option<String> {
    let (text, outcome) = match state {
        StepState::Started if text.starts_with("RUN") => {
            return Some(format!("{number}/{of} {}", brief(text)));
        }
        StepState::Started => return None,
        StepState::Cached => (brief(text), "cached".to_owned()),
        StepState::Done { millis, why: None } => (brief(text), elapsed(*millis)),
        StepState::Done { millis, why: Some(why) } => (format!("{}: {why}", brief(text)), elapsed(*millis)),
        StepState::Failed { millis, exit_status: None } => {
            (brief(text), format!("failed after {}", elapsed(*millis)))
        }
        StepState::Failed { millis, exit_status: Some(status) } => {
            (brief(text), format!("failed after {}, exit status {status}", elapsed(*millis)))
        }
    };
    Some(format!("{:<TEXT_COLUMNS$} {outcome}", format!("{number}/{of} {text}")))
}

/// The first line of an instruction, at most 100 characters.
fn brief(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= 100 { line } else { line.chars().take(99).chain(['…']).collect() }
}

/// A duration as `0.1s`.
#[must_use]
pub fn elapsed(millis: u64) -> String {
    format!("{:.1}s", Duration::from_millis(millis).as_secs_f64())
}

/// What a failure says to a person, without the pushing side's own words.
fn failure_lines(failure: &BuildFailure) -> Vec<String> {
    let mut lines = vec![match failure.step().and_then(|step| step.at.as_ref()) {
        Some(at) => format!("{at}: {failure}"),
        None => failure.to_string(),
    }];
    if let Some(step) = failure.step() {
        lines.extend(step.cause.iter().map(|cause| format!("  caused by: {cause}")));
        lines.extend(step.hint.iter().flat_map(|hint| hint.lines().map(ToOwned::to_owned)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(number: u32, text: &str, state: StepState) -> String {
        let at = Location { file: "Dockerfile".to_owned(), line: 3 };
        let time = Some(Timestamp::UNIX_EPOCH);
        let event = BuildEvent::Step { number, of: 4, stage: None, text: text.to_owned(), at, state, time };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<BuildEvent>(&json).unwrap(), event);
        event.lines().join("\n")
    }

    #[test]
    fn steps_read_as_the_design_shows_them() {
        assert_eq!(
            step(1, "FROM debian:12", StepState::Cached),
            "1/4 FROM debian:12                      cached"
        );
        let done = StepState::Done { millis: 220, why: Some("changed: app.py".to_owned()) };
        assert_eq!(step(3, "COPY . /app", done), "3/4 COPY . /app: changed: app.py        0.2s");
        let failed = StepState::Failed { millis: 12_000, exit_status: Some(2) };
        assert_eq!(
            step(4, "RUN make", failed),
            "4/4 RUN make                            failed after 12.0s, exit status 2"
        );
    }

    #[test]
    fn a_step_of_an_older_engine_is_read() {
        let json = r#"{"event":"step","number":1,"of":2,"stage":null,"text":"RUN make",
            "at":{"file":"Dockerfile","line":3},"state":{"state":"started"}}"#;
        let event = serde_json::from_str(json).unwrap();
        assert!(matches!(event, BuildEvent::Step { number: 1, time: None, .. }));
    }

    #[test]
    fn the_line_of_another_attempt_is_known_again() {
        let line = another_attempt("the pod is gone", 2, 3);
        assert_eq!(line, "the pod is gone; attempt 2 of 3");
        assert!(begins_attempt(&line) && !begins_attempt(&format!("    {line}")));
        assert!(!begins_attempt("1/2 RUN make; attempt it"));
    }

    #[test]
    fn a_run_is_announced_before_its_output_and_a_copy_is_not() {
        assert_eq!(step(2, "RUN make", StepState::Started), "2/4 RUN make");
        assert_eq!(step(2, "COPY a b", StepState::Started), "");
    }
}
