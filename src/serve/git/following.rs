//! A pusher follows the build, and git is told how it ended.

use super::KEEPALIVE;
use super::decision::{Decision, say};
use crate::git::{Reporter, Verdict};
use crate::model::{Build, Cancel, CancelReason, Chain, Outcome};
use crate::push::claim;
use crate::receive::{Gone, Output};

impl Decision<'_> {
    /// Shows the build's log until it ends. A pusher who closes the connection cancels; one who falls silent does not.
    pub(super) async fn follow_to_the_end(&self, build: &Build, reporter: &mut Reporter<Output>) -> Verdict {
        let _attached = self.server.pushes().attach(&build.app, build.number);
        let mut lines = self.server.pushes().follow(build, 0);
        let mut tick = tokio::time::interval(KEEPALIVE);
        loop {
            tokio::select! {
                biased;
                gone = self.closed.wait() => match gone {
                    // The server stops once its builds have ended, this one perhaps among them: its last lines come.
                    Gone::Shutdown if matches!(self.server.pushes().outcome(build).await, Ok(Some(_))) => {
                        while let Some(line) = lines.recv().await {
                            say(reporter, &line.event).await;
                        }
                        break;
                    }
                    gone => return self.left(gone, build).await,
                },
                line = lines.recv() => match line {
                    Some(line) => {
                        say(reporter, &line.event).await;
                        tick.reset();
                    }
                    None => break,
                },
                _ = tick.tick() => { drop(reporter.keepalive().await); }
            }
        }
        self.server.pushes().ended(&build.app, build.number).await;
        // Its lease may be another server's by now.
        match self.wait_elsewhere(build, reporter).await {
            Ok(()) => self.verdict(build).await,
            Err(verdict) => verdict,
        }
    }

    /// Waits for the end of a build that another server drives. `Err` where the pusher is gone, or this server stops.
    async fn wait_elsewhere(&self, build: &Build, reporter: &mut Reporter<Output>) -> Result<(), Verdict> {
        let ended = self.server.pushes().elsewhere(build);
        tokio::pin!(ended);
        let mut tick = tokio::time::interval(KEEPALIVE);
        loop {
            tokio::select! {
                biased;
                ended = &mut ended => return match ended {
                    Ok(_) => Ok(()),
                    Err(error) => Err(Verdict::Refused(self.failed("look for the build", &error))),
                },
                gone = self.closed.wait() => return Err(self.left(gone, build).await),
                _ = tick.tick() => { drop(reporter.keepalive().await); }
            }
        }
    }

    /// How a build ended, as git is told.
    async fn verdict(&self, build: &Build) -> Verdict {
        match self.server.pushes().outcome(build).await {
            Ok(Some(Outcome::Succeeded { .. })) => Verdict::Accepted,
            Ok(Some(Outcome::Failed { reason, .. })) => Verdict::Refused(reason),
            Ok(Some(Outcome::Cancelled { reason, .. })) => {
                Verdict::Refused(format!("build {} was cancelled: {}", build.number, reason.sentence()))
            }
            Ok(None) => Verdict::Refused(format!("build {} goes on: {}", build.number, self.follow(build))),
            Err(error) => Verdict::Refused(self.failed("read how the build ended", &error)),
        }
    }

    async fn left(&self, gone: Gone, build: &Build) -> Verdict {
        match gone {
            Gone::Hangup => {
                let cancel = Cancel { reason: CancelReason::ClientGone, by: self.person.name.clone() };
                let asked =
                    claim::cancel(&*self.server.stages().store, &build.app, build.number, cancel).await;
                if let Err(error) = asked {
                    tracing::error!(app = %build.app, build = %build.number, error = %Chain(&error), "a build cannot be cancelled");
                }
                Verdict::Refused("the pusher closed the connection".to_owned())
            }
            Gone::Silent | Gone::Shutdown => {
                let command = self.follow(build);
                Verdict::Refused(format!(
                    "the server stops; build {} goes on without you: {command}",
                    build.number
                ))
            }
        }
    }
}
