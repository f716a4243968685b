//! Why a version does not run, in words that say what to change.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::InstanceName;
use crate::model::{AppName, Fault, ProcessType, PushEvent, ReleaseNumber};

/// Why a runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A release that is not above the current one.
    #[error("release {release} of `{app}` is not newer than {current}, which is current")]
    Stale {
        /// Whose.
        app: AppName,
        /// The one that was to be started.
        release: ReleaseNumber,
        /// The one that is current.
        current: ReleaseNumber,
    },
    /// Whoever wanted it gave it up.
    #[error("the start of {release} of `{app}` was given up")]
    Cancelled {
        /// Whose.
        app: AppName,
        /// Which.
        release: ReleaseNumber,
    },
    /// Another server does it now.
    #[error("the work on `{app}` is left to another server")]
    Left {
        /// Whose.
        app: AppName,
    },
    /// The work on an app ended by a fault of hephy's.
    #[error("the work on `{app}` broke off")]
    BrokeOff {
        /// Whose.
        app: AppName,
        /// How.
        source: tokio::task::JoinError,
    },
    /// A switch to instances that are not there.
    #[error("release {release} of `{app}` is not started")]
    NotStarted {
        /// Whose.
        app: AppName,
        /// Which.
        release: ReleaseNumber,
    },
    /// The image cannot be had here.
    #[error("cannot get the image {reference}")]
    Image {
        /// Repository and digest.
        reference: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The layers of a release that is gone cannot be let go of.
    #[error("cannot let go of the layers of {release} of `{app}`")]
    Layers {
        /// Whose.
        app: AppName,
        /// Which.
        release: ReleaseNumber,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing says what to run.
    #[error("process type `{0}` has no command, and neither has the image")]
    NoCommand(ProcessType),
    /// `PORT` in the config is no port.
    #[error("PORT is set to `{0}`, which is not a port from 1 to 65535")]
    Port(String),
    /// The image's `USER` cannot be found.
    #[error("the image's user `{user}` {problem}")]
    User {
        /// As the image says.
        user: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The image's `STOPSIGNAL` is none.
    #[error("the image's stop signal `{0}` is not a signal")]
    StopSignal(String),
    /// An instance did not become ready.
    #[error(transparent)]
    NotReady(Box<NotReady>),
    /// The place where instances run failed.
    #[error("cannot {action} {instance} of `{app}`")]
    Instance {
        /// What was being done.
        action: &'static str,
        /// Whose.
        app: AppName,
        /// To which.
        instance: InstanceName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cluster would not do it.
    #[error("cannot {action} of `{app}`")]
    Cluster {
        /// What was being done, with its object: `apply the Deployment hello--web`.
        action: String,
        /// Whose.
        app: AppName,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the runtime's own.
    #[error("cannot keep the runtime's state in `{path}`")]
    State {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// An instance that did not become ready.
#[derive(Debug, thiserror::Error)]
#[error("{instance} {obstacle}")]
pub struct NotReady {
    /// Whose.
    pub app: AppName,
    /// Which.
    pub instance: InstanceName,
    /// What was in the way.
    pub obstacle: Obstacle,
    /// The last lines that it wrote.
    pub lines: Vec<String>,
}

/// What was in the way of being ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// It ended.
    #[error("ended with {how} after {:.1}s", .after.as_secs_f64())]
    Crashed {
        /// `exit status 1`.
        how: String,
        /// How long it ran.
        after: Duration,
    },
    /// It listens where nobody but itself can connect.
    #[error("listens on {address} only, which nothing outside the app can reach")]
    LoopbackOnly {
        /// Where.
        address: SocketAddr,
        /// Where it should.
        port: u16,
    },
    /// It listens, but not on the port.
    #[error("listens on {}, not on port {port}", joined(.on))]
    Elsewhere {
        /// Where.
        on: Vec<SocketAddr>,
        /// Where it should.
        port: u16,
    },
    /// It never listened at all.
    #[error("did not listen on port {port} within {} seconds", .within.as_secs())]
    NeverListened {
        /// Where it should.
        port: u16,
        /// How long was waited.
        within: Duration,
    },
    /// It was not running in time.
    #[error("was not running within {} seconds", .within.as_secs())]
    NeverRan {
        /// How long was waited.
        within: Duration,
    },
    /// The place where it should run does not take it, or took it away.
    #[error("cannot run: {why}")]
    Blocked {
        /// What that place says, with the limit involved.
        why: String,
        /// What to do about it, a sentence.
        hint: Option<String>,
    },
    /// It could not be started at all.
    #[error("could not be started: {0}")]
    Failed(String),
}

fn joined(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

impl RuntimeError {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::NoCommand(_)
            | Self::Port(_)
            | Self::User { .. }
            | Self::StopSignal(_)
            | Self::NotReady(_) => Fault::App,
            Self::Stale { .. }
            | Self::NotStarted { .. }
            | Self::Cancelled { .. }
            | Self::Left { .. }
            | Self::BrokeOff { .. }
            | Self::Image { .. }
            | Self::Layers { .. }
            | Self::Instance { .. }
            | Self::Cluster { .. }
            | Self::State { .. } => Fault::Platform,
        }
    }

    /// What to do about it, each a sentence.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::NoCommand(name) => vec![format!(
                "Say what to run: a line `{name}: COMMAND` in a file `Procfile`, or CMD in the Dockerfile."
            )],
            Self::Port(_) => vec!["`hephy config unset PORT` lets hephy choose one.".to_owned()],
            Self::NotReady(not_ready) => not_ready.hints(),
            Self::Stale { .. }
            | Self::NotStarted { .. }
            | Self::Cancelled { .. }
            | Self::Left { .. }
            | Self::BrokeOff { .. }
            | Self::Image { .. }
            | Self::Layers { .. }
            | Self::User { .. }
            | Self::StopSignal(_)
            | Self::Instance { .. }
            | Self::Cluster { .. }
            | Self::State { .. } => Vec::new(),
        }
    }

    /// The last lines that the app wrote before it failed.
    #[must_use]
    pub fn last_lines(&self) -> &[String] {
        if let Self::NotReady(not_ready) = self { &not_ready.lines } else { &[] }
    }

    /// What belongs under the one line of the error: the app's last lines, and what to do.
    #[must_use]
    pub fn details(&self) -> Vec<String> {
        self.last_lines().iter().cloned().chain(self.hints()).collect()
    }

    /// All of it for the pusher: the app's last lines, what failed, and what to do.
    #[must_use]
    pub fn events(&self) -> Vec<PushEvent> {
        let lines = self.last_lines().iter().map(|line| PushEvent::Line(format!("  {line}")));
        let problem = std::iter::once(PushEvent::Problem(self.to_string()));
        lines.chain(problem).chain(self.hints().into_iter().map(PushEvent::Problem)).collect()
    }
}

impl NotReady {
    fn hints(&self) -> Vec<String> {
        let app = &self.app;
        match &self.obstacle {
            Obstacle::LoopbackOnly { port, .. } => {
                vec![format!("Listen on 0.0.0.0:$PORT (0.0.0.0:{port}), or on [::]:$PORT, instead.")]
            }
            Obstacle::Elsewhere { on, port } => {
                let first = on.first().map_or(*port, SocketAddr::port);
                vec![
                    format!("Either listen on 0.0.0.0:$PORT, which is {port} here,"),
                    format!("or name the port: `EXPOSE {first}` in the Dockerfile, or `hephy config set PORT={first} -a {app}`."),
                ]
            }
            Obstacle::NeverListened { .. } => vec![
                "A web process must listen on 0.0.0.0:$PORT. Does it need longer to start? `ready_timeout` in hephy.toml."
                    .to_owned(),
            ],
            Obstacle::Crashed { how, .. } if how == "exit status 127" => {
                vec!["127 is the shell's word for a command that was not found.".to_owned()]
            }
            Obstacle::Blocked { hint, .. } => hint.iter().cloned().collect(),
            Obstacle::Crashed { .. } | Obstacle::NeverRan { .. } | Obstacle::Failed(_) => Vec::new(),
        }
    }
}
