//! Why a pod does not run, or ended: read from its status, and told with the limit involved.

use std::fmt;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};

/// What keeps a pod from running, or ended it from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodTrouble {
    /// No node takes it.
    Unschedulable {
        /// What the scheduler said.
        message: String,
    },
    /// The image of a container cannot be had.
    ImagePull {
        /// Which.
        image: String,
        /// `ErrImagePull`, `ImagePullBackOff`, `InvalidImageName`, …
        reason: String,
        /// What the kubelet said.
        message: String,
    },
    /// A container cannot be made: a missing Secret, a mount, the security context.
    NotStarted {
        /// `CreateContainerConfigError`, `RunContainerError`, …
        reason: String,
        /// What the kubelet said.
        message: String,
    },
    /// The kernel killed a container that used more memory than it may.
    OutOfMemory {
        /// The container's limit, `512Mi`; the node's memory where it has none.
        limit: Option<String>,
    },
    /// The node threw it out: its disk, its memory, a taint.
    Evicted {
        /// What the kubelet said, which names the resource.
        message: String,
    },
    /// It ran longer than `activeDeadlineSeconds`.
    DeadlineExceeded,
    /// It was stopped with its node or to make room, or its node would not have it.
    Disrupted {
        /// `NodeShutdown`, `Preempting`, `NodeLost`, `OutOfcpu`, `UnexpectedAdmissionError`, …
        reason: String,
        /// What was said.
        message: String,
    },
    /// A container keeps ending and is started again after a pause.
    CrashLoop {
        /// How often it was started again.
        restarts: i32,
        /// How it ended last: its exit status.
        exit_code: Option<i32>,
    },
    /// A container ended with an exit status that is not 0.
    Exited {
        /// The status.
        exit_code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
    },
}

/// What is wrong with a pod, the gravest first; `None` where nothing is (yet).
#[must_use]
pub fn trouble(pod: &Pod) -> Option<PodTrouble> {
    let status = pod.status.as_ref()?;
    let message = || status.message.clone().unwrap_or_default();
    match status.reason.as_deref() {
        Some("Evicted") => return Some(PodTrouble::Evicted { message: message() }),
        Some("DeadlineExceeded") => return Some(PodTrouble::DeadlineExceeded),
        Some(
            reason
            @ ("NodeShutdown" | "Terminated" | "Preempting" | "NodeLost" | "Shutdown" | "NodeAffinity"),
        ) => {
            return Some(PodTrouble::Disrupted { reason: reason.to_owned(), message: message() });
        }
        _ => {}
    }
    let condition = |kind: &str, value: &str| {
        let conditions = status.conditions.iter().flatten();
        conditions.into_iter().find(|condition| condition.type_ == kind && condition.status == value)
    };
    let containers = || {
        let all = [&status.init_container_statuses, &status.container_statuses];
        all.into_iter().flat_map(|statuses| statuses.iter().flatten())
    };
    if let Some(trouble) = containers().find_map(|container| of_container(pod, container)) {
        return Some(trouble);
    }
    if let Some(disruption) = condition("DisruptionTarget", "True") {
        return Some(PodTrouble::Disrupted {
            reason: disruption.reason.clone().unwrap_or_default(),
            message: disruption.message.clone().unwrap_or_default(),
        });
    }
    // A kubelet says so of a pod that it will not begin, whatever the reason: `OutOfmemory`, `OutOfpods`.
    if let (Some("Failed"), Some(reason)) = (status.phase.as_deref(), &status.reason) {
        return Some(PodTrouble::Disrupted { reason: reason.clone(), message: message() });
    }
    let unscheduled = condition("PodScheduled", "False")?;
    (unscheduled.reason.as_deref() == Some("Unschedulable"))
        .then(|| PodTrouble::Unschedulable { message: unscheduled.message.clone().unwrap_or_default() })
}

fn of_container(pod: &Pod, container: &ContainerStatus) -> Option<PodTrouble> {
    let state = container.state.as_ref();
    let ended = |state: Option<&ContainerState>| state.and_then(|state| state.terminated.clone());
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        let reason = waiting.reason.clone().unwrap_or_default();
        let message = waiting.message.clone().unwrap_or_default();
        return match reason.as_str() {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "RegistryUnavailable"
            | "ImageInspectError" => {
                Some(PodTrouble::ImagePull { image: container.image.clone(), reason, message })
            }
            "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
            | "CreatePodSandboxError" => Some(PodTrouble::NotStarted { reason, message }),
            "CrashLoopBackOff" => {
                let last = ended(container.last_state.as_ref());
                if last.as_ref().is_some_and(|last| last.reason.as_deref() == Some("OOMKilled")) {
                    return Some(PodTrouble::OutOfMemory { limit: memory_limit(pod, &container.name) });
                }
                let exit_code = last.map(|last| last.exit_code);
                Some(PodTrouble::CrashLoop { restarts: container.restart_count, exit_code })
            }
            _ => None,
        };
    }
    let ended = ended(state)?;
    match ended.reason.as_deref() {
        Some("OOMKilled") => Some(PodTrouble::OutOfMemory { limit: memory_limit(pod, &container.name) }),
        // What containerd and the kubelet say of a container that was gone when they began: the node has lost its power.
        Some(reason @ ("Unknown" | "ContainerStatusUnknown")) => Some(PodTrouble::Disrupted {
            reason: reason.to_owned(),
            message: ended.message.unwrap_or_else(|| "its node began anew without it".to_owned()),
        }),
        _ if ended.exit_code != 0 => {
            Some(PodTrouble::Exited { exit_code: ended.exit_code, signal: ended.signal.filter(|s| *s != 0) })
        }
        _ => None,
    }
}

fn memory_limit(pod: &Pod, container: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let found = spec.containers.iter().find(|candidate| candidate.name == container)?;
    Some(found.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}

impl PodTrouble {
    /// Whether the same pod made again may do better: what happened was not of its own making.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Evicted { .. } | Self::Disrupted { .. })
    }
}

impl fmt::Display for PodTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable { message } => write!(f, "no node takes the pod: {message}"),
            Self::ImagePull { image, reason, message } => {
                write!(f, "the image {image} cannot be pulled ({reason}): {message}")
            }
            Self::NotStarted { reason, message } => {
                write!(f, "the pod cannot be started ({reason}): {message}")
            }
            Self::OutOfMemory { limit: Some(limit) } => {
                write!(f, "it used more memory than its limit of {limit} and was killed")
            }
            Self::OutOfMemory { limit: None } => f.write_str("the node ran out of memory and it was killed"),
            Self::Evicted { message } => write!(f, "the node evicted the pod: {message}"),
            Self::DeadlineExceeded => f.write_str("the pod ran longer than it may"),
            Self::Disrupted { reason, message } => write!(f, "the pod was taken away ({reason}): {message}"),
            Self::CrashLoop { restarts, exit_code } => {
                write!(f, "it keeps ending")?;
                if let Some(exit_code) = exit_code {
                    write!(f, " with exit status {exit_code}")?;
                }
                write!(f, ", and was started again {restarts} times")
            }
            Self::Exited { exit_code, signal: Some(signal) } => {
                write!(f, "it was ended by signal {signal} (exit status {exit_code})")
            }
            Self::Exited { exit_code, signal: None } => write!(f, "it ended with exit status {exit_code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_container_that_the_kernel_killed_is_told_with_its_limit() {
        let pod = pod(serde_json::json!({
            "spec": {"containers": [{"name": "build", "resources": {"limits": {"memory": "64Mi"}}}]},
            "status": {"phase": "Failed", "containerStatuses": [{"name": "build", "image": "i", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]},
        }));
        let trouble = trouble(&pod).unwrap();
        assert_eq!(trouble.to_string(), "it used more memory than its limit of 64Mi and was killed");
        assert!(!trouble.is_passing());
    }

    #[test]
    fn an_eviction_is_worth_another_attempt_and_an_exit_status_is_not() {
        let evicted = pod(
            serde_json::json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"}}),
        );
        assert!(trouble(&evicted).unwrap().is_passing());
        let failed = pod(
            serde_json::json!({"status": {"containerStatuses": [{"name": "build", "image": "i", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}}),
        );
        assert_eq!(trouble(&failed), Some(PodTrouble::Exited { exit_code: 1, signal: None }));
    }

    #[test]
    fn a_container_that_was_gone_when_its_node_began_anew_is_worth_another_attempt() {
        let lost = pod(
            serde_json::json!({"status": {"phase": "Failed", "containerStatuses": [{"name": "build", "image": "i",
            "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 255, "reason": "Unknown"}}}]}}),
        );
        let trouble = trouble(&lost).unwrap();
        assert!(trouble.is_passing());
        assert_eq!(trouble.to_string(), "the pod was taken away (Unknown): its node began anew without it");
    }

    #[test]
    fn a_pod_that_its_node_would_not_have_says_why() {
        let refused = pod(serde_json::json!({"status": {"phase": "Failed", "reason": "OutOfcpu",
            "message": "Pod was rejected: Node didn't have enough resource: cpu"}}));
        let trouble = trouble(&refused).unwrap();
        assert!(trouble.is_passing());
        assert_eq!(
            trouble.to_string(),
            "the pod was taken away (OutOfcpu): Pod was rejected: Node didn't have enough resource: cpu"
        );
    }

    #[test]
    fn a_pod_that_no_node_takes_says_what_the_scheduler_said() {
        let waiting =
            pod(serde_json::json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled",
            "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}]}}));
        assert_eq!(trouble(&waiting).unwrap().to_string(), "no node takes the pod: 0/2 nodes are available");
        let fresh = pod(serde_json::json!({"status": {"phase": "Pending"}}));
        assert_eq!(trouble(&fresh), None);
    }
}
