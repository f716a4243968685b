//! What a build would find, looked at without building: its bases, and whether it needs a machine of its platform.

use std::collections::BTreeMap;

use crate::build::driver::{BuildFailure, chain};
use crate::build::engine::{BuildOptions, Engine};
use crate::build::error::EngineError;
use crate::build::named::NamedContexts;
use crate::build::plan::{Base, Plan};
use crate::dockerfile::{GlobalScope, Instruction, PlatformArgs};
use crate::oci::Platform;

/// What a build would find.
#[derive(Debug)]
pub struct Preflight {
    /// The bases and other images, in the order of the Dockerfile.
    pub bases: Vec<FoundBase>,
    /// The first RUN that executes a program of the platform; none if everything is copied, or runs on `$BUILDPLATFORM`.
    pub first_run: Option<String>,
}

/// An image that the Dockerfile names.
#[derive(Debug)]
pub struct FoundBase {
    /// As it is written.
    pub reference: String,
    /// `Dockerfile:1`
    pub at: String,
    /// Why it cannot be used for the platform, if it cannot.
    pub problem: Option<String>,
}

/// Looks at a build, and builds nothing.
pub async fn preflight(options: BuildOptions) -> Result<Preflight, BuildFailure> {
    look(options).await.map_err(|error| error.into_failure(None))
}

async fn look(options: BuildOptions) -> Result<Preflight, EngineError> {
    let engine = Engine::open(options, std::sync::Arc::new(|_| {}), jiff::Timestamp::now())?;
    let dockerfile = engine.parse()?;
    let platforms = PlatformArgs {
        target: engine.options.platform.clone(),
        build: Platform::native(),
        target_stage: engine.options.target.clone().unwrap_or_else(|| "default".to_owned()),
    };
    let global = GlobalScope::new(&dockerfile, &engine.options.build_args, &platforms)?;
    let (with_contexts, named) = NamedContexts::add(&dockerfile, &engine.options.named);
    let plan = Plan::new(&with_contexts, &named, engine.options.target.as_deref(), &global)?;
    let mut images: Vec<_> = plan.images(&BTreeMap::new()).into_iter().collect();
    images.sort_by_key(|(_, line)| *line);
    let mut bases = Vec::new();
    for (name, line) in images {
        let problem = engine.resolve_image(&name, line).await.err();
        let problem = problem.map(|(_, error)| chain(&error).join(": "));
        bases.push(FoundBase { reference: name.reference, at: engine.location(line).to_string(), problem });
    }
    let first_run = plan.stages.keys().find_map(|index| first_run(&plan, *index, &platforms));
    Ok(Preflight { bases, first_run: first_run.map(|line| engine.location(line).to_string()) })
}

/// The line of the first RUN of a stage that is for the target.
fn first_run(plan: &Plan<'_>, index: usize, platforms: &PlatformArgs) -> Option<usize> {
    if platforms.target == platforms.build || is_for_build(plan, index, platforms) {
        return None;
    }
    let stage = plan.dockerfile.stages.get(index)?;
    let mut runs = stage.instructions.iter();
    let run = runs.find(|located| matches!(located.instruction, Instruction::Run(_)))?;
    Some(run.span.start.line)
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
