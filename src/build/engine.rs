//! The engine: from a Dockerfile and a context to an image, one step after the other.
//!
//! The keys of all steps are looked up as the plan is walked; nothing of a base is fetched and no sandbox is started
//! before the first step that the cache does not know.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::build::afterwards::Afterwards;
use crate::build::base::{Bases, Finder, ResolvedBase, layouts};
use crate::build::capture::Capture;
use crate::build::context::Context;
use crate::build::driver::{BuildFailure, BuildLimits, CacheUse, Location, NetworkMode};
use crate::build::error::EngineError;
use crate::build::event::{BuildEvent, StepState};
use crate::build::explain::Memory;
use crate::build::image::ImageFormat;
use crate::build::mirror::Mirrors;
use crate::build::mounts::{MountOptions, Saving, UsedCaches};
use crate::build::named::{NamedContext, NamedContexts};
use crate::build::plan::{Base, ImageName, Plan, is_step};
use crate::build::process::{CANCELLED, WorkerOptions, blocking, open_store};
use crate::build::protocol::Request;
use crate::build::remote_cache::{CacheRepository, RemoteCache};
use crate::build::result::{BuildResult, Outcome};
use crate::build::state::StageState;
use crate::build::trees::{AllTrees, Trees};
use crate::dockerfile::{self, Dockerfile, GlobalScope, Located, PlatformArgs, Stage};
use crate::layers::Compression;
use crate::model::Step;
use crate::oci::{ImageConfig, Platform, Reference};
use crate::registry::client::Client;
use crate::sandbox::ladder::Rung;

/// What is built, and how.
#[derive(Clone)]
pub struct BuildOptions {
    /// A directory with the files of the source.
    pub context: PathBuf,
    /// Contexts with names.
    pub named: BTreeMap<String, NamedContext>,
    /// The Dockerfile, relative to the context or absolute.
    pub dockerfile: PathBuf,
    /// What is in it, if it is no file: then its name is for people.
    pub dockerfile_text: Option<Vec<u8>>,
    /// The platform of the image.
    pub platform: Platform,
    /// The stage to build; the last one if absent.
    pub target: Option<String>,
    /// Build arguments.
    pub build_args: BTreeMap<String, String>,
    /// Labels over those of the Dockerfile.
    pub labels: Vec<(String, String)>,
    /// Where the image is pushed; without a tag by digest only.
    pub destinations: Vec<Reference>,
    /// Whether it is a success if a tag cannot be moved, since the registry moves none.
    pub ignore_immutable_tags: bool,
    /// What the image is called in a layout and in a tar.
    pub names: Vec<Reference>,
    /// Places where a base is looked for before its own registry.
    pub mirrors: Mirrors,
    /// A layout whose blobs need not be fetched, whatever its images are called.
    pub warmed: Option<PathBuf>,
    /// The layer store.
    pub layers: PathBuf,
    /// How RUN is kept apart, and the ids of the sandbox.
    pub rung: Rung,
    /// Seconds since 1970: no time in the image is later.
    pub epoch: Option<i64>,
    /// Whether layers made for another epoch are left aside.
    pub reproducible: bool,
    /// Whether steps may come from the cache.
    pub cache: CacheUse,
    /// Whether it is told of every step why it was not known.
    pub explain: bool,
    /// A repository where steps are looked for too.
    pub cache_repository: Option<CacheRepository>,
    /// What network RUN has.
    pub network: NetworkMode,
    /// What RUN may mount and ask for.
    pub mounts: MountOptions,
    /// When the build is ended.
    pub limits: BuildLimits,
    /// How layers are compressed.
    pub compression: Compression,
    /// The types of manifest, configuration and layers.
    pub format: ImageFormat,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// An OCI image layout directory to add the image to.
    pub oci_layout: Option<PathBuf>,
    /// A tar to write the image to.
    pub tar: Option<PathBuf>,
    /// Speaks to registries.
    pub client: Client,
}

/// Where events go.
pub type EventSink = Arc<dyn Fn(BuildEvent) + Send + Sync>;

/// Builds, and tells how it went, whatever happens.
///
/// # Cancel safety
/// Cancelling `cancel` kills everything that the build runs, within two seconds. Dropping the future does not.
pub async fn build(
    options: BuildOptions,
    events: EventSink,
    cancel: CancellationToken,
) -> (BuildResult, Afterwards) {
    let started_at = Timestamp::now();
    let clock = Instant::now();
    let (limit, max_cache_bytes) = (options.limits.time, options.mounts.max_cache_bytes);
    let mut engine = match Engine::open(options, Arc::clone(&events), started_at) {
        Ok(engine) => engine,
        Err(error) => {
            let result = finished(&events, started_at, clock, 0, Err(error.into_failure(None)));
            let nothing =
                Afterwards { trees: None, cache: None, saving: None, is_built: false, max_cache_bytes };
            return (result, nothing);
        }
    };
    let trees = engine.all_trees.clone();
    let outcome = tokio::select! {
        outcome = engine.run() => outcome,
        () = cancel.cancelled() => Err(EngineError::Cancelled),
        () = tokio::time::sleep(limit) => Err(EngineError::TimedOut { limit }),
    };
    if matches!(outcome, Err(EngineError::Cancelled | EngineError::TimedOut { .. })) {
        trees.end_workers(CANCELLED).await;
    }
    if outcome.is_err() {
        engine.capture.give_up().await;
    }
    let at = engine.at.take();
    let outcome = outcome.map_err(|error| error.into_failure(at));
    let hits = engine.steps.iter().filter(|step| step.cached).count();
    let is_built = outcome.is_ok();
    let result = finished(&events, started_at, clock, hits, outcome);
    let cache = engine.capture.cache().filter(|_| !cancel.is_cancelled()).cloned();
    let saving = cache.clone().filter(|cache| is_built && !cache.is_read_only()).map(|remote| Saving {
        remote,
        used: engine.used_caches.clone(),
        store: engine.trees.bases.store.clone(),
        events,
        max_bytes: engine.options.mounts.max_saved_bytes,
    });
    (result, Afterwards { trees: Some(trees), cache, saving, is_built, max_cache_bytes })
}

fn finished(
    events: &EventSink,
    started_at: Timestamp,
    clock: Instant,
    cache_hits: usize,
    outcome: Result<Outcome, BuildFailure>,
) -> BuildResult {
    let event = match &outcome {
        Ok(Outcome::Built { image, .. }) => BuildEvent::Finished { image: Box::new(image.clone()) },
        Ok(Outcome::Failed(failure)) | Err(failure) => {
            BuildEvent::Failed { failure: Box::new(failure.clone()) }
        }
    };
    events(event);
    BuildResult {
        started_at,
        milliseconds: millis(clock),
        cache_hits: u32::try_from(cache_hits).unwrap_or(u32::MAX),
        outcome: outcome.unwrap_or_else(Outcome::Failed),
    }
}

pub(super) fn millis(clock: Instant) -> u64 {
    u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A build at work, or one stage of it.
#[derive(Clone)]
pub(super) struct Engine {
    pub(super) options: Arc<BuildOptions>,
    pub(super) events: EventSink,
    /// The trees and the worker that this stage uses, and no other at the time.
    pub(super) trees: Arc<Trees>,
    /// Those of all stages.
    pub(super) all_trees: AllTrees,
    pub(super) capture: Capture,
    /// The cache mounts that steps have used.
    pub(super) used_caches: UsedCaches,
    pub(super) context: Arc<Context>,
    /// Whether the worker has a copy of the context, or reads it in place.
    pub(super) context_copied: Option<bool>,
    pub(super) global: Option<Arc<GlobalScope>>,
    /// The stages that are finished.
    pub(super) states: BTreeMap<usize, Arc<StageState>>,
    pub(super) images: HashMap<ImageName, ResolvedBase>,
    pub(super) now: Timestamp,
    pub(super) at: Option<Location>,
    pub(super) steps: Vec<Step>,
    /// What this stage's steps saw before.
    pub(super) memory: Memory,
    /// How long the step at work has waited for layers to be fetched and unpacked.
    pub(super) fetching: Arc<AtomicU64>,
    /// How many steps the stages before this one have.
    pub(super) before: u32,
    /// Whether the layers of this stage are the image's, and not only copied from.
    pub(super) in_image: bool,
    total: u32,
    stages: usize,
    pub(super) clock: Instant,
}

impl Engine {
    pub(super) fn open(
        options: BuildOptions,
        events: EventSink,
        started_at: Timestamp,
    ) -> Result<Self, EngineError> {
        let now = match options.epoch {
            Some(epoch) => Timestamp::from_second(epoch)
                .map_err(|_| EngineError::Wrong(format!("`SOURCE_DATE_EPOCH={epoch}` is not a time")))?,
            None => started_at,
        };
        let (store, map) = open_store(&options.layers, &options.rung.ids)?;
        let context = Context::open(&options.context, &options.dockerfile)?.known_to(&store);
        let lease = store.lease()?;
        let (client, mirrors) = (options.client.clone(), options.mirrors.clone());
        let warmed = options.warmed.clone();
        let finder = Finder { client: client.clone(), mirrors, layouts: layouts(&options.named) };
        let bases = Bases { finder, warmed, store: store.clone() };
        let worker_options = WorkerOptions {
            layers: options.layers.clone(),
            isolation: options.rung.isolation,
            ids: options.rung.ids.clone(),
            map,
            network: options.network,
            limits: options.limits,
        };
        let trees = Arc::new(Trees { bases, lease, options: worker_options, worker: OnceCell::new() });
        let spool = options.layers.join("tmp");
        let remote = options.cache_repository.clone().map(|place| {
            let (platform, events) = (options.platform.clone(), Arc::clone(&events));
            RemoteCache::new(client.clone(), place, platform, events)
        });
        let capture = Capture::new(store, options.compression, options.destinations.clone(), client, spool)
            .with_cache(remote);
        Ok(Self {
            events,
            all_trees: AllTrees::new(&trees),
            trees,
            capture,
            used_caches: UsedCaches::default(),
            context: Arc::new(context),
            context_copied: None,
            global: None,
            states: BTreeMap::new(),
            images: HashMap::new(),
            now,
            at: None,
            steps: Vec::new(),
            memory: Memory::default(),
            fetching: Arc::default(),
            before: 0,
            in_image: true,
            total: 0,
            stages: 0,
            clock: Instant::now(),
            options: Arc::new(options),
        })
    }

    async fn run(&mut self) -> Result<Outcome, EngineError> {
        let dockerfile = self.parse()?;
        let platforms = PlatformArgs {
            target: self.options.platform.clone(),
            build: Platform::native(),
            target_stage: self.options.target.clone().unwrap_or_else(|| "default".to_owned()),
        };
        let global = Arc::new(GlobalScope::new(&dockerfile, &self.options.build_args, &platforms)?);
        self.global = Some(Arc::clone(&global));
        self.warn(&dockerfile, &global);
        let (with_contexts, named) = NamedContexts::add(&dockerfile, &self.options.named);
        let mut plan = Plan::new(&with_contexts, &named, self.options.target.as_deref(), &global)?;
        let triggers = self.resolve(&mut plan, &global).await?;
        self.check(&dockerfile)?;
        self.total = plan.stages.keys().map(|index| steps_of(&plan, &triggers, *index)).sum();
        self.stages = plan.stages.len();
        let (platform, isolation) = (self.options.platform.clone(), self.options.rung.to_string());
        (self.events)(BuildEvent::Started { platform, steps: self.total, isolation });
        let ran = self.run_stages(&plan, &triggers).await;
        let context = Arc::clone(&self.context);
        blocking(move || {
            context.keep_known();
            Ok(())
        })
        .await?;
        ran?;
        self.at = None;
        let state = self.states.remove(&plan.target).ok_or(EngineError::Protocol)?;
        self.finish(Arc::unwrap_or_clone(state)).await
    }

    pub(super) fn parse(&self) -> Result<Dockerfile, EngineError> {
        Ok(dockerfile::parse(&self.text()?, &self.options.dockerfile.display().to_string())?)
    }

    /// Tells what is odd about a Dockerfile and changes nothing.
    fn warn(&self, dockerfile: &Dockerfile, global: &GlobalScope) {
        let note = |text: String| (self.events)(BuildEvent::Note { text });
        if let Some(syntax) = dockerfile.syntax.as_deref().filter(|syntax| !is_own_syntax(syntax)) {
            note(format!("`# syntax={syntax}` is not run: the Dockerfile is read as BuildKit's own"));
        }
        let unread = global.unread(dockerfile);
        if !unread.is_empty() {
            note(format!("no ARG reads the build arguments {}", unread.join(", ")));
        }
    }

    pub(super) fn location(&self, line: usize) -> Location {
        Location { file: self.options.dockerfile.display().to_string(), line }
    }

    pub(super) async fn stage(
        &mut self,
        plan: &Plan<'_>,
        stage: &Stage,
        base: &Base,
        triggers: &[Located],
    ) -> Result<StageState, EngineError> {
        let name = (self.stages > 1).then(|| stage.label());
        let context = self.enter_context(plan.named.directory(stage.index))?;
        let from = self.begin(name.as_deref(), &stage.text, stage.span.start.line);
        let mut image = match base {
            Base::Scratch => StageState::new(ImageConfig::new(&self.options.platform), Vec::new(), self.now),
            Base::Stage(other) => self.states.get(other).ok_or(EngineError::Protocol)?.child(),
            Base::Image(name) => {
                let base = self.images.get(name).ok_or(EngineError::Protocol)?.clone();
                StageState::new(base.config, base.layers, self.now)
            }
        };
        self.end(&from, true, None);
        drop(image.take_triggers());
        let own = stage.instructions.iter().map(|located| (located, located.span.start.line));
        let triggered = triggers.iter().map(|located| (located, stage.span.start.line));
        for (located, line) in triggered.chain(own) {
            self.at = Some(self.location(line));
            self.instruction(plan, stage.index, name.as_deref(), &mut image, (located, line)).await?;
        }
        if let Some(context) = context {
            self.context.keep_known();
            (self.context, self.context_copied) = (context, None);
        }
        Ok(image)
    }

    /// Takes a directory for the context, and returns the context that it was.
    fn enter_context(&mut self, directory: Option<&Path>) -> Result<Option<Arc<Context>>, EngineError> {
        let Some(directory) = directory else { return Ok(None) };
        // With the ignore file in it, if there is one, as BuildKit does.
        let context = Context::open(directory, Path::new(""))?.known_to(&self.trees.bases.store);
        let context = Arc::new(context);
        self.context_copied = None;
        Ok(Some(std::mem::replace(&mut self.context, context)))
    }

    /// Takes up a step; it is told when it turns out that there is something to do.
    pub(super) fn begin(&mut self, stage: Option<&str>, text: &str, line: usize) -> BegunStep {
        let at = self.location(line);
        self.at = Some(at.clone());
        let number = self.before + u32::try_from(self.steps.len() + 1).unwrap_or(u32::MAX);
        self.fetching.store(0, Ordering::Relaxed);
        BegunStep {
            number,
            stage: stage.map(ToOwned::to_owned),
            text: text.to_owned(),
            at,
            clock: Instant::now(),
        }
    }

    /// Records how a step ended.
    pub(super) fn end(&mut self, step: &BegunStep, cached: bool, why: Option<String>) {
        let milliseconds = self.millis(step);
        let state = if cached { StepState::Cached } else { StepState::Done { millis: milliseconds, why } };
        self.tell(step, state);
        let line = u32::try_from(step.at.line).unwrap_or(u32::MAX);
        self.steps.push(Step { text: step.text.clone(), line, cached, milliseconds });
    }

    /// How long a step has taken, without the fetching of what it stands upon, which is told by itself.
    pub(super) fn millis(&self, step: &BegunStep) -> u64 {
        millis(step.clock).saturating_sub(self.fetching.load(Ordering::Relaxed))
    }

    pub(super) fn tell(&self, step: &BegunStep, state: StepState) {
        (self.events)(BuildEvent::Step {
            number: step.number,
            of: self.total,
            stage: step.stage.clone(),
            text: step.text.clone(),
            at: step.at.clone(),
            state,
            time: Some(jiff::Timestamp::now()),
        });
    }

    /// Makes sure that the worker can read the context, and says whether it has a copy.
    pub(super) async fn context_for_worker(&mut self) -> Result<bool, EngineError> {
        if let Some(copied) = self.context_copied {
            return Ok(copied);
        }
        // Our own id is the sandbox's root if we are not root; if we are, the sandbox is somebody else.
        let context = Arc::clone(&self.context);
        let in_place = !rustix::process::geteuid().is_root() || {
            blocking(move || Ok(context.is_readable_by_all())).await?
        };
        if !in_place {
            let context = Arc::clone(&self.context);
            let write = move |pipe| context.write_tar(std::io::BufWriter::with_capacity(1 << 16, pipe));
            self.trees.worker().await?.call_writing(Request::Context, write).await?;
        }
        self.context_copied = Some(!in_place);
        Ok(!in_place)
    }
}

/// A step that has begun.
pub(super) struct BegunStep {
    pub(super) number: u32,
    pub(super) stage: Option<String>,
    text: String,
    at: Location,
    pub(super) clock: Instant,
}

fn is_own_syntax(syntax: &str) -> bool {
    syntax.trim_start_matches("docker.io/").starts_with("docker/dockerfile")
}

/// How many steps a stage has, FROM included.
pub(super) fn steps_of(plan: &Plan<'_>, triggers: &BTreeMap<usize, Vec<Located>>, index: usize) -> u32 {
    let own = plan.dockerfile.stages.get(index).map_or(&[][..], |stage| &stage.instructions);
    let triggered = triggers.get(&index).map_or(&[][..], Vec::as_slice);
    let count = 1 + own.iter().chain(triggered).filter(|located| is_step(&located.instruction)).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Where a data directory keeps its layers.
#[must_use]
pub fn layers_directory(data: &Path) -> PathBuf {
    data.join("layers")
}
