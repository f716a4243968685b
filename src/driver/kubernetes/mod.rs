//! Builds as Jobs of a cluster: one for each platform, on a node of its architecture.
//!
//! What a Job needs is in the registry, and so is what it leaves: the source by its digest, the result by the Job's
//! name and what it was asked for. So whoever comes later finds a build at work or finished, and nothing is kept here; what
//! another build of the same name left, of an app that is gone, is nobody's. One Job is one attempt; another is made only
//! for what the cluster did to the one before.

mod asking;
mod config;
mod follow;
mod job;
mod logs;
mod nodes;
mod queue;
mod ticket;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use tokio::sync::{OnceCell, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use config::{CaBundle, JobConfig, MAX_INLINE_BUNDLE_BYTES, RegistryNames};
pub use job::GRACE_SECONDS;
pub use ticket::{TICKET_RENEWAL, TICKET_SUM, TICKET_USED, Ticket};

use crate::build::{
    BuildEvent, BuildFailure, BuildRequest, Builders, Driver, PushedSource, QueueGauges, SourceOptions,
    StepFailure, another_attempt, find_report, push_source,
};
use crate::kubernetes::{Cluster, Label, managed_by, patiently};
use crate::model::PlatformImage;
use crate::oci::{Digest, Platform, Repository, Target};
use crate::registry::client::Client;
use follow::{Attempt, Ended, api};
use job::{BuildJob, architecture, repository_of};
use queue::{Queue, Turn};

/// How many Jobs a build may take, all but the first for what the cluster did.
const ATTEMPTS: u32 = 3;

/// How long another build's Job may take to go, and how often is looked whether it has.
const REMOVAL_LIMIT: Duration = Duration::from_secs(60);
const REMOVAL_INTERVAL: Duration = Duration::from_millis(200);

/// How often is looked whether other servers' Jobs leave room.
const OTHERS_INTERVAL: Duration = Duration::from_secs(2);

/// Runs a Job for each build.
#[derive(Debug, Clone)]
pub struct KubernetesDriver {
    cluster: Cluster,
    client: Client,
    config: Arc<JobConfig>,
    queue: Queue,
    gauges: QueueGauges,
    /// Sources that are being pushed: the platforms of a build share one.
    sources: Arc<Mutex<HashMap<SourceKey, Weak<OnceCell<PushedSource>>>>>,
    /// What is to be forgotten.
    left: Arc<Mutex<BTreeSet<(Repository, Digest)>>>,
}

type SourceKey = (Repository, PathBuf, PathBuf);

impl KubernetesDriver {
    /// A driver for a cluster, which reaches registries as `client` may.
    #[must_use]
    pub fn new(cluster: Cluster, client: Client, config: JobConfig) -> Self {
        let queue = Queue::new(config.parallel_per_architecture);
        Self {
            cluster,
            client,
            config: Arc::new(config),
            queue,
            gauges: QueueGauges::default(),
            sources: Arc::default(),
            left: Arc::default(),
        }
    }

    /// How many builds it has under way, and how many wait.
    #[must_use]
    pub const fn gauges(&self) -> &QueueGauges {
        &self.gauges
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client(), &self.config.namespace)
    }

    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.cluster.client(), &self.config.namespace)
    }

    /// The names of the nodes that take builds now, by what they run natively; none if we may not list nodes.
    pub async fn nodes(&self) -> Result<Option<BTreeMap<Platform, Vec<String>>>, BuildFailure> {
        match self.list_nodes().await {
            Ok(nodes) => Ok(Some(nodes)),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            Err(error) => Err(api("list its nodes", &error)),
        }
    }

    async fn list_nodes(&self) -> Result<BTreeMap<Platform, Vec<String>>, kube::Error> {
        let nodes: Api<Node> = Api::all(self.cluster.client());
        let params = ListParams::default();
        let nodes = patiently(|| nodes.list(&params)).await?;
        Ok(nodes::by_platform(&nodes.items, &self.config))
    }

    /// Removes the sources and results of the builds so far from their repositories, if they are for nobody else.
    ///
    /// Where a registry does not let us, they stay.
    pub async fn forget(&self) {
        let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        let removed = left.iter().map(async |(repository, digest)| {
            let removed = self.client.delete_manifest(repository, &Target::Digest(*digest)).await;
            if let Err(error) = removed {
                tracing::debug!(%repository, %digest, %error, "what a build left stays");
            }
        });
        futures::future::join_all(removed).await;
    }

    /// Notes what is to be forgotten.
    fn leaves(&self, repository: &Repository, digest: Digest) {
        if self.config.is_forgotten {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            left.insert((repository.clone(), digest));
        }
    }

    /// The source of a request in the registry, pushed once for all platforms.
    async fn source(&self, request: &BuildRequest) -> Result<PushedSource, BuildFailure> {
        let repository = repository_of(request)?;
        let key = (repository.clone(), request.context.clone(), request.dockerfile.clone());
        let cell = {
            let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.retain(|_, cell| cell.strong_count() > 0);
            let cell = sources.get(&key).and_then(Weak::upgrade).unwrap_or_default();
            sources.insert(key, Arc::downgrade(&cell));
            cell
        };
        let (client, repository) = (self.client.clone(), repository.clone());
        let options = SourceOptions {
            epoch: request.source_date_epoch,
            spool: self.config.spool.clone(),
            owner: self.config.is_forgotten.then(|| request.name.clone()),
        };
        let (context, dockerfile) = (request.context.clone(), request.dockerfile.clone());
        let push = async move || push_source(&client, &repository, (&context, &dockerfile), &options).await;
        let source = cell.get_or_try_init(push).await.cloned()?;
        self.leaves(repository_of(request)?, source.digest);
        Ok(source)
    }

    async fn attempt(
        &self,
        (job, number): (&BuildJob, u32),
        request: &BuildRequest,
        events: &mpsc::Sender<BuildEvent>,
        cancel: &CancellationToken,
    ) -> Result<Ended, BuildFailure> {
        let mut attempt = Attempt::new(self, (job, number), request.limits.time, events)?;
        if let Some(ended) = attempt.replay().await? {
            return Ok(ended);
        }
        let architecture = architecture(&job.machine);
        let (name, jobs) = (job.name_of(number), self.jobs());
        let mut found = patiently(|| jobs.get_opt(&name)).await.map_err(|error| api("read a Job", &error))?;
        if let Some(other) = found.take_if(|found| !job.is_its_own(number, found)) {
            self.remove(&other).await?;
        }
        let (turn, created) = match found {
            Some(found) => {
                let created = found.metadata.creation_timestamp.map(|time| time.0);
                (self.queue.take_over(&architecture, &job.owner), created)
            }
            None => {
                let turn = self.queue.enter(&architecture, &job.owner);
                let waiting = self.gauges.waits(&job.machine);
                let free = async {
                    self.wait(&turn, &architecture, events).await;
                    self.wait_for_others(&architecture, events).await
                };
                cancel.run_until_cancelled(free).await.ok_or(BuildFailure::Cancelled)??;
                drop(waiting);
                self.create(job, number).await?;
                let _gone = events.send(BuildEvent::Begun).await;
                (turn, None)
            }
        };
        let _running = self.gauges.runs(&job.machine);
        let ended = attempt.follow(created, cancel).await;
        drop(turn);
        ended
    }

    /// The attempt that a server before this one has come to: the last of which there is a Job or a result.
    ///
    /// The Jobs of those before it are deleted when they are lost, so the first is no sign that there is no other.
    async fn begun(&self, job: &BuildJob) -> Result<u32, BuildFailure> {
        let jobs = self.jobs();
        for number in (2..=ATTEMPTS).rev() {
            let name = job.name_of(number);
            let found = patiently(|| jobs.get_opt(&name)).await.map_err(|error| api("read a Job", &error))?;
            if found.is_some_and(|found| job.is_its_own(number, &found))
                || self.has_report(job, number).await?
            {
                return Ok(number);
            }
        }
        Ok(1)
    }

    /// A registry that does not answer is no reason: what has a result and no Job is not at work.
    async fn has_report(&self, job: &BuildJob, number: u32) -> Result<bool, BuildFailure> {
        let report = job.report(number)?;
        Ok(matches!(find_report(&self.client, &report).await, Ok(Some(_))))
    }

    /// Waits until the build may run, and says what it waits for.
    async fn wait(&self, turn: &Turn, architecture: &str, events: &mpsc::Sender<BuildEvent>) {
        let mut known = None;
        while let Some(ahead) = turn.place(known).await {
            known = Some(ahead);
            let place = ahead + 1;
            let limit = self.queue.limit();
            let text =
                format!("waiting: number {place} in the row; {limit} builds for {architecture} run at once");
            let _gone = events.send(BuildEvent::Note { text }).await;
        }
    }

    /// Waits until other servers' Jobs leave room for one more: the limit is the cluster's, and the row is this process'.
    ///
    /// Two that look at the same moment may both find room. Of two servers that wait, one is as likely to be next as the
    /// other; within each the owners come in turn.
    async fn wait_for_others(
        &self,
        architecture: &str,
        events: &mpsc::Sender<BuildEvent>,
    ) -> Result<(), BuildFailure> {
        let (jobs, limit) = (self.jobs(), self.queue.limit());
        let ours: Vec<String> = managed_by(&[(Label::Machine, architecture)])
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let params = ListParams::default().labels(&ours.join(","));
        let mut is_told = false;
        loop {
            let running = match patiently(|| jobs.list(&params)).await {
                Ok(jobs) => jobs.items.iter().filter(|job| !job::is_over(job)).count(),
                // Whoever may not list Jobs has none but its own.
                Err(kube::Error::Api(status)) if status.code == 403 => return Ok(()),
                Err(error) => return Err(api("list its Jobs", &error)),
            };
            if running < limit {
                return Ok(());
            }
            if !std::mem::replace(&mut is_told, true) {
                let text = format!("waiting: {running} builds for {architecture} run; {limit} do at once");
                let _gone = events.send(BuildEvent::Note { text }).await;
            }
            tokio::time::sleep(OTHERS_INTERVAL.mul_f64(rand::random_range(0.5..1.5))).await;
        }
    }

    /// Removes another build's Job of the same name, with its pods: mostly that of an app which is gone and had this one's name.
    async fn remove(&self, other: &Job) -> Result<(), BuildFailure> {
        let (jobs, name) = (self.jobs(), other.metadata.name.clone().unwrap_or_default());
        tracing::info!(job = %name, "another build's Job of this name is removed");
        let params = DeleteParams::foreground();
        match patiently(|| jobs.delete(&name, &params)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(api("remove another build's Job", &error)),
        }
        let deadline = Instant::now() + REMOVAL_LIMIT;
        while patiently(|| jobs.get_opt(&name)).await.map_err(|error| api("read a Job", &error))?.is_some() {
            if Instant::now() > deadline {
                let hint = format!("kubectl -n {} delete job {name}", self.config.namespace);
                return Err(BuildFailure::Platform(StepFailure {
                    hint: Some(hint),
                    ..StepFailure::new(format!(
                        "the Job `{name}`, which another build left, does not go away"
                    ))
                }));
            }
            tokio::time::sleep(REMOVAL_INTERVAL).await;
        }
        Ok(())
    }

    /// Makes an attempt's Job, if there is none: another server, or a call whose answer was lost, may just have made it.
    async fn create(&self, job: &BuildJob, number: u32) -> Result<(), BuildFailure> {
        let rendered = job.render(&self.config, number)?;
        let (jobs, params) = (self.jobs(), PostParams::default());
        match patiently(|| jobs.create(&params, &rendered)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(api("make the build's Job", &error)),
        }
    }
}

#[async_trait]
impl Driver for KubernetesDriver {
    fn builders(&self) -> Builders {
        Builders::Nodes
    }

    async fn platforms(&self) -> Result<Vec<Platform>, BuildFailure> {
        let nodes = self.list_nodes().await.map_err(|error| api("list its nodes", &error))?;
        Ok(nodes.into_keys().collect())
    }

    async fn build(
        &self,
        request: &BuildRequest,
        events: mpsc::Sender<BuildEvent>,
        cancel: CancellationToken,
    ) -> Result<PlatformImage, BuildFailure> {
        let source = Box::pin(cancel.run_until_cancelled(self.source(request))).await;
        let source = source.ok_or(BuildFailure::Cancelled)??;
        let job = BuildJob::new(&self.config, request, &source)?;
        let mut reasons = Vec::new();
        for number in self.begun(&job).await?..=ATTEMPTS {
            match Box::pin(self.attempt((&job, number), request, &events, &cancel)).await? {
                Ended::Over(result) => return result,
                Ended::Again(reason) => {
                    tracing::warn!(job = %job.name_of(number), reason = %reason, "a build's pod was lost");
                    if number < ATTEMPTS {
                        let text = another_attempt(&reason, number + 1, ATTEMPTS);
                        let _gone = events.send(BuildEvent::Note { text }).await;
                    }
                    reasons.push(reason);
                }
            }
        }
        Err(BuildFailure::Platform(StepFailure {
            cause: reasons,
            hint: Some(
                "The cluster took every pod of this build away: push again when it is at rest.".to_owned(),
            ),
            ..StepFailure::new(format!("the build was lost {ATTEMPTS} times"))
        }))
    }
}
