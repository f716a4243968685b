//! The lines of a build, whichever server drives it.
//!
//! Those of a build of this server are followed in its file, those of another's in the archive: as they come there, and
//! after the end all that are left. A follower does not notice when a build goes from one server to another.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Pushes;
use super::archive::ArchiveError;
use super::log::{LogReader, Mirror};
use crate::model::store::{self, StoreError};
use crate::model::{Build, Chain, Kind, LogLine, Outcome};

/// How often the lines of another server's build are looked for.
const GLANCE: Duration = Duration::from_secs(2);

/// Why the lines of another server's build cannot be read.
#[derive(Debug, thiserror::Error)]
enum MirrorError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("cannot read the lines that came")]
    File(#[from] io::Error),
}

/// Somebody who reads the lines of a build, and how far.
struct Follower {
    pushes: Pushes,
    last: u64,
    lines: mpsc::Sender<LogLine>,
}

impl Pushes {
    /// The lines of a build's log after line `after`, until the build ends or this server stops.
    #[must_use]
    pub fn follow(&self, build: &Build, after: u64) -> mpsc::Receiver<LogLine> {
        let (follower, received) = self.follower(after);
        // Ends with the log, or when nobody receives.
        tokio::spawn(follower.follow(build.clone()));
        received
    }

    /// The lines of a build's log after line `after` that are written now: of another server's, as far as they are in the archive.
    #[must_use]
    pub fn replay(&self, build: &Build, after: u64) -> mpsc::Receiver<LogLine> {
        let (follower, received) = self.follower(after);
        tokio::spawn(follower.replay(build.clone()));
        received
    }

    fn follower(&self, after: u64) -> (Follower, mpsc::Receiver<LogLine>) {
        let (lines, received) = mpsc::channel(64);
        (Follower { pushes: self.clone(), last: after, lines }, received)
    }

    /// Returns once a build has ended that another server drives, or this one drives it, or stops; with the build as it is
    /// then. At once where it has ended. Cancel safe.
    pub async fn elsewhere(&self, build: &Build) -> Result<Build, StoreError> {
        let stages = self.stages();
        let name = Build::object_name(&build.app, build.number);
        loop {
            let read = store::require::<Build>(&*stages.store, &name).await?;
            let here = stages.leases.is_none() || stages.logs.is_written(build);
            if here || read.object.outcome.is_some() || stages.stopping.is_cancelled() {
                return Ok(read.object);
            }
            tokio::select! {
                changed = stages.store.changed(Kind::Build, &name, &read.version) => changed?,
                () = stages.stopping.cancelled() => {}
            }
        }
    }

    /// How a build ended, if it has.
    pub async fn outcome(&self, build: &Build) -> Result<Option<Outcome>, StoreError> {
        let name = Build::object_name(&build.app, build.number);
        let read = store::load::<Build>(&*self.stages().store, &name).await?;
        let written = read.and_then(|build| build.object.outcome);
        Ok(written.or_else(|| self.unwritten(&build.app, build.number)))
    }
}

impl Follower {
    async fn follow(mut self, mut build: Build) {
        let stages = Arc::clone(self.pushes.stages());
        loop {
            if stages.leases.is_some() {
                build = match self.follow_elsewhere(&build).await {
                    Ok(Some(build)) => build,
                    // The app was destroyed meanwhile.
                    Ok(None) | Err(StoreError::Missing { .. }) => return,
                    Err(error) => return log_error(&build, &error),
                };
            }
            if self.read(&build, |reader| reader).await.is_none() {
                return;
            }
            let is_left = stages.leases.is_some() && !stages.stopping.is_cancelled();
            match self.pushes.outcome(&build).await {
                // This server has lost the right to it: another goes on.
                Ok(None) if is_left => {}
                Ok(_) => return,
                Err(error) => return log_error(&build, &error),
            }
        }
    }

    async fn replay(mut self, build: Build) {
        let stages = Arc::clone(self.pushes.stages());
        if stages.leases.is_none() || build.outcome.is_some() || stages.logs.is_written(&build) {
            self.read(&build, LogReader::without_waiting).await;
        } else if let Err(error) = self.look(&build, &mut None).await {
            log_error(&build, &error);
        }
    }

    /// Sends the lines of a log that is here, or ended and is fetched; `None` where nobody receives them or they cannot be read.
    async fn read(&mut self, build: &Build, mode: impl FnOnce(LogReader) -> LogReader) -> Option<()> {
        let logs = &self.pushes.stages().logs;
        if let Err(error) = logs.fetch(build).await {
            log_error(build, &error);
        }
        let mut reader = mode(logs.read(build, self.last).await.ok()??);
        while let Some(line) = reader.next().await.ok()? {
            self.send(line).await?;
        }
        Some(())
    }

    /// Sends what another server writes, until the build has ended or is this server's, or this stops; with the build as it
    /// is then. `None` where nobody receives it.
    async fn follow_elsewhere(&mut self, build: &Build) -> Result<Option<Build>, StoreError> {
        let (pushes, lines) = (self.pushes.clone(), self.lines.clone());
        tokio::select! {
            biased;
            build = pushes.elsewhere(build) => build.map(Some),
            () = lines.closed() => Ok(None),
            () = self.look_on(build) => Ok(Some(build.clone())),
        }
    }

    /// Sends what comes into the archive, until this server writes the log.
    async fn look_on(&mut self, build: &Build) {
        let logs = self.pushes.stages().logs.clone();
        let (mut mirror, mut is_told) = (None, false);
        while !logs.is_written(build) {
            if let Err(error) = self.look(build, &mut mirror).await
                && !std::mem::replace(&mut is_told, true)
            {
                log_error(build, &error);
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Sends what is new in the archive; also where the rest of it cannot be read.
    async fn look(&mut self, build: &Build, mirror: &mut Option<Mirror>) -> Result<(), MirrorError> {
        if mirror.is_none() {
            *mirror = self.pushes.stages().logs.mirror(build, self.last).await?;
        }
        let Some(mirror) = mirror else { return Ok(()) };
        let looked = mirror.look().await;
        while let Some(line) = mirror.next().await? {
            if self.send(line).await.is_none() {
                return Ok(());
            }
        }
        Ok(looked?)
    }

    async fn send(&mut self, line: LogLine) -> Option<()> {
        let number = line.number;
        self.lines.send(line).await.ok()?;
        self.last = number;
        Some(())
    }
}

fn log_error(build: &Build, error: &dyn std::error::Error) {
    tracing::error!(app = %build.app, build = %build.number, error = %Chain(error), "a build's log cannot be read");
}
