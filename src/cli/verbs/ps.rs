//! `ps`

use std::collections::BTreeMap;

use super::{AppArgument, Context, Format, PsArguments, PsCommand, VerbError};
use crate::cli::render::{ago, table};
use crate::push::change;

type Result<T> = std::result::Result<T, VerbError>;

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
