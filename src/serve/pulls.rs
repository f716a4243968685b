//! Whether the nodes' kubelets can pull what is published: tried, for each architecture, before an installation ends.
//!
//! An image of a few bytes is published where those of the apps are, and a pod on a node of each architecture names it as an
//! app's pod would: the same name of the registry, the same namespace, the same Secret. There is no program in the image. That
//! the pod does not start then says that the kubelet had it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, LocalObjectReference, Pod, PodSecurityContext, PodSpec, ResourceRequirements,
    SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::build::{BuildFailure, Driver};
use crate::kubernetes::{PodTrouble, managed_by, patiently, trouble};
use crate::model::Chain;
use crate::oci::{Descriptor, Digest, ImageConfig, Index, Manifest, MediaType, Platform, RawManifest};
use crate::oci::{Repository, Target};
use crate::registry::client::{BlobSource, Client, ClientError};

/// The path at which is told how it went.
pub const PATH: &str = "/pulls";
/// Where the image is, beside the apps' repositories: no app has a slash in its name.
pub(super) const REPOSITORY: &str = "hephy/pull-check";
/// How often the pods are looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a pod is there at most, for the case that its server is not.
const POD_SECONDS: i64 = 900;
/// Why nothing is tried where builds, and so apps, have no node yet.
const NO_NODE: &str = "no node that takes builds is ready";
/// What marks our pods.
const LABEL: (&str, &str) = ("app.kubernetes.io/component", "pull-check");
/// A layer without files: a tar's two blocks of zeros.
const LAYER: [u8; 1024] = [0; 1024];

/// How the pulls went so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pulls {
    /// Each architecture; none while the cluster is not known.
    pub platforms: BTreeMap<Platform, Pull>,
    /// Why nothing is tried, if nothing is.
    pub untried: Option<String>,
}

/// How the pull of one platform went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// Not known yet.
    Awaited,
    /// A kubelet has it.
    Pulled {
        /// The node's name.
        node: String,
    },
    /// A kubelet does not get it; it goes on trying.
    Failing {
        /// The node's name.
        node: String,
        /// What it says.
        why: String,
    },
    /// No node takes a pod of the platform, and so none of an app.
    Nowhere {
        /// What the scheduler says.
        why: String,
    },
}

impl Pulls {
    /// Whether nothing more will change.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let settled = |pull: &Pull| matches!(pull, Pull::Pulled { .. } | Pull::Nowhere { .. });
        self.untried.is_some() || (!self.platforms.is_empty() && self.platforms.values().all(settled))
    }

    /// Whether a kubelet has said that it does not get the image.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.platforms.values().any(|pull| matches!(pull, Pull::Failing { .. }))
    }
}

/// What is pulled, by whom.
pub(super) struct PullCheck {
    /// Who builds, and so where apps run.
    pub(super) driver: Arc<dyn Driver>,
    /// Writes to the registry.
    pub(super) client: Client,
    /// Where the image is, as this process reaches it.
    pub(super) repository: Repository,
    /// The same as kubelets name it, without a digest.
    pub(super) pulled_as: String,
    /// The Secret of the namespace that kubelets pull with.
    pub(super) pull_secret: Option<String>,
    /// The pods of the apps' namespace.
    pub(super) pods: Api<Pod>,
    /// This server's, which tells its pods from another's.
    pub(super) identity: String,
}

/// Answers `GET /pulls` with what is known.
pub(super) fn router(known: watch::Receiver<Pulls>) -> Router {
    let answer = async |State(known): State<watch::Receiver<Pulls>>| Json(known.borrow().clone());
    Router::new().route(PATH, get(answer)).with_state(known)
}

/// Why it cannot be tried.
#[derive(Debug, thiserror::Error)]
enum Untried {
    #[error("the platforms of the nodes are not known: {0}")]
    Platforms(BuildFailure),
    #[error("the registry does not take the image that would be pulled")]
    Publish(#[source] ClientError),
    #[error("the pods that would pull cannot be made")]
    Pods(#[source] kube::Error),
}

impl PullCheck {
    /// Tries, until every kubelet has the image or `stop` fires.
    pub(super) async fn run(self, known: watch::Sender<Pulls>, stop: CancellationToken) {
        let tried = Box::pin(stop.run_until_cancelled(self.try_all(&known))).await;
        match tried {
            Some(Err(error)) => {
                let why = Chain(&error).to_string();
                tracing::warn!(error = why, "it is not known whether nodes can pull");
                known.send_modify(|pulls| pulls.untried = Some(why));
            }
            Some(Ok(())) => tracing::info!(pulls = ?known.borrow().platforms, "nodes can pull"),
            None => {
                // The next server has pods of its own. What is left of these ends by itself.
                let left: Vec<Platform> = known.borrow().platforms.keys().cloned().collect();
                for platform in &left {
                    self.delete(&self.name(platform)).await;
                }
            }
        }
    }

    async fn try_all(&self, known: &watch::Sender<Pulls>) -> Result<(), Untried> {
        self.remove_old().await;
        let platforms = self.platforms(known).await.map_err(Untried::Platforms)?;
        let digest = publish(&self.client, &self.repository, &platforms).await.map_err(Untried::Publish)?;
        let awaited = platforms.iter().map(|platform| (platform.clone(), Pull::Awaited));
        known.send_modify(|pulls| pulls.platforms = awaited.collect());
        for platform in &platforms {
            self.create(platform, digest).await.map_err(Untried::Pods)?;
        }
        while !known.borrow().is_settled() {
            for platform in &platforms {
                let before = known.borrow().platforms.get(platform).cloned();
                if matches!(before, Some(Pull::Pulled { .. })) {
                    continue;
                }
                let pull = self.look(platform, digest).await.map_err(Untried::Pods)?;
                if let (Pull::Failing { node, why }, false) = (&pull, before.as_ref() == Some(&pull)) {
                    tracing::warn!(%platform, node, why, "a node cannot pull");
                }
                known.send_modify(|pulls| drop(pulls.platforms.insert(platform.clone(), pull)));
            }
            tokio::time::sleep(INTERVAL).await;
        }
        for platform in &platforms {
            self.delete(&self.name(platform)).await;
        }
        Ok(())
    }

    /// Those of the nodes that take builds, once there are any.
    async fn platforms(&self, known: &watch::Sender<Pulls>) -> Result<Vec<Platform>, BuildFailure> {
        loop {
            let platforms = self.driver.platforms().await?;
            let is_without = platforms.is_empty();
            known.send_modify(|pulls| pulls.untried = is_without.then(|| NO_NODE.to_owned()));
            if !is_without {
                return Ok(platforms);
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn name(&self, platform: &Platform) -> String {
        let server = Digest::of(&self.identity).short();
        format!("hephy-pull-check-{}-{server}", platform.to_string().replace('/', "-"))
    }

    async fn create(&self, platform: &Platform, digest: Digest) -> Result<(), kube::Error> {
        let (pod, params) = (self.pod(platform, digest), PostParams::default());
        match patiently(|| self.pods.create(&params, &pod)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            created => created.map(drop),
        }
    }

    /// How the pull of a platform goes.
    async fn look(&self, platform: &Platform, digest: Digest) -> Result<Pull, kube::Error> {
        let name = self.name(platform);
        let Some(pod) = patiently(|| self.pods.get_opt(&name)).await? else {
            self.create(platform, digest).await?;
            return Ok(Pull::Awaited);
        };
        let pull = read(&pod);
        match &pull {
            Pull::Pulled { .. } => self.delete(&name).await,
            // It will not be scheduled or pull any more: the next look finds none and makes another.
            Pull::Awaited if has_ended(&pod) => self.delete(&name).await,
            _ => {}
        }
        Ok(pull)
    }

    async fn delete(&self, name: &str) {
        let deleted = self.pods.delete(name, &DeleteParams::default().grace_period(0)).await;
        if let Err(error) = deleted
            && !matches!(&error, kube::Error::Api(status) if status.code == 404)
        {
            tracing::warn!(error = %Chain(&error), "a pod that tried a pull stays");
        }
    }

    /// Removes the pods of servers that ended before they could.
    async fn remove_old(&self) {
        let params = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let Ok(pods) = self.pods.list(&params).await else { return };
        for pod in pods.items.iter().filter(|pod| has_ended(pod)) {
            self.delete(pod.metadata.name.as_deref().unwrap_or_default()).await;
        }
    }

    /// As an app's pod, but of an image without a program.
    fn pod(&self, platform: &Platform, digest: Digest) -> Pod {
        let quantities = |quantities: [(&str, &str); 2]| {
            let quantities = quantities.map(|(name, value)| (name.to_owned(), Quantity(value.to_owned())));
            Some(BTreeMap::from(quantities))
        };
        let selector = [("kubernetes.io/os", platform.os()), ("kubernetes.io/arch", platform.architecture())];
        let pull_secrets = self.pull_secret.iter().map(|name| LocalObjectReference { name: name.clone() });
        let container = Container {
            name: "pull-check".to_owned(),
            image: Some(format!("{}@{digest}", self.pulled_as)),
            // Also where an image with this digest is there already.
            image_pull_policy: Some("Always".to_owned()),
            command: Some(vec!["/nothing".to_owned()]),
            resources: Some(ResourceRequirements {
                requests: quantities([("cpu", "1m"), ("memory", "8Mi")]),
                limits: quantities([("cpu", "100m"), ("memory", "32Mi")]),
                ..ResourceRequirements::default()
            }),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
                ..SecurityContext::default()
            }),
            ..Container::default()
        };
        let mut labels = managed_by(&[]);
        labels.insert(LABEL.0.to_owned(), LABEL.1.to_owned());
        Pod {
            metadata: ObjectMeta {
                name: Some(self.name(platform)),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                active_deadline_seconds: Some(POD_SECONDS),
                automount_service_account_token: Some(false),
                containers: vec![container],
                enable_service_links: Some(false),
                image_pull_secrets: Some(pull_secrets.collect()),
                node_selector: Some(
                    selector.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect(),
                ),
                restart_policy: Some("Never".to_owned()),
                security_context: Some(PodSecurityContext {
                    run_as_non_root: Some(true),
                    run_as_user: Some(65532),
                    seccomp_profile: Some(SeccompProfile {
                        type_: "RuntimeDefault".to_owned(),
                        ..SeccompProfile::default()
                    }),
                    ..PodSecurityContext::default()
                }),
                termination_grace_period_seconds: Some(0),
                ..PodSpec::default()
            }),
            status: None,
        }
    }
}

/// What a pod says of its pull.
fn read(pod: &Pod) -> Pull {
    let node = || pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let status = pod.status.as_ref();
    let mut containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    if containers.any(|container| !container.image_id.is_empty()) {
        return Pull::Pulled { node: node() };
    }
    match trouble(pod) {
        Some(PodTrouble::ImagePull { reason, message, .. }) => {
            Pull::Failing { node: node(), why: format!("{reason}: {message}") }
        }
        Some(PodTrouble::Unschedulable { message }) => Pull::Nowhere { why: message },
        // The kubelet makes a container when it has the image.
        Some(PodTrouble::NotStarted { .. } | PodTrouble::Exited { .. }) => Pull::Pulled { node: node() },
        Some(
            PodTrouble::OutOfMemory { .. }
            | PodTrouble::Evicted { .. }
            | PodTrouble::DeadlineExceeded
            | PodTrouble::Disrupted { .. }
            | PodTrouble::CrashLoop { .. },
        )
        | None => Pull::Awaited,
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Publishes an image that no node has, for each platform, under one index.
async fn publish(
    client: &Client,
    repository: &Repository,
    platforms: &[Platform],
) -> Result<Digest, ClientError> {
    let layer = Descriptor::of(MediaType::LayerTar, &LAYER);
    client.push_blob(repository, BlobSource::bytes(LAYER.to_vec()), &[]).await?;
    let once: u64 = rand::random();
    let mut children = Vec::new();
    for platform in platforms {
        let mut config = ImageConfig::new(platform);
        config.rootfs.diff_ids.push(layer.digest);
        config.config.labels.insert("dev.hephy.pull-check".to_owned(), format!("{once:016x}"));
        let config = config.to_bytes();
        client.push_blob(repository, BlobSource::bytes(config.clone()), &[]).await?;
        let config = Descriptor::of(MediaType::ImageConfig, &config);
        let image = RawManifest::image(&Manifest::image(config, vec![layer.clone()]));
        client.push_manifest(repository, &Target::Digest(image.digest()), &image).await?;
        children.push((platform.clone(), image.descriptor()));
    }
    // Platforms of nodes are each there once, and there is one.
    let Ok(index) = Index::of_platforms(children) else { return Ok(layer.digest) };
    let index = RawManifest::index(&index);
    let digest = index.digest();
    client.push_manifest(repository, &Target::Digest(digest), &index).await?;
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pull(status: &serde_json::Value) -> Pull {
        let pod = json!({"spec": {"nodeName": "n2", "containers": []}, "status": status});
        read(&serde_json::from_value(pod).unwrap())
    }

    fn container(state: &serde_json::Value, image_id: &str) -> serde_json::Value {
        let container = json!({"name": "pull-check", "image": "i", "imageID": image_id, "ready": false,
            "restartCount": 0, "state": state});
        json!({"phase": "Pending", "containerStatuses": [container]})
    }

    #[test]
    fn a_pod_says_how_its_pull_went() {
        let node = || "n2".to_owned();
        let refused = json!({"waiting": {"reason": "ErrImagePull", "message": "connection refused"}});
        let why = "ErrImagePull: connection refused".to_owned();
        assert_eq!(pull(&container(&refused, "")), Pull::Failing { node: node(), why });
        let no_program = json!({"terminated": {"reason": "StartError", "exitCode": 128}});
        assert_eq!(pull(&container(&no_program, "r@sha256:1")), Pull::Pulled { node: node() });
        let not_made = json!({"waiting": {"reason": "CreateContainerError", "message": "no command"}});
        assert_eq!(pull(&container(&not_made, "")), Pull::Pulled { node: node() });
        let creating = json!({"waiting": {"reason": "ContainerCreating"}});
        assert_eq!(pull(&container(&creating, "")), Pull::Awaited);
        let conditions = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/2 nodes are available"}]);
        let nowhere = pull(&json!({"phase": "Pending", "conditions": conditions}));
        assert_eq!(nowhere, Pull::Nowhere { why: "0/2 nodes are available".to_owned() });
        assert_eq!(pull(&json!({"phase": "Failed", "reason": "DeadlineExceeded"})), Pull::Awaited);
    }

    #[test]
    fn nothing_changes_any_more_when_all_have_it_or_nothing_is_tried() {
        let platform: Platform = "linux/arm64".parse().unwrap();
        let of = |pull: Pull| Pulls { platforms: [(platform.clone(), pull)].into(), untried: None };
        let text = String::new;
        assert!(!Pulls::default().is_settled());
        assert!(!of(Pull::Awaited).is_settled());
        let failing = of(Pull::Failing { node: text(), why: text() });
        assert!(failing.is_failing() && !failing.is_settled());
        assert!(of(Pull::Pulled { node: text() }).is_settled());
        assert!(of(Pull::Nowhere { why: text() }).is_settled());
        assert!(Pulls { untried: Some(text()), ..Pulls::default() }.is_settled());
        let told = serde_json::to_value(&failing).unwrap();
        assert_eq!(serde_json::from_value::<Pulls>(told).unwrap(), failing);
    }
}
