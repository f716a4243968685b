//! Plan → `PlatformImage`s: one build per platform, in parallel, the first failure cancels the others.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use futures::future;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::log::LogWriter;
use super::metrics::result_of_platform;
use super::trace::{PlatformTrace, Trace};
use super::{Ended, Failure, Stages, tell};
use crate::build::{
    BuildEvent, BuildFailure, BuildLimits, BuildRequest, Builders, CacheUse, Compression, NetworkMode,
};
use crate::dockerfile::ignore_file_names;
use crate::model::{Build, Chain, Method, Plan, PlatformImage, PushEvent};
use crate::oci::{Platform, Reference};

/// How long what a build may write with is good for, beyond the build's own limit.
const TOKEN_SLACK: std::time::Duration = std::time::Duration::from_secs(600);

/// What the build of a platform says.
enum Said {
    /// None of it was said before.
    Begun,
    Line(String),
}

pub(super) async fn build(
    stages: &Stages,
    build: &Build,
    plan: &Plan,
    log: &mut LogWriter,
    cancel: &CancellationToken,
) -> Result<Vec<PlatformImage>, Ended> {
    let directory = stages.logs.build_directory(build);
    let context = directory.join("context");
    export(stages, build, &context).await?;
    stay_inside(&context, &plan.recipe.method).await?;
    // Each platform has a node of its own, but for those that are made on another's.
    let place = match (stages.driver.builders(), plan.platforms.len() - plan.machines.len()) {
        (Builders::ThisMachine, _) => "natively".to_owned(),
        (Builders::Nodes, 0 | 1) => "on 1 node".to_owned(),
        (Builders::Nodes, several) => format!("on {several} nodes"),
    };
    tell(log, PushEvent::Heading(format!("Building {place}"))).await;

    let (cancel, trace) = (cancel.child_token(), Trace::of(stages, build));
    let (lines, mut received) = mpsc::channel(256);
    let mut builds = Vec::new();
    for platform in &plan.platforms {
        let name = Build::object_name(&build.app, build.number).to_string();
        let request = BuildRequest { name, ..request(stages, plan, platform, &directory)? };
        // What cancels one cancels all, unless the others are to finish whatever happens to it.
        let cancel = if build.options.keep_going { cancel.child_token() } else { cancel.clone() };
        builds.push(one((stages, trace.platform(platform)), request, lines.clone(), cancel));
    }
    drop(lines);
    let built = future::join_all(builds);
    let forward = async {
        while let Some((platform, said)) = received.recv().await {
            match said {
                Said::Begun => log.begins(&platform),
                Said::Line(text) => tell(log, PushEvent::Platform { platform, text }).await,
            }
        }
    };
    let (built, ()) = future::join(built, forward).await;
    // First the word that it is whole: who goes on from here after a crash must not take what is left for all of it.
    drop(tokio::fs::remove_file(exported_in(&context)).await);
    if let Err(error) = tokio::fs::remove_dir_all(&context).await {
        tracing::warn!(error = %Chain(&error), "the context of a finished build cannot be removed");
    }
    first_cause(plan, built)
}

/// Of several failures the one that was first is the cause; the others were cancelled by it.
fn first_cause(
    plan: &Plan,
    built: Vec<Result<PlatformImage, BuildFailure>>,
) -> Result<Vec<PlatformImage>, Ended> {
    let cancelled = |failure: &BuildFailure| matches!(failure, BuildFailure::Cancelled);
    let failures =
        || plan.platforms.iter().zip(&built).filter_map(|(p, built)| Some((p, built.as_ref().err()?)));
    let cause = failures().find(|(_, failure)| !cancelled(failure)).or_else(|| failures().next());
    match cause {
        Some((platform, failure)) => Err(Failure::of_build(platform, failure.clone())),
        None => Ok(built.into_iter().flatten().collect()),
    }
}

/// The file that says in which boot of the machine a context was written out whole.
fn exported_in(context: &Path) -> PathBuf {
    context.with_extension("boot")
}

/// Which boot of the machine this is; nothing where it cannot be known.
fn boot() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

/// Writes the commit's files out, whole or not at all.
///
/// What an earlier process of this boot wrote out stays: its engine may still be reading it, and would go on in an empty
/// directory.
async fn export(stages: &Stages, build: &Build, context: &Path) -> Result<(), Ended> {
    let repository = stages.repository_with(&build.app, build.commit).await;
    let repository = repository.map_err(|error| Failure::platform("open the repository", &error))?;
    let (commit, context) = (build.commit, context.to_owned());
    let exported = tokio::task::spawn_blocking(move || {
        let (aside, whole) = (context.with_extension("aside"), exported_in(&context));
        let in_boot = std::fs::read_to_string(&whole).ok();
        if in_boot.is_some() && in_boot == boot() && context.is_dir() {
            return Ok(());
        }
        for left in [&context, &aside] {
            match std::fs::remove_dir_all(left) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::platform("clear the build's directory", &error));
                }
                _ => {}
            }
        }
        let exported = repository.commit(commit).and_then(|commit| commit.export(&aside));
        if let Err(error) = exported {
            // A full disk is less full then; what cannot be removed is by the next build of this number.
            drop(std::fs::remove_dir_all(&aside));
            return Err(Failure::platform("write out the pushed files", &error));
        }
        std::fs::rename(&aside, &context)
            .and_then(|()| std::fs::write(&whole, boot().unwrap_or_default()))
            .map_err(|error| Failure::platform("write out the pushed files", &error))
    });
    match exported.await {
        Ok(exported) => Ok(exported?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Fails where a link of the repository would have the build read what is outside: the server's own files.
///
/// The Dockerfile itself was read from the commit, which has no links to follow; what COPY takes is looked for in the context.
async fn stay_inside(root: &Path, method: &Method) -> Result<(), Failure> {
    let Method::Dockerfile { path, context, .. } = method;
    let whole = tokio::fs::canonicalize(root).await;
    let whole = whole.map_err(|error| Failure::platform("read the pushed files", &error))?;
    let directory = root.join(context);
    let dockerfile = dockerfile_in(root, path, context);
    let ignore_files = ignore_file_names(&dockerfile.to_string_lossy()).map(|name| directory.join(name));
    for place in std::iter::once(directory).chain(ignore_files) {
        let why = match tokio::fs::canonicalize(&place).await {
            Ok(real) if real.starts_with(&whole) => continue,
            Ok(_) => "is a link that leads out of the repository".to_owned(),
            // Whoever reads it says so.
            Err(missing) if matches!(missing.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                continue;
            }
            Err(error) => format!("cannot be read: {error}"),
        };
        let name = place.strip_prefix(root).unwrap_or(&place).display();
        let advice = "A build reads what is in the repository: commit the files themselves.".to_owned();
        return Err(Failure::app(format!("`{name}` {why}"), vec![advice]));
    }
    Ok(())
}

async fn one(
    (stages, mut trace): (&Stages, PlatformTrace),
    request: BuildRequest,
    lines: mpsc::Sender<(Platform, Said)>,
    cancel: CancellationToken,
) -> Result<PlatformImage, BuildFailure> {
    let (events, mut received) = mpsc::channel::<BuildEvent>(256);
    let forward = async {
        while let Some(event) = received.recv().await {
            trace.take(&event);
            let begun = matches!(event, BuildEvent::Begun).then_some(Said::Begun);
            for said in begun.into_iter().chain(event.lines().into_iter().map(Said::Line)) {
                // The receiver lives as long as the builds do.
                drop(lines.send((request.platform.clone(), said)).await);
            }
        }
    };
    let (built, ()) = future::join(stages.driver.build(&request, events, cancel.clone()), forward).await;
    if built.is_err() {
        cancel.cancel();
    }
    let (cached, run) = match &built {
        Ok(image) => {
            let cached = image.steps.iter().filter(|step| step.cached).count() as u64;
            (cached, image.steps.len() as u64 - cached)
        }
        // As far as it came.
        Err(_) => trace.steps(),
    };
    stages.metrics.steps(cached, run);
    stages.metrics.platform_ended(&request.platform, result_of_platform(&built));
    trace.end(&built);
    built
}

/// The path of a Dockerfile from its context, if it is in there. Relative where it can be, since errors name it: `Dockerfile:9`.
fn in_context<'p>(path: &'p str, context: &str) -> Option<&'p Path> {
    match context {
        "." | "" => Some(Path::new(path)),
        _ => Path::new(path).strip_prefix(context.trim_start_matches("./")).ok(),
    }
}

/// Where a Dockerfile is: from its context, if it is in there, else in the repository that is at `root`.
fn dockerfile_in(root: &Path, path: &str, context: &str) -> PathBuf {
    in_context(path, context).map_or_else(|| root.join(path), Path::to_owned)
}

/// What a Dockerfile is called in what is told of it.
pub(super) fn dockerfile_name(path: &str, context: &str) -> String {
    in_context(path, context).map_or_else(|| path.to_owned(), |path| path.display().to_string())
}

fn request(
    stages: &Stages,
    plan: &Plan,
    platform: &Platform,
    directory: &Path,
) -> Result<BuildRequest, Failure> {
    let Method::Dockerfile { path, context, target, args } = &plan.recipe.method;
    let source = &plan.recipe.source;
    let place = &stages.place;
    let repository =
        place.repository(&source.app).map_err(|error| Failure::platform("name the image", &error))?;
    let destination = Reference { repository, tag: None, digest: None };
    let seconds = plan.recipe.build_timeout_seconds.map(std::time::Duration::from_secs);
    let time = seconds.map_or(stages.limits.time, |asked| asked.min(stages.limits.time));
    let root = directory.join("context");
    let inner = root.join(context);
    let dockerfile = dockerfile_in(&root, path, context);
    Ok(BuildRequest {
        name: String::new(),
        directory: directory.join(platform.to_string().replace('/', "-")),
        dockerfile,
        context: inner,
        platform: platform.clone(),
        target: target.clone(),
        build_args: args.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect(),
        labels: Vec::new(),
        destinations: vec![destination],
        mirrors: place.mirrors(),
        insecure_registries: place.is_plain.then(|| place.host.to_string()).into_iter().collect(),
        docker_config: place.docker_config(&source.app, time + TOKEN_SLACK),
        source_date_epoch: Some(source.committed_at.as_second()),
        cache: if plan.no_cache { CacheUse::Ignore } else { CacheUse::Read },
        network: NetworkMode::Isolated,
        limits: BuildLimits { time, ..stages.limits },
        compression: Compression::Gzip,
        machine: plan.machines.get(platform).cloned(),
        flags: Vec::new(),
    })
}
