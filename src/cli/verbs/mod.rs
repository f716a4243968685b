//! The verbs about apps, as clap reads them from a terminal and from an SSH command alike.
//!
//! The server runs them. The program on a laptop parses them too, for its help and its errors, and then sends the
//! words over SSH.

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::model::{AppName, BuildNumber, ProcessType, ReleaseNumber, UserName};

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

pub(crate) use context::{Context, VerbError, run};

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
    #[arg(short, long, value_name = "APP")]
    pub(crate) app: Option<AppName>,
}

/// How to print what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct FormatArgument {
    /// Text for people, or JSON for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
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

/// `apps`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AppsArguments {
    #[command(subcommand)]
    pub(crate) command: Option<AppsCommand>,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

/// What to do with apps.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum AppsCommand {
    /// List the apps that you may push to
    List {
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show one app: its URL, release, processes and people
    Info {
        #[command(flatten)]
        app: AppArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Make an app without pushing to it
    Create {
        /// Its name
        name: AppName,
    },
    /// Stop an app and remove everything of it
    Destroy {
        #[command(flatten)]
        app: AppArgument,
        /// The app's name again, since nothing of it can be had back
        #[arg(long, value_name = "APP")]
        confirm: AppName,
    },
}

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

/// `deploy`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeployArguments {
    #[command(flatten)]
    pub(crate) app: AppArgument,
    /// Build without the cache
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Do not wait for the end
    #[arg(long)]
    pub(crate) detach: bool,
}

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

fn scale(text: &str) -> Result<(ProcessType, u32), String> {
    let (process_type, number) = text.split_once('=').ok_or("write TYPE=NUMBER, as in web=2")?;
    let process_type = process_type.parse::<ProcessType>().map_err(|error| error.to_string())?;
    match number.parse() {
        Ok(number) if number <= MAX_INSTANCES => Ok((process_type, number)),
        _ => Err(format!("`{number}` is not a number from 0 to {MAX_INSTANCES}")),
    }
}

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

/// `access`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccessArguments {
    #[command(subcommand)]
    pub(crate) command: Option<AccessCommand>,
    #[command(flatten)]
    pub(crate) app: AppArgument,
    #[command(flatten)]
    pub(crate) format: FormatArgument,
}

/// What to do with the people of an app.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum AccessCommand {
    /// List who may push
    List {
        #[command(flatten)]
        app: AppArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Let a user push
    Add {
        /// Who
        user: UserName,
        #[command(flatten)]
        app: AppArgument,
    },
    /// No longer let a user push
    Remove {
        /// Who
        user: UserName,
        #[command(flatten)]
        app: AppArgument,
    },
}

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
