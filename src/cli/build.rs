//! `hephy build`: an image for one platform from a Dockerfile, with kaniko's names for what kaniko has.

mod check;
mod context;
mod mounts;
mod multi;
mod report;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::runtime::Runtime;

pub(super) use mounts::read_bundle;

use crate::build::{
    BuildEvent, BuildFailure, BuildOptions, BuildResult, EVENTS_FILE, EventSink, LOCK_FILE, NumberedEvent,
    Outcome, RESULT_FILE, build, elapsed, with_default_tag,
};
pub use check::{CheckArguments, CheckFormat};
pub use context::ContextArguments;

use crate::model::PlatformImage;
use crate::oci::{Digest, Reference};
use crate::registry::client::Client;
use context::{Contexts, Fetched};

pub mod cache;
mod display;
pub mod kaniko;
mod options;
mod registry;
mod signals;

use display::Display;
use options::options;
use signals::Signals;

pub use multi::MultiArguments;
pub use options::{BuildArguments, IsolationChoice, Progress};
pub use registry::RegistryArguments;
pub use report::ReportArguments;

/// Exit codes beside 0.
mod code {
    pub(super) const APP: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const PLATFORM: u8 = 3;
    pub(super) const TIMED_OUT: u8 = 124;
    pub(super) const CANCELLED: u8 = 130;
}

/// Runs the verb.
#[must_use]
pub fn run(arguments: &BuildArguments) -> ExitCode {
    let session = match Session::start() {
        Ok(session) => session,
        Err(text) => return ExitCode::from(not_built(&text, code::PLATFORM).0),
    };
    let code = if arguments.multi.is_given() {
        multi::run(arguments, &session)
    } else {
        match arguments.multi.says_nothing() {
            Some(text) => not_built(&text, code::USAGE).0,
            None => one(arguments, &session).0,
        }
    };
    // What was asked to stop has stopped; what blocks in a dead pipe is not waited for.
    session.runtime.shutdown_timeout(Duration::from_millis(200));
    ExitCode::from(code)
}

/// What the builds of this process share.
struct Session {
    runtime: Runtime,
    signals: Signals,
}

impl Session {
    fn start() -> Result<Self, String> {
        // Before anything secret is read: no process of this user opens our memory.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|error| format!("failed to protect the engine's memory: {error}"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| format!("failed to start: {error}"))?;
        let signals = Signals::of(&runtime);
        Ok(Self { runtime, signals })
    }
}

/// Builds for one platform.
fn one(arguments: &BuildArguments, session: &Session) -> (u8, Option<PlatformImage>) {
    let Session { runtime, signals } = session;
    let directory = match arguments.build_directory.as_deref().map(BuildDirectory::open).transpose() {
        Ok(directory) => directory,
        Err(error) => return not_built(&error, code::PLATFORM),
    };
    let given = signals.first.run_until_cancelled(report::with_credentials(arguments));
    let arguments = &match runtime.block_on(given) {
        Some(Ok(arguments)) => arguments,
        Some(Err(refusal)) => return not_built(&refusal.text, refusal.code),
        None => return not_built("the build was cancelled", code::CANCELLED),
    };
    let typed = arguments.with_standard_input();
    let arguments = typed.as_ref().unwrap_or(arguments);
    let prepared = match &typed {
        Ok(arguments) => prepared(arguments, session),
        Err(text) => Err(Refusal::from(text.clone())),
    };
    let (options, _fetched) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            let result = refusal.result();
            if let Some(directory) = &directory {
                // Without a result the driver says what our exit says.
                drop(result.write(&directory.path.join(RESULT_FILE)));
            }
            if let Err(error) = runtime.block_on(report::send(arguments, &result, signals)) {
                tell(&error);
            }
            return not_built(&refusal.text, refusal.code);
        }
    };
    if arguments.check.check {
        return (run_check(arguments, session, options), None);
    }
    let (events, display) = listener(arguments, directory.as_ref());
    let (result, afterwards) = runtime.block_on(build(options, events, signals.first.child_token()));
    if let Some(display) = display {
        display.finish();
    }
    let written =
        directory.as_ref().map_or(Ok(()), |directory| result.write(&directory.path.join(RESULT_FILE)));
    if let Err(error) = written {
        return not_built(&format!("failed to write the result: {error}"), code::PLATFORM);
    }
    if let Err(error) = runtime.block_on(report::send(arguments, &result, signals)) {
        return not_built(&error, code::PLATFORM);
    }
    let code = conclude(arguments, &result);
    let image = match result.outcome {
        Outcome::Built { image, .. } => Some(image),
        Outcome::Failed(_) => None,
    };
    // The build has ended as it has: whoever does not wait for its cache ends no more than that.
    runtime.block_on(afterwards.settle(signals.next()));
    (code, image)
}

/// What the engine is told, once the context is here; the context stays until this is dropped.
fn prepared(arguments: &BuildArguments, session: &Session) -> Result<(BuildOptions, Fetched), Refusal> {
    let (options, contexts) = options(arguments)?;
    let data = options.layers.parent().unwrap_or(&options.layers);
    let fetched = fetch(contexts, (data, options.limits.time), &options.client, &session.signals);
    let fetched = session.runtime.block_on(fetched)?;
    Ok((fetched.put_into(options), fetched))
}

/// Brings the context here, if it is elsewhere.
async fn fetch(
    contexts: Contexts,
    (data, limit): (&Path, Duration),
    client: &Client,
    signals: &Signals,
) -> Result<Fetched, Refusal> {
    let fetching = tokio::time::timeout(limit, contexts.fetch(data, client));
    match signals.first.run_until_cancelled(fetching).await {
        None => Err(Refusal::cancelled()),
        Some(Ok(Ok(fetched))) => Ok(fetched),
        Some(Ok(Err(failure))) => Err(Refusal::of(failure)),
        Some(Err(_)) => Err(Refusal {
            text: "the context was not there within the time limit".to_owned(),
            code: code::TIMED_OUT,
        }),
    }
}

/// Where events go, and the display among that.
fn listener(arguments: &BuildArguments, directory: Option<&BuildDirectory>) -> (EventSink, Option<Display>) {
    let progress = arguments.progress();
    let is_live = progress == Progress::Auto && !arguments.kaniko.log_timestamp && directory.is_none();
    match is_live.then(Display::open).flatten() {
        Some(display) => {
            let shown = display.clone();
            (Arc::new(move |event: BuildEvent| shown.event(&event)), Some(display))
        }
        None => (sink(progress, arguments.kaniko.log_timestamp, directory), None),
    }
}

/// Prints what the checks find.
fn run_check(arguments: &BuildArguments, session: &Session, options: BuildOptions) -> u8 {
    match session.runtime.block_on(crate::build::check(options)) {
        Ok(report) => {
            // Whoever closed our output does not want to know.
            drop(writeln!(io::stdout().lock(), "{}", check::render(&report, arguments.check.format)));
            if check::is_clean(&report) { 0 } else { code::APP }
        }
        Err(failure) => not_built(&Refusal::of(failure).text, code::APP).0,
    }
}

/// Why a build does not begin.
struct Refusal {
    text: String,
    code: u8,
}

impl Refusal {
    /// What a failure says, with its exit code.
    fn of(failure: BuildFailure) -> Self {
        let code = exit_code(&failure);
        Self { text: BuildEvent::Failed { failure: Box::new(failure) }.lines().join("\n"), code }
    }

    /// Somebody does not want it any more.
    fn cancelled() -> Self {
        Self { text: "the build was cancelled".to_owned(), code: code::CANCELLED }
    }

    /// The platform's fault.
    fn platform(text: String) -> Self {
        Self { text, code: code::PLATFORM }
    }

    /// The result of a build that did not begin.
    fn result(&self) -> BuildResult {
        let failure = match (self.code, BuildFailure::app(self.text.clone())) {
            (code::PLATFORM, BuildFailure::App(step)) => BuildFailure::Platform(step),
            (code::CANCELLED, _) => BuildFailure::Cancelled,
            (_, failure) => failure,
        };
        let outcome = Outcome::Failed(failure);
        BuildResult { started_at: jiff::Timestamp::now(), milliseconds: 0, cache_hits: 0, outcome }
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self { text, code: code::USAGE }
    }
}

/// The build's own directory, locked while we live.
struct BuildDirectory {
    path: PathBuf,
    events: Arc<Mutex<File>>,
    _lock: File,
}

impl BuildDirectory {
    fn open(path: &Path) -> Result<Self, String> {
        let error = |error: io::Error| format!("`{}`: {error}", path.display());
        std::fs::create_dir_all(path).map_err(error)?;
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK_FILE))
            .map_err(error)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| format!("another engine builds in `{}`", path.display()))?;
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(error)?;
        let events =
            OpenOptions::new().create(true).append(true).open(path.join(EVENTS_FILE)).map_err(error)?;
        Ok(Self { path: path.to_owned(), events: Arc::new(Mutex::new(events)), _lock: lock })
    }
}

fn sink(progress: Progress, timestamps: bool, directory: Option<&BuildDirectory>) -> EventSink {
    let file = directory.map(|directory| Arc::clone(&directory.events));
    let count = Mutex::new(0_u64);
    Arc::new(move |event: BuildEvent| {
        let json = || serde_json::to_string(&event).unwrap_or_default();
        // Held while it is written: numbers stand in order.
        let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        if let Some(file) = &file {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // A full disk ends the build elsewhere, with a name.
            drop(file.write_all(format!("{}\n", json()).as_bytes()));
        }
        match progress {
            Progress::Events => {
                let line = NumberedEvent { number: *count, event: event.clone() };
                let line = serde_json::to_string(&line).unwrap_or_default();
                drop(writeln!(io::stdout().lock(), "{line}"));
            }
            _ if file.is_some() => {}
            Progress::Json => tell(&json()),
            Progress::Auto | Progress::Plain if timestamps => {
                let now = jiff::Timestamp::now().strftime("%FT%TZ").to_string();
                event.lines().iter().for_each(|line| tell(&format!("{now} {line}")));
            }
            Progress::Auto | Progress::Plain => event.lines().iter().for_each(|line| tell(line)),
        }
    })
}

/// Writes a line; whoever closed our standard error did not cancel the build.
fn tell(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}

/// The end of a build that did not begin, or whose end cannot be told.
fn not_built(text: &str, code: u8) -> (u8, Option<PlatformImage>) {
    tell(&format!("hephy build: {text}"));
    (code, None)
}

/// Writes a file whole or not at all.
fn write_whole(path: &Path, content: &str) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content.as_bytes())?;
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

fn conclude(arguments: &BuildArguments, result: &BuildResult) -> u8 {
    let image = match &result.outcome {
        Outcome::Built { image, .. } => image,
        Outcome::Failed(failure) => return exit_code(failure),
    };
    if let Err(text) = write_digest_files(arguments, &image.manifest) {
        return not_built(&text, code::PLATFORM).0;
    }
    if arguments.build_directory.is_none() && arguments.progress() != Progress::Events {
        if arguments.progress() != Progress::Json {
            for line in display::slowest(&image.steps) {
                tell(&line);
            }
            tell(&format!("Built {} in {}", image.platform, elapsed(result.milliseconds)));
            if !arguments.multi.is_part {
                tell_places(arguments, &image.manifest);
            }
        }
        if !arguments.multi.is_part {
            drop(writeln!(io::stdout().lock(), "{}", image.manifest));
        }
    }
    0
}

/// Says where the image went.
fn tell_places(arguments: &BuildArguments, digest: &Digest) {
    for path in arguments.oci_layout_path.iter().chain(&arguments.tar_path) {
        tell(&format!("Wrote {}", path.display()));
    }
    if !arguments.no_push {
        pushed(arguments, digest, true).lines().for_each(|pushed| tell(&format!("Pushed {pushed}")));
    }
}

const fn exit_code(failure: &BuildFailure) -> u8 {
    match failure {
        BuildFailure::App(_) => code::APP,
        BuildFailure::Platform(_) => code::PLATFORM,
        BuildFailure::Cancelled => code::CANCELLED,
        BuildFailure::TimedOut { .. } => code::TIMED_OUT,
    }
}

/// A line for each destination.
fn pushed(arguments: &BuildArguments, digest: &Digest, with_tag: bool) -> String {
    let line = |reference: &Reference| {
        let reference = with_default_tag(reference.clone());
        let tag = reference.tag.filter(|_| with_tag).map(|tag| format!(":{tag}")).unwrap_or_default();
        format!("{}{tag}@{digest}\n", reference.repository)
    };
    arguments.destination.iter().map(line).collect()
}

/// Writes the files that name what was built; an error is a sentence.
fn write_digest_files(arguments: &BuildArguments, digest: &Digest) -> Result<(), String> {
    let of_each = |with_tag| pushed(arguments, digest, with_tag);
    for (path, content) in [
        (&arguments.digest_file, digest.to_string()),
        (&arguments.kaniko.image_name_with_digest_file, of_each(false)),
        (&arguments.kaniko.image_name_tag_with_digest_file, of_each(true)),
    ] {
        if let Some(path) = path {
            let written = write_whole(path, &content);
            written.map_err(|error| format!("failed to write `{}`: {error}", path.display()))?;
        }
    }
    Ok(())
}
