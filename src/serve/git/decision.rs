//! What becomes of the refs of a push: which deploy, which only move, which may not.

use std::collections::BTreeMap;

use super::super::people::Person;
use super::super::{Server, options};
use super::{create_app, deploy_branch};
use crate::git::{Command as RefCommand, ReceivedPush, Reporter, Verdict};
use crate::model::store::{self, StoreError};
use crate::model::{App, AppName, Build, Chain, ObjectName, PushEvent, PushOptions, RefMove, RefName};
use crate::push::claim::BuildOrder;
use crate::receive::Output;

/// A push whose objects have arrived, and what becomes of its refs.
pub(super) struct Decision<'a> {
    pub(super) server: &'a Server,
    pub(super) person: Person,
    pub(super) name: AppName,
    pub(super) app: Option<Box<App>>,
    pub(super) closed: crate::receive::Closed,
}

type Verdicts = BTreeMap<RefName, Verdict>;

/// What a push asks for, by ref.
struct Wanted {
    deploy: Option<RefCommand>,
    others: Vec<RefCommand>,
    verdicts: Verdicts,
    notes: Vec<PushEvent>,
}

impl Decision<'_> {
    /// Carries the push out, and tells git what became of each ref. The exit status.
    pub(super) async fn decide(self, push: ReceivedPush, mut reporter: Reporter<Output>) -> u8 {
        let names: Vec<RefName> = push.commands.iter().map(|command| command.name.clone()).collect();
        let verdicts = match self.carry_out(push, &mut reporter).await {
            Ok(verdicts) => verdicts,
            Err(reason) => names.into_iter().map(|name| (name, Verdict::Refused(reason.clone()))).collect(),
        };
        let refused = verdicts.values().any(|verdict| matches!(verdict, Verdict::Refused(_)));
        match reporter.finish(verdicts).await {
            Ok(_) => u8::from(refused),
            Err(_) => 1,
        }
    }

    /// `Err` is the reason why every ref is refused.
    async fn carry_out(
        &self,
        push: ReceivedPush,
        reporter: &mut Reporter<Output>,
    ) -> Result<Verdicts, String> {
        let options = match options::parse(&push.options) {
            Ok(options) => options,
            Err(reason) => return Err(self.problem(reporter, reason).await),
        };
        let atomic = push.atomic;
        let mut wanted = self.sort(&push);
        for note in std::mem::take(&mut wanted.notes) {
            say(reporter, &note).await;
        }
        if atomic && wanted.verdicts.values().any(|verdict| matches!(verdict, Verdict::Refused(_))) {
            return Ok(refuse_rest(wanted, "the push is atomic and another ref was refused"));
        }
        let committed_at = match &wanted.deploy {
            None => None,
            Some(command) => Some(self.commit_time(&push, command)?),
        };
        self.keep(push, &wanted).await?;
        create_app(self.server, &self.name, &self.person)
            .await
            .map_err(|error| self.failed("make the app", &error))?;
        let with_deploy = atomic && wanted.deploy.is_some();
        let mut verdicts = std::mem::take(&mut wanted.verdicts);
        if !with_deploy {
            verdicts.extend(self.move_now(&wanted.others).await?);
        }
        if let (Some(deploy), Some(committed_at)) = (&wanted.deploy, committed_at) {
            let mut moves = vec![ref_move(deploy)];
            if with_deploy {
                moves.extend(wanted.others.iter().map(ref_move));
            }
            let order = self.order(deploy, moves.clone(), committed_at, options);
            let verdict = match order {
                Some(order) => self.deploy(order, reporter).await,
                None => Verdict::Refused("the deploy branch names no commit".to_owned()),
            };
            verdicts.extend(moves.into_iter().map(|moved| (moved.name, verdict.clone())));
        }
        Ok(verdicts)
    }

    /// Which refs deploy, which only move, which may not.
    fn sort(&self, push: &ReceivedPush) -> Wanted {
        let mut refs = self.app.as_ref().map(|app| app.refs.clone()).unwrap_or_default();
        let branches = push.commands.iter().filter_map(|c| Some((c.name.clone(), c.commit?)));
        refs.extend(branches.filter(|(name, _)| name.as_branch().is_some()));
        let deploy_branch = deploy_branch(self.server.settings().deploy_branch.as_deref(), &refs);
        let mut wanted = Wanted { deploy: None, others: vec![], verdicts: Verdicts::new(), notes: vec![] };
        for command in &push.commands {
            let is_branch = command.name.as_branch().is_some();
            if command.name == deploy_branch && command.new.is_none() {
                let reason = format!("{} deploys and cannot be deleted", deploy_branch.short());
                wanted.verdicts.insert(command.name.clone(), Verdict::Refused(reason));
            } else if is_branch && command.new.is_some() && command.commit.is_none() {
                let reason = "a branch names a commit, and this is none".to_owned();
                wanted.verdicts.insert(command.name.clone(), Verdict::Refused(reason));
            } else if !is_branch && command.name.as_tag().is_none() {
                let reason = "only branches and tags are kept".to_owned();
                wanted.verdicts.insert(command.name.clone(), Verdict::Refused(reason));
            } else if command.name == deploy_branch {
                wanted.deploy = Some(command.clone());
            } else {
                if is_branch && command.new.is_some() {
                    wanted.notes.extend(other_branch(&command.name, &deploy_branch));
                }
                wanted.others.push(command.clone());
            }
        }
        wanted
    }

    fn commit_time(&self, push: &ReceivedPush, command: &RefCommand) -> Result<jiff::Timestamp, String> {
        let commit = command.commit.ok_or("the deploy branch names no commit")?;
        let commit =
            push.quarantine.commit(commit).map_err(|error| self.failed("read the commit", &error))?;
        Ok(commit.time())
    }

    /// Moves the objects out of the quarantine, and remembers where history is cut off.
    async fn keep(&self, push: ReceivedPush, wanted: &Wanted) -> Result<(), String> {
        let stages = self.server.stages();
        if stages.sources.is_shared() {
            // First where every server finds them: this disk has nothing that the others could not have.
            let packs =
                push.quarantine.packs().map_err(|error| self.failed("read the pushed objects", &error))?;
            let app = create_app(self.server, &self.name, &self.person).await;
            app.map_err(|error| self.failed("make the app", &error))?;
            let kept = stages.sources.keep(&*stages.store, &self.name, &packs).await;
            kept.map_err(|error| self.failed("keep the pushed objects", &error))?;
        }
        let ids: Vec<_> =
            wanted.deploy.iter().chain(&wanted.others).filter_map(|command| command.new).collect();
        let migrated = tokio::task::spawn_blocking(move || push.quarantine.migrate(&ids)).await;
        let shallow = match migrated {
            Ok(migrated) => migrated.map_err(|error| self.failed("store the pushed objects", &error))?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let known = self.app.as_ref().map(|app| app.shallow.clone()).unwrap_or_default();
        if shallow != known {
            let app = create_app(self.server, &self.name, &self.person).await;
            app.map_err(|error| self.failed("make the app", &error))?;
            let name = ObjectName::of(&self.name);
            // What this push changed, and not all of it: another server may have changed it too.
            store::modify(&*self.server.stages().store, &name, |app: &mut App| {
                app.shallow.retain(|id| shallow.contains(id) || !known.contains(id));
                app.shallow.extend(shallow.difference(&known));
                Ok::<_, StoreError>(())
            })
            .await
            .map_err(|error| self.failed("store the refs", &error))?;
        }
        Ok(())
    }

    /// Moves refs that deploy nothing.
    async fn move_now(&self, commands: &[RefCommand]) -> Result<Verdicts, String> {
        let mut verdicts = Verdicts::new();
        for command in commands {
            let moved =
                store::modify(&*self.server.stages().store, &ObjectName::of(&self.name), |app: &mut App| {
                    Ok::<_, StoreError>(app.move_refs(&[ref_move(command)]))
                })
                .await
                .map_err(|error| self.failed("store the refs", &error))?;
            let verdict = match moved.1 {
                Ok(()) => Verdict::Accepted,
                Err(_) => Verdict::Refused("another push moved it meanwhile: fetch first".to_owned()),
            };
            verdicts.insert(command.name.clone(), verdict);
        }
        Ok(verdicts)
    }

    fn order(
        &self,
        command: &RefCommand,
        moves: Vec<RefMove>,
        committed_at: jiff::Timestamp,
        options: PushOptions,
    ) -> Option<BuildOrder> {
        let (app, by) = (self.name.clone(), self.person.name.clone());
        Some(BuildOrder { app, commit: command.commit?, committed_at, moves, by, options })
    }

    async fn deploy(&self, order: BuildOrder, reporter: &mut Reporter<Output>) -> Verdict {
        let options = order.options;
        let build = match self.claim(order, reporter).await {
            Ok(build) => build,
            Err(reason) => return Verdict::Refused(reason),
        };
        if options.detach {
            say(reporter, &PushEvent::Line(format!("Follow it: {}", self.follow(&build)))).await;
            return Verdict::Accepted;
        }
        self.follow_to_the_end(&build, reporter).await
    }

    pub(super) fn follow(&self, build: &Build) -> String {
        self.server.addresses().follow(&build.app, build.number)
    }

    async fn problem(&self, reporter: &mut Reporter<Output>, reason: String) -> String {
        say(reporter, &PushEvent::Problem(reason.clone())).await;
        reason
    }

    /// A failure that is not the pusher's, in one line; the operator's log has the rest.
    pub(super) fn failed(&self, doing: &str, error: &dyn std::error::Error) -> String {
        let error = Chain(error);
        tracing::error!(app = %self.name, doing, %error, "a push failed");
        format!("hephy could not {doing}: {error}")
    }
}

fn refuse_rest(wanted: Wanted, reason: &str) -> Verdicts {
    let mut verdicts = wanted.verdicts;
    for command in wanted.deploy.into_iter().chain(wanted.others) {
        verdicts.insert(command.name, Verdict::Refused(reason.to_owned()));
    }
    verdicts
}

fn ref_move(command: &RefCommand) -> RefMove {
    RefMove { name: command.name.clone(), old: command.old, new: command.new }
}

fn other_branch(name: &RefName, deploy_branch: &RefName) -> [PushEvent; 2] {
    let (name, deploys) = (name.short(), deploy_branch.short());
    [
        PushEvent::Heading(format!("{name} is stored and not deployed: {deploys} deploys")),
        PushEvent::Line(format!("To deploy it: git push deis {name}:{deploys}")),
    ]
}

/// Shows an event in git's terminal. A pusher who is gone is noticed elsewhere.
pub(super) async fn say(reporter: &mut Reporter<Output>, event: &PushEvent) {
    let mut text = event.render().join("\n");
    text.push('\n');
    if let Err(error) = reporter.progress(&text).await {
        tracing::debug!(error = %Chain(&error), "a line did not reach the pusher");
    }
}
