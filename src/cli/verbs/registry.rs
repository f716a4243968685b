//! `registry`

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Context, FormatArgument, VerbError};
use crate::model::App;
use crate::model::store;
use crate::publish::Access;

/// `registry`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RegistryArguments {
    #[command(subcommand)]
    pub(crate) command: RegistryCommand,
}

/// What to do with the registry.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum RegistryCommand {
    /// Print a token that writes to the repositories of your apps, and how to use it
    Token {
        /// How long it is good for
        #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = humantime::parse_duration)]
        ttl: std::time::Duration,
        #[command(flatten)]
        format: FormatArgument,
    },
}

#[derive(Debug, Serialize)]
struct TokenView {
    registry: String,
    username: &'static str,
    password: String,
}

pub(super) async fn run(context: &mut Context<'_>, arguments: RegistryArguments) -> Result<(), VerbError> {
    let RegistryCommand::Token { ttl, format } = arguments.command;
    let longest = std::time::Duration::from_secs(30 * 24 * 3600);
    if ttl > longest {
        return Err(VerbError::Said("a token is good for 30 days at most".to_owned()));
    }
    let mut apps = Vec::new();
    for app in store::list::<App>(context.server.store(), "").await? {
        if context.person.may_use(&app) {
            apps.push(app.name);
        }
    }
    let Access::Tokens(tokens) = &context.server.stages().place.access else {
        return Err(VerbError::Said(
            "the registry is not hephy's own: log in with what its operator gives you".to_owned(),
        ));
    };
    let token = if context.person.admin {
        tokens.for_server(ttl)
    } else {
        tokens.for_user(&context.person.name, &apps, ttl)
    };
    let registry = context.server.addresses().registry().to_owned();
    let view = TokenView { registry, username: "hephy", password: token.reveal().clone() };
    context.show(format.format, &view, |view| format!("{}\n", view.password)).await
}
