//! `access`

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{AppArgument, Context, Format, FormatArgument, VerbError};
use crate::model::store::{self, StoreError};
use crate::model::{App, ObjectName, User, UserName};

type Result<T> = std::result::Result<T, VerbError>;

/// `access`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccessArguments {
    #[command(subcommand)]
    pub(crate) command: Option<AccessCommand>,
    #[command(flatten)]
    pub(crate) app: AppArgument,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

/// What to do with the people of an app.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum AccessCommand {
    /// List who may push
    List {
        #[command(flatten)]
        app: AppArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Let a user push
    Add {
        /// Who
        user: UserName,
        #[command(flatten)]
        app: AppArgument,
    },
    /// No longer let a user push
    Remove {
        /// Who
        user: UserName,
        #[command(flatten)]
        app: AppArgument,
    },
}

#[derive(Debug, Serialize)]
struct AccessView {
    owner: UserName,
    collaborators: Vec<UserName>,
}

pub(super) async fn run(context: &mut Context<'_>, arguments: AccessArguments) -> Result<()> {
    match arguments.command {
        None => list(context, &arguments.app, arguments.format.format).await,
        Some(AccessCommand::List { app, format }) => list(context, &app, format.format).await,
        Some(AccessCommand::Add { user, app }) => {
            let app = owned(context, &app).await?;
            if store::load::<User>(context.server.store(), &ObjectName::of(&user)).await?.is_none() {
                return Err(VerbError::Said(format!(
                    "there is no user `{user}`: an admin makes one by `keys add … --user {user}`"
                )));
            }
            change(context, &app, |app| app.collaborators.insert(user.clone())).await?;
            context.print(&format!("-----> {user} may push to {}\n", app.name)).await
        }
        Some(AccessCommand::Remove { user, app }) => {
            let app = owned(context, &app).await?;
            if !change(context, &app, |app| app.collaborators.remove(&user)).await? {
                return Err(VerbError::Said(format!("{user} is no collaborator of {}", app.name)));
            }
            context.print(&format!("-----> {user} may no longer push to {}\n", app.name)).await
        }
    }
}

async fn list(context: &mut Context<'_>, app: &AppArgument, format: Format) -> Result<()> {
    let app = context.app(app).await?.object;
    let view = AccessView { owner: app.owner, collaborators: app.collaborators.into_iter().collect() };
    context
        .show(format, &view, |view| {
            let others = view.collaborators.iter().map(|user| format!("{user}\n"));
            format!("{} (owner)\n{}", view.owner, others.collect::<String>())
        })
        .await
}

/// Only the owner and admins change who may push.
async fn owned(context: &Context<'_>, app: &AppArgument) -> Result<App> {
    let app = context.app(app).await?.object;
    if context.person.admin || app.owner == context.person.name {
        Ok(app)
    } else {
        Err(VerbError::Said(format!(
            "only {}, who owns {}, or an admin changes who may push",
            app.owner, app.name
        )))
    }
}

async fn change(
    context: &Context<'_>,
    app: &App,
    mut change: impl FnMut(&mut App) -> bool + Send,
) -> Result<bool> {
    let name = ObjectName::of(&app.name);
    let (_, changed) =
        store::modify(context.server.store(), &name, |app: &mut App| Ok::<_, StoreError>(change(app)))
            .await?;
    Ok(changed)
}
