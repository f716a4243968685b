//! `hephy build`: an image for one platform from a Dockerfile, with kaniko's names for what kaniko has.

mod check;
mod context;
mod mounts;
mod multi;
mod report;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::fs::{FlockOperation, flock};
use tokio_util::sync::CancellationToken;

pub(super) use mounts::read_bundle;

use super::remote::Operator;
use crate::build::{
    BuildEvent, BuildFailure, BuildLimits, BuildOptions, BuildResult, CacheUse, Compression, EVENTS_FILE,
    EventSink, LOCK_FILE, Mirrors, NetworkMode, NumberedEvent, Outcome, RESULT_FILE, build, compression,
    elapsed, layers_directory, with_default_tag,
};
pub use check::{CheckArguments, CheckFormat};
pub use context::ContextArguments;

use crate::dockerfile::MAX_FILE_BYTES;
use crate::model::PlatformImage;
use crate::oci::{Digest, Platform, Reference};
use crate::sandbox::ladder::{Circumstances, Rung, Wish, choose};
use crate::sandbox::{Isolation, SandboxError, WorkerSpec};
use context::{Contexts, Fetched};

pub mod cache;
mod display;
pub mod kaniko;
mod registry;

use display::Display;

pub use multi::MultiArguments;
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

/// Build an image from a Dockerfile
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct BuildArguments {
    /// Where the context is
    #[command(flatten)]
    pub context: ContextArguments,
    /// Whether to check instead of building
    #[command(flatten)]
    pub check: CheckArguments,
    /// The Dockerfile, relative to the context or absolute; `-` is standard input
    #[arg(short = 'f', long, value_name = "FILE", default_value = "Dockerfile")]
    pub dockerfile: PathBuf,
    /// Where the image is pushed, as in HOST:PORT/REPOSITORY:TAG; may be repeated
    #[arg(short, long, value_name = "REFERENCE")]
    pub destination: Vec<Reference>,
    /// A build argument, NAME=VALUE, or NAME for its value in the environment; may be repeated
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub build_arg: Vec<String>,
    /// The stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// A label over those of the Dockerfile; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// The platform of the image [default: this machine's]
    #[arg(long, visible_alias = "platform", value_name = "OS/ARCHITECTURE")]
    pub custom_platform: Option<Platform>,
    /// Build for a platform whose programs this machine does not run natively, or in place as the host's root
    #[arg(long)]
    pub force: bool,
    /// Build without pushing
    #[arg(long)]
    pub no_push: bool,
    /// Push destinations without a tag by digest only
    #[arg(long, hide = true)]
    pub push_by_digest: bool,
    /// Write the digest of the manifest to a file
    #[arg(long, value_name = "FILE")]
    pub digest_file: Option<PathBuf>,
    /// Write the image to a tar, for `docker load` and `skopeo`
    #[arg(long, value_name = "FILE")]
    pub tar_path: Option<PathBuf>,
    /// Add the image to an OCI image layout
    #[arg(long, value_name = "DIRECTORY")]
    pub oci_layout_path: Option<PathBuf>,
    /// How layers are compressed
    #[arg(long, value_enum, default_value = "gzip")]
    pub compression: Compression,
    /// How hard: 1 to 9 for gzip, 1 to 22 for zstd [default: 6, 3]
    #[arg(long, value_name = "LEVEL")]
    pub compression_level: Option<i32>,
    /// How RUN is kept from the machine
    #[arg(long, value_enum, default_value = "auto")]
    pub isolation: IsolationChoice,
    /// What network RUN has
    #[arg(long, value_enum, default_value = "host")]
    pub network: NetworkMode,
    /// Where layers and the step cache are kept [default: `$XDG_DATA_HOME/hephy`]
    #[arg(long, env = "HEPHY_DATA", value_name = "DIRECTORY")]
    pub data: Option<PathBuf>,
    /// How progress is told, on standard error
    #[arg(long, value_enum, default_value = "auto")]
    pub progress: Progress,
    /// Run every step, whatever the cache knows
    #[arg(long)]
    pub no_cache: bool,
    /// Say of every step why it was not known, not only of the first
    #[arg(long)]
    pub explain: bool,
    /// What kaniko has besides
    #[command(flatten)]
    pub kaniko: kaniko::KanikoArguments,
    /// The cache repository
    #[command(flatten)]
    pub step_cache: cache::CacheArguments,
    /// Seconds since 1970: no time in the image is later
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", allow_hyphen_values = true)]
    pub source_date_epoch: Option<i64>,
    /// Leave aside layers that were made for another `SOURCE_DATE_EPOCH`: the same source gives the same digest anywhere
    #[arg(long)]
    pub reproducible: bool,
    /// How long the build may take
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    pub time_limit: Duration,
    /// How much memory a RUN may use, where cgroups are delegated
    #[arg(long, value_name = "BYTES")]
    pub memory: Option<u64>,
    /// How many processors a RUN may use, where cgroups are delegated
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<f64>,
    /// What RUN steps may have
    #[command(flatten)]
    pub mounts: mounts::MountArguments,
    /// A directory for the build's lock, events and result
    #[arg(long, hide = true, value_name = "DIRECTORY")]
    pub build_directory: Option<PathBuf>,
    /// Flags for registries.
    #[command(flatten)]
    pub registry: RegistryArguments,
    /// What an engine in a Job is told.
    #[command(flatten)]
    pub report: ReportArguments,
    /// Builds for several platforms.
    #[command(flatten)]
    pub multi: MultiArguments,
}

/// How RUN is kept from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IsolationChoice {
    /// The best there is.
    Auto,
    /// User, mount and process namespaces.
    Userns,
    /// A directory of this container, without namespaces and mounts.
    InPlace,
}

/// How progress is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// A display on a terminal, lines elsewhere.
    Auto,
    /// Lines for people.
    Plain,
    /// A JSON object a line.
    Json,
    /// Numbered JSON objects on standard output, for whoever reads a pod's log.
    #[value(hide = true)]
    Events,
}

/// Runs the verb.
#[must_use]
pub fn run(arguments: &BuildArguments) -> ExitCode {
    if arguments.multi.is_given() { multi::run(arguments) } else { ExitCode::from(one(arguments).0) }
}

/// Builds for one platform.
fn one(arguments: &BuildArguments) -> (u8, Option<PlatformImage>) {
    // Before anything secret is read: no process of this user opens our memory.
    let not_dumpable = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if let Err(error) = not_dumpable {
        return not_built(&format!("failed to protect the engine's memory: {error}"), code::PLATFORM);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return not_built(&format!("failed to start: {error}"), code::PLATFORM),
    };
    let directory = match arguments.build_directory.as_deref().map(BuildDirectory::open).transpose() {
        Ok(directory) => directory,
        Err(error) => return not_built(&error, code::PLATFORM),
    };
    let cancel = CancellationToken::new();
    let signals = runtime.spawn(cancel_on_signals(cancel.clone()));
    let given = cancel.run_until_cancelled(report::with_credentials(arguments));
    let arguments = &match runtime.block_on(given) {
        Some(Ok(arguments)) => arguments,
        Some(Err(refusal)) => return not_built(&refusal.text, refusal.code),
        None => return not_built("the build was cancelled", code::CANCELLED),
    };
    let prepared = options(arguments).and_then(|(options, context)| {
        // The directory stays until the build has ended.
        let fetched = runtime.block_on(cancel.run_until_cancelled(fetch(context, &options)));
        let cancelled = || Refusal { text: "the build was cancelled".to_owned(), code: code::CANCELLED };
        let fetched = fetched.ok_or_else(cancelled)??;
        let (context, named) = (fetched.main.directory.clone(), fetched.named.clone());
        let dockerfile = fetched.main.dockerfile.clone().unwrap_or(options.dockerfile.clone());
        Ok((BuildOptions { context, named, dockerfile, ..options }, fetched))
    });
    let (options, _fetched) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            let result = refusal.result();
            if let Some(directory) = &directory {
                // Without a result the driver says what our exit says.
                drop(result.write(&directory.path.join(RESULT_FILE)));
            }
            if let Err(error) = runtime.block_on(report::send(arguments, &result)) {
                tell(&error);
            }
            return not_built(&refusal.text, refusal.code);
        }
    };
    if arguments.check.check {
        return (run_check(arguments, &runtime, options), None);
    }
    let json = arguments.kaniko.log_format.as_deref() == Some("json");
    let progress = if json { Progress::Json } else { arguments.progress };
    let is_live = progress == Progress::Auto && !arguments.kaniko.log_timestamp && directory.is_none();
    let display = is_live.then(Display::open).flatten();
    let events = match &display {
        Some(display) => {
            let display = display.clone();
            Arc::new(move |event: BuildEvent| display.event(&event)) as EventSink
        }
        None => sink(progress, arguments.kaniko.log_timestamp, directory.as_ref()),
    };
    let (result, afterwards) = runtime.block_on(build(options, events, cancel));
    signals.abort();
    if let Some(display) = display {
        display.finish();
    }
    let written =
        directory.as_ref().map_or(Ok(()), |directory| result.write(&directory.path.join(RESULT_FILE)));
    if let Err(error) = written {
        return not_built(&format!("failed to write the result: {error}"), code::PLATFORM);
    }
    if let Err(error) = runtime.block_on(report::send(arguments, &result)) {
        return not_built(&error, code::PLATFORM);
    }
    let code = conclude(arguments, &result);
    let image = match result.outcome {
        Outcome::Built { image, .. } => Some(image),
        Outcome::Failed(_) => None,
    };
    runtime.block_on(afterwards.settle());
    // What was asked to stop has stopped; what blocks in a dead pipe is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    (code, image)
}

/// Brings the context here, if it is elsewhere.
async fn fetch(contexts: Contexts, options: &BuildOptions) -> Result<Fetched, Refusal> {
    let data = options.layers.parent().unwrap_or(&options.layers);
    let limit = options.limits.time;
    match tokio::time::timeout(limit, contexts.fetch(data, &options.client)).await {
        Ok(Ok(fetched)) => Ok(fetched),
        Ok(Err(failure)) => {
            let code = if matches!(failure, BuildFailure::App(_)) { code::APP } else { code::PLATFORM };
            Err(Refusal { text: BuildEvent::Failed { failure: Box::new(failure) }.lines().join("\n"), code })
        }
        Err(_) => Err(Refusal {
            text: "the context was not there within the time limit".to_owned(),
            code: code::TIMED_OUT,
        }),
    }
}

/// Prints what the checks find.
fn run_check(arguments: &BuildArguments, runtime: &tokio::runtime::Runtime, options: BuildOptions) -> u8 {
    match runtime.block_on(crate::build::check(options)) {
        Ok(report) => {
            // Whoever closed our output does not want to know.
            drop(writeln!(io::stdout().lock(), "{}", check::render(&report, arguments.check.format)));
            if check::is_clean(&report) { 0 } else { code::APP }
        }
        Err(failure) => {
            let text = BuildEvent::Failed { failure: Box::new(failure) }.lines().join("\n");
            not_built(&text, code::APP).0
        }
    }
}

/// Why a build does not begin.
struct Refusal {
    text: String,
    code: u8,
}

impl Refusal {
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

fn options(arguments: &BuildArguments) -> Result<(BuildOptions, Contexts), Refusal> {
    if let Some(refusal) = arguments.kaniko.refusal() {
        return Err(refusal.into());
    }
    let is_typed = arguments.dockerfile == Path::new("-");
    if is_typed && arguments.registry.docker_config_stdin {
        return Err("standard input is the Dockerfile or the credentials, not both".to_owned().into());
    }
    let context = arguments.context.contexts(arguments.registry.docker_config_stdin || is_typed)?;
    let outputs = [&arguments.tar_path, &arguments.oci_layout_path];
    let goes_nowhere = arguments.destination.is_empty() && outputs.iter().all(|output| output.is_none());
    if goes_nowhere && !arguments.no_push && !arguments.check.check {
        return Err("nowhere to push: give `--destination HOST/REPOSITORY:TAG`, or `--no-push`"
            .to_owned()
            .into());
    }
    let platform = platform(arguments)?;
    let data = data_directory(arguments)?;
    let platform_error = |text: String| Refusal { text, code: code::PLATFORM };
    std::fs::create_dir_all(&data)
        .map_err(|error| platform_error(format!("`{}`: {error}", data.display())))?;
    let rung =
        rung(arguments, &data).map_err(|error| platform_error(crate::build::chain(&error).join(": ")))?;
    let build_args = build_args(&arguments.build_arg);
    let epoch_argument = || build_args.get("SOURCE_DATE_EPOCH").map(|text| text.parse::<i64>());
    let epoch = match (arguments.source_date_epoch, epoch_argument()) {
        (Some(epoch), _) | (None, Some(Ok(epoch))) => Some(epoch),
        (None, None) => None,
        (None, Some(Err(_))) => return Err("SOURCE_DATE_EPOCH is not a number of seconds".to_owned().into()),
    };
    let labels = arguments.label.iter().map(|label| match label.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (label.clone(), String::new()),
    });
    let cache_repository =
        arguments.step_cache.repository(&arguments.destination, platform.architecture())?;
    let destinations = if arguments.no_push { &[][..] } else { &arguments.destination };
    let tagged = |reference: &Reference| {
        if arguments.push_by_digest { reference.clone() } else { with_default_tag(reference.clone()) }
    };
    let options = BuildOptions {
        client: arguments.registry.client(
            destinations,
            cache_repository.as_ref(),
            arguments.mounts.ca_bundle.as_deref(),
        )?,
        // Known when it is here.
        context: PathBuf::new(),
        named: BTreeMap::new(),
        dockerfile: if is_typed { STANDARD_INPUT.into() } else { arguments.dockerfile.clone() },
        dockerfile_text: if is_typed { Some(typed()?) } else { None },
        platform,
        target: arguments.target.clone(),
        build_args,
        labels: labels.collect(),
        destinations: destinations.iter().map(tagged).collect(),
        mirrors: mirrors(arguments, &data)?,
        layers: layers_directory(&data),
        rung,
        epoch,
        reproducible: arguments.reproducible,
        cache: if arguments.no_cache { CacheUse::Ignore } else { CacheUse::Read },
        explain: arguments.explain,
        cache_repository,
        network: arguments.network,
        mounts: arguments.mounts.options()?,
        limits: BuildLimits {
            time: arguments.time_limit,
            memory_bytes: arguments.memory,
            cpus: arguments.cpus,
        },
        compression: compression(arguments.compression, arguments.compression_level),
        format: arguments.kaniko.image_format,
        annotations: arguments.kaniko.annotations()?.into_iter().collect(),
        oci_layout: arguments.oci_layout_path.clone(),
        tar: arguments.tar_path.clone(),
    };
    Ok((options, context))
}

/// How a Dockerfile on standard input is called.
const STANDARD_INPUT: &str = "<stdin>";

/// A Dockerfile on standard input.
fn typed() -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read = io::stdin().lock().take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut text);
    read.map_err(|error| format!("the Dockerfile on standard input: {error}"))?;
    if text.len() > MAX_FILE_BYTES {
        return Err(format!("the Dockerfile on standard input has more than {MAX_FILE_BYTES} bytes"));
    }
    Ok(text)
}

/// The places given, or else the mirror of the `hephy up` that keeps its data here: what `hephy base` made is there.
fn mirrors(arguments: &BuildArguments, data: &Path) -> Result<Mirrors, String> {
    let mut mirrors = arguments.registry.mirrors()?;
    let is_own = mirrors.places.is_empty() && arguments.build_directory.is_none();
    if let Some(operator) = Operator::read(data).filter(|_| is_own)
        && let Ok(place) = format!("{}/mirror", operator.registry).parse()
    {
        mirrors.places.push(place);
    }
    Ok(mirrors)
}

fn platform(arguments: &BuildArguments) -> Result<Platform, String> {
    let native = Platform::native();
    let platform = arguments.custom_platform.clone().unwrap_or_else(|| native.clone());
    if platform != native && !arguments.force {
        return Err(format!(
            "this machine runs {native} natively, not {platform}: build it on a {} machine, or give `--force`",
            platform.architecture()
        ));
    }
    Ok(platform)
}

/// `--build-arg`, a name alone with its value in the environment.
fn build_args(given: &[String]) -> BTreeMap<String, String> {
    let split = |argument: &String| match argument.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((argument.clone(), std::env::var(argument).ok()?)),
    };
    given.iter().filter_map(split).collect()
}

fn rung(arguments: &BuildArguments, data: &Path) -> Result<Rung, SandboxError> {
    let wish = match arguments.isolation {
        IsolationChoice::Auto => Wish::Any,
        IsolationChoice::Userns => Wish::One(Isolation::Userns),
        IsolationChoice::InPlace => Wish::One(Isolation::InPlace),
    };
    let executable = WorkerSpec::own_executable();
    let network = arguments.network.into();
    choose(wish, &Circumstances { data, executable: &executable, network, force: arguments.force })
}

fn data_directory(arguments: &BuildArguments) -> Result<PathBuf, String> {
    let from_environment = || {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        var("XDG_DATA_HOME")
            .or_else(|| Some(var("HOME")?.join(".local/share")))
            .map(|base| base.join("hephy"))
    };
    let data = arguments
        .data
        .clone()
        .or_else(from_environment)
        .ok_or("give `--data DIRECTORY`: there is no HOME")?;
    std::path::absolute(&data).map_err(|error| format!("`{}`: {error}", data.display()))
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

fn refused(text: &str, code: u8) -> ExitCode {
    tell(&format!("hephy build: {text}"));
    ExitCode::from(code)
}

async fn cancel_on_signals(cancel: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    cancel.cancel();
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
    if arguments.build_directory.is_none() && arguments.progress != Progress::Events {
        if arguments.progress != Progress::Json {
            for line in display::slowest(&image.steps) {
                tell(&line);
            }
            tell(&format!("Built {} in {}", image.platform, elapsed(result.milliseconds)));
            if !arguments.no_push && !arguments.multi.is_part {
                pushed(arguments, &image.manifest, true)
                    .lines()
                    .for_each(|pushed| tell(&format!("Pushed {pushed}")));
            }
        }
        if !arguments.multi.is_part {
            drop(writeln!(io::stdout().lock(), "{}", image.manifest));
        }
    }
    0
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
