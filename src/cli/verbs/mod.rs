//! The verbs about apps, as clap reads them from a terminal and from an SSH command alike.
//!
//! The server runs them. The program on a laptop parses them too, for its help and its errors, and then sends the
//! words over SSH.

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::model::AppName;

mod access;
mod apps;
mod builds;
mod config;
mod context;
mod deploy;
mod keys;
mod logs;
mod ps;
mod registry;
mod releases;

use access::{AccessArguments, AccessCommand};
use apps::{AppsArguments, AppsCommand};
use builds::{BuildsArguments, BuildsCommand};
use config::{ConfigArguments, ConfigCommand};
pub(crate) use context::{Context, VerbError, run};
use deploy::DeployArguments;
pub(crate) use keys::{KeysArguments, KeysCommand};
use logs::LogsArguments;
use ps::{PsArguments, PsCommand};
use registry::RegistryArguments;
use releases::{ReleasesArguments, ReleasesCommand};

/// What is sent over SSH: `ssh -p 2222 hephy@HOST apps`.
#[derive(Debug, Parser)]
#[command(
    name = "hephy",
    no_binary_name = true,
    disable_version_flag = true,
    about = "git push deis main, and your code runs",
    arg_required_else_help = true
)]
pub(crate) struct SshCommand {
    /// The verb.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// A verb about apps.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Verb {
    /// List the apps that you may push to, or look at one
    Apps(AppsArguments),
    /// List the builds of an app, read their logs, cancel one
    Builds(BuildsArguments),
    /// List the releases of an app, or go back to one
    Releases(ReleasesArguments),
    /// Show what an app prints
    Logs(LogsArguments),
    /// Deploy again what was pushed last
    Deploy(DeployArguments),
    /// List an app's processes, or set how many run
    Ps(PsArguments),
    /// List, set and unset the variables an app runs with
    Config(ConfigArguments),
    /// List, add and remove the SSH keys that may push
    Keys(KeysArguments),
    /// Let other users push to an app
    Access(AccessArguments),
    /// Get a token for the embedded registry
    Registry(RegistryArguments),
}

/// Which app.
#[derive(Debug, Clone, Args)]
pub(crate) struct AppArgument {
    /// The app; by default the one that the git remote `deis` names
    // Before the subcommand as after it: what is accepted counts.
    #[arg(short, long, value_name = "APP", global = true)]
    pub(crate) app: Option<AppName>,
}

/// How to print what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct FormatArgument {
    /// Text for people, or JSON for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT", global = true)]
    pub(crate) format: Format,
}

/// A format of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Verb {
    /// Whether the verb is about an app and none was named, so that the git remote's is meant.
    pub(crate) fn takes_app_from_remote(&self) -> bool {
        let unnamed = |app: &AppArgument| app.app.is_none();
        match self {
            Self::Apps(apps) => match &apps.command {
                Some(AppsCommand::Info { app, .. } | AppsCommand::Destroy { app, .. }) => unnamed(app),
                Some(AppsCommand::List { .. } | AppsCommand::Create { .. }) | None => false,
            },
            Self::Builds(builds) => match &builds.command {
                None => unnamed(&builds.app),
                Some(
                    BuildsCommand::List { app, .. }
                    | BuildsCommand::Log { app, .. }
                    | BuildsCommand::Cancel { app, .. },
                ) => unnamed(app),
            },
            Self::Releases(releases) => match &releases.command {
                None => unnamed(&releases.app),
                Some(ReleasesCommand::List { app, .. } | ReleasesCommand::Rollback { app, .. }) => {
                    unnamed(app)
                }
            },
            Self::Logs(logs) => unnamed(&logs.app),
            Self::Deploy(deploy) => unnamed(&deploy.app),
            Self::Ps(ps) => match &ps.command {
                None => unnamed(&ps.app),
                Some(PsCommand::List { app, .. } | PsCommand::Scale { app, .. }) => unnamed(app),
            },
            Self::Config(config) => match &config.command {
                None => unnamed(&config.app),
                Some(
                    ConfigCommand::List { app, .. }
                    | ConfigCommand::Set { app, .. }
                    | ConfigCommand::Unset { app, .. },
                ) => unnamed(app),
            },
            Self::Access(access) => match &access.command {
                None => unnamed(&access.app),
                Some(
                    AccessCommand::List { app, .. }
                    | AccessCommand::Add { app, .. }
                    | AccessCommand::Remove { app, .. },
                ) => unnamed(app),
            },
            Self::Keys(_) | Self::Registry(_) => false,
        }
    }
}

/// Runs the verbs that come over SSH.
#[derive(Debug)]
pub(crate) struct SshVerbs;

#[async_trait::async_trait]
impl crate::serve::Verbs for SshVerbs {
    async fn run(
        &self,
        server: &crate::serve::Server,
        words: Vec<String>,
        session: crate::receive::Session,
    ) -> u8 {
        use tokio::io::AsyncWriteExt as _;
        let crate::receive::Session { user, stdin, mut stdout, mut stderr, closed, .. } = session;
        let parsed = match SshCommand::try_parse_from(words) {
            Ok(parsed) => parsed,
            Err(error) => {
                let text = error.render().to_string();
                let stream = if error.use_stderr() { &mut stderr } else { &mut stdout };
                // A client that is gone reads no help.
                drop(stream.write_all(text.as_bytes()).await);
                return u8::try_from(error.exit_code()).unwrap_or(2);
            }
        };
        let failed = match server.people().person(&user).await {
            Ok(person) => {
                // Input that is kept and not read would hold up the client, and its Ctrl-C behind it.
                let stdin = matches!(parsed.verb, Verb::Keys(_)).then_some(stdin);
                let mut context = Context { server, person, stdin, stdout, closed };
                match run(&mut context, parsed.verb).await {
                    Ok(status) => return status,
                    Err(error) => error,
                }
            }
            Err(error) => error.into(),
        };
        drop(stderr.write_all(failed.render().as_bytes()).await);
        1
    }

    async fn greet(&self, server: &crate::serve::Server, session: crate::receive::Session) -> u8 {
        use clap::CommandFactory as _;
        use tokio::io::AsyncWriteExt as _;
        let crate::receive::Session { user, mut stdout, .. } = session;
        let help = SshCommand::command().render_help();
        let push = server.addresses().remote_url("myapp");
        let text = format!(
            "-----> Hello {user}: you are in, and there is no shell here.\n       \
             To deploy:  git remote add deis {push}\n                   git push deis main\n       \
             Verbs, as in `{}`:\n\n{help}\n",
            server.addresses().verb("apps")
        );
        drop(stdout.write_all(text.as_bytes()).await);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_and_the_format_count_before_the_subcommand_as_after_it() {
        for words in ["config -a hello set A=1", "config set -a hello A=1", "config set A=1 --app=hello"] {
            let parsed = SshCommand::try_parse_from(words.split(' ')).unwrap().verb;
            assert!(!parsed.takes_app_from_remote(), "{words}");
            let Verb::Config(ConfigArguments { command: Some(ConfigCommand::Set { app, .. }), .. }) = parsed
            else {
                panic!("{parsed:?}")
            };
            assert_eq!(app.app.unwrap().as_str(), "hello", "{words}");
        }
        let parsed = SshCommand::try_parse_from(["ps", "--format", "json", "list"]).unwrap().verb;
        let Verb::Ps(PsArguments { command: Some(PsCommand::List { format, .. }), .. }) = parsed else {
            panic!("{parsed:?}")
        };
        assert_eq!(format.format, Format::Json);
        assert!(SshCommand::try_parse_from(["ps", "list"]).unwrap().verb.takes_app_from_remote());
    }
}
