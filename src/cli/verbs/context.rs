//! What a verb works with, and how it ends.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::{AppArgument, Format, Verb};
use crate::model::store::{self, StoreError, Versioned};
use crate::model::{App, AppName, Chain, ObjectName, PushEvent, ReleaseNumber};
use crate::push::Failure;
use crate::push::change::ChangeError;
use crate::receive::keys::KeysError;
use crate::receive::{Closed, Output, Stdin};
use crate::serve::Server;
use crate::serve::people::Person;

/// The longest standard input that a verb reads, in bytes.
const MAX_INPUT_BYTES: u64 = 64 * 1024;

/// The session of a verb.
pub(crate) struct Context<'a> {
    /// The server.
    pub(super) server: &'a Server,
    /// Who it is.
    pub(super) person: Person,
    /// What it sends.
    pub(super) stdin: Option<Stdin>,
    /// What it prints.
    pub(super) stdout: Output,
    /// Whether it is still there.
    pub(super) closed: Closed,
}

/// Why a verb did not do what it was asked; shown once, as ` !     …`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerbError {
    /// No app was named.
    #[error("which app? Give it with `-a APP`, or run this in a repository with a git remote `deis`")]
    NoApp,
    /// There is no such app, or not for this user.
    #[error("there is no app `{0}` that you may use: `apps` lists those there are")]
    UnknownApp(AppName),
    /// Something that the user can mend.
    #[error("{0}")]
    Said(String),
    /// The app is worked on.
    #[error("{}", .0.join("\n"))]
    Busy(Vec<String>),
    /// A release did not run.
    #[error("{}", .0.reason)]
    Failed(Failure),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeysError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The runtime.
    #[error("the runtime did not answer: {0}")]
    Runtime(#[from] crate::rollout::RuntimeError),
    /// A file.
    #[error("the server cannot read its files: {0}")]
    Io(#[from] std::io::Error),
    /// JSON.
    #[error("the answer cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl VerbError {
    /// The error in Heroku's grammar, with what more there is to say.
    pub(super) fn render(&self) -> String {
        let mut lines: Vec<String> = self.to_string().lines().map(str::to_owned).collect();
        if let Self::Failed(failure) = self {
            lines.extend(failure.details.iter().cloned());
        }
        lines.iter().map(|line| format!(" !     {line}\n")).collect()
    }
}

type Result<T> = std::result::Result<T, VerbError>;

/// Runs a verb. The exit status: 0, or 1.
pub(crate) async fn run(context: &mut Context<'_>, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Apps(arguments) => super::apps::run(context, arguments).await?,
        Verb::Builds(arguments) => return super::builds::run(context, arguments).await,
        Verb::Releases(arguments) => super::releases::run(context, arguments).await?,
        Verb::Logs(arguments) => super::logs::run(context, arguments).await?,
        Verb::Deploy(arguments) => return super::deploy::run(context, arguments).await,
        Verb::Ps(arguments) => super::ps::run(context, arguments).await?,
        Verb::Config(arguments) => super::config::run(context, arguments).await?,
        Verb::Keys(arguments) => super::keys::run(context, arguments).await?,
        Verb::Access(arguments) => super::access::run(context, arguments).await?,
        Verb::Registry(arguments) => super::registry::run(context, arguments).await?,
    }
    Ok(0)
}

impl Context<'_> {
    /// The app that is named, if the person may use it. Who may not learns nothing of it.
    pub(super) async fn app(&self, argument: &AppArgument) -> Result<Versioned<App>> {
        let name = argument.app.as_ref().ok_or(VerbError::NoApp)?;
        let read = store::load::<App>(self.server.store(), &ObjectName::of(name)).await?;
        read.filter(|read| self.person.may_use(&read.object))
            .ok_or_else(|| VerbError::UnknownApp(name.clone()))
    }

    /// Prints `text`, which ends in a line end.
    pub(super) async fn print(&mut self, text: &str) -> Result<()> {
        self.stdout.write_all(text.as_bytes()).await?;
        Ok(())
    }

    /// Prints a value as JSON, or what `text` makes of it.
    pub(super) async fn show<T: serde::Serialize>(
        &mut self,
        format: Format,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        let text = match format {
            Format::Json => serde_json::to_string_pretty(value)? + "\n",
            Format::Text => text(value),
        };
        self.print(&text).await
    }

    /// Prints an event in Heroku's grammar.
    pub(super) async fn event(&mut self, event: &PushEvent) -> Result<()> {
        self.print(&(event.render().join("\n") + "\n")).await
    }

    /// What the client sends on standard input, all of it.
    pub(super) async fn input(&mut self) -> Result<String> {
        let Some(stdin) = self.stdin.take() else { return Ok(String::new()) };
        let mut bytes = Vec::new();
        stdin.take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes).await?;
        if bytes.len() as u64 > MAX_INPUT_BYTES {
            return Err(VerbError::Said(format!(
                "standard input is longer than {} KiB",
                MAX_INPUT_BYTES / 1024
            )));
        }
        String::from_utf8(bytes).map_err(|_| VerbError::Said("standard input is not text".to_owned()))
    }

    /// Shows what a change says while it is made. It goes on if the client goes away.
    pub(super) async fn change<T: Send + 'static>(
        &mut self,
        app: &AppName,
        change: impl AsyncChange<T>,
    ) -> Result<T> {
        let (lines, mut received) = mpsc::unbounded_channel();
        let made = tokio::spawn(change.start(lines));
        while let Some(event) = received.recv().await {
            self.event(&event).await?;
        }
        match made.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.refused(app, error).await),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn refused(&self, app: &AppName, error: ChangeError) -> VerbError {
        match error {
            ChangeError::Busy(holder) => {
                VerbError::Busy(crate::serve::describe_busy(self.server, app, &holder).await.details)
            }
            ChangeError::Nothing(text) => VerbError::Said(text),
            ChangeError::Failed(failure) => VerbError::Failed(failure),
            ChangeError::Store(error) => VerbError::Store(error),
            error @ (ChangeError::Claim(_) | ChangeError::Lost) => VerbError::Said(Chain(&error).to_string()),
        }
    }

    /// Says that a release serves.
    pub(super) async fn released(&mut self, app: &AppName, number: ReleaseNumber) -> Result<()> {
        let url = self.server.addresses().app_url(app);
        self.event(&PushEvent::Heading(format!("Released {number}: {url}"))).await
    }
}

/// A change as a future that owns what it needs.
pub(super) trait AsyncChange<T> {
    /// Begins it.
    fn start(
        self,
        lines: mpsc::UnboundedSender<PushEvent>,
    ) -> impl Future<Output = std::result::Result<T, ChangeError>> + Send + 'static;
}

impl<T, F, R> AsyncChange<T> for F
where
    F: FnOnce(mpsc::UnboundedSender<PushEvent>) -> R,
    R: Future<Output = std::result::Result<T, ChangeError>> + Send + 'static,
{
    fn start(
        self,
        lines: mpsc::UnboundedSender<PushEvent>,
    ) -> impl Future<Output = std::result::Result<T, ChangeError>> + Send + 'static {
        self(lines)
    }
}
