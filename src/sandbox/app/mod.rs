//! App processes: each in a sandbox of its own, held by a small process that outlives whoever started it.
//!
//! ```text
//! hephy up ──launch──▶ hephy __init (holder) ──Worker──▶ hephy __sandbox app ──step──▶ the app
//!     └────── control socket ───────┘   └ log            └ user and network namespace
//! ```
//!
//! The holder keeps the log, restarts, and answers on a socket in the process's directory. It has no state that is not in
//! that directory or its own memory, so a restarted server finds its apps by looking there.

mod control;
mod holder;
mod inner;
mod launch;
pub mod log;
mod outputs;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use control::{Control, ControlError};
pub use inner::{BODY, Listener, main as inner_main};
pub use launch::{init_main, launch};

use super::{IdMap, Limits, Outcome, Step};

/// The first wait before a restart; it doubles with each crash.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait before a restart.
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);
/// The grace of a process that is ended because the machine is.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// One process of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppSpec {
    /// Where its control socket and log are; its own.
    pub directory: PathBuf,
    /// The layer store, which the paths below are relative to.
    pub layers: PathBuf,
    /// The image's trees, the base first.
    pub lowers: Vec<PathBuf>,
    /// Where its changes go, until its next start.
    pub scratch: PathBuf,
    /// The command.
    pub step: Step,
    /// The sandbox's ids.
    pub ids: IdMap,
    /// What it may use.
    pub limits: Option<Limits>,
    /// The signal that asks it to end.
    pub stop_signal: i32,
    /// What follows its end.
    pub restart: Restart,
    /// How much of its output is kept.
    pub log_max_bytes: u64,
}

/// What follows the end of an app process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It is started again, after a wait that grows with each end soon after a start.
    WithBackoff,
    /// Nothing; its outcome can be asked for until it is stopped.
    Never,
}

/// What an app process does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Its state.
    pub state: AppState,
    /// How often it was started again.
    pub restarts: u32,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// The process that holds it.
    pub holder: u32,
    /// Why its limits are not in force, if they are not.
    pub unlimited: Option<String>,
}

/// The states of an app process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppState {
    /// Its sandbox is being made.
    Starting,
    /// It runs.
    Running,
    /// It ended and is to be started again.
    BackingOff {
        /// How it ended; none when it could not be started.
        last: Option<Outcome>,
        /// Why it could not be started.
        why: Option<String>,
        /// When it is started.
        until: Timestamp,
    },
    /// It ended and is not started again.
    Ended {
        /// How it ended.
        last: Outcome,
    },
    /// It could not be started and is not tried again.
    Failed {
        /// Why.
        why: String,
    },
    /// It has been asked to end.
    Stopping,
}

/// What the holder is asked.
#[derive(Debug, Serialize, Deserialize)]
enum ControlRequest {
    Status,
    Connect { port: u16 },
    Listening,
    Signal { signal: i32 },
    Stop { grace: Duration },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum ControlAnswer {
    Status(AppStatus),
    /// With the socket, which may still be connecting.
    Connecting,
    Refused,
    Listening(Vec<Listener>),
    Done,
    Failed(String),
}

fn backoff(restarts_in_a_row: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << restarts_in_a_row.min(6)).min(LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_crash_doubles_the_wait_up_to_a_minute() {
        let waits: Vec<_> = (0..8).map(|restarts| backoff(restarts).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
