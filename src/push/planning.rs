//! Recipe → Plan: the platforms, where each is built, and whether its bases are there, before anything is built.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{join_all, try_join_all};
use tokio_util::sync::CancellationToken;

use super::building::dockerfile_name;
use super::log::LogWriter;
use super::{Ended, Failure, Stages, again, tell};
use crate::build::{BuildFailure, Builders, FoundBase, Look, Preflight};
use crate::dockerfile;
use crate::model::{Build, CancelReason, Fault, Method, Plan, PushEvent, Recipe};
use crate::oci::Platform;
use crate::plan::{PlanError, elsewhere, machines};

/// How long the registries of all bases have to answer.
const LOOK_LIMIT: Duration = Duration::from_secs(60);

/// Fixes where everything is built, and refuses what could not be.
///
/// # Cancel safety
/// Nothing is written before the plan is returned.
pub(super) async fn plan(
    stages: &Stages,
    build: &Build,
    recipe: Recipe,
    log: &mut LogWriter,
    cancel: &CancellationToken,
) -> Result<Plan, Ended> {
    let available = stages
        .driver
        .platforms()
        .await
        .map_err(|failure| Failure::platform("list what builds here", &failure))?;
    let asked = !recipe.platforms.is_empty();
    let mut plan = crate::plan::plan(recipe, &available, build.options).map_err(|error| refused(&error))?;
    // What is released again is not built, and needs no base.
    if again::earlier(stages, build, &plan).await?.is_none() {
        let looking = cancel.run_until_cancelled(look(stages, &mut plan, &available));
        looking.await.unwrap_or(Err(Ended::Cancelled(CancelReason::Requested)))?;
    }
    let names = plan.platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let (word, why) = (
        if plan.platforms.len() == 1 { "platform" } else { "platforms" },
        match (asked, stages.driver.builders()) {
            (true, _) => "hephy.toml",
            (false, Builders::ThisMachine) => "what builds here natively",
            (false, Builders::Nodes) => "the ready nodes' architectures",
        },
    );
    tell(log, PushEvent::Line(format!("{word} {names} ({why})"))).await;
    for (platform, machine) in &plan.machines {
        let text = format!("{platform} is made on {machine}, where nothing of it is executed");
        tell(log, PushEvent::Line(text)).await;
    }
    Ok(plan)
}

fn refused(error: &PlanError) -> Failure {
    Failure::app(error.to_string(), error.hints())
}

/// Looks at what the build would find, for every platform at once, and decides where those without a machine of their own are
/// built.
async fn look(stages: &Stages, plan: &mut Plan, available: &[Platform]) -> Result<(), Ended> {
    let look = what_is_built(stages, &plan.recipe).await?;
    let looks: Vec<_> =
        plan.platforms.iter().map(|platform| look_for(&look, platform, available).boxed()).collect();
    let looked = tokio::time::timeout(LOOK_LIMIT, join_all(looks)).await;
    let looked = looked.map_err(|_| too_slow())?.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut missing = Vec::new();
    for (platform, mut found) in looked {
        let machine = if available.contains(&platform) {
            platform.clone()
        } else {
            let lines = found
                .iter()
                .map(|(machine, found)| (machine.clone(), found.first_run.as_ref().map(ToString::to_string)));
            let machine = elsewhere(lines).map_err(|at| nowhere(&platform, available, at))?;
            plan.machines.insert(platform.clone(), machine.clone());
            machine
        };
        found.retain(|(other, _)| *other == machine);
        missing.extend(found.into_iter().flat_map(|(_, found)| without(found, &platform)));
    }
    if missing.is_empty() { Ok(()) } else { Err(lacking(&missing, plan).into()) }
}

/// What a build of `platform` would find on each machine that it may be made on.
async fn look_for(
    look: &Look,
    platform: &Platform,
    available: &[Platform],
) -> Result<(Platform, Vec<(Platform, Preflight)>), Ended> {
    let at = machines(platform, available).into_iter().map(|machine| async move {
        let found = look.at(platform, &machine).await;
        found.map(|found| (machine, found))
    });
    let found = try_join_all(at).await.map_err(|failure| Failure::of_build(platform, failure))?;
    Ok((platform.clone(), found))
}

/// The Dockerfile of a recipe, and how its bases are found.
async fn what_is_built(stages: &Stages, recipe: &Recipe) -> Result<Look, Ended> {
    let Method::Dockerfile { path, context, target, args } = &recipe.method;
    let source = &recipe.source;
    let repository = stages.repository_with(&source.app, source.commit).await;
    let repository = repository.map_err(|error| Failure::platform("open the repository", &error))?;
    let (commit, file) = (source.commit, path.clone());
    let read = tokio::task::spawn_blocking(move || {
        repository.commit(commit)?.read(&file, dockerfile::MAX_FILE_BYTES as u64)
    });
    let text = match read.await {
        Ok(text) => text.map_err(|error| Failure::platform("read the Dockerfile", &error))?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let name = dockerfile_name(path, context);
    let no_file = || Failure::app(format!("there is no `{path}` in the source any more"), Vec::new());
    let look = Look::new(&text.ok_or_else(no_file)?, &name, stages.client.clone());
    let look = look.map_err(|failure| Failure::app(failure.sentence(), Vec::new()))?;
    let look = look.of(target.clone(), args.iter().cloned().collect());
    let look = look.remembering(Arc::clone(&stages.recent_bases));
    let mirrors = look.with_mirrors(&stages.place.mirrors());
    Ok(mirrors.map_err(|error| Failure::platform("name the mirror of base images", &error))?)
}

fn nowhere(platform: &Platform, available: &[Platform], at: Option<String>) -> Failure {
    let (wanted, available) = (platform.clone(), available.to_vec());
    refused(&match at {
        Some(at) => PlanError::Executes { wanted, available, at },
        None => PlanError::NoNativeBuilder { wanted, available },
    })
}

fn too_slow() -> Failure {
    let limit = humantime::format_duration(LOOK_LIMIT);
    let reason = format!("the registries of the base images did not answer within {limit}");
    tracing::error!("the registries of a push's base images did not answer in time");
    let details = vec![
        "Nothing was built. That is the network's fault or theirs, and not the push's: push again when they answer.".to_owned(),
    ];
    Failure { fault: Fault::Platform, reason, details }
}

/// A base that a platform lacks.
struct Missing {
    platform: Platform,
    base: FoundBase,
    problem: BuildFailure,
}

fn without(found: Preflight, platform: &Platform) -> Vec<Missing> {
    let missing = |mut base: FoundBase| {
        let problem = base.problem.take()?;
        Some(Missing { platform: platform.clone(), base, problem })
    };
    found.bases.into_iter().filter_map(missing).collect()
}

/// The refusal that names every base that is not there.
fn lacking(missing: &[Missing], plan: &Plan) -> Failure {
    let is_platforms = missing.iter().all(|missing| matches!(missing.problem, BuildFailure::Platform(_)));
    let mut details = Vec::new();
    for Missing { platform, base, problem } in missing {
        details.push(format!("{} on {platform}: {}", base.at, problem.sentence()));
    }
    let hints = missing.iter().filter_map(|missing| missing.problem.step()?.hint.clone());
    for hint in hints.flat_map(|hint| hint.lines().map(ToOwned::to_owned).collect::<Vec<_>>()) {
        if !details.contains(&hint) {
            details.push(hint);
        }
    }
    let lacks = |platform: &&Platform| missing.iter().any(|missing| missing.platform == **platform);
    let whole: Vec<String> =
        plan.platforms.iter().filter(|platform| !lacks(platform)).map(|it| format!("\"{it}\"")).collect();
    if !whole.is_empty() {
        let whole = whole.join(", ");
        details.push(format!(
            "or build for fewer platforms: `platforms = [{whole}]` under [build] in hephy.toml"
        ));
    }
    let first = missing.first().map(|Missing { platform, base, .. }| {
        format!("{} has no base `{}` for {platform}", base.at, base.reference)
    });
    let reason = format!("nothing was built: {}", first.unwrap_or_default());
    let fault = if is_platforms { Fault::Platform } else { Fault::App };
    if is_platforms {
        tracing::error!(reason, error = details.join("; "), "a push was refused, and not for its Dockerfile");
    }
    Failure { fault, reason, details }
}
