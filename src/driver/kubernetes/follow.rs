//! One attempt: from the Job's first pod to the result in the registry.

use std::collections::VecDeque;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PropagationPolicy};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::KubernetesDriver;
use super::asking::{Asked, Asking};
use super::job::BuildJob;
use super::logs::{Log, Said};
use super::verdict::{Verdict, has_begun, has_ended, is_refused, judge};
use crate::build::{BuildEvent, BuildFailure, NumberedEvent, Outcome, Report, StepFailure};
use crate::kubernetes::{once, patiently};
use crate::model::PlatformImage;

/// How often what does not come by itself is looked at.
pub(super) const TICK: Duration = Duration::from_millis(200);
/// How long a pod may be there without running before the pusher is told why.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a result may be on its way when its engine has ended.
const RESULT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a Job may be without a pod before it is asked why.
const POD_PATIENCE: Duration = Duration::from_secs(5);
/// How long a Job may be without a pod before that is the end.
const POD_LIMIT: Duration = Duration::from_secs(90);
/// How long is waited for a cancelled build's processes.
const CANCEL_LIMIT: Duration = Duration::from_millis(1700);

/// How an attempt ended.
pub(super) enum Ended {
    /// With an image or a failure.
    Over(Result<PlatformImage, BuildFailure>),
    /// For a reason that may not be there the next time.
    Again(String),
}

/// An attempt that is followed.
pub(super) struct Attempt<'a> {
    driver: &'a KubernetesDriver,
    job: &'a BuildJob,
    name: String,
    asking: Asking,
    time_limit: Duration,
    events: &'a mpsc::Sender<BuildEvent>,
    pods: Api<Pod>,
    jobs: Api<Job>,
    /// When the Job was made, as far as we know.
    since: Instant,
    /// When this began to look.
    looked: Instant,
    /// Since when the pod's image or container is refused.
    refused: Option<Instant>,
    pod: Option<Pod>,
    had_pod: bool,
    /// Whether the pod was in the list that is being read.
    is_listed: bool,
    log: Option<Log>,
    /// The number of the last event that was told.
    last: u64,
    /// Events of the log are missing: the rest is told when the whole log is there.
    is_gapped: bool,
    /// Since when the result should be there.
    due: Option<Instant>,
    told: VecDeque<String>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        driver: &'a KubernetesDriver,
        (job, number): (&'a BuildJob, u32),
        time_limit: Duration,
        events: &'a mpsc::Sender<BuildEvent>,
    ) -> Result<Self, BuildFailure> {
        Ok(Self {
            name: job.name_of(number),
            asking: Asking::new(job.report(number)?),
            pods: driver.pods(),
            jobs: driver.jobs(),
            driver,
            job,
            time_limit,
            events,
            since: Instant::now(),
            looked: Instant::now(),
            refused: None,
            pod: None,
            had_pod: false,
            is_listed: false,
            log: None,
            last: 0,
            is_gapped: false,
            due: None,
            told: VecDeque::new(),
        })
    }

    /// How it ended, if it has left a result already, with all its events.
    pub(super) async fn replay(&mut self) -> Result<Option<Ended>, BuildFailure> {
        loop {
            match self.asked().await? {
                Asked::Found(report) => return Ok(Some(self.conclude(*report).await)),
                Asked::None => return Ok(None),
                Asked::Later => tokio::time::sleep(TICK).await,
            }
        }
    }

    /// Follows the Job to its end; `created` is when it was made, where this process did not make it just now.
    pub(super) async fn follow(
        mut self,
        created: Option<Timestamp>,
        cancel: &CancellationToken,
    ) -> Result<Ended, BuildFailure> {
        // By two clocks, which may differ: what seems to be made later than now is new.
        let age =
            created.and_then(|created| Duration::try_from(Timestamp::now().duration_since(created)).ok());
        self.looked = Instant::now();
        self.since = self.looked.checked_sub(age.unwrap_or_default()).unwrap_or(self.looked);
        let ended = self.followed(cancel).await;
        if ended.is_err() {
            // Nobody follows it any more, so it is not to take a place.
            self.delete().await;
        }
        ended
    }

    async fn followed(&mut self, cancel: &CancellationToken) -> Result<Ended, BuildFailure> {
        let config = watcher::Config::default().labels(&format!("job-name={}", self.name));
        let mut pods = watcher(self.pods.clone(), config).default_backoff().boxed();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    self.cancel().await;
                    return Ok(Ended::Over(Err(BuildFailure::Cancelled)));
                }
                change = pods.next() => self.pod_changed(change)?,
                said = said(&mut self.log) => self.say(said).await,
                _ = tick.tick() => {
                    if let Some(ended) = self.look().await? {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    fn pod_changed(
        &mut self,
        change: Option<Result<watcher::Event<Pod>, watcher::Error>>,
    ) -> Result<(), BuildFailure> {
        match change {
            Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => {
                if self.log.is_none() && has_begun(&pod) {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    self.log = Some(Log::follow(self.pods.clone(), name, self.last));
                }
                (self.had_pod, self.is_listed) = (true, true);
                self.pod = Some(pod);
            }
            Some(Ok(watcher::Event::Init)) => self.is_listed = false,
            Some(Ok(watcher::Event::InitDone)) if self.is_listed => {}
            // What is not listed any more is gone.
            Some(Ok(watcher::Event::InitDone | watcher::Event::Delete(_))) => self.pod = None,
            Some(Err(error)) => {
                let text = crate::build::chain(&error).join(": ");
                if is_forbidden(&error) {
                    return Err(BuildFailure::platform("may not watch the pods of builds", &error));
                }
                tracing::warn!(job = %self.name, error = %text, "the pods of a build cannot be watched");
            }
            None => {}
        }
        Ok(())
    }

    async fn say(&mut self, said: Said) {
        match said {
            Said::Event(NumberedEvent { number, event }) => {
                if matches!(event, BuildEvent::Finished { .. } | BuildEvent::Failed { .. }) {
                    self.due.get_or_insert_with(Instant::now);
                }
                if number != self.last + 1 {
                    self.is_gapped = true;
                }
                if !self.is_gapped && number == self.last + 1 {
                    self.last = number;
                    self.tell(event).await;
                }
            }
            Said::Forbidden => {
                self.is_gapped = true;
                self.note(
                    "the build's lines come when it has ended: to see them before takes `get` on `pods/log`"
                        .to_owned(),
                )
                .await;
            }
        }
    }

    async fn tell(&self, event: BuildEvent) {
        let event = match event {
            BuildEvent::Failed { failure } => match *failure {
                // Nobody here asked for it: another attempt follows.
                BuildFailure::Cancelled => return,
                failure => BuildEvent::Failed { failure: Box::new(self.with_limit(failure)) },
            },
            event => event,
        };
        // Whoever listened has gone: the build has not.
        let _gone = self.events.send(event).await;
    }

    /// Tells a line, once.
    async fn note(&mut self, text: String) {
        if self.told.contains(&text) {
            return;
        }
        if self.told.len() == 16 {
            self.told.pop_front();
        }
        self.told.push_back(text.clone());
        self.tell(BuildEvent::Note { text }).await;
    }

    /// Looks at what does not come by itself.
    async fn look(&mut self) -> Result<Option<Ended>, BuildFailure> {
        if self.pod.as_ref().is_some_and(has_ended) || (self.had_pod && self.pod.is_none()) {
            self.due.get_or_insert_with(Instant::now);
        }
        if let Some(due) = self.due {
            match self.asked().await? {
                Asked::Found(report) => return Ok(Some(self.conclude(*report).await)),
                Asked::Later => return Ok(None),
                Asked::None if due.elapsed() < RESULT_PATIENCE => return Ok(None),
                Asked::None => {}
            }
        }
        let age = self.since.elapsed();
        let Some(pod) = &self.pod else { return self.without_pod(age).await };
        let refused = if is_refused(pod) {
            self.refused.get_or_insert_with(Instant::now).elapsed()
        } else {
            self.refused = None;
            Duration::ZERO
        };
        match judge(pod, (age, refused), &self.job.machine, self.time_limit, &self.driver.config) {
            Verdict::Wait(None) => Ok(None),
            Verdict::Wait(Some(reason)) => {
                if age >= SILENCE {
                    self.note(format!("waiting: {reason}")).await;
                }
                Ok(None)
            }
            // It may still leave its result; when its node is lost, it will not.
            Verdict::Again(_) if self.due.is_none() => {
                self.due = Some(Instant::now());
                Ok(None)
            }
            Verdict::Again(reason) => self.again(reason).await.map(Some),
            Verdict::Failed(failure) if has_ended(pod) => Ok(Some(self.failed(failure).await)),
            Verdict::Failed(failure) => {
                self.delete().await;
                Ok(Some(self.failed(failure).await))
            }
        }
    }

    async fn failed(&self, failure: BuildFailure) -> Ended {
        self.tell(BuildEvent::Failed { failure: Box::new(failure.clone()) }).await;
        Ended::Over(Err(failure))
    }

    /// What is the matter when there is no pod.
    async fn without_pod(&mut self, age: Duration) -> Result<Option<Ended>, BuildFailure> {
        if self.had_pod {
            return self.again("the pod is gone".to_owned()).await.map(Some);
        }
        if age < POD_PATIENCE {
            return Ok(None);
        }
        let Some(job) =
            patiently(|| self.jobs.get_opt(&self.name)).await.map_err(|error| api("read a Job", &error))?
        else {
            // Deleted, and not by us: somebody else ended the build.
            return Ok(Some(Ended::Over(Err(BuildFailure::Cancelled))));
        };
        let has_failed = job.status.and_then(|status| status.failed).unwrap_or_default() > 0;
        if has_failed {
            return self.again("the Job's pod was gone before anybody saw it".to_owned()).await.map(Some);
        }
        let why = self.why_no_pod().await;
        if let Some(why) = &why {
            self.note(format!("waiting: no pod is made: {why}")).await;
        }
        // Not by its age: a Job that is found may have been suspended, or its controller away.
        if self.looked.elapsed() < POD_LIMIT {
            return Ok(None);
        }
        self.delete().await;
        let failure = BuildFailure::Platform(StepFailure {
            cause: why.into_iter().collect(),
            hint: Some(format!("kubectl -n {} describe job {}", self.driver.config.namespace, self.name)),
            ..StepFailure::new("the cluster made no pod for the build")
        });
        Ok(Some(self.failed(failure).await))
    }

    /// What the controller of Jobs says, if we may read it.
    async fn why_no_pod(&self) -> Option<String> {
        let events: Api<Event> = Api::namespaced(self.driver.cluster.client(), &self.driver.config.namespace);
        let parameters =
            ListParams::default().fields(&format!("involvedObject.name={},type=Warning", self.name));
        once(events.list(&parameters))
            .await
            .ok()?
            .items
            .into_iter()
            .filter_map(|event| event.message)
            .next_back()
    }

    async fn again(&mut self, reason: String) -> Result<Ended, BuildFailure> {
        // On a node that does not answer it may still be at work.
        self.delete().await;
        Ok(Ended::Again(reason))
    }

    async fn asked(&mut self) -> Result<Asked, BuildFailure> {
        self.asking.ask(self.driver, &self.name).await
    }

    /// Tells the events that were not told, and what came of it.
    async fn conclude(&mut self, report: Report) -> Ended {
        self.drain().await;
        let is_complete = !self.is_gapped && self.due.is_some() && self.log_has_ended();
        if !is_complete {
            match report.events(&self.driver.client).await {
                Ok(events) => {
                    for event in events.into_iter().skip(usize::try_from(self.last).unwrap_or(usize::MAX)) {
                        self.tell(event).await;
                    }
                }
                // What came of the build is known all the same.
                Err(error) => {
                    let why = crate::build::chain(&error).join(": ");
                    self.note(format!("the rest of the build's lines cannot be read: {why}")).await;
                }
            }
        }
        match report.result.outcome {
            Outcome::Built { image, .. } => Ended::Over(Ok(image)),
            // Nobody here asked for it: the pod was told to end.
            Outcome::Failed(BuildFailure::Cancelled) => match &self.pod {
                Some(pod) => {
                    match judge(
                        pod,
                        (Duration::ZERO, Duration::ZERO),
                        &self.job.machine,
                        self.time_limit,
                        &self.driver.config,
                    ) {
                        Verdict::Again(reason) => Ended::Again(reason),
                        Verdict::Failed(failure) if !matches!(failure, BuildFailure::Platform(_)) => {
                            Ended::Over(Err(failure))
                        }
                        _ => Ended::Again("the pod was told to end".to_owned()),
                    }
                }
                None => Ended::Again("the pod was told to end".to_owned()),
            },
            Outcome::Failed(failure) => Ended::Over(Err(self.with_limit(failure))),
        }
    }

    /// Takes what the log has said already.
    async fn drain(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        while !self.is_gapped && !self.log_has_ended() && self.log.is_some() {
            match tokio::time::timeout_at(deadline, said(&mut self.log)).await {
                Ok(event) => self.say(event).await,
                Err(_) => return,
            }
        }
    }

    /// Whether the log is read to its end: its reader is gone, and nothing it said is left.
    fn log_has_ended(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.said.is_closed() && log.said.is_empty())
    }

    /// Names the limit where a command was killed, most likely for it.
    fn with_limit(&self, failure: BuildFailure) -> BuildFailure {
        let limits = self.driver.config.resources.limits.as_ref();
        match (failure, limits.and_then(|limits| limits.get("memory"))) {
            // Where the engine itself cannot tell why.
            (BuildFailure::App(step), Some(limit))
                if step.hint.as_ref().is_some_and(|hint| hint.starts_with("Status 137")) =>
            {
                let hint =
                    format!("Status 137: the command was killed; the build may use {} of memory.", limit.0);
                BuildFailure::App(StepFailure { hint: Some(hint), ..step })
            }
            (failure, _) => failure,
        }
    }

    /// Ends the Job with its pod, and waits a moment for that.
    async fn cancel(&mut self) {
        let deadline = Instant::now() + CANCEL_LIMIT;
        self.delete().await;
        let Some(name) = self.pod.as_ref().and_then(|pod| pod.metadata.name.clone()) else { return };
        let gone = async {
            while let Ok(Some(pod)) = once(self.pods.get_opt(&name)).await {
                if has_ended(&pod) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // The kubelet ends it in any case.
        drop(tokio::time::timeout_at(deadline, gone).await);
    }

    async fn delete(&self) {
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match patiently(|| self.jobs.delete(&self.name, &parameters)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => tracing::warn!(job = %self.name, error = %error, "a build's Job cannot be deleted"),
        }
    }
}

/// Whether a watch cannot be had because our account may not.
fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

/// What the API server would not do.
pub(super) fn api(what: &str, error: &kube::Error) -> BuildFailure {
    BuildFailure::platform(format!("the cluster failed to {what}"), error)
}

/// The next thing that the log says; never, if there is no log, or nothing more in it.
async fn said(log: &mut Option<Log>) -> Said {
    if let Some(log) = log
        && let Some(said) = log.said.recv().await
    {
        return said;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn only_a_refusal_is_one_and_not_a_version_that_has_its_digits() {
        let status = |code: u16, text: &str| Box::new(Status::failure(text, "reason").with_code(code));
        let gone = status(410, "too old resource version: 1403977 (1412250)");
        assert!(!is_forbidden(&watcher::Error::WatchError(gone)));
        let refused = kube::Error::Api(status(403, "pods is forbidden"));
        assert!(is_forbidden(&watcher::Error::InitialListFailed(refused)));
    }
}
