//! `git push`, `git fetch` and `git clone`: from the SSH session to the Build, and back to git.
//!
//! A session decides per ref what becomes of it, makes the Build, and follows the log. It drives nothing itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::Server;
use super::options;
use super::people::Person;
use super::queue::Turn;
use crate::git::{
    self, Command as RefCommand, Limits, Received, ReceivedPush, Refs, Reporter, Repository, Shown, Verdict,
};
use crate::model::store::{self, StoreError};
use crate::model::{
    App, AppName, Build, Cancel, CancelReason, Chain, Claim, CommitId, Holder, ObjectName, Outcome,
    PushEvent, PushOptions, RefMove, RefName,
};
use crate::push::claim::{self, BuildOrder, ClaimError};
use crate::receive::{Gone, Output, Session};

/// How often a silent push sends a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Names that an app cannot have, since the registry or the server uses them.
const RESERVED: [&str; 4] = ["mirror", "hephy", "cache", "operator"];

/// Serves `git fetch` and `git clone`. The exit status.
pub(super) async fn upload(server: &Server, session: Session, name: &AppName) -> u8 {
    let Session { user, mut stdout, mut stderr, stdin, environment, .. } = session;
    let refused = match permitted(server, &user, name).await {
        Ok(Permitted::Existing(app)) => {
            let path = server.stages().repository_path(name);
            let protocol = environment.git_protocol;
            let idle = Duration::from_secs(600);
            let opened = tokio::task::spawn_blocking(move || Repository::open_or_create(&path)).await;
            let repository = match opened {
                Ok(Ok(repository)) => repository,
                Ok(Err(error)) => {
                    return refuse(&mut stdout, &platform_lines("open the repository", &error)).await;
                }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            let head = deploy_branch(server.settings().deploy_branch.as_deref(), &app.refs);
            let shown = Shown { refs: &app.refs, head: &head, protocol: protocol.as_deref(), idle };
            return match git::upload_pack(&repository, shown, stdin, &mut stdout).await {
                Ok(()) => 0,
                Err(error) => {
                    // The protocol may be anywhere: what ssh shows beside it is the only safe place.
                    let text: String = platform_lines("serve the repository", &error)
                        .iter()
                        .map(|line| format!(" !     {line}\n"))
                        .collect();
                    if stderr.write_all(text.as_bytes()).await.is_err() {
                        tracing::debug!("the client of a fetch was gone before it was told");
                    }
                    1
                }
            };
        }
        Ok(Permitted::Fresh(_)) => vec![
            format!("There is no app {name} yet."),
            format!(
                "Push to it and it is made: git push {} main",
                server.addresses().remote_url(name.as_str())
            ),
        ],
        Ok(Permitted::Refused(lines)) => lines,
        Err(error) => platform_lines("read the app", &error),
    };
    drop(stdin);
    refuse(&mut stdout, &refused).await
}

/// Serves `git push`. The exit status.
pub(super) async fn receive(server: &Server, session: Session, name: &AppName) -> u8 {
    let Session { user, mut stdout, mut stderr, mut stdin, closed, .. } = session;
    server.pushes().settle().await;
    if server.is_stopping() {
        return refuse(&mut stdout, &["hephy is stopping: push again in a moment.".to_owned()]).await;
    }
    let permitted = match permitted(server, &user, name).await {
        Ok(permitted) => permitted,
        Err(error) => return refuse(&mut stdout, &platform_lines("read the app", &error)).await,
    };
    let (person, app) = match permitted {
        Permitted::Refused(lines) => return refuse(&mut stdout, &lines).await,
        Permitted::Existing(app) => (server.people().person(&user).await, Some(app)),
        Permitted::Fresh(person) => (Ok(person), None),
    };
    let person = match person {
        Ok(person) => person,
        Err(error) => return refuse(&mut stdout, &platform_lines("read the user", &error)).await,
    };
    let path = server.stages().repository_path(name);
    let repository = match tokio::task::spawn_blocking(move || Repository::open_or_create(&path)).await {
        Ok(Ok(repository)) => repository,
        Ok(Err(error)) => return refuse(&mut stdout, &platform_lines("open the repository", &error)).await,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let refs = app.as_ref().map_or_else(Refs::new, |app| app.refs.clone());
    let limits = Limits { max_pack_bytes: server.settings().max_pack_bytes, ..Limits::default() };
    let received = git::receive_pack(&repository, &refs, &limits, &mut stdin, stdout).await;
    match received {
        Ok(Received::Push(push, reporter)) => {
            let decision = Decision { server, person, name: name.clone(), app, closed };
            decision.decide(*push, reporter).await
        }
        Ok(Received::Nothing(_)) => nothing(server, app.as_deref(), &mut stderr).await,
        Ok(Received::Refused) => 1,
        Err(error) => {
            tracing::info!(app = %name, user = %user, error = %Chain(&error), "a push was not received");
            1
        }
    }
}

enum Permitted {
    Existing(Box<App>),
    Fresh(Person),
    Refused(Vec<String>),
}

/// An exact match, for push and for fetch.
async fn permitted(
    server: &Server,
    user: &crate::model::UserName,
    name: &AppName,
) -> Result<Permitted, StoreError> {
    let person = server.people().person(user).await?;
    match store::load::<App>(&*server.stages().store, &ObjectName::of(name)).await? {
        Some(read) if person.may_use(&read.object) => Ok(Permitted::Existing(Box::new(read.object))),
        Some(read) => Ok(Permitted::Refused(person.refusal(name, &read.object.owner, server.addresses()))),
        None if RESERVED.contains(&name.as_str()) => Ok(Permitted::Refused(vec![format!(
            "The name {name} is hephy's own: give the app another name."
        )])),
        None => Ok(Permitted::Fresh(person)),
    }
}

/// Makes an app, if there is none, owned by `person`.
pub(super) async fn create_app(server: &Server, name: &AppName, person: &Person) -> Result<App, StoreError> {
    let app = App::new(name.clone(), person.name.clone(), jiff::Timestamp::now());
    match store::create(&*server.stages().store, app).await {
        Ok(created) => Ok(created.object),
        Err(StoreError::Exists { .. }) => {
            Ok(store::require::<App>(&*server.stages().store, &ObjectName::of(name)).await?.object)
        }
        Err(error) => Err(error),
    }
}

/// Whether a new app may have the name.
pub(super) fn is_reserved(name: &AppName) -> bool {
    RESERVED.contains(&name.as_str())
}

/// The branch that deploys an app: the setting, else `main`, or `master` where only that is there.
pub(crate) fn deploy_branch(
    setting: Option<&str>,
    refs: &BTreeMap<RefName, crate::model::CommitId>,
) -> RefName {
    let has = |branch: &str| RefName::branch(branch).is_ok_and(|name| refs.contains_key(&name));
    let chosen = match setting {
        Some(branch) => branch,
        None if !has("main") && has("master") => "master",
        None => "main",
    };
    #[expect(
        clippy::expect_used,
        reason = "the setting is checked at the start, and the others are literals"
    )]
    RefName::branch(chosen).expect("the deploy branch is a branch")
}

/// Says something to git before anything else is said: it shows `fatal: remote error: …`.
async fn refuse(stdout: &mut Output, lines: &[String]) -> u8 {
    if let Err(error) = git::refuse(stdout, &lines.join("\n")).await {
        tracing::debug!(error = %Chain(&error), "a refusal was not read");
    }
    1
}

fn platform_lines(doing: &str, error: &dyn std::error::Error) -> Vec<String> {
    let error = Chain(error);
    tracing::error!(doing, %error, "a git command failed");
    vec![format!(
        "hephy could not {doing}: {error}. Try again; if it lasts, ask whoever operates this server."
    )]
}

/// What a push with nothing to send is told.
async fn nothing(server: &Server, app: Option<&App>, stderr: &mut Output) -> u8 {
    let Some(app) = app else { return 0 };
    let mut text = String::new();
    if let Some(number) = app.current {
        let head = deploy_branch(server.settings().deploy_branch.as_deref(), &app.refs);
        let commit = app.refs.get(&head).map(|commit| format!(" ({})", commit.short())).unwrap_or_default();
        let url = server.addresses().app_url(&app.name);
        let verb = server.addresses().verb(&format!("deploy -a {}", app.name));
        for event in [
            PushEvent::Heading(format!("{}: {number}{commit} is deployed at {url}", app.name)),
            PushEvent::Line(format!("To deploy it again: {verb}")),
        ] {
            text.push_str(&event.render().join("\n"));
            text.push('\n');
        }
    }
    // git has what it came for, whether it reads this or not.
    drop(stderr.write_all(text.as_bytes()).await);
    0
}

/// A push whose objects have arrived, and what becomes of its refs.
struct Decision<'a> {
    server: &'a Server,
    person: Person,
    name: AppName,
    app: Option<Box<App>>,
    closed: crate::receive::Closed,
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
    async fn decide(self, push: ReceivedPush, mut reporter: Reporter<Output>) -> u8 {
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
            store::modify(&*self.server.stages().store, &name, |app: &mut App| {
                app.shallow.clone_from(&shallow);
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

    /// Claims the app, waits for it, or takes over a build of the same commit that nobody follows.
    async fn claim(&self, order: BuildOrder, reporter: &mut Reporter<Output>) -> Result<Build, String> {
        let options = order.options;
        let mut order = order;
        let mut turn: Option<Turn> = None;
        loop {
            if turn.is_some() {
                order = self.after_waiting(order).await?;
            }
            let holder = match claim::claim_build(&*self.server.stages().store, order.clone()).await {
                Ok(build) => {
                    let heading = format!(
                        "{}: build {} of {} by {}",
                        build.app,
                        build.number,
                        build.commit.short(),
                        build.by
                    );
                    say(reporter, &PushEvent::Heading(heading)).await;
                    let started = self.server.pushes().start(build.clone()).await;
                    started.map_err(|error| self.failed("write the build's log", &error))?;
                    return Ok(build);
                }
                Err(ClaimError::Busy(holder)) => holder,
                Err(ClaimError::Store(error)) => return Err(self.failed("claim the app", &error)),
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

    /// Lets a push that waited follow on what was deployed meanwhile, if its commit does.
    async fn after_waiting(&self, mut order: BuildOrder) -> Result<BuildOrder, String> {
        let store = &*self.server.stages().store;
        let app = store::require::<App>(store, &ObjectName::of(&self.name)).await;
        let refs = app.map_err(|error| self.failed("read the app", &error))?.object.refs;
        for moved in &mut order.moves {
            let now = refs.get(&moved.name).copied();
            if let (Some(now), Some(new)) = (now.filter(|_| moved.old != now), moved.new) {
                let path = self.server.stages().repository_path(&self.name);
                let follows = tokio::task::spawn_blocking(move || follows(&path, new, now)).await;
                match follows {
                    Ok(Ok(true)) => moved.old = Some(now),
                    Ok(Ok(false)) => {
                        let name = moved.name.short();
                        return Err(format!(
                            "{name} is {} now, which this push does not build on: fetch first",
                            now.short()
                        ));
                    }
                    Ok(Err(error)) => return Err(self.failed("read the history", &error)),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
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
                gone = self.closed.wait() => return Err(format!("the pusher is gone ({gone:?})")),
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

    async fn busy(&self, holder: &Holder) -> super::busy::Busy {
        super::busy::describe(self.server, &self.name, holder).await
    }

    /// Shows the build's log until it ends. A pusher who closes the connection cancels; one who falls silent does not.
    async fn follow_to_the_end(&self, build: &Build, reporter: &mut Reporter<Output>) -> Verdict {
        let _attached = self.server.pushes().attach(&build.app, build.number);
        let mut lines = self.server.follow(build, 0);
        let mut tick = tokio::time::interval(KEEPALIVE);
        loop {
            tokio::select! {
                biased;
                gone = self.closed.wait() => return self.left(gone, build).await,
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
        self.verdict(build).await
    }

    /// How a build ended, as git is told.
    async fn verdict(&self, build: &Build) -> Verdict {
        match self.server.outcome(build).await {
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
            // The server stops once its builds have ended, this one perhaps among them.
            Gone::Shutdown if matches!(self.server.outcome(build).await, Ok(Some(_))) => {
                self.verdict(build).await
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

    fn follow(&self, build: &Build) -> String {
        self.server.addresses().follow(&build.app, build.number)
    }

    async fn problem(&self, reporter: &mut Reporter<Output>, reason: String) -> String {
        say(reporter, &PushEvent::Problem(reason.clone())).await;
        reason
    }

    /// A failure that is not the pusher's, in one line; the operator's log has the rest.
    fn failed(&self, doing: &str, error: &dyn std::error::Error) -> String {
        let error = Chain(error);
        tracing::error!(app = %self.name, doing, %error, "a push failed");
        format!("hephy could not {doing}: {error}")
    }
}

/// Whether `new` has `old` among the last of its ancestors.
fn follows(repository: &std::path::Path, new: CommitId, old: CommitId) -> Result<bool, git::GitError> {
    const MOST: usize = 10_000;
    let repository = Repository::open_or_create(repository)?;
    let (mut seen, mut next) = (BTreeSet::from([new]), VecDeque::from([new]));
    while let Some(commit) = next.pop_front() {
        if commit == old {
            return Ok(true);
        }
        if seen.len() > MOST {
            return Ok(false);
        }
        // Where history is cut off, nothing more is known.
        if !repository.contains(commit)? {
            continue;
        }
        next.extend(repository.commit(commit)?.parents().iter().filter(|parent| seen.insert(**parent)));
    }
    Ok(false)
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
async fn say(reporter: &mut Reporter<Output>, event: &PushEvent) {
    let mut text = event.render().join("\n");
    text.push('\n');
    if let Err(error) = reporter.progress(&text).await {
        tracing::debug!(error = %Chain(&error), "a line did not reach the pusher");
    }
}
