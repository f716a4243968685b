//! `keys`

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Context, Format, FormatArgument, VerbError};
use crate::cli::render::{ago, table};
use crate::model::{PublicKey, UserName};
use crate::receive::keys::{Added, Role};
use crate::serve::people::People;

type Result<T> = std::result::Result<T, VerbError>;

/// `keys`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeysArguments {
    #[command(subcommand)]
    pub(crate) command: Option<KeysCommand>,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

/// What to do with keys.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum KeysCommand {
    /// List your keys; an admin sees everybody's
    List {
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Add a key: a file, `-` for standard input, the fingerprint of a key that was just refused, or choose from a menu
    Add {
        /// A `.pub` file, `-`, or `SHA256:…`
        key: Option<String>,
        /// Whose key it is; only an admin adds keys of others, and makes users by it
        #[arg(long, value_name = "NAME")]
        user: Option<UserName>,
        /// What to call it; by default the key's comment
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The new user is an admin
        #[arg(long, requires = "user")]
        admin: bool,
        /// Write it into the cluster of your kubeconfig instead of asking the server: for the first admin
        #[arg(long)]
        kube: bool,
        /// With `--kube`: the namespace of the apps
        #[arg(long, value_name = "NAME", default_value = "hephy-apps", requires = "kube")]
        apps_namespace: String,
    },
    /// Remove a key
    Remove {
        /// Its fingerprint or its name
        key: String,
    },
}

#[derive(Debug, Serialize)]
struct KeyView {
    user: String,
    admin: bool,
    name: String,
    fingerprint: String,
    algorithm: String,
    added_at: jiff::Timestamp,
}

pub(super) async fn run(context: &mut Context<'_>, arguments: KeysArguments) -> Result<()> {
    match arguments.command {
        None => list(context, arguments.format.format).await,
        Some(KeysCommand::List { format }) => list(context, format.format).await,
        Some(KeysCommand::Add { kube: true, .. }) => {
            Err(VerbError::Said("`--kube` is for the command line, not for SSH".to_owned()))
        }
        Some(KeysCommand::Add { key, user, name, admin, .. }) => {
            let key = read(context, key.as_deref()).await?;
            add(context, key, user, name, admin).await
        }
        Some(KeysCommand::Remove { key }) => {
            let (user, removed) = context.server.people().remove_key(&context.person, &key).await?;
            let fingerprint = removed.key.fingerprint();
            context.print(&format!("-----> {user}'s key {} ({fingerprint}) is removed\n", removed.name)).await
        }
    }
}

async fn list(context: &mut Context<'_>, format: Format) -> Result<()> {
    let mut views = Vec::new();
    for user in context.server.people().users().await? {
        if !context.person.admin && user.name != context.person.name {
            continue;
        }
        views.extend(user.keys.iter().map(|held| KeyView {
            user: user.name.to_string(),
            admin: user.admin,
            name: held.name.clone(),
            fingerprint: held.key.fingerprint().to_string(),
            algorithm: held.key.algorithm().to_owned(),
            added_at: held.added_at,
        }));
    }
    let now = jiff::Timestamp::now();
    context
        .show(format, &views, |views| {
            let rows: Vec<_> = views
                .iter()
                .map(|key| {
                    let user = if key.admin { format!("{} (admin)", key.user) } else { key.user.clone() };
                    [
                        user,
                        key.name.clone(),
                        key.algorithm.clone(),
                        key.fingerprint.clone(),
                        ago(key.added_at, now),
                    ]
                })
                .collect();
            table(["USER", "NAME", "TYPE", "FINGERPRINT", "AGE"], &rows)
        })
        .await
}

/// The key that is meant: one that was refused lately, or what comes on standard input.
async fn read(context: &mut Context<'_>, key: Option<&str>) -> Result<PublicKey> {
    match key {
        Some(text) if text.starts_with("SHA256:") => {
            if !context.person.admin {
                return Err(VerbError::Said("only an admin adds a key by its fingerprint".to_owned()));
            }
            let fingerprint = text.parse().map_err(|error| VerbError::Said(format!("{error}")))?;
            context.server.people().refused(&fingerprint).ok_or_else(|| {
                VerbError::Said(format!("no key {text} was refused lately: let its owner connect once more, or give the key itself"))
            })
        }
        Some("-") => {
            let text = context.input().await?;
            PublicKey::parse_file(&text).map_err(|error| VerbError::Said(error.to_string()))
        }
        _ => Err(VerbError::Said(
            "give the key on standard input: `keys add - < ~/.ssh/id_ed25519.pub`".to_owned(),
        )),
    }
}

async fn add(
    context: &mut Context<'_>,
    key: PublicKey,
    user: Option<UserName>,
    name: Option<String>,
    admin: bool,
) -> Result<()> {
    let operator = People::operator();
    let user = user.unwrap_or_else(|| context.person.name.clone());
    if user == operator {
        return Err(VerbError::Said(
            "whose key is it? Give `--user NAME`; `operator` is whoever runs the server".to_owned(),
        ));
    }
    let person = &context.person;
    if !person.admin && (user != person.name || admin) {
        let doing = if admin { "makes admins" } else { "adds keys of others" };
        return Err(VerbError::Said(format!("only an admin {doing}; {} is not", person.name)));
    }
    let role = if admin { Role::Admin } else { Role::Member };
    let text = match context.server.people().add_key(&user, role, &key, name.as_deref()).await? {
        Added::New(added) => {
            format!("-----> {user}'s key {} ({}) is added\n", added.name, added.fingerprint())
        }
        Added::Already(known) => {
            format!("-----> {user} has this key already: {} ({})\n", known.name, known.fingerprint())
        }
    };
    context.print(&text).await
}
