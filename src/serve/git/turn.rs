//! A push's turn: it claims the app, waits for it, takes it over, or is told who has it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::busy::{self, Busy};
use super::super::queue::Turn;
use super::KEEPALIVE;
use super::decision::{Decision, say};
use crate::git::{GitError, Reporter, Repository};
use crate::model::store;
use crate::model::{App, Build, Cancel, CancelReason, Claim, CommitId, Holder, ObjectName, PushEvent};
use crate::push::Hold;
use crate::push::claim::{self, BuildOrder, ClaimError};
use crate::receive::{Gone, Output};

/// After which a pusher is told that another server has the app.
const TELL_AFTER: Duration = Duration::from_secs(3);

impl Decision<'_> {
    /// Claims the app, waits for it, or takes over a build of the same commit that nobody follows.
    pub(super) async fn claim(
        &self,
        order: BuildOrder,
        reporter: &mut Reporter<Output>,
    ) -> Result<Build, String> {
        let options = order.options;
        let mut order = order;
        let mut turn: Option<Turn> = None;
        loop {
            if turn.is_some() {
                if self.server.is_stopping() {
                    return Err(ClaimError::Stopping.to_string());
                }
                order = self.after_waiting(order).await?;
            }
            let holder = match self.claimed(order.clone(), reporter).await {
                Ok((build, hold)) => {
                    let heading = format!(
                        "{}: build {} of {} by {}",
                        build.app,
                        build.number,
                        build.commit.short(),
                        build.by
                    );
                    say(reporter, &PushEvent::Heading(heading)).await;
                    let started = self.server.pushes().start(build.clone(), hold).await;
                    started.map_err(|error| self.failed("write the build's log", &error))?;
                    return Ok(build);
                }
                Err(ClaimError::Busy(holder)) => holder,
                Err(ClaimError::Store(error)) => return Err(self.failed("claim the app", &error)),
                Err(ClaimError::Lease(error)) => return Err(self.failed("claim the app", &error)),
                Err(error @ (ClaimError::Stopping | ClaimError::Elsewhere)) => return Err(error.to_string()),
            };
            if let Some(build) = self.orphan_of_same_commit(&holder, &order).await {
                say(
                    reporter,
                    &PushEvent::Heading(format!(
                        "{}: build {} of {} is running: following it",
                        build.app,
                        build.number,
                        build.commit.short()
                    )),
                )
                .await;
                return Ok(build);
            }
            if !options.wait && !options.supersede {
                let busy = self.busy(&holder).await;
                for line in &busy.details {
                    say(reporter, &PushEvent::Problem(line.clone())).await;
                }
                return Err(busy.reason);
            }
            if let (true, Claim::Build(number)) = (options.supersede, holder.claim) {
                let cancel = Cancel { reason: CancelReason::Superseded, by: self.person.name.clone() };
                let asked = claim::cancel(&*self.server.stages().store, &self.name, number, cancel).await;
                asked.map_err(|error| self.failed("cancel the running build", &error))?;
            }
            if turn.is_none() {
                let what = self.busy(&holder).await.reason;
                let verb = if options.supersede { "Superseding" } else { "Waiting" };
                say(reporter, &PushEvent::Heading(format!("{verb}: {what}"))).await;
                turn = Some(self.server.queue().wait(&self.name));
            }
            self.wait_for_turn(turn.as_ref(), reporter).await?;
        }
    }

    /// Claims the app, and keeps the connection while another server has the right to it.
    async fn claimed(
        &self,
        order: BuildOrder,
        reporter: &mut Reporter<Output>,
    ) -> Result<(Build, Hold), ClaimError> {
        let claiming = claim::claim_build(self.server.stages(), order);
        tokio::pin!(claiming);
        let mut tick = tokio::time::interval(KEEPALIVE);
        let patience = tokio::time::sleep(TELL_AFTER);
        tokio::pin!(patience);
        let mut is_told = false;
        loop {
            tokio::select! {
                claimed = &mut claiming => return claimed,
                () = &mut patience, if !is_told => {
                    is_told = true;
                    let why = "Waiting: another server has the app, or has died and loses it in half a minute";
                    say(reporter, &PushEvent::Heading(why.to_owned())).await;
                }
                _ = tick.tick() => { drop(reporter.keepalive().await); }
            }
        }
    }

    /// Lets a push that waited follow on what was deployed meanwhile, if its commit does.
    async fn after_waiting(&self, mut order: BuildOrder) -> Result<BuildOrder, String> {
        let store = &*self.server.stages().store;
        let app = store::require::<App>(store, &ObjectName::of(&self.name)).await;
        let refs = app.map_err(|error| self.failed("read the app", &error))?.object.refs;
        for moved in &mut order.moves {
            let now = refs.get(&moved.name).copied();
            if let (Some(now), Some(new)) = (now.filter(|_| moved.old != now), moved.new) {
                let repository = self.server.stages().repository_in_part(&self.name).await;
                let repository = repository.map_err(|error| self.failed("open the repository", &error))?;
                match follows(&repository, new, now).await {
                    Ok(true) => moved.old = Some(now),
                    Ok(false) => {
                        let name = moved.name.short();
                        return Err(format!(
                            "{name} is {} now, which this push does not build on: fetch first",
                            now.short()
                        ));
                    }
                    Err(error) => return Err(self.failed("read the history", &error)),
                }
            }
        }
        Ok(order)
    }

    async fn wait_for_turn(
        &self,
        turn: Option<&Turn>,
        reporter: &mut Reporter<Output>,
    ) -> Result<(), String> {
        let free = claim::wait_until_free(&*self.server.stages().store, &self.name);
        tokio::pin!(free);
        let overtaken = async {
            match turn {
                Some(turn) => turn.overtaken().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(overtaken);
        let mut tick = tokio::time::interval(KEEPALIVE);
        loop {
            tokio::select! {
                biased;
                () = &mut overtaken => return Err("a newer push waits in its place".to_owned()),
                gone = self.closed.wait() => return Err(match gone {
                    Gone::Shutdown => ClaimError::Stopping.to_string(),
                    Gone::Hangup | Gone::Silent => "the pusher is gone".to_owned(),
                }),
                freed = &mut free => return freed.map_err(|error| self.failed("wait for the app", &error)),
                _ = tick.tick() => { drop(reporter.keepalive().await); }
            }
        }
    }

    /// The build that holds the app, if it builds the same commit and nobody follows it any more.
    async fn orphan_of_same_commit(&self, holder: &Holder, order: &BuildOrder) -> Option<Build> {
        let Claim::Build(number) = holder.claim else { return None };
        if self.server.pushes().is_attached(&self.name, number) {
            return None;
        }
        let name = Build::object_name(&self.name, number);
        let build = store::load::<Build>(&*self.server.stages().store, &name).await.ok()??.object;
        (build.commit == order.commit && build.moves == order.moves && build.outcome.is_none())
            .then_some(build)
    }

    async fn busy(&self, holder: &Holder) -> Busy {
        busy::describe(self.server, &self.name, holder).await
    }
}

/// Whether `new` has `old` among the last of its ancestors.
async fn follows(repository: &Repository, new: CommitId, old: CommitId) -> Result<bool, GitError> {
    const MOST: usize = 10_000;
    let (mut seen, mut generation) = (BTreeSet::from([new]), vec![new]);
    while !generation.is_empty() {
        if generation.contains(&old) {
            return Ok(true);
        }
        if seen.len() > MOST {
            return Ok(false);
        }
        repository.bring(&generation).await?;
        let repository = repository.clone();
        let parents = tokio::task::spawn_blocking(move || parents(&repository, &generation));
        let parents = parents.await.map_err(|_| GitError::Stopped)??;
        generation = parents.into_iter().filter(|parent| seen.insert(*parent)).collect();
    }
    Ok(false)
}

fn parents(repository: &Repository, commits: &[CommitId]) -> Result<Vec<CommitId>, GitError> {
    let mut parents = Vec::new();
    for commit in commits {
        // Where history is cut off, nothing more is known.
        if repository.contains(*commit)? {
            parents.extend(repository.commit(*commit)?.parents());
        }
    }
    Ok(parents)
}
