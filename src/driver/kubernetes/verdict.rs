//! What is to be made of a pod that builds: wait, fail with the limit involved, or try again.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::config::JobConfig;
use crate::build::{BuildFailure, NO_RECEIVER_STATUS, StepFailure};
use crate::kubernetes::{PodTrouble, trouble};
use crate::oci::Platform;

/// How long an image may fail to be pulled, and a container to be made, before that is the end.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long no node may match where no autoscaler is told to make one.
const MISMATCH_PATIENCE: Duration = Duration::from_secs(60);

/// The exit status of what was ended by SIGKILL.
const KILLED: i32 = 137;

/// What is to be made of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It runs, or will; with the reason if it waits for something.
    Wait(Option<String>),
    /// Another attempt may do better.
    Again(String),
    /// That is the end.
    Failed(BuildFailure),
}

/// Judges a pod that has left no result, `age` after its Job was made and `refused` after what [`is_refused`] says began.
pub(super) fn judge(
    pod: &Pod,
    (age, refused): (Duration, Duration),
    platform: &Platform,
    time_limit: Duration,
    config: &JobConfig,
) -> Verdict {
    let Some(trouble) = trouble(pod) else { return of_phase(pod) };
    let failed = |heading: String, hint: &str| {
        Verdict::Failed(BuildFailure::Platform(StepFailure {
            hint: Some(hint.to_owned()),
            ..StepFailure::new(heading)
        }))
    };
    match &trouble {
        PodTrouble::Unschedulable { message } => {
            let hopeless = is_mismatch(message) && config.waiting_limit > MISMATCH_PATIENCE;
            let patience = if hopeless { MISMATCH_PATIENCE } else { config.waiting_limit };
            let reason = format!("no node for {platform} takes the build: {message}");
            if age < patience {
                return Verdict::Wait(Some(reason));
            }
            let heading = format!("{reason} (waited {} s)", patience.as_secs());
            failed(
                heading,
                "Add or free a node of this architecture, or ask for less in the build's resources.",
            )
        }
        PodTrouble::ImagePull { .. } | PodTrouble::NotStarted { .. } if refused < START_PATIENCE => {
            Verdict::Wait(Some(trouble.to_string()))
        }
        PodTrouble::ImagePull { .. } => failed(
            format!("the build cannot be started: {trouble}"),
            "The image of the build's pod is hephy's own: look at `image.repository` and its pull Secret.",
        ),
        PodTrouble::NotStarted { .. } => failed(
            format!("the build cannot be started: {trouble}"),
            "This is how the build's pod is configured, not the app.",
        ),
        PodTrouble::OutOfMemory { .. } => Verdict::Failed(BuildFailure::App(StepFailure {
            hint: Some(
                "Let it use less, or give builds more memory (`build.resources.limits.memory`).".to_owned(),
            ),
            ..StepFailure::new(format!("the build was ended: {trouble}"))
        })),
        PodTrouble::Evicted { message } if is_own_making(message) => {
            Verdict::Failed(BuildFailure::App(StepFailure {
                hint: Some(
                    "Let it write less, or give builds more room (`build.scratchSizeLimit`).".to_owned(),
                ),
                ..StepFailure::new(format!("the build was ended: {trouble}"))
            }))
        }
        PodTrouble::DeadlineExceeded => Verdict::Failed(BuildFailure::TimedOut { limit: time_limit }),
        PodTrouble::Evicted { .. } | PodTrouble::Disrupted { .. } => Verdict::Again(trouble.to_string()),
        PodTrouble::Exited { exit_code, signal: None } if *exit_code == i32::from(NO_RECEIVER_STATUS) => {
            Verdict::Again("the build's pod reached no receiver, where its credentials are had".to_owned())
        }
        // No engine ends itself so: its node lost its power, or had no memory left for anybody.
        PodTrouble::Exited { exit_code: KILLED, .. } => {
            Verdict::Again(format!("the build's engine was killed from outside: {trouble}"))
        }
        PodTrouble::CrashLoop { .. } | PodTrouble::Exited { .. } => {
            Verdict::Failed(BuildFailure::Platform(StepFailure {
                cause: last_words(pod),
                ..StepFailure::new(format!("the build engine left no result: {trouble}"))
            }))
        }
    }
}

/// Whether a pod's image or container cannot be had just now.
pub(super) fn is_refused(pod: &Pod) -> bool {
    matches!(trouble(pod), Some(PodTrouble::ImagePull { .. } | PodTrouble::NotStarted { .. }))
}

fn of_phase(pod: &Pod) -> Verdict {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    match phase {
        Some("Succeeded") => Verdict::Failed(BuildFailure::Platform(StepFailure {
            cause: last_words(pod),
            ..StepFailure::new("the build engine ended well and left no result")
        })),
        Some("Failed") => Verdict::Again("the pod failed, and nobody says why".to_owned()),
        _ if pod.metadata.deletion_timestamp.is_some() => {
            Verdict::Again("the pod was deleted by somebody".to_owned())
        }
        Some("Pending") => Verdict::Wait(waiting(pod)),
        _ => Verdict::Wait(None),
    }
}

/// Whether the pod or its container has ended, so that it leaves nothing any more.
pub(super) fn has_ended(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let mut containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    let is_over =
        containers.any(|container| container.state.as_ref().is_some_and(|state| state.terminated.is_some()));
    matches!(phase, Some("Succeeded" | "Failed")) || is_over
}

/// Whether the container has begun, so that there is a log.
pub(super) fn has_begun(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Running" | "Succeeded" | "Failed"))
}

/// What a pod waits for that has no trouble.
fn waiting(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let state = status.container_statuses.iter().flatten().find_map(|container| container.state.as_ref());
    let reason = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    match (node, reason) {
        (Some(node), None | Some("ContainerCreating" | "PodInitializing")) => {
            Some(format!("node {node} makes the build's container"))
        }
        (Some(node), Some(reason)) => Some(format!("node {node}: {reason}")),
        (None, _) => Some("no node was chosen yet".to_owned()),
    }
}

/// Whether every node was left aside for what it is, and none for being full.
fn is_mismatch(message: &str) -> bool {
    let count = |text: &str| text.split_whitespace().next().and_then(|word| word.parse::<u32>().ok());
    let Some((head, reasons)) = message.split_once(" nodes are available: ") else { return false };
    let Some(total) = head.strip_prefix("0/").and_then(|total| total.parse::<u32>().ok()) else {
        return false;
    };
    let reasons = reasons.split(". ").next().unwrap_or(reasons).trim_end_matches('.');
    let mismatched: u32 = reasons
        .split(", ")
        .filter(|reason| reason.contains("node affinity/selector") || reason.contains("node selector"))
        .filter_map(count)
        .sum();
    mismatched == total
}

/// Whether a pod was evicted for what it did itself, which it would do again.
fn is_own_making(message: &str) -> bool {
    message.contains("exceeds the") && (message.contains("limit") || message.contains("EmptyDir"))
}

/// The last lines that the engine printed.
fn last_words(pod: &Pod) -> Vec<String> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let ended =
        statuses.into_iter().flatten().find_map(|container| container.state.as_ref()?.terminated.as_ref());
    let text = ended.and_then(|ended| ended.message.as_deref()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('{')).collect();
    lines.iter().skip(lines.len().saturating_sub(5)).map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: &serde_json::Value, age: u64) -> Verdict {
        judged_when(status, (age, 0))
    }

    fn judged_when(status: &serde_json::Value, (age, refused): (u64, u64)) -> Verdict {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [{"name": "build", "resources": {"limits": {"memory": "64Mi"}}}]},
            "status": status,
        }))
        .unwrap();
        let config = JobConfig::new("builds", "hephy");
        judge(
            &pod,
            (Duration::from_secs(age), Duration::from_secs(refused)),
            &"linux/arm64".parse().unwrap(),
            Duration::from_secs(60),
            &config,
        )
    }

    fn heading(verdict: Verdict) -> String {
        match verdict {
            Verdict::Failed(failure) => failure.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn unscheduled(message: &str) -> serde_json::Value {
        serde_json::json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]})
    }

    #[test]
    fn a_pod_without_a_node_waits_and_a_missing_architecture_is_named_after_a_minute() {
        let missing = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/2 nodes.";
        assert!(matches!(judged(&unscheduled(missing), 5), Verdict::Wait(Some(_))));
        let text = heading(judged(&unscheduled(missing), 61));
        assert!(text.starts_with("no node for linux/arm64 takes the build: 0/2 nodes"), "{text}");
        let full = "0/2 nodes are available: 1 Insufficient memory, 1 node(s) didn't match Pod's node affinity/selector.";
        assert!(matches!(judged(&unscheduled(full), 61), Verdict::Wait(Some(_))));
        assert!(matches!(judged(&unscheduled(full), 901), Verdict::Failed(_)));
    }

    #[test]
    fn a_node_that_was_lost_is_waited_for_and_named_if_it_does_not_come_back() {
        for taint in [
            "1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }",
            "1 node(s) had untolerated taint(s)",
        ] {
            let lost = format!(
                "0/2 nodes are available: {taint}, 1 node(s) didn't match Pod's node affinity/selector."
            );
            assert!(
                matches!(judged(&unscheduled(&lost), 899), Verdict::Wait(Some(reason)) if reason.contains(taint))
            );
            let text = heading(judged(&unscheduled(&lost), 901));
            assert!(text.contains(taint) && text.ends_with("(waited 900 s)"), "{text}");
        }
    }

    #[test]
    fn an_image_is_waited_for_from_when_it_was_refused_and_not_from_when_a_node_was() {
        let status = serde_json::json!({"phase": "Pending", "containerStatuses": [{"name": "build", "image": "i",
            "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull"}}}]});
        assert!(matches!(judged_when(&status, (600, 1)), Verdict::Wait(Some(_))));
        assert!(heading(judged_when(&status, (600, 60))).starts_with("the build cannot be started"));
    }

    #[test]
    fn what_the_node_did_is_tried_again_and_what_the_build_did_is_not() {
        let evicted =
            |message: &str| serde_json::json!({"phase": "Failed", "reason": "Evicted", "message": message});
        let low = "The node was low on resource: ephemeral-storage. Threshold quantity: 1, available: 0.";
        assert!(matches!(judged(&evicted(low), 5), Verdict::Again(_)));
        let own = "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Gi\".";
        assert!(heading(judged(&evicted(own), 5)).contains("limit \"1Gi\""));
        let killed = serde_json::json!({"phase": "Failed", "containerStatuses": [{"name": "build", "image": "i", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]});
        let text = heading(judged(&killed, 5));
        assert_eq!(text, "the build was ended: it used more memory than its limit of 64Mi and was killed");
    }

    #[test]
    fn a_pod_that_reached_no_receiver_is_tried_again() {
        let status = serde_json::json!({"phase": "Failed", "containerStatuses": [{"name": "build", "image": "i", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": NO_RECEIVER_STATUS}}}]});
        assert!(matches!(judged(&status, 400), Verdict::Again(_)));
    }

    #[test]
    fn an_engine_that_was_killed_from_outside_is_tried_again() {
        let status = serde_json::json!({"phase": "Failed", "containerStatuses": [{"name": "build", "image": "i", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 137, "reason": "Error"}}}]});
        assert!(matches!(judged(&status, 5), Verdict::Again(_)));
    }

    #[test]
    fn an_engine_that_ends_without_a_result_is_told_with_its_last_words() {
        let status = serde_json::json!({"phase": "Failed", "containerStatuses": [{"name": "build", "image": "i", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 3,
            "message": "{\"number\":1}\nhephy build: no room\n"}}}]});
        let Verdict::Failed(BuildFailure::Platform(step)) = judged(&status, 5) else { panic!() };
        assert_eq!(
            (step.heading.as_str(), step.cause),
            (
                "the build engine left no result: it ended with exit status 3",
                vec!["hephy build: no room".to_owned()]
            )
        );
    }
}
