//! `deploy`

use clap::Args;

use super::{AppArgument, Context, Format, VerbError};
use crate::model::{Chain, PushEvent, PushOptions};
use crate::push::claim::{self, BuildOrder, ClaimError};

/// `deploy`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeployArguments {
    #[command(flatten)]
    pub(crate) app: AppArgument,
    /// Build without the cache
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Do not wait for the end
    #[arg(long)]
    pub(crate) detach: bool,
}

/// Builds and releases again what the deploy branch names.
pub(super) async fn run(context: &mut Context<'_>, arguments: DeployArguments) -> Result<u8, VerbError> {
    if context.server.is_stopping() {
        return Err(VerbError::Said(ClaimError::Stopping.to_string()));
    }
    let app = context.app(&arguments.app).await?.object;
    let branch = crate::serve::deploy_branch(context.server.settings().deploy_branch.as_deref(), &app.refs);
    let Some(commit) = app.refs.get(&branch).copied() else {
        let url = context.server.addresses().remote_url(app.name.as_str());
        return Err(VerbError::Said(format!("nothing was deployed yet: git push {url} {}", branch.short())));
    };
    let stages = context.server.stages();
    let opened = async {
        let repository = stages.repository_in_part(&app.name).await?;
        repository.bring(&[commit]).await?;
        Ok::<_, crate::push::SourcesError>(repository)
    };
    let repository = opened
        .await
        .map_err(|error| VerbError::Said(format!("the repository cannot be opened: {}", Chain(&error))))?;
    let read =
        tokio::task::spawn_blocking(move || Ok::<_, crate::git::GitError>(repository.commit(commit)?.time()));
    let committed_at = match read.await {
        Ok(read) => read.map_err(|error| VerbError::Said(format!("the commit cannot be read: {error}")))?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let order = BuildOrder {
        app: app.name.clone(),
        commit,
        committed_at,
        moves: Vec::new(),
        by: context.person.name.clone(),
        options: PushOptions {
            detach: arguments.detach,
            no_cache: arguments.no_cache,
            ..PushOptions::default()
        },
    };
    let (build, hold) = match claim::claim_build(context.server.stages(), order).await {
        Ok(claimed) => claimed,
        Err(ClaimError::Busy(holder)) => {
            let busy = crate::serve::describe_busy(context.server, &app.name, &holder).await;
            return Err(VerbError::Busy(busy.details));
        }
        Err(ClaimError::Store(error)) => return Err(error.into()),
        Err(error) => return Err(VerbError::Said(Chain(&error).to_string())),
    };
    let heading =
        format!("{}: build {} of {} by {}", build.app, build.number, build.commit.short(), build.by);
    context.event(&PushEvent::Heading(heading)).await?;
    context.server.pushes().start(build.clone(), hold).await?;
    if arguments.detach {
        let follow = context.server.addresses().follow(&build.app, build.number);
        context.event(&PushEvent::Line(format!("Follow it: {follow}"))).await?;
        return Ok(0);
    }
    let _attached = context.server.pushes().attach(&build.app, build.number);
    super::builds::log(context, &build, 0, true, Format::Text).await
}
