//! `hephy up`: one process that receives, builds, publishes, releases, runs and routes.
//!
//! This is where the mechanisms and the stages are put together. It prints nothing: what the command line shows it
//! gets as values.

use std::sync::Arc;

use async_trait::async_trait;

use crate::config::address::Addresses;
use crate::config::server::Settings;
use crate::model::store::{Store, StoreError};
use crate::push::{Pushes, Stages};
use crate::receive::{Command, Handler, Session};

mod admins;
mod busy;
mod cloud;
pub mod cluster;
pub mod forward;
mod git;
mod options;
pub mod people;
mod ports;
mod pprof;
mod probes;
pub mod pulls;
mod queue;
pub mod router;
mod secrets;
mod services;
mod telemetry;
pub mod tickets;
pub mod up;
pub mod upkeep;

pub(crate) use busy::describe as describe_busy;
pub(crate) use git::deploy_branch;
pub use ports::ListenError;
pub use telemetry::TelemetryError;

use people::{People, Person};
use queue::Queue;

/// The parts of a running server.
#[derive(Debug, Clone)]
pub struct Server {
    settings: Arc<Settings>,
    addresses: Addresses,
    people: People,
    pushes: Pushes,
    queue: Queue,
    /// The pushes that are being received or followed.
    receiving: tokio_util::task::TaskTracker,
}

/// Runs the verbs that come over SSH; the command line gives it, since it alone prints.
#[async_trait]
pub trait Verbs: Send + Sync + 'static {
    /// Runs the words that a session asks for, and returns the exit status.
    async fn run(&self, server: &Server, words: Vec<String>, session: Session) -> u8;

    /// Greets a session that asks for nothing.
    async fn greet(&self, server: &Server, session: Session) -> u8;
}

impl Server {
    /// The settings it was started with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where people reach things.
    #[must_use]
    pub const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Who is who.
    #[must_use]
    pub const fn people(&self) -> &People {
        &self.people
    }

    /// What drives builds.
    #[must_use]
    pub const fn pushes(&self) -> &Pushes {
        &self.pushes
    }

    /// What the stages need.
    #[must_use]
    pub fn stages(&self) -> &Arc<Stages> {
        self.pushes.stages()
    }

    /// Keeps apps, builds and releases.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.pushes.stages().store
    }

    /// Whether the server drains: what is under way goes on, nothing new is begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stages().stopping.is_cancelled()
    }

    const fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Makes an app without a push, owned by `person`; `None` where the name is the server's own.
    pub async fn create_app(
        &self,
        name: &crate::model::AppName,
        person: &Person,
    ) -> Result<Option<crate::model::App>, StoreError> {
        if git::is_reserved(name) {
            return Ok(None);
        }
        git::create_app(self, name, person).await.map(Some)
    }
}

/// Gives each SSH command to who serves it.
struct Sessions {
    server: Server,
    verbs: Arc<dyn Verbs>,
}

#[async_trait]
impl Handler for Sessions {
    async fn run(&self, mut session: Session) -> u8 {
        match std::mem::replace(&mut session.command, Command::Greeting) {
            Command::ReceivePack(app) => git::receive(&self.server, session, &app).await,
            Command::UploadPack(app) => git::upload(&self.server, session, &app).await,
            Command::Verb(words) => self.verbs.run(&self.server, words, session).await,
            Command::Greeting => self.verbs.greet(&self.server, session).await,
        }
    }
}
