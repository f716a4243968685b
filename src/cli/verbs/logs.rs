//! `logs`

use futures::StreamExt as _;

use super::{Context, Format, LogsArguments, VerbError};
use crate::rollout::LogQuery;

/// Shows what the app printed, and with `--follow` what it prints from now on.
pub(super) async fn run(context: &mut Context<'_>, arguments: LogsArguments) -> Result<(), VerbError> {
    let app = context.app(&arguments.app).await?.object;
    let query =
        LogQuery { lines: arguments.lines, follow: arguments.follow, process_type: arguments.process_type };
    let mut lines = context.server.stages().runtime.logs(&app.name, query).await?;
    loop {
        let line = tokio::select! {
            biased;
            _ = context.closed.wait() => return Ok(()),
            line = lines.next() => line,
        };
        let Some(line) = line else { return Ok(()) };
        let text = match arguments.format.format {
            Format::Text => format!("{line}\n"),
            Format::Json => serde_json::to_string(&line)? + "\n",
        };
        context.print(&text).await?;
    }
}
