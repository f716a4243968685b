//! Pods as instances of an app: which is which, and how each is.
//!
//! Pods of a Deployment have no numbers. Those of one process type and release are counted in the order in which
//! they were made, those that are leaving last; so a number is only good until a pod before it is gone.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

use super::names;
use super::objects::{Objects, failed};
use super::state::type_of;
use crate::kubernetes::{Label, PodTrouble, trouble};
use crate::model::{AppName, ProcessType, ReleaseNumber};
use crate::rollout::{InstanceName, InstanceState, InstanceStatus, RuntimeError};

/// A pod with what it is to the app.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) pod: Pod,
    pub(super) name: InstanceName,
    pub(super) release: ReleaseNumber,
}

impl Instance {
    pub(super) fn pod_name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub(super) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(super) const fn is_leaving(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Whether its pod has ended for good, by itself or thrown out.
    pub(super) fn is_over(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// Whether it takes requests, or runs where it takes none.
    pub(super) fn is_ready(&self) -> bool {
        let status = self.pod.status.as_ref();
        let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    pub(super) fn container(&self) -> Option<&ContainerStatus> {
        self.pod.status.as_ref()?.container_statuses.as_ref()?.first()
    }

    /// Since when its process runs, if it does.
    pub(super) fn running_since(&self) -> Option<Timestamp> {
        let running = self.container()?.state.as_ref()?.running.as_ref()?;
        Some(running.started_at.as_ref()?.0)
    }

    pub(super) fn restarts(&self) -> u32 {
        self.container().and_then(|container| u32::try_from(container.restart_count).ok()).unwrap_or(0)
    }

    /// How its process ended, now or the last time.
    pub(super) fn ended(&self) -> Option<&ContainerStateTerminated> {
        let container = self.container()?;
        let of = |state: Option<&'_ k8s_openapi::api::core::v1::ContainerState>| {
            state.is_some_and(|state| state.terminated.is_some())
        };
        let states = [container.state.as_ref(), container.last_state.as_ref()];
        states.into_iter().find(|state| of(*state)).flatten()?.terminated.as_ref()
    }

    fn state(&self) -> InstanceState {
        if self.is_leaving() {
            return InstanceState::Stopping;
        }
        match trouble(&self.pod) {
            Some(
                PodTrouble::CrashLoop { .. } | PodTrouble::Exited { .. } | PodTrouble::OutOfMemory { .. },
            ) if !self.is_over() => {
                InstanceState::Crashed { how: self.ended().map_or_else(|| "an error".to_owned(), how) }
            }
            Some(trouble) => InstanceState::Down { why: trouble.to_string() },
            None if self.is_over() => InstanceState::Down { why: "it ended".to_owned() },
            None if self.running_since().is_some() => InstanceState::Up,
            None => match self.ended() {
                Some(ended) => InstanceState::Crashed { how: how(ended) },
                None => InstanceState::Starting,
            },
        }
    }
}

/// `exit status 1`, `signal 9`.
pub(super) fn how(ended: &ContainerStateTerminated) -> String {
    match (ended.reason.as_deref(), ended.signal) {
        (Some("OOMKilled"), _) => "no memory left".to_owned(),
        (_, Some(signal)) if signal != 0 => format!("signal {signal}"),
        // What a shell and containerd say of a process that a signal ended.
        _ if ended.exit_code > 128 && ended.exit_code <= 128 + 64 => {
            format!("signal {}", ended.exit_code - 128)
        }
        _ => format!("exit status {}", ended.exit_code),
    }
}

/// Which instance each pod is, in order.
pub(super) fn instances(pods: Vec<Pod>) -> Vec<Instance> {
    let mut groups: BTreeMap<(ProcessType, ReleaseNumber), Vec<Pod>> = BTreeMap::new();
    for pod in pods {
        let labels = pod.metadata.labels.as_ref();
        let release = labels.and_then(|labels| labels.get(Label::Release.key())?.parse().ok());
        if let (Some(process_type), Some(release)) = (type_of(&pod.metadata), release) {
            groups.entry((process_type, release)).or_default().push(pod);
        }
    }
    let mut all = Vec::new();
    for ((process_type, release), mut pods) in groups {
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
        let is_over = |pod: &Pod| matches!(phase(pod).as_deref(), Some("Failed" | "Succeeded"));
        pods.sort_by_cached_key(|pod| {
            let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (pod.metadata.deletion_timestamp.is_some() || is_over(pod), made, pod.metadata.name.clone())
        });
        for (pod, number) in pods.into_iter().zip(1..) {
            let number = number_in_name(&pod, &process_type).unwrap_or(number);
            let name = InstanceName { process_type: process_type.clone(), number };
            all.push(Instance { pod, name, release });
        }
    }
    all
}

/// The number of a pod that runs a command once, which its name has.
fn number_in_name(pod: &Pod, process_type: &ProcessType) -> Option<u32> {
    let name = pod.metadata.name.as_deref()?;
    (*process_type == ProcessType::run()).then(|| name.rsplit_once('-')?.1.parse().ok())?
}

pub(super) async fn list(objects: &Objects, app: &AppName) -> Result<Vec<Instance>, RuntimeError> {
    let pods = objects.list::<Pod>(&names::selector(Some(app))).await;
    pods.map(instances).map_err(failed("list the pods", app))
}

pub(super) async fn statuses(objects: &Objects, app: &AppName) -> Result<Vec<InstanceStatus>, RuntimeError> {
    let status = |instance: Instance| InstanceStatus {
        release: instance.release,
        state: instance.state(),
        since: instance.running_since(),
        restarts: instance.restarts(),
        name: instance.name,
    };
    Ok(list(objects, app).await?.into_iter().map(status).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(in crate::runtime::kubernetes) fn pod(name: &str, made: &str, status: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "uid": name, "creationTimestamp": made,
                "labels": {"hephy.dev/app": "hello", "hephy.dev/process-type": "web", "hephy.dev/release": "v2"},
            },
            "status": status,
        }))
        .unwrap()
    }

    pub(in crate::runtime::kubernetes) fn container(state: &Value, last: &Value, restarts: u32) -> Value {
        json!({"phase": "Running", "containerStatuses": [{
            "name": "app", "image": "i", "imageID": "", "ready": false, "restartCount": restarts,
            "state": state, "lastState": last,
        }]})
    }

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-01T00:00:01Z";

    #[test]
    fn pods_are_numbered_by_age_and_those_that_leave_come_last() {
        let mut leaving = pod("a", EARLY, &json!({}));
        leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
        let all = instances(vec![pod("c", LATE, &json!({})), leaving, pod("b", EARLY, &json!({}))]);
        let names: Vec<_> =
            all.iter().map(|i| format!("{} {} {}", i.pod_name(), i.name, i.release)).collect();
        assert_eq!(names, ["b web.1 v2", "c web.2 v2", "a web.3 v2"]);
        assert_eq!(all[2].state(), InstanceState::Stopping);
    }

    #[test]
    fn an_instance_is_what_its_container_does() {
        let of = |status: Value| instances(vec![pod("a", EARLY, &status)]).remove(0).state();
        let running = json!({"running": {"startedAt": EARLY}});
        let ended = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        let killed = json!({"terminated": {"exitCode": 137, "reason": "Error"}});
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let fresh = json!({"waiting": {"reason": "ContainerCreating"}});
        let crashed = |how: &str| InstanceState::Crashed { how: how.to_owned() };
        assert_eq!(of(container(&running, &json!({}), 0)), InstanceState::Up);
        assert_eq!(of(container(&running, &ended, 1)), InstanceState::Up);
        assert_eq!(of(container(&waiting, &ended, 1)), crashed("exit status 3"));
        assert_eq!(of(container(&waiting, &killed, 1)), crashed("signal 9"));
        assert_eq!(of(container(&fresh, &json!({}), 0)), InstanceState::Starting);
        let done = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        assert_eq!(of(container(&done, &json!({}), 0)), crashed("exit status 0"));
        let evicted = of(json!({"phase": "Failed", "reason": "Evicted", "message": "disk"}));
        assert_eq!(evicted, InstanceState::Down { why: "the node evicted the pod: disk".to_owned() });
    }
}
