//! Builds as child processes of this one: `hephy build`, natively, on this machine.
//!
//! The engine owns the build's directory: it holds the lock there, appends its events and leaves its result. This side
//! only reads them, so that a server that is restarted finds the build at work, follows it from its first line and
//! ends it like one of its own.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::build::{
    BuildEvent, BuildFailure, BuildRequest, BuildResult, Driver, EVENTS_FILE, LOCK_FILE, Outcome,
    QueueGauges, RESULT_FILE, StepFailure,
};
use crate::driver::arguments::Arguments;
use crate::model::PlatformImage;
use crate::oci::Platform;

/// How often the events of a running build are looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// How long an engine has to end its sandbox before its process group is killed.
const GRACE: Duration = Duration::from_millis(1500);

/// The longest event that is read.
const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;

/// What an engine gets of this process's environment: the way to its tools, to registries and their certificates.
const INHERITED: [&str; 11] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Runs `hephy build` for each build.
#[derive(Debug, Clone)]
pub struct LocalDriver {
    program: PathBuf,
    data: PathBuf,
    ca_bundle: Option<PathBuf>,
    gauges: QueueGauges,
}

/// An engine at work.
enum Engine {
    /// Our own child.
    Ours(Child),
    /// The child of a server before us; known by the lock that it holds.
    Adopted(File),
}

impl LocalDriver {
    /// A driver that runs `program` (our own executable) with the data directory `data`.
    #[must_use]
    pub fn new(program: PathBuf, data: PathBuf) -> Self {
        Self { program, data, ca_bundle: None, gauges: QueueGauges::default() }
    }

    /// How many builds it has under way.
    #[must_use]
    pub const fn gauges(&self) -> &QueueGauges {
        &self.gauges
    }

    /// The same, whose RUN steps trust the certificates of this file too.
    #[must_use]
    pub fn trusting(self, ca_bundle: Option<PathBuf>) -> Self {
        Self { ca_bundle, ..self }
    }

    /// The engine of a build: one still at work, or a new one. None: it has ended and left its result.
    fn engine(&self, request: &BuildRequest) -> io::Result<Option<Engine>> {
        fs::create_dir_all(&request.directory)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(request.directory.join(LOCK_FILE))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(Some(Engine::Adopted(lock)));
        }
        let result = request.directory.join(RESULT_FILE);
        match BuildResult::read(&result) {
            // It may have failed because the server, and so the registry, was away: not the end of the build.
            Ok(Some(BuildResult { outcome: Outcome::Failed(BuildFailure::Platform(_)), .. })) => {
                fs::remove_file(&result)?;
            }
            _ if result.exists() => return Ok(None),
            _ => {}
        }
        // What an engine left that was killed is nobody's history.
        match fs::remove_file(request.directory.join(EVENTS_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        drop(lock);
        Ok(Some(Engine::Ours(self.spawn(request)?)))
    }

    fn spawn(&self, request: &BuildRequest) -> io::Result<Child> {
        let errors = File::create(request.directory.join("stderr"))?;
        let mut command = Command::new(&self.program);
        command.arg("build").args(arguments(request, &self.data));
        if let Some(bundle) = &self.ca_bundle {
            command.arg("--ca-bundle").arg(bundle);
        }
        command.env_clear().envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        // Its own group, so that the signals of a terminal reach us alone, and ours reach all of it.
        command.process_group(0).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(errors);
        command.spawn()
    }
}

/// The command line of an engine. Nothing in it is secret.
fn arguments(request: &BuildRequest, data: &Path) -> Vec<OsString> {
    let mut arguments = Arguments::default();
    arguments.set("data", data);
    arguments.set("build-directory", &request.directory);
    arguments.set("context", &request.context);
    arguments.set("dockerfile", &request.dockerfile);
    arguments.of_request(request);
    if let Some(bytes) = request.limits.memory_bytes {
        arguments.set("memory", bytes.to_string());
    }
    if let Some(cpus) = request.limits.cpus {
        arguments.set("cpus", cpus.to_string());
    }
    if request.docker_config.is_some() {
        arguments.flag("docker-config-stdin");
    }
    arguments.into_vec()
}

#[async_trait]
impl Driver for LocalDriver {
    async fn platforms(&self) -> Result<Vec<Platform>, BuildFailure> {
        Ok(vec![Platform::native()])
    }

    async fn build(
        &self,
        request: &BuildRequest,
        events: mpsc::Sender<BuildEvent>,
        cancel: CancellationToken,
    ) -> Result<PlatformImage, BuildFailure> {
        let failed = |what: &'static str| move |error: io::Error| BuildFailure::platform(what, &error);
        let _running = self.gauges.runs(&Platform::native());
        let is_left = request.directory.join(EVENTS_FILE).exists();
        let mut engine = self.engine(request).map_err(failed("failed to start the build engine"))?;
        if let Some(Engine::Ours(child)) = &mut engine
            && let Some(mut stdin) = child.stdin.take()
            && let Some(config) = &request.docker_config
        {
            // An engine that ended already says why in its result.
            drop(stdin.write_all(config.as_bytes()).await);
        }
        if matches!(engine, Some(Engine::Ours(_))) {
            let _gone = events.send(BuildEvent::Begun).await;
            if is_left {
                let text = "the engine was gone: the build begins again".to_owned();
                let _gone = events.send(BuildEvent::Note { text }).await;
            }
        }
        let mut follower = Follower::new(&request.directory, events);
        let cancelled = match &mut engine {
            Some(engine) => follow(engine, &mut follower, &cancel).await,
            None => Ok(false),
        };
        let cancelled = cancelled.map_err(failed("failed to follow the build engine"))?;
        follower.forward().await.map_err(failed("failed to read the build's events"))?;
        let result = BuildResult::read(&request.directory.join(RESULT_FILE));
        match result.map_err(failed("failed to read the build's result"))? {
            Some(BuildResult { outcome: Outcome::Built { image, .. }, .. }) => Ok(image),
            Some(BuildResult { outcome: Outcome::Failed(failure), .. }) => Err(failure),
            None if cancelled => Err(BuildFailure::Cancelled),
            None => Err(BuildFailure::Platform(StepFailure {
                heading: "the build engine ended without a result".to_owned(),
                cause: last_words(&request.directory),
                ..StepFailure::default()
            })),
        }
    }
}

/// Follows an engine to its end; true if it was cancelled.
async fn follow(
    engine: &mut Engine,
    follower: &mut Follower,
    cancel: &CancellationToken,
) -> io::Result<bool> {
    let mut cancelled = false;
    let mut deadline = None;
    loop {
        // The result is complete before the engine ends, which still brings its trees to the disk.
        if engine.glance().await? || follower.result.exists() {
            return Ok(cancelled);
        }
        follower.forward().await?;
        if !cancelled && cancel.is_cancelled() {
            cancelled = true;
            engine.signal(Signal::TERM);
            deadline = Some(tokio::time::Instant::now() + GRACE);
        }
        if deadline.is_some_and(|deadline| tokio::time::Instant::now() >= deadline) {
            engine.kill();
            deadline = None;
        }
    }
}

impl Engine {
    /// Waits a moment; true if the engine has ended.
    async fn glance(&mut self) -> io::Result<bool> {
        match self {
            Self::Ours(child) => match tokio::time::timeout(GLANCE, child.wait()).await {
                Ok(status) => status.map(|_| true),
                Err(_) => Ok(false),
            },
            Self::Adopted(lock) => {
                tokio::time::sleep(GLANCE).await;
                Ok(flock(&*lock, FlockOperation::NonBlockingLockExclusive).is_ok())
            }
        }
    }

    fn pid(&mut self) -> Option<Pid> {
        let pid = match self {
            Self::Ours(child) => child.id().and_then(|id| i32::try_from(id).ok()),
            Self::Adopted(lock) => {
                let mut text = String::new();
                lock.seek(SeekFrom::Start(0)).ok()?;
                lock.take(16).read_to_string(&mut text).ok()?;
                text.trim().parse().ok()
            }
        };
        pid.filter(|pid| *pid > 1).and_then(Pid::from_raw)
    }

    fn signal(&mut self, signal: Signal) {
        // One that has just ended needs no signal.
        let _gone = self.pid().map(|pid| kill_process(pid, signal));
    }

    fn kill(&mut self) {
        let _gone = self.pid().map(|pid| kill_process_group(pid, Signal::KILL));
    }
}

/// Sends on what an engine appends.
struct Follower {
    path: PathBuf,
    result: PathBuf,
    file: Option<File>,
    pending: Vec<u8>,
    events: mpsc::Sender<BuildEvent>,
}

impl Follower {
    fn new(directory: &Path, events: mpsc::Sender<BuildEvent>) -> Self {
        let (path, result) = (directory.join(EVENTS_FILE), directory.join(RESULT_FILE));
        Self { path, result, file: None, pending: Vec::new(), events }
    }

    /// Sends every complete line that was not sent yet.
    async fn forward(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.pending.extend_from_slice(&buffer[..count]);
            while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                if let Ok(event) = serde_json::from_slice(&line) {
                    // Whoever listened has gone: the build has not.
                    let _gone = self.events.send(event).await;
                }
            }
            if self.pending.len() > MAX_EVENT_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an event is too long"));
            }
        }
    }
}

/// The last lines of an engine's standard error.
fn last_words(directory: &Path) -> Vec<String> {
    let Ok(mut file) = File::open(directory.join("stderr")) else { return Vec::new() };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = Vec::new();
    let from = length.saturating_sub(4096);
    if file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut bytes)).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text.lines().rev().take(5).map(ToOwned::to_owned).collect();
    lines.into_iter().rev().collect()
}
