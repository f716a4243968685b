//! `apps`

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{AppArgument, Context, Format, FormatArgument, VerbError};
use crate::cli::render::{ago, table};
use crate::model::store;
use crate::model::{App, AppName, Config, Kind, ProcessType};

type Result<T> = std::result::Result<T, VerbError>;

/// `apps`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AppsArguments {
    #[command(subcommand)]
    pub(crate) command: Option<AppsCommand>,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

/// What to do with apps.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum AppsCommand {
    /// List the apps that you may push to
    List {
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show one app: its URL, release, processes and people
    Info {
        #[command(flatten)]
        app: AppArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Make an app without pushing to it
    Create {
        /// Its name
        name: AppName,
    },
    /// Stop an app and remove everything of it
    Destroy {
        #[command(flatten)]
        app: AppArgument,
        /// The app's name again, since nothing of it can be had back
        #[arg(long, value_name = "APP")]
        confirm: AppName,
    },
}

/// An app as it is listed.
#[derive(Debug, Serialize)]
struct AppView {
    name: String,
    url: String,
    owner: String,
    collaborators: Vec<String>,
    release: Option<String>,
    commit: Option<String>,
    image: Option<String>,
    created_at: jiff::Timestamp,
    /// What runs; without a release what will, if somebody has said it.
    scale: BTreeMap<ProcessType, u32>,
    git: String,
}

pub(super) async fn run(context: &mut Context<'_>, arguments: AppsArguments) -> Result<()> {
    match arguments.command {
        None => list(context, arguments.format.format).await,
        Some(AppsCommand::List { format }) => list(context, format.format).await,
        Some(AppsCommand::Info { app, format }) => {
            let app = context.app(&app).await?.object;
            let view = view(context, app).await?;
            context.show(format.format, &view, info).await
        }
        Some(AppsCommand::Create { name }) => {
            let is_there = store::load::<App>(context.server.store(), &store::ObjectName::of(&name)).await?;
            if is_there.is_some_and(|app| app.object.owner == context.person.name) {
                return Err(VerbError::Said(format!(
                    "there is your app {name} already: `apps info -a {name}` shows it"
                )));
            }
            let Some(app) = context.server.create_app(&name, &context.person).await? else {
                return Err(VerbError::Said(format!(
                    "the name {name} is hephy's own: give the app another name"
                )));
            };
            if app.owner != context.person.name {
                return Err(VerbError::Said(format!("there is an app {name} already")));
            }
            let url = context.server.addresses().remote_url(name.as_str());
            context
                .print(&format!(
                    "-----> {name} made\n       git remote add deis {url}\n       git push deis main\n"
                ))
                .await
        }
        Some(AppsCommand::Destroy { app, confirm }) => {
            let app = context.app(&app).await?;
            if app.object.name != confirm {
                return Err(VerbError::Said(format!(
                    "`--confirm {confirm}` is not the app's name, {}",
                    app.object.name
                )));
            }
            // Others may push to it, and take nothing away that is not theirs.
            if !context.person.admin && app.object.owner != context.person.name {
                return Err(VerbError::Said(format!(
                    "only {}, who owns {}, or an admin destroys it",
                    app.object.owner, app.object.name
                )));
            }
            destroy(context, app).await
        }
    }
}

async fn list(context: &mut Context<'_>, format: Format) -> Result<()> {
    let mut views = Vec::new();
    for app in store::list::<App>(context.server.store(), "").await? {
        if context.person.may_use(&app) {
            views.push(view(context, app).await?);
        }
    }
    let first = format!(
        "-----> No apps yet\n       git remote add deis {}\n       git push deis main\n",
        context.server.addresses().remote_url("myapp")
    );
    let now = jiff::Timestamp::now();
    context
        .show(format, &views, |views| {
            if views.is_empty() {
                return first;
            }
            let dash = || "-".to_owned();
            let rows: Vec<_> = views
                .iter()
                .map(|app| {
                    let release = app.release.clone().unwrap_or_else(dash);
                    let commit =
                        app.commit.as_ref().map_or_else(dash, |commit| commit.chars().take(7).collect());
                    [
                        app.name.clone(),
                        release,
                        commit,
                        app.owner.clone(),
                        ago(app.created_at, now),
                        app.url.clone(),
                    ]
                })
                .collect();
            table(["APP", "RELEASE", "COMMIT", "OWNER", "AGE", "URL"], &rows)
        })
        .await
}

async fn view(context: &Context<'_>, app: App) -> Result<AppView> {
    let addresses = context.server.addresses();
    let release = match app.current {
        Some(number) => Some(crate::release::find(context.server.store(), &app.name, number).await?),
        None => None,
    };
    let registry = addresses.registry();
    Ok(AppView {
        url: addresses.app_url(&app.name),
        git: addresses.remote_url(app.name.as_str()),
        owner: app.owner.to_string(),
        collaborators: app.collaborators.iter().map(ToString::to_string).collect(),
        release: release.as_ref().map(|release| release.number.to_string()),
        commit: release.as_ref().map(|release| release.commit.to_string()),
        scale: release.as_ref().map_or(app.scale.clone(), |release| crate::push::counts(release, &app.scale)),
        image: release
            .map(|release| format!("{registry}/{}@{}", release.index.repository, release.index.digest)),
        created_at: app.created_at,
        name: app.name.to_string(),
    })
}

fn info(app: &AppView) -> String {
    let none = || "none yet".to_owned();
    let rows = [
        ("url", app.url.clone()),
        ("git", app.git.clone()),
        ("release", app.release.clone().unwrap_or_else(none)),
        ("commit", app.commit.clone().unwrap_or_else(none)),
        ("image", app.image.clone().unwrap_or_else(none)),
        ("owner", app.owner.clone()),
        ("collaborators", app.collaborators.join(", ")),
    ];
    let lines = rows
        .into_iter()
        .map(|(name, value)| format!("       {name:<14} {value}").trim_end().to_owned() + "\n");
    format!("-----> {}\n{}", app.name, lines.collect::<String>())
}

/// Stops the app first and removes its objects last, the App at the very end: a crash leaves something that can be
/// destroyed again.
async fn destroy(context: &mut Context<'_>, app: store::Versioned<App>) -> Result<()> {
    let name = app.object.name.clone();
    if let Some(holder) = &app.object.holder {
        let busy = crate::serve::describe_busy(context.server, &name, holder).await;
        return Err(VerbError::Busy(busy.details));
    }
    let stages = context.server.stages();
    stages.runtime.stop(&name).await?;
    let prefix = format!("{name}--");
    for kind in [Kind::Build, Kind::Release, Kind::Config] {
        for (object, document) in context.server.store().list(kind, &prefix).await? {
            context.server.store().delete(kind, &object, &document.version).await?;
        }
    }
    if let Some(config) = context.server.store().get(Kind::Config, &Config::next_name(&name)).await? {
        context.server.store().delete(Kind::Config, &Config::next_name(&name), &config.version).await?;
    }
    for directory in [stages.repository_path(&name), stages.logs.app_directory(&name)] {
        match tokio::fs::remove_dir_all(&directory).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    store::delete(context.server.store(), &app).await?;
    context.print(&format!("-----> {name} and everything of it is gone\n")).await
}
