//! A commit that is pushed again is not built again: its index is released anew.
//!
//! Only a push is answered so. Whoever asks for a deploy of what is there wants it built, on the base of today.

use super::log::LogWriter;
use super::{Ended, Stages, tell};
use crate::model::store;
use crate::model::{Build, BuildState, Plan, PublishedIndex, PushEvent, Release};

/// The index of an earlier release that the plan would give again, if the registry still has it; told if there is one.
pub(super) async fn built_before(
    stages: &Stages,
    build: &Build,
    plan: &Plan,
    log: &mut LogWriter,
) -> Result<Option<PublishedIndex>, Ended> {
    let Some(release) = earlier(stages, build, plan).await? else { return Ok(None) };
    let (commit, number) = (build.commit.short(), release.build);
    let text = format!("{commit} was built before, by build {number}: releasing its image again");
    tell(log, PushEvent::Heading(text)).await;
    let verb = stages.addresses.verb(&format!("deploy -a {}", build.app));
    tell(log, PushEvent::Line(format!("To build it again: {verb}"))).await;
    Ok(Some(release.index))
}

/// The earlier release that a plan would give again.
///
/// A failed rollout does not count against it: a build that succeeded gives the same image the next time. What a base's
/// tag names meanwhile is not looked at.
pub(super) async fn earlier(stages: &Stages, build: &Build, plan: &Plan) -> Result<Option<Release>, Ended> {
    if plan.no_cache || build.moves.is_empty() {
        return Ok(None);
    }
    let mut releases = store::list::<Release>(&*stages.store, &format!("{}--", build.app)).await?;
    releases.retain(|release| release.commit == build.commit);
    releases.sort_by_key(|release| std::cmp::Reverse(release.number));
    for release in releases {
        let name = Build::object_name(&build.app, release.build);
        let earlier = store::load::<Build>(&*stages.store, &name).await?;
        let same = earlier.is_some_and(|earlier| makes_the_same(&earlier.object.state, plan));
        if same && stages.publisher.has(&release.index).await {
            return Ok(Some(release));
        }
    }
    Ok(None)
}

/// Whether an earlier build had the same plan, whoever pushed it and when.
fn makes_the_same(earlier: &BuildState, plan: &Plan) -> bool {
    let BuildState::Released { plan: earlier, .. } = earlier else { return false };
    earlier.platforms == plan.platforms && earlier.recipe.method == plan.recipe.method
}
