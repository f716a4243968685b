//! The seam between releases and where they run.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use super::RuntimeError;
use crate::model::{AppName, EnvName, ProcessType, Release, ReleaseNumber, Secret};

/// Everything that says what is to run.
#[derive(Debug, Clone)]
pub struct Version {
    /// The release: the image, the process types.
    pub release: Release,
    /// The config of the release.
    pub variables: BTreeMap<EnvName, Secret<String>>,
    /// How many instances of each process type; none of a type that is not named.
    pub scale: BTreeMap<ProcessType, u32>,
    /// How long it may take to become ready, where the app says.
    pub ready_timeout: Option<Duration>,
}

impl Version {
    /// Each process type of the release with how many instances it is to have.
    pub fn wanted(&self) -> impl Iterator<Item = (&ProcessType, u32)> {
        self.release.processes.keys().map(|name| (name, self.scale.get(name).copied().unwrap_or(0)))
    }
}

/// `web.1`: which instance of an app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName {
    /// Of which process type.
    pub process_type: ProcessType,
    /// From 1.
    pub number: u32,
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.process_type, self.number))
    }
}

impl FromStr for InstanceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || format!("`{text}` is not the name of an instance such as `web.1`");
        let (process_type, number) = text.rsplit_once('.').ok_or_else(error)?;
        let number = number.parse().map_err(|_| error())?;
        Ok(Self { process_type: process_type.parse().map_err(|_| error())?, number })
    }
}

impl TryFrom<String> for InstanceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.to_string()
    }
}

/// What happens while a version starts; shown as it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// One more instance is ready.
    Ready {
        /// Of which process type.
        process_type: ProcessType,
        /// How many are.
        ready: u32,
        /// How many are wanted.
        wanted: u32,
    },
    /// It takes long, and this may be why.
    Waiting {
        /// Which instance.
        instance: InstanceName,
        /// What it waits for.
        text: String,
    },
}

impl fmt::Display for RuntimeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { process_type, ready, wanted } => write!(f, "{process_type} {ready}/{wanted} ready"),
            Self::Waiting { instance, text } => write!(f, "{instance} {text}"),
        }
    }
}

/// Where a runtime tells what happens. That nobody listens is no error.
pub type EventSink = UnboundedSender<RuntimeEvent>;

/// One instance, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Which.
    pub name: InstanceName,
    /// Of which release.
    pub release: ReleaseNumber,
    /// How it is.
    pub state: InstanceState,
    /// Since when its process runs.
    pub since: Option<Timestamp>,
    /// How often it was started again.
    pub restarts: u32,
}

/// How an instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Being started.
    Starting,
    /// Its process runs.
    Up,
    /// Its process ended, and is started again after a while.
    Crashed {
        /// How it ended: `exit status 1`.
        how: String,
    },
    /// Being stopped.
    Stopping,
    /// It is not there any more.
    Down {
        /// Why.
        why: String,
    },
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.pad("starting"),
            Self::Up => f.pad("up"),
            Self::Crashed { how } => f.pad(&format!("crashed ({how})")),
            Self::Stopping => f.pad("stopping"),
            Self::Down { why } => f.pad(&format!("down ({why})")),
        }
    }
}

/// Which of an app's own lines are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// Of one process type only.
    pub process_type: Option<ProcessType>,
    /// How many of the lines that are there already.
    pub lines: usize,
    /// Whether to go on with those that come.
    pub follow: bool,
}

/// Whose line it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// The app wrote it.
    App,
    /// The runtime says what happened to the instance.
    Runtime,
}

/// A line of an instance's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceLine {
    /// When.
    pub at: Timestamp,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Of which instance.
    pub instance: InstanceName,
    /// Whose words.
    pub author: Author,
    /// The line.
    pub text: String,
}

impl fmt::Display for InstanceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, instance, text, .. } = self;
        match self.author {
            Author::App => write!(f, "{at:.3} {instance}: {text}"),
            Author::Runtime => write!(f, "{at:.3} hephy[{instance}]: {text}"),
        }
    }
}

/// What a command that was run once left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOutput {
    /// Its exit status; 128 and the signal's number where a signal ended it.
    pub status: i32,
    /// What it wrote.
    pub lines: Vec<InstanceLine>,
}

/// Where versions run: processes on this machine, Deployments of a cluster.
///
/// Calls for one app follow one another, whoever makes them; calls for several apps run side by side. Every call may be
/// made again after it failed or was dropped.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Starts `version` beside what runs and returns when every instance is ready and has been for a while.
    ///
    /// On an error, and when the future is dropped, the new instances are stopped and nothing else has changed. A
    /// release that is not above the current one is refused with [`RuntimeError::Stale`].
    async fn start(&self, version: &Version, events: &EventSink) -> Result<(), RuntimeError>;

    /// Sends the app's requests to `version`, which is started; what served until now still runs.
    async fn switch(&self, version: &Version) -> Result<(), RuntimeError>;

    /// Stops every release of `app` but `keep`, once their requests are done.
    async fn retire(&self, app: &AppName, keep: ReleaseNumber) -> Result<(), RuntimeError>;

    /// Takes a switch back: requests go to `previous` again, and `failed` is stopped.
    async fn undo(&self, failed: &Version, previous: Option<&Version>) -> Result<(), RuntimeError>;

    /// Starts what is missing of `version`, which is the current one, and stops what is too much.
    async fn scale(&self, version: &Version, events: &EventSink) -> Result<(), RuntimeError>;

    /// Stops the app and forgets it.
    async fn stop(&self, app: &AppName) -> Result<(), RuntimeError>;

    /// Runs `command` once as the version would run, to its end; an empty one is the image's own.
    async fn run(&self, version: &Version, command: &[String]) -> Result<RunOutput, RuntimeError>;

    /// Every instance of `app` that there is, in order.
    async fn status(&self, app: &AppName) -> Result<Vec<InstanceStatus>, RuntimeError>;

    /// The lines that the app's instances wrote, by time.
    async fn logs(
        &self,
        app: &AppName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, InstanceLine>, RuntimeError>;

    /// Lets go of whatever this process is doing to `app`, because another server does it now: it ends where it is, and
    /// nothing is taken back. To be called before the futures of that work are dropped.
    fn leave(&self, _app: &AppName) {}

    /// Takes over what runs of `current`, which is all that the store calls current, and stops everything else.
    ///
    /// Requests reach what was taken over when it returns. Returns the apps that lack instances, for [`Runtime::scale`];
    /// where there are several servers, whoever calls that claims the app first and reads it again. It may be called
    /// again at any time, and cheaply: what somebody is at work on is left alone, and seen the next time.
    async fn adopt(&self, current: &[Version]) -> Result<Vec<AppName>, RuntimeError>;
}
