//! What a build would find, looked at without building: its bases, and whether it needs a machine of its platform.

use std::collections::BTreeMap;

use crate::build::driver::{BuildFailure, chain};
use crate::build::engine::{BuildOptions, Engine};
use crate::build::error::EngineError;
use crate::build::named::NamedContexts;
use crate::build::plan::{Base, Plan};
use crate::dockerfile::{GlobalScope, Instruction, Located, PlatformArgs};
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

/// Looks at a build on a machine of the platform `machine`, and builds nothing: neither layer store nor rung is used.
pub async fn preflight(options: BuildOptions, machine: Platform) -> Result<Preflight, BuildFailure> {
    look(options, machine).await.map_err(|error| error.into_failure(None))
}

async fn look(options: BuildOptions, machine: Platform) -> Result<Preflight, EngineError> {
    let mut engine = Engine::open(options, std::sync::Arc::new(|_| {}), jiff::Timestamp::now())?;
    let dockerfile = engine.parse()?;
    let platforms = PlatformArgs {
        target: engine.options.platform.clone(),
        build: machine,
        target_stage: engine.options.target.clone().unwrap_or_else(|| "default".to_owned()),
    };
    let global = GlobalScope::new(&dockerfile, &engine.options.build_args, &platforms)?;
    let (with_contexts, named) = NamedContexts::add(&dockerfile, &engine.options.named);
    let mut plan = Plan::new(&with_contexts, &named, engine.options.target.as_deref(), &global)?;
    let mut bases: BTreeMap<(usize, String), FoundBase> = BTreeMap::new();
    let mut triggers = BTreeMap::new();
    // As the engine does, which gives up where a base is not there: what a base triggers may need more of them.
    loop {
        let known = bases.len();
        for (name, line) in plan.images(&triggers) {
            let key = (line, format!("{} {:?}", name.reference, name.platform));
            if bases.contains_key(&key) {
                continue;
            }
            let problem = match engine.resolve_image(&name, line).await {
                Ok(image) => {
                    engine.images.insert(name.clone(), image);
                    None
                }
                Err((_, error)) => Some(chain(&error).join(": ")),
            };
            let at = engine.location(line).to_string();
            bases.insert(key, FoundBase { reference: name.reference, at, problem });
        }
        engine.add_triggers(&mut plan, &global, &mut triggers)?;
        if known == bases.len() {
            break;
        }
    }
    let first_run = plan.stages.keys().find_map(|index| first_run(&plan, *index, &triggers, &platforms));
    let first_run = first_run.map(|line| engine.location(line).to_string());
    Ok(Preflight { bases: bases.into_values().collect(), first_run })
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
