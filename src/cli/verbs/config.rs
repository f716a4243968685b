//! `config`

use std::collections::BTreeMap;

use clap::{Args, Subcommand};

use super::{AppArgument, Context, Format, FormatArgument, VerbError};
use crate::model::{App, EnvName, PushEvent, Secret};
use crate::push::change::{self, VariableChanges};

type Result<T> = std::result::Result<T, VerbError>;

/// `config`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArguments {
    #[command(subcommand)]
    pub(crate) command: Option<ConfigCommand>,
    #[command(flatten)]
    pub(crate) app: AppArgument,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

/// What to do with variables.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigCommand {
    /// List the variables with their values
    List {
        #[command(flatten)]
        app: AppArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Set variables, and release the app with them
    Set {
        /// Names with their values
        #[arg(required = true, value_name = "NAME=VALUE")]
        variables: Vec<String>,
        #[command(flatten)]
        app: AppArgument,
    },
    /// Unset variables, and release the app without them
    Unset {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        app: AppArgument,
    },
}

/// The longest value, in bytes: what the kernel takes as one string of an environment.
const MAX_VALUE_BYTES: usize = 128 * 1024;

pub(super) async fn run(context: &mut Context<'_>, arguments: ConfigArguments) -> Result<()> {
    match arguments.command {
        None => list(context, &arguments.app, arguments.format.format).await,
        Some(ConfigCommand::List { app, format }) => list(context, &app, format.format).await,
        Some(ConfigCommand::Set { variables, app }) => {
            let app = context.app(&app).await?.object;
            let mut changes = VariableChanges::new();
            for text in &variables {
                let (name, value) = assignment(text)?;
                if changes.contains_key(&name) {
                    return Err(VerbError::Said(format!("`{name}` is given twice: which value is meant?")));
                }
                changes.insert(name, value);
            }
            apply(context, &app, changes).await
        }
        Some(ConfigCommand::Unset { names, app }) => {
            let app = context.app(&app).await?.object;
            let config = crate::release::next_config(context.server.store(), &app.name).await?;
            let mut changes = VariableChanges::new();
            for text in &names {
                let name = text.parse::<EnvName>().map_err(|error| VerbError::Said(error.to_string()))?;
                if !config.variables.contains_key(&name) {
                    let known = config.variables.keys().map(ToString::to_string).collect::<Vec<_>>();
                    let set = match known.as_slice() {
                        [] => "no variable is".to_owned(),
                        _ => format!("set are: {}", known.join(", ")),
                    };
                    return Err(VerbError::Said(format!("`{name}` is not set; {set}")));
                }
                changes.insert(name, None);
            }
            apply(context, &app, changes).await
        }
    }
}

async fn list(context: &mut Context<'_>, app: &AppArgument, format: Format) -> Result<()> {
    let app = context.app(app).await?.object;
    let config = crate::release::next_config(context.server.store(), &app.name).await?;
    let variables: BTreeMap<_, _> =
        config.variables.iter().map(|(name, value)| (name.as_str(), value.reveal().as_str())).collect();
    context
        .show(format, &variables, |variables| {
            variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
        })
        .await
}

fn assignment(text: &str) -> Result<(EnvName, Option<Secret<String>>)> {
    let (name, value) = text.split_once('=').ok_or_else(|| {
        // What stands before the `=` may be the value: it is not repeated.
        VerbError::Said("write NAME=VALUE, as in GREETING=hello".to_owned())
    })?;
    let name = name.parse::<EnvName>().map_err(|error| VerbError::Said(error.to_string()))?;
    if value.len() > MAX_VALUE_BYTES || value.contains('\0') {
        return Err(VerbError::Said(format!(
            "the value of {name} is longer than 128 KiB, or has a NUL in it"
        )));
    }
    Ok((name, Some(Secret::new(value.to_owned()))))
}

async fn apply(context: &mut Context<'_>, app: &App, changes: VariableChanges) -> Result<()> {
    let (stages, name, by) = (context.server.stages().clone(), app.name.clone(), context.person.name.clone());
    let released = context
        .change(
            &app.name,
            move |lines| async move { change::config(&stages, &name, &by, changes, lines).await },
        )
        .await?;
    match released {
        Some(number) => context.released(&app.name, number).await,
        None => context.event(&PushEvent::Heading("Kept for the first release".to_owned())).await,
    }
}
