//! `logs`

use clap::Args;
use futures::StreamExt as _;

use super::{AppArgument, Context, Format, FormatArgument, VerbError};
use crate::model::ProcessType;
use crate::rollout::LogQuery;

/// `logs`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogsArguments {
    #[command(flatten)]
    pub(crate) app: AppArgument,
    /// Go on with what the app prints from now on
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many of the last lines to begin with
    #[arg(short = 'n', long, default_value_t = 100, value_name = "LINES")]
    pub(crate) lines: usize,
    /// Only this process type
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    pub(crate) process_type: Option<ProcessType>,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

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
