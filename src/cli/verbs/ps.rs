//! `ps`

use std::collections::BTreeMap;

use clap::{Args, Subcommand};

use super::{AppArgument, Context, Format, FormatArgument, VerbError};
use crate::cli::render::{ago, table};
use crate::model::ProcessType;
use crate::push::change;

type Result<T> = std::result::Result<T, VerbError>;

/// `ps`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PsArguments {
    #[command(subcommand)]
    pub(crate) command: Option<PsCommand>,
    #[command(flatten)]
    pub(crate) app: AppArgument,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

/// What to do with processes.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum PsCommand {
    /// List the processes
    List {
        #[command(flatten)]
        app: AppArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Set how many of each type run: `web=2 worker=1`
    Scale {
        /// Types with their numbers
        #[arg(required = true, value_name = "TYPE=NUMBER", value_parser = scale)]
        counts: Vec<(ProcessType, u32)>,
        #[command(flatten)]
        app: AppArgument,
    },
}

/// The most instances of one process type on one machine.
const MAX_INSTANCES: u32 = 64;

fn scale(text: &str) -> std::result::Result<(ProcessType, u32), String> {
    let (process_type, number) = text.split_once('=').ok_or("write TYPE=NUMBER, as in web=2")?;
    let process_type = process_type.parse::<ProcessType>().map_err(|error| error.to_string())?;
    match number.parse() {
        Ok(number) if number <= MAX_INSTANCES => Ok((process_type, number)),
        _ => Err(format!("`{number}` is not a number from 0 to {MAX_INSTANCES}")),
    }
}

pub(super) async fn run(context: &mut Context<'_>, arguments: PsArguments) -> Result<()> {
    match arguments.command {
        None => list(context, &arguments.app, arguments.format.format).await,
        Some(PsCommand::List { app, format }) => list(context, &app, format.format).await,
        Some(PsCommand::Scale { counts, app }) => {
            let app = context.app(&app).await?.object;
            let counts: BTreeMap<_, _> = counts.into_iter().collect();
            let text =
                counts.iter().map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ");
            let (stages, name, by) =
                (context.server.stages().clone(), app.name.clone(), context.person.name.clone());
            context
                .change(&app.name, move |lines| async move {
                    change::scale(&stages, &name, &by, &counts, lines).await
                })
                .await?;
            context.print(&format!("-----> {} runs {text}\n", app.name)).await
        }
    }
}

async fn list(context: &mut Context<'_>, app: &AppArgument, format: Format) -> Result<()> {
    let app = context.app(app).await?.object;
    let instances = context.server.stages().runtime.status(&app.name).await?;
    let now = jiff::Timestamp::now();
    context
        .show(format, &instances, |instances| {
            let rows: Vec<_> = instances
                .iter()
                .map(|instance| {
                    let since = instance.since.map_or_else(|| "-".to_owned(), |since| ago(since, now));
                    let (release, state) = (instance.release.to_string(), instance.state.to_string());
                    [instance.name.to_string(), release, state, since, instance.restarts.to_string()]
                })
                .collect();
            table(["PROCESS", "RELEASE", "STATE", "SINCE", "RESTARTS"], &rows)
        })
        .await
}
