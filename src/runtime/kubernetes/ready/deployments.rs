//! What Deployments say of a version: whether another server went on, whether all is done, and what refuses its pods.

use k8s_openapi::api::apps::v1::Deployment;

use crate::model::{ProcessType, ReleaseNumber};
use crate::rollout::Version;
use crate::runtime::kubernetes::state::{release_of, type_of};

/// The Deployment of a process type.
pub(super) fn of_type<'a>(
    deployments: &'a [Deployment],
    process_type: &ProcessType,
) -> Option<&'a Deployment> {
    deployments.iter().find(|found| type_of(&found.metadata).as_ref() == Some(process_type))
}

/// The release that another server began meanwhile.
pub(super) fn overtaken(deployments: &[Deployment], version: &Version) -> Option<ReleaseNumber> {
    let ours = version.release.processes.keys().filter_map(|name| of_type(deployments, name));
    ours.filter_map(|found| release_of(&found.metadata)).find(|release| *release > version.release.number)
}

/// Whether the controller has seen the Deployment as it is now, and made of it what it says.
pub(super) fn is_complete(
    deployments: &[Deployment],
    process_type: &ProcessType,
    release: ReleaseNumber,
    count: u32,
) -> bool {
    let Some(deployment) = of_type(deployments, process_type) else { return false };
    let Some(status) = &deployment.status else { return false };
    let wanted = i32::try_from(count).unwrap_or(i32::MAX);
    let is = |number: Option<i32>| number.unwrap_or(0) == wanted;
    release_of(&deployment.metadata) == Some(release)
        && status.observed_generation >= deployment.metadata.generation
        && is(deployment.spec.replicas)
        && is(status.replicas)
        && is(status.updated_replicas)
        && is(status.available_replicas)
}

/// Why the controller cannot make pods, without the name of one.
pub(super) fn refusal(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let is = |text: &Option<String>, wanted: &str| text.as_deref() == Some(wanted);
    let condition = conditions.iter().find(|c| is(&c.type_, "ReplicaFailure") && is(&c.status, "True"))?;
    let message = condition.message.clone().unwrap_or_default();
    Some(match message.split_once(" is forbidden: ") {
        Some((_, why)) => why.to_owned(),
        None => message,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runtime::kubernetes::state::hint;

    #[test]
    fn a_refusal_names_the_rule_and_not_the_pod() {
        let deployment: Deployment = serde_json::from_value(json!({"status": {"conditions": [{
            "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
            "message": "pods \"hello--web-6b8d-x2\" is forbidden: exceeded quota: small, requested: pods=1",
        }]}}))
        .unwrap();
        let why = refusal(&deployment).unwrap();
        assert_eq!(why, "exceeded quota: small, requested: pods=1");
        assert!(hint(&why).unwrap().contains("ResourceQuota"));
    }

    #[test]
    fn a_deployment_is_complete_when_the_controller_has_seen_it_and_nothing_old_is_left() {
        let of = |generation: i64, replicas: i32, available: i32| -> Vec<Deployment> {
            vec![
                serde_json::from_value(json!({
                    "metadata": {"generation": 2, "labels": {"hephy.dev/process-type": "web"},
                        "annotations": {"hephy.dev/release": "v2"}},
                    "spec": {"replicas": 2, "selector": {}, "template": {}},
                    "status": {"observedGeneration": generation, "replicas": replicas,
                        "updatedReplicas": 2, "availableReplicas": available},
                }))
                .unwrap(),
            ]
        };
        let complete = |deployments: &[Deployment], release| {
            is_complete(deployments, &"web".parse().unwrap(), ReleaseNumber(release), 2)
        };
        assert!(complete(&of(2, 2, 2), 2));
        assert!(!complete(&of(1, 2, 2), 2), "not seen yet");
        assert!(!complete(&of(2, 3, 2), 2), "an old one is left");
        assert!(!complete(&of(2, 2, 1), 2), "not ready for long enough");
        assert!(!complete(&of(2, 2, 2), 3), "of another release");
    }
}
