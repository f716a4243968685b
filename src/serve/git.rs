//! `git push`, `git fetch` and `git clone`: from the SSH session to the Build, and back to git.
//!
//! A session decides per ref what becomes of it ([`decision`]), waits for the app and makes the Build ([`turn`]), and
//! follows the log ([`following`]). It drives nothing itself.

mod decision;
mod following;
mod turn;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::people::Person;
use super::{Server, options};
use crate::git::{self, Limits, ReceiveError, Received, Refs, Shown};
use crate::model::store::{self, StoreError};
use crate::model::{App, AppName, Chain, ObjectName, PushEvent, RefName};
use crate::receive::{Output, Session};

use decision::Decision;

/// How often a silent push sends a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Names that an app cannot have, since the registry or the server uses them.
const RESERVED: [&str; 4] = ["mirror", "hephy", "cache", "operator"];

/// Serves `git fetch` and `git clone`. The exit status.
pub(super) async fn upload(server: &Server, session: Session, name: &AppName) -> u8 {
    let Session { user, mut stdout, mut stderr, stdin, environment, .. } = session;
    let refused = match permitted(server, &user, name).await {
        Ok(Permitted::Existing(app)) => {
            let protocol = environment.git_protocol;
            let idle = Duration::from_secs(600);
            let repository = match server.stages().repository(name).await {
                Ok(repository) => repository,
                Err(error) => {
                    return refuse(&mut stdout, &platform_lines("open the repository", &error)).await;
                }
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
    // A server that stops waits for it.
    let _receiving = server.receiving.token();
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
    let repository = match server.stages().repository_in_part(name).await {
        Ok(repository) => repository,
        Err(error) => return refuse(&mut stdout, &platform_lines("open the repository", &error)).await,
    };
    let refs = app.as_ref().map_or_else(Refs::new, |app| app.refs.clone());
    let limits = Limits { max_pack_bytes: server.settings().max_pack_bytes, ..Limits::default() };
    let received = git::receive_pack(&repository, &refs, &limits, &mut stdin, stdout).await;
    // What it has in memory of packs that are elsewhere is not held until the build ends.
    drop(repository);
    match received {
        Ok(Received::Push(push, reporter)) => {
            let decision = Decision { server, person, name: name.clone(), app, closed };
            decision.decide(*push, reporter).await
        }
        Ok(Received::Nothing(_, given)) => {
            let told = options::parse(&given).err().map(PushEvent::Problem);
            nothing(server, app.as_deref(), told, &mut stderr).await
        }
        Ok(Received::Refused) => 1,
        Err(error) => {
            tracing::info!(app = %name, user = %user, error = %Chain(&error), "a push was not received");
            if matches!(error, ReceiveError::Thin) {
                have_all(server, name).await;
            }
            1
        }
    }
}

/// Has all of a repository come here, so that the next push may build on any of it.
async fn have_all(server: &Server, name: &AppName) {
    if let Err(error) = server.stages().repository(name).await {
        tracing::error!(app = %name, error = %Chain(&error), "a repository cannot be fetched");
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

/// What a push with nothing to send is told, after a `problem` with its options.
async fn nothing(server: &Server, app: Option<&App>, problem: Option<PushEvent>, stderr: &mut Output) -> u8 {
    let mut events = Vec::from_iter(problem);
    if let Some((app, number)) = app.and_then(|app| Some((app, app.current?))) {
        let head = deploy_branch(server.settings().deploy_branch.as_deref(), &app.refs);
        let commit = app.refs.get(&head).map(|commit| format!(" ({})", commit.short())).unwrap_or_default();
        let url = server.addresses().app_url(&app.name);
        let verb = server.addresses().verb(&format!("deploy -a {}", app.name));
        events.push(PushEvent::Heading(format!("{}: {number}{commit} is deployed at {url}", app.name)));
        events.push(PushEvent::Line(format!("To deploy it again: {verb}")));
    }
    let text: String = events.iter().map(|event| event.render().join("\n") + "\n").collect();
    // git has what it came for, whether it reads this or not.
    drop(stderr.write_all(text.as_bytes()).await);
    0
}
