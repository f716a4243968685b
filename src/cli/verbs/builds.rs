//! `builds`

use clap::{Args, Subcommand};

use super::{AppArgument, Context, Format, FormatArgument, VerbError};
use crate::cli::render::{ago, table};
use crate::model::store;
use crate::model::{App, Build, BuildNumber, BuildState, Cancel, CancelReason, Outcome};
use crate::push::claim;

type Result<T> = std::result::Result<T, VerbError>;

/// `builds`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BuildsArguments {
    #[command(subcommand)]
    pub(crate) command: Option<BuildsCommand>,
    #[command(flatten)]
    pub(crate) app: AppArgument,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

/// What to do with builds.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum BuildsCommand {
    /// List the builds, the newest first
    List {
        #[command(flatten)]
        app: AppArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show a build's log, and follow it while it runs
    Log {
        /// The build's number; by default the last
        build: Option<BuildNumber>,
        #[command(flatten)]
        app: AppArgument,
        /// Show what is there and do not wait for more
        #[arg(long)]
        no_follow: bool,
        /// Follow a running build: the default, accepted for habit's sake
        #[arg(short, long, conflicts_with = "no_follow")]
        follow: bool,
        /// Only lines after this one
        #[arg(long, value_name = "LINE", default_value_t = 0)]
        after: u64,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Stop a running build
    Cancel {
        /// The build's number; by default the running one
        build: Option<BuildNumber>,
        #[command(flatten)]
        app: AppArgument,
    },
}

pub(super) async fn run(context: &mut Context<'_>, arguments: BuildsArguments) -> Result<u8> {
    match arguments.command {
        None => list(context, &arguments.app, arguments.format.format).await?,
        Some(BuildsCommand::List { app, format }) => list(context, &app, format.format).await?,
        Some(BuildsCommand::Log { build, app, no_follow, follow: _, after, format }) => {
            let app = context.app(&app).await?.object;
            let build = find(context, &app, build).await?;
            return log(context, &build, after, !no_follow, format.format).await;
        }
        Some(BuildsCommand::Cancel { build, app }) => {
            let app = context.app(&app).await?.object;
            let build = find(context, &app, build).await?;
            if build.outcome.is_some() {
                return Err(VerbError::Said(format!(
                    "build {} has ended already: {}",
                    build.number,
                    state(&build)
                )));
            }
            let cancel = Cancel { reason: CancelReason::Requested, by: context.person.name.clone() };
            claim::cancel(context.server.store(), &app.name, build.number, cancel).await?;
            context.server.pushes().ended(&app.name, build.number).await;
            context.print(&format!("-----> Build {} is cancelled\n", build.number)).await?;
        }
    }
    Ok(0)
}

async fn list(context: &mut Context<'_>, app: &AppArgument, format: Format) -> Result<()> {
    let app = context.app(app).await?.object;
    let mut builds = store::list::<Build>(context.server.store(), &format!("{}--", app.name)).await?;
    builds.sort_by_key(|build| std::cmp::Reverse(build.number));
    let now = jiff::Timestamp::now();
    context
        .show(format, &builds, |builds| {
            let rows: Vec<_> = builds
                .iter()
                .map(|build| {
                    let number = build.number.to_string();
                    [
                        number,
                        build.commit.short(),
                        build.by.to_string(),
                        ago(build.created_at, now),
                        state(build),
                    ]
                })
                .collect();
            table(["BUILD", "COMMIT", "BY", "AGE", "STATE"], &rows)
        })
        .await
}

fn state(build: &Build) -> String {
    match (&build.outcome, &build.state) {
        (Some(Outcome::Succeeded { release, .. }), _) => format!("released as {release}"),
        (Some(Outcome::Failed { reason, .. }), _) => reason.clone(),
        (Some(Outcome::Cancelled { reason, .. }), _) => format!("cancelled: {}", reason.sentence()),
        (None, BuildState::Received(_)) => "received".to_owned(),
        (None, BuildState::Detected(_)) => "detected".to_owned(),
        (None, BuildState::Planned(_)) => "building".to_owned(),
        (None, BuildState::Built { .. }) => "publishing".to_owned(),
        (None, BuildState::Published { .. }) => "releasing".to_owned(),
        (None, BuildState::Released { release, .. }) => format!("rolling out {release}"),
    }
}

pub(super) async fn find(context: &Context<'_>, app: &App, number: Option<BuildNumber>) -> Result<Build> {
    let number = number.unwrap_or(BuildNumber(app.last_build));
    let read = store::load::<Build>(context.server.store(), &Build::object_name(&app.name, number)).await?;
    read.map(|read| read.object).ok_or_else(|| match app.last_build {
        0 => VerbError::Said(format!("{} has no builds yet", app.name)),
        last => VerbError::Said(format!("{} has no build {number}; the last is #{last}", app.name)),
    })
}

/// Shows a log, and says by the exit status whether the build succeeded.
pub(super) async fn log(
    context: &mut Context<'_>,
    build: &Build,
    after: u64,
    follow: bool,
    format: Format,
) -> Result<u8> {
    let pushes = context.server.pushes();
    let mut lines = if follow { pushes.follow(build, after) } else { pushes.replay(build, after) };
    loop {
        let line = tokio::select! {
            biased;
            line = lines.recv() => line,
            _ = context.closed.wait() => return Ok(1),
        };
        let Some(line) = line else { break };
        match format {
            Format::Text => context.event(&line.event).await?,
            Format::Json => context.print(&(serde_json::to_string(&line)? + "\n")).await?,
        }
    }
    if follow {
        context.server.pushes().ended(&build.app, build.number).await;
    }
    let outcome = context.server.pushes().outcome(build).await?;
    Ok(u8::from(matches!(outcome, Some(Outcome::Failed { .. } | Outcome::Cancelled { .. }))))
}
