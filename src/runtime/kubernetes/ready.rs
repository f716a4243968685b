//! Waiting until the Deployments of a version are what they should be, and finding out why they are not.

mod deployments;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use tokio::time::{Instant, sleep};
use tracing::warn;

use deployments::{is_complete, of_type, overtaken, refusal};

use super::deployment::Recipe;
use super::objects::{ApiError, Objects, failed};
use super::pods::{self, Instance, how};
use super::state::hint;
use super::{Policy, Shared, logs, names};
use crate::kubernetes::{PodTrouble, trouble};
use crate::model::{AppName, ProcessType};
use crate::rollout::{EventSink, InstanceName, NotReady, Obstacle, RuntimeError, RuntimeEvent, Version};

/// How often the cluster is asked.
const INTERVAL: Duration = Duration::from_millis(400);
/// How long the cluster may not answer while a version becomes ready.
const BLIND: Duration = Duration::from_secs(180);
/// After which the one who waits is told that an instance takes no connections yet.
const TELL_AFTER: Duration = Duration::from_secs(5);
/// How many of its last lines explain a failure.
const LAST_LINES: usize = 20;

/// Returns when exactly the wanted instances of `version` run, each ready for the minimum time.
///
/// What is not ready and will not be is an error; what takes long is told to `events`, each thing once.
pub(super) async fn wait(
    shared: &Shared,
    recipe: &Recipe<'_>,
    version: &Version,
    events: &EventSink,
) -> Result<(), RuntimeError> {
    let (app, release) = (&version.release.app, version.release.number);
    let mut watch = Watch::new(version, shared.config.policy, recipe, events);
    let mut blind = None;
    loop {
        let (deployments, mut instances) = match see(&shared.objects, app).await {
            Ok(seen) => seen,
            // No news: the instances go on without us.
            Err(error) if error.is_passing() && blind.get_or_insert_with(Instant::now).elapsed() < BLIND => {
                warn!(%app, error = &error as &dyn std::error::Error, "a rollout cannot be watched just now");
                sleep(INTERVAL).await;
                continue;
            }
            Err(error) => return Err(failed("list the Deployments and pods", app)(error)),
        };
        blind = None;
        // A command that runs once has the app's labels too, and is none of its instances.
        instances.retain(|instance| {
            instance.release == release
                && version.release.processes.contains_key(&instance.name.process_type)
                && !instance.is_leaving()
        });
        if let Some(current) = overtaken(&deployments, version) {
            return Err(RuntimeError::Stale { app: app.clone(), release, current });
        }
        watch.meet(&instances);
        watch.count(&instances);
        if version.wanted().all(|(name, count)| is_complete(&deployments, name, release, count)) {
            watch.complete();
            return Ok(());
        }
        if let Some((instance, obstacle)) = watch.obstacle(&deployments, &instances) {
            let (lines, obstacle) = match instances.iter().find(|found| found.name == instance) {
                Some(found) => (
                    logs::last_lines(&shared.objects, found, LAST_LINES).await,
                    explained(&shared.objects, found, obstacle).await,
                ),
                None => (Vec::new(), obstacle),
            };
            let app = app.clone();
            return Err(RuntimeError::NotReady(Box::new(NotReady { app, instance, obstacle, lines })));
        }
        sleep(INTERVAL).await;
    }
}

async fn see(objects: &Objects, app: &AppName) -> Result<(Vec<Deployment>, Vec<Instance>), ApiError> {
    let selector = names::selector(Some(app));
    let deployments = objects.list::<Deployment>(&selector).await?;
    Ok((deployments, pods::instances(objects.list::<Pod>(&selector).await?)))
}

/// What never ran, with the last warning about it that the cluster has, if it may be read.
async fn explained(objects: &Objects, instance: &Instance, obstacle: Obstacle) -> Obstacle {
    if !matches!(obstacle, Obstacle::NeverRan { .. }) {
        return obstacle;
    }
    let fields = format!("involvedObject.uid={},type=Warning", instance.uid());
    let events = objects.find::<Event>(ListParams::default().fields(&fields)).await.unwrap_or_default();
    let last = events.into_iter().max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    match last.and_then(|event| event.message) {
        Some(why) => Obstacle::Blocked { why: format!("{obstacle}: {why}"), hint: None },
        None => obstacle,
    }
}

/// What is remembered from one look to the next.
struct Watch<'a> {
    policy: Policy,
    ready_timeout: Duration,
    port: u16,
    app: &'a AppName,
    events: &'a EventSink,
    wanted: BTreeMap<ProcessType, u32>,
    /// How many were ready at most, of each type.
    ready: BTreeMap<ProcessType, u32>,
    /// Since when each pod is as it is.
    since: BTreeMap<(String, Stage), Instant>,
    /// How often each pod had been started again when it was first seen: what happened before is not this version's
    /// doing, since the pods of a version that runs already are looked at too.
    restarts: BTreeMap<String, u32>,
    /// Whether no look was taken yet: a pod that is seen later was made meanwhile.
    is_first: bool,
    /// When an instance more became ready for the last time.
    progress: Instant,
    told: BTreeSet<(ProcessType, String)>,
}

/// What a pod may be stuck in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It has no node, or no image yet.
    Pending,
    /// Something refuses it.
    Refused,
    /// Its process runs, and it is not ready.
    Running,
    /// It is ready.
    Ready,
}

/// What one look at a pod shows.
#[derive(Debug, PartialEq)]
enum Seen {
    Ready,
    /// It may yet become ready, within the time for its stage.
    Not {
        stage: Stage,
        why: Option<String>,
        otherwise: Obstacle,
    },
    /// It will not become ready.
    Over(Obstacle),
}

impl<'a> Watch<'a> {
    fn new(version: &'a Version, policy: Policy, recipe: &Recipe<'_>, events: &'a EventSink) -> Self {
        Self {
            policy,
            ready_timeout: recipe.ready_timeout(),
            port: recipe.port,
            app: &version.release.app,
            events,
            wanted: version.wanted().map(|(name, count)| (name.clone(), count)).collect(),
            ready: BTreeMap::new(),
            since: BTreeMap::new(),
            restarts: BTreeMap::new(),
            is_first: true,
            progress: Instant::now(),
            told: BTreeSet::new(),
        }
    }

    /// Notes how often the pods that are there already were started again.
    fn meet(&mut self, instances: &[Instance]) {
        for instance in instances {
            let before = if self.is_first { instance.restarts() } else { 0 };
            self.restarts.entry(instance.uid().to_owned()).or_insert(before);
        }
        self.is_first = false;
    }

    /// How often a pod was started again since it was first seen.
    fn restarts(&self, instance: &Instance) -> u32 {
        let before = self.restarts.get(instance.uid()).copied().unwrap_or(0);
        instance.restarts().saturating_sub(before)
    }

    /// How long a pod has been in a stage, without a break.
    fn within(&mut self, instance: &Instance, stage: Stage) -> Duration {
        let uid = instance.uid().to_owned();
        self.since.retain(|(of, other), _| *of != uid || *other == stage);
        self.since.entry((uid, stage)).or_insert_with(Instant::now).elapsed()
    }

    /// Tells of every instance more that has been ready for the minimum time.
    fn count(&mut self, instances: &[Instance]) {
        let mut ready: BTreeMap<ProcessType, u32> = BTreeMap::new();
        for instance in instances {
            if instance.is_ready() && self.within(instance, Stage::Ready) >= self.policy.minimum_ready {
                *ready.entry(instance.name.process_type.clone()).or_default() += 1;
            }
        }
        for (process_type, count) in ready {
            self.reached(&process_type, count);
        }
    }

    /// The Deployments say that all are ready, sooner than our own clock.
    fn complete(&mut self) {
        for (process_type, count) in self.wanted.clone() {
            self.reached(&process_type, count);
        }
    }

    fn reached(&mut self, process_type: &ProcessType, count: u32) {
        let Some(wanted) = self.wanted.get(process_type).copied() else { return };
        let before = self.ready.get(process_type).copied().unwrap_or(0);
        for ready in before + 1..=count.min(wanted) {
            self.progress = Instant::now();
            self.ready.insert(process_type.clone(), ready);
            // That nobody listens is no error.
            drop(self.events.send(RuntimeEvent::Ready { process_type: process_type.clone(), ready, wanted }));
        }
    }

    fn tell(&mut self, instance: &InstanceName, text: String) {
        if self.told.insert((instance.process_type.clone(), text.clone())) {
            drop(self.events.send(RuntimeEvent::Waiting { instance: instance.clone(), text }));
        }
    }

    /// What keeps the version from becoming ready, if that is sure by now.
    fn obstacle(
        &mut self,
        deployments: &[Deployment],
        instances: &[Instance],
    ) -> Option<(InstanceName, Obstacle)> {
        for instance in instances {
            let (stage, why, otherwise) = match self.look(instance) {
                Seen::Ready => continue,
                Seen::Over(obstacle) => return Some((instance.name.clone(), obstacle)),
                Seen::Not { stage, why, otherwise } => (stage, why, otherwise),
            };
            let elapsed = self.within(instance, stage);
            let (limit, patience) = match stage {
                Stage::Pending => (self.policy.pending, Duration::ZERO),
                Stage::Refused => (self.policy.refused, Duration::ZERO),
                Stage::Running | Stage::Ready => (self.ready_timeout, TELL_AFTER),
            };
            if elapsed >= limit {
                return Some((instance.name.clone(), otherwise));
            }
            if let (Some(why), true) = (why, elapsed >= patience) {
                self.tell(&instance.name, why);
            }
        }
        self.refusal(deployments).or_else(|| self.standstill())
    }

    /// What one look at a pod shows.
    fn look(&self, instance: &Instance) -> Seen {
        let restarts = self.restarts(instance);
        let blocked = |why: String| Obstacle::Blocked { why, hint: None };
        let waits = |stage, trouble: &PodTrouble| {
            let why = trouble.to_string();
            Seen::Not { stage, why: Some(format!("waits: {why}")), otherwise: blocked(why) }
        };
        match trouble(&instance.pod) {
            // The Deployment puts another in its place.
            Some(trouble) if trouble.is_passing() => waits(Stage::Pending, &trouble),
            Some(trouble @ PodTrouble::Unschedulable { .. }) => waits(Stage::Pending, &trouble),
            Some(trouble @ PodTrouble::ImagePull { .. }) => match &trouble {
                PodTrouble::ImagePull { reason, .. } if reason == "InvalidImageName" => {
                    Seen::Over(blocked(trouble.to_string()))
                }
                _ => waits(Stage::Refused, &trouble),
            },
            Some(trouble @ PodTrouble::NotStarted { .. }) => waits(Stage::Refused, &trouble),
            Some(trouble @ (PodTrouble::OutOfMemory { .. } | PodTrouble::DeadlineExceeded)) => {
                Seen::Over(blocked(trouble.to_string()))
            }
            Some(PodTrouble::CrashLoop { .. }) => Seen::Over(crashed(instance)),
            // The first time it is started again at once; who waits should know.
            Some(PodTrouble::Exited { .. }) if restarts == 0 => {
                let why = format!("{}, and is started again", crashed(instance));
                Seen::Not { stage: Stage::Running, why: Some(why), otherwise: crashed(instance) }
            }
            Some(PodTrouble::Evicted { .. } | PodTrouble::Disrupted { .. } | PodTrouble::Exited { .. }) => {
                Seen::Over(crashed(instance))
            }
            None if restarts > 1 => Seen::Over(crashed(instance)),
            None if instance.is_ready() => Seen::Ready,
            None if instance.running_since().is_some() => running(instance, self.port, self.ready_timeout),
            None => {
                let otherwise = Obstacle::NeverRan { within: self.policy.pending };
                Seen::Not { stage: Stage::Pending, why: None, otherwise }
            }
        }
    }

    /// Pods that cannot even be made: a quota, a limit range, Pod Security.
    fn refusal(&mut self, deployments: &[Deployment]) -> Option<(InstanceName, Obstacle)> {
        for process_type in self.wanted.keys().cloned().collect::<Vec<_>>() {
            let Some(why) = of_type(deployments, &process_type).and_then(refusal) else {
                self.since.remove(&(process_type.to_string(), Stage::Refused));
                continue;
            };
            let key = (process_type.to_string(), Stage::Refused);
            let since = *self.since.entry(key).or_insert_with(Instant::now);
            let instance = InstanceName { process_type, number: 1 };
            if since.elapsed() >= self.policy.refused {
                let hint = hint(&why);
                return Some((instance, Obstacle::Blocked { why, hint }));
            }
            self.tell(&instance, format!("waits: {why}"));
        }
        None
    }

    /// No instance more became ready for longer than one may take in all.
    fn standstill(&self) -> Option<(InstanceName, Obstacle)> {
        let within = self.policy.pending + self.ready_timeout + self.policy.minimum_ready;
        if self.progress.elapsed() < within {
            return None;
        }
        let lacks =
            |(name, wanted): &(&ProcessType, &u32)| self.ready.get(*name).copied().unwrap_or(0) < **wanted;
        let (process_type, _) = self.wanted.iter().find(lacks).or_else(|| self.wanted.iter().next())?;
        warn!(app = %self.app, "a rollout does not get on");
        Some((InstanceName { process_type: process_type.clone(), number: 1 }, Obstacle::NeverRan { within }))
    }
}

fn running(instance: &Instance, port: u16, within: Duration) -> Seen {
    let (why, otherwise) = if instance.name.process_type == ProcessType::web() {
        let why = format!("does not take connections on port {port} yet");
        (Some(why), Obstacle::NeverListened { port, within })
    } else {
        (None, Obstacle::NeverRan { within })
    };
    Seen::Not { stage: Stage::Running, why, otherwise }
}

fn crashed(instance: &Instance) -> Obstacle {
    let Some(ended) = instance.ended() else {
        return Obstacle::Crashed { how: "an error".to_owned(), after: Duration::ZERO };
    };
    // Of what could not be started, the beginning is that of time.
    let began = ended.started_at.as_ref().filter(|began| began.0 > jiff::Timestamp::UNIX_EPOCH);
    let times = began.zip(ended.finished_at.as_ref());
    let after = times.and_then(|(from, to)| Duration::try_from(to.0.duration_since(from.0)).ok());
    Obstacle::Crashed { how: how(ended), after: after.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::pods::instances;
    use super::super::pods::tests::{container, pod};
    use super::*;

    const MADE: &str = "2026-01-01T00:00:00Z";

    /// What a look shows at a pod that was first seen with so many restarts.
    fn seen_after(before: u32, status: &Value) -> Seen {
        let instance = instances(vec![pod("a", MADE, status)]).remove(0);
        let watch = Watch {
            policy: Policy::default(),
            ready_timeout: Duration::from_mins(1),
            port: 5000,
            app: &"hello".parse().unwrap(),
            events: &tokio::sync::mpsc::unbounded_channel().0,
            wanted: BTreeMap::new(),
            ready: BTreeMap::new(),
            since: BTreeMap::new(),
            restarts: [("a".to_owned(), before)].into(),
            is_first: false,
            progress: Instant::now(),
            told: BTreeSet::new(),
        };
        watch.look(&instance)
    }

    fn seen(status: &Value) -> Seen {
        seen_after(0, status)
    }

    #[test]
    fn a_pod_that_was_started_again_before_is_judged_by_what_it_does_now() {
        let ended = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        let running = json!({"running": {"startedAt": MADE}});
        let mut ready = container(&running, &ended, 7);
        ready["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(seen_after(7, &ready), Seen::Ready);
        assert_eq!(seen_after(6, &ready), Seen::Ready, "once is no failure");
        assert!(matches!(seen_after(5, &ready), Seen::Over(_)));
        let over = container(&ended, &json!({}), 7);
        assert!(matches!(seen_after(7, &over), Seen::Not { stage: Stage::Running, .. }));
        assert!(matches!(seen_after(6, &over), Seen::Over(_)));
    }

    #[test]
    fn ending_once_is_told_and_ending_again_is_the_end() {
        let ended = json!({"terminated": {"exitCode": 3, "reason": "Error",
            "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:02Z"}});
        let Seen::Not { why: Some(why), .. } = seen(&container(&ended, &json!({}), 0)) else {
            panic!("once")
        };
        assert_eq!(why, "ended with exit status 3 after 2.0s, and is started again");
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let Seen::Over(obstacle) = seen(&container(&waiting, &ended, 1)) else { panic!("again") };
        assert_eq!(obstacle.to_string(), "ended with exit status 3 after 2.0s");
        // What could not be started has no beginning.
        let never = json!({"terminated": {"exitCode": 128, "reason": "StartError",
            "startedAt": "1970-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:02Z"}});
        let Seen::Over(obstacle) = seen(&container(&waiting, &never, 1)) else { panic!("never") };
        assert!(obstacle.to_string().ends_with("after 0.0s"), "{obstacle}");
        let running = json!({"running": {"startedAt": MADE}});
        assert!(matches!(seen(&container(&running, &ended, 1)), Seen::Not { stage: Stage::Running, .. }));
        assert!(matches!(seen(&container(&running, &ended, 2)), Seen::Over(_)));
    }

    #[test]
    fn what_keeps_a_pod_from_starting_is_told_with_the_clusters_words() {
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}});
        let Seen::Not { stage, why, otherwise } = seen(&container(&waiting, &json!({}), 0)) else { panic!() };
        assert_eq!(stage, Stage::Refused);
        assert_eq!(why.unwrap(), "waits: the image i cannot be pulled (ImagePullBackOff): not found");
        assert_eq!(
            otherwise.to_string(),
            "cannot run: the image i cannot be pulled (ImagePullBackOff): not found"
        );
        let unscheduled = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/2 nodes are available"}]});
        assert!(matches!(seen(&unscheduled), Seen::Not { stage: Stage::Pending, why: Some(_), .. }));
    }
}
