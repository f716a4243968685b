//! `releases`

use clap::{Args, Subcommand};

use super::{AppArgument, Context, Format, FormatArgument, VerbError};
use crate::cli::render::{ago, table};
use crate::model::store;
use crate::model::{Release, ReleaseNumber, ReleaseState};
use crate::push::change;

type Result<T> = std::result::Result<T, VerbError>;

/// `releases`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReleasesArguments {
    #[command(subcommand)]
    pub(crate) command: Option<ReleasesCommand>,
    #[command(flatten)]
    pub(crate) app: AppArgument,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

/// What to do with releases.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ReleasesCommand {
    /// List the releases, the newest first
    List {
        #[command(flatten)]
        app: AppArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Make a new release with the image and the config of an older one
    Rollback {
        /// The older release; by default the one before the current
        release: Option<ReleaseNumber>,
        #[command(flatten)]
        app: AppArgument,
    },
}

pub(super) async fn run(context: &mut Context<'_>, arguments: ReleasesArguments) -> Result<()> {
    match arguments.command {
        None => list(context, &arguments.app, arguments.format.format).await,
        Some(ReleasesCommand::List { app, format }) => list(context, &app, format.format).await,
        Some(ReleasesCommand::Rollback { release, app }) => rollback(context, &app, release).await,
    }
}

async fn all(context: &Context<'_>, app: &crate::model::AppName) -> Result<Vec<Release>> {
    let mut releases = store::list::<Release>(context.server.store(), &format!("{app}--")).await?;
    releases.sort_by_key(|release| std::cmp::Reverse(release.number));
    Ok(releases)
}

async fn list(context: &mut Context<'_>, app: &AppArgument, format: Format) -> Result<()> {
    let app = context.app(app).await?.object;
    let releases = all(context, &app.name).await?;
    let now = jiff::Timestamp::now();
    context
        .show(format, &releases, |releases| {
            let rows: Vec<_> = releases
                .iter()
                .map(|release| {
                    let state = match &release.state {
                        _ if Some(release.number) == app.current => "serves".to_owned(),
                        ReleaseState::Live { .. } => "served".to_owned(),
                        ReleaseState::Pending => "pending".to_owned(),
                        ReleaseState::Failed { reason } => reason.clone(),
                    };
                    [release.number.to_string(), release.summary.clone(), ago(release.created_at, now), state]
                })
                .collect();
            table(["RELEASE", "WHAT", "AGE", "STATE"], &rows)
        })
        .await
}

async fn rollback(
    context: &mut Context<'_>,
    app: &AppArgument,
    release: Option<ReleaseNumber>,
) -> Result<()> {
    let app = context.app(app).await?.object;
    let releases = all(context, &app.name).await?;
    let good = |release: &&Release| matches!(release.state, ReleaseState::Live { .. });
    let before = |release: &&Release| app.current.is_some_and(|current| release.number < current);
    let target = match release {
        Some(number) => releases.iter().find(|release| release.number == number),
        None => releases.iter().filter(good).find(before),
    };
    let target = target.ok_or_else(|| {
        VerbError::Said(match release {
            Some(number) => format!("there is no {number}: `releases` lists those there are"),
            None => "there is nothing to go back to: no release ran before this one".to_owned(),
        })
    })?;
    if !good(&target) {
        return Err(VerbError::Said(format!("{} never ran: choose one that did", target.number)));
    }
    let (stages, name, by, number) =
        (context.server.stages().clone(), app.name.clone(), context.person.name.clone(), target.number);
    let released = context
        .change(
            &app.name,
            move |lines| async move { change::rollback(&stages, &name, &by, number, lines).await },
        )
        .await?;
    context.released(&app.name, released).await
}
