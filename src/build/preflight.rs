//! What a build would find, looked at without building: its bases, and whether it needs a machine of its platform.
//!
//! Nothing but the Dockerfile and the registries is asked: there is no context, no layer store and no sandbox. So a push is
//! looked at by the server, wherever it is built then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::build::base::{Finder, layouts};
use crate::build::context::read_text;
use crate::build::driver::{BuildFailure, Location};
use crate::build::engine::BuildOptions;
use crate::build::error::EngineError;
use crate::build::mirror::{MirrorError, Mirrors};
use crate::build::named::{NamedContext, NamedContexts};
use crate::build::plan::{Base, ImageName, Plan};
use crate::dockerfile::{self, Dockerfile, GlobalScope, Instruction, Located, PlatformArgs};
use crate::oci::Platform;
use crate::registry::client::Client;

/// What a build would find.
#[derive(Debug)]
pub struct Preflight {
    /// The bases and other images, in the order of the Dockerfile.
    pub bases: Vec<FoundBase>,
    /// The first RUN that executes a program of the platform; none if everything is copied, or runs on `$BUILDPLATFORM`.
    pub first_run: Option<Location>,
}

/// An image that the Dockerfile names.
#[derive(Debug)]
pub struct FoundBase {
    /// As it is written.
    pub reference: String,
    /// `Dockerfile:1`
    pub at: Location,
    /// Why it cannot be used for the platform, if it cannot.
    pub problem: Option<BuildFailure>,
}

/// How long a base that was found is not looked up again: a build that follows asks for it anyway.
const REMEMBERED: Duration = Duration::from_mins(10);
/// How many bases are remembered.
const MAX_REMEMBERED: usize = 256;
/// How long the triggers of a base may be that is remembered.
const MAX_TRIGGER_BYTES: usize = 16 << 10;

/// Bases that were found not long ago, for which a registry that counts pulls is not asked once more.
#[derive(Debug, Default)]
pub struct RecentBases(Mutex<HashMap<(ImageName, Platform), Recent>>);

/// When a base was found, and what it triggers.
type Recent = (Instant, Vec<String>);

impl RecentBases {
    fn find(&self, key: &(ImageName, Platform)) -> Option<Vec<String>> {
        let bases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bases.get(key).filter(|(at, _)| at.elapsed() < REMEMBERED).map(|(_, on_build)| on_build.clone())
    }

    fn keep(&self, key: (ImageName, Platform), on_build: &[String]) {
        if on_build.iter().map(String::len).sum::<usize>() > MAX_TRIGGER_BYTES {
            return;
        }
        let mut bases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bases.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        if bases.len() < MAX_REMEMBERED {
            bases.insert(key, (Instant::now(), on_build.to_vec()));
        }
    }
}

/// A build to look at.
#[derive(Debug, Clone)]
pub struct Look {
    dockerfile: Dockerfile,
    target: Option<String>,
    build_args: BTreeMap<String, String>,
    named: BTreeMap<String, NamedContext>,
    finder: Finder,
    recent: Arc<RecentBases>,
}

impl Look {
    /// A Dockerfile, whose bases `client` finds. `file` is how it is named to people.
    pub fn new(text: &[u8], file: &str, client: Client) -> Result<Self, BuildFailure> {
        let dockerfile =
            dockerfile::parse(text, file).map_err(|error| EngineError::from(error).into_failure(None))?;
        let finder = Finder { client, mirrors: Mirrors::default(), layouts: BTreeSet::new() };
        let (named, recent) = (BTreeMap::new(), Arc::default());
        Ok(Self { dockerfile, target: None, build_args: BTreeMap::new(), named, finder, recent })
    }

    /// The same, by somebody who remembers what was found before, by this client and in these places.
    #[must_use]
    pub fn remembering(self, recent: Arc<RecentBases>) -> Self {
        Self { recent, ..self }
    }

    /// The same, with a stage to build and build arguments.
    #[must_use]
    pub fn of(self, target: Option<String>, build_args: BTreeMap<String, String>) -> Self {
        Self { target, build_args, ..self }
    }

    /// The same, with places where a base is looked for before its own registry.
    pub fn with_mirrors(mut self, mirrors: &[String]) -> Result<Self, MirrorError> {
        self.finder.mirrors.places = mirrors.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// What a build with these options would do; of the context no more is read than the Dockerfile.
    pub fn at_build(options: &BuildOptions) -> Result<Self, BuildFailure> {
        let text = match &options.dockerfile_text {
            Some(text) => Some(text.clone()),
            None => read_text(&options.context.join(&options.dockerfile))
                .map_err(|error| error.into_failure(None))?,
        };
        let name = options.dockerfile.display().to_string();
        let text = text.ok_or_else(|| BuildFailure::app(format!("there is no `{name}` in the context")))?;
        let mut look = Self::new(&text, &name, options.client.clone())?
            .of(options.target.clone(), options.build_args.clone());
        look.named.clone_from(&options.named);
        look.finder.layouts = layouts(&options.named);
        look.finder.mirrors.clone_from(&options.mirrors);
        Ok(look)
    }

    /// Looks at the build for `platform` on a machine of the platform `machine`.
    pub async fn at(&self, platform: &Platform, machine: &Platform) -> Result<Preflight, BuildFailure> {
        self.find(platform, machine).await.map_err(|error| error.into_failure(None))
    }

    async fn find(&self, platform: &Platform, machine: &Platform) -> Result<Preflight, EngineError> {
        let platforms = PlatformArgs {
            target: platform.clone(),
            build: machine.clone(),
            target_stage: self.target.clone().unwrap_or_else(|| "default".to_owned()),
        };
        let global = GlobalScope::new(&self.dockerfile, &self.build_args, &platforms)?;
        let (with_contexts, named) = NamedContexts::add(&self.dockerfile, &self.named);
        let mut plan = Plan::new(&with_contexts, &named, self.target.as_deref(), &global)?;
        let mut bases: BTreeMap<(usize, ImageName), FoundBase> = BTreeMap::new();
        let mut images: HashMap<ImageName, Vec<String>> = HashMap::new();
        let mut triggers = BTreeMap::new();
        // As the engine does, which gives up where a base is not there: what a base triggers may need more of them.
        loop {
            let known = bases.len();
            let wanted = plan.images(&triggers).into_iter().map(|(name, line)| (line, name));
            let wanted: Vec<_> = wanted.filter(|key| !bases.contains_key(key)).collect();
            let found = wanted.iter().map(|(_, name)| self.on_build(name, platform));
            let found = join_all(found.collect::<Vec<_>>()).await;
            for ((line, name), found) in wanted.into_iter().zip(found) {
                let (at, reference) = (self.location(line), name.reference.clone());
                let problem = match found {
                    Ok(on_build) => {
                        images.insert(name.clone(), on_build);
                        None
                    }
                    Err(error) => Some(error.into_failure(Some(at.clone()))),
                };
                bases.insert((line, name), FoundBase { reference, at, problem });
            }
            let on_build = |name: &ImageName| images.get(name).cloned().unwrap_or_default();
            plan.add_base_triggers(&on_build, &global, &mut triggers)?;
            if known == bases.len() {
                break;
            }
        }
        let first_run = plan.stages.keys().find_map(|index| first_run(&plan, *index, &triggers, &platforms));
        let first_run = first_run.map(|line| self.location(line));
        Ok(Preflight { bases: bases.into_values().collect(), first_run })
    }

    /// Looks an image up; what it triggers in a build that begins with it.
    async fn on_build(&self, name: &ImageName, platform: &Platform) -> Result<Vec<String>, EngineError> {
        let key = (name.clone(), platform.clone());
        if let Some(on_build) = self.recent.find(&key) {
            return Ok(on_build);
        }
        let on_build = self.finder.named(name, platform).await?.config.config.on_build;
        self.recent.keep(key, &on_build);
        Ok(on_build)
    }

    fn location(&self, line: usize) -> Location {
        Location { file: self.dockerfile.file.clone(), line }
    }
}

/// The line of the first RUN of a stage that is for the target: its own, or one that its base brings.
fn first_run(
    plan: &Plan<'_>,
    index: usize,
    triggers: &BTreeMap<usize, Vec<Located>>,
    platforms: &PlatformArgs,
) -> Option<usize> {
    if platforms.target == platforms.build || is_for_build(plan, index, platforms) {
        return None;
    }
    let stage = plan.dockerfile.stages.get(index)?;
    let is_run = |located: &&Located| matches!(located.instruction, Instruction::Run(_));
    if triggers.get(&index).is_some_and(|triggered| triggered.iter().any(|located| is_run(&located))) {
        return Some(stage.span.start.line);
    }
    stage.instructions.iter().find(is_run).map(|run| run.span.start.line)
}

/// Whether a stage begins with an image of the machine that builds.
fn is_for_build(plan: &Plan<'_>, index: usize, platforms: &PlatformArgs) -> bool {
    match plan.stages.get(&index) {
        Some(Base::Image(name)) => {
            let platform = name.platform.as_deref().and_then(|text| text.parse::<Platform>().ok());
            platform.is_some_and(|platform| platform == platforms.build)
        }
        // A stage begins with an earlier one.
        Some(Base::Stage(other)) if *other < index => is_for_build(plan, *other, platforms),
        _ => false,
    }
}
