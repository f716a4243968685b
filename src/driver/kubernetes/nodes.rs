//! Which platforms a cluster builds natively: those of its nodes that take pods now.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Toleration};

use super::config::JobConfig;
use crate::oci::Platform;

/// The platforms of the nodes that are ready and take pods that are made so, each once, in order.
pub(super) fn platforms(nodes: &[Node], config: &JobConfig) -> Vec<Platform> {
    let takes =
        |node: &&Node| takes_pods(node, &config.tolerations) && is_selected(node, &config.node_selector);
    let mut platforms: Vec<Platform> = nodes.iter().filter(takes).filter_map(platform).collect();
    platforms.sort();
    platforms.dedup();
    platforms
}

fn is_selected(node: &Node, selector: &BTreeMap<String, String>) -> bool {
    let labels = node.metadata.labels.as_ref();
    selector.iter().all(|(name, value)| labels.and_then(|labels| labels.get(name)) == Some(value))
}

fn takes_pods(node: &Node, tolerations: &[Toleration]) -> bool {
    let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
    let is_cordoned = spec.and_then(|spec| spec.unschedulable).unwrap_or_default();
    let mut taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    let repels = taints.any(|taint| {
        taint.effect != "PreferNoSchedule"
            && !tolerations.iter().any(|toleration| {
                let exists = toleration.operator.as_deref() == Some("Exists");
                let key = toleration.key.as_deref().unwrap_or_default();
                let is_key = key == taint.key || (exists && key.is_empty());
                let is_value = exists
                    || toleration.value.as_deref().unwrap_or_default()
                        == taint.value.as_deref().unwrap_or_default();
                is_key
                    && is_value
                    && toleration
                        .effect
                        .as_deref()
                        .is_none_or(|effect| effect.is_empty() || effect == taint.effect)
            })
    });
    let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    is_ready && !is_cordoned && !repels
}

fn platform(node: &Node) -> Option<Platform> {
    let labels = node.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).map(String::as_str);
    // What pods are put on nodes by; the kubelet's own word says the same unless somebody changed the labels.
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    let os = label("kubernetes.io/os").or(info.map(|info| info.operating_system.as_str()))?;
    let architecture = label("kubernetes.io/arch").or(info.map(|info| info.architecture.as_str()))?;
    Platform::new(os, architecture, None).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(arch: &str, ready: &str, more: &serde_json::Value) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": arch}},
            "spec": more,
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_platform_counts_if_one_of_its_nodes_takes_pods() {
        let nodes = [
            node("arm64", "True", &serde_json::json!({})),
            node("arm64", "Unknown", &serde_json::json!({})),
            node("amd64", "True", &serde_json::json!({"unschedulable": true})),
            node(
                "s390x",
                "True",
                &serde_json::json!({"taints": [{"key": "builds", "value": "only", "effect": "NoSchedule"}]}),
            ),
        ];
        let of = |config: &JobConfig| {
            platforms(&nodes, config).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let names = |tolerations: &[Toleration]| {
            of(&JobConfig { tolerations: tolerations.to_vec(), ..JobConfig::new("builds", "hephy") })
        };
        assert_eq!(names(&[]), ["linux/arm64"]);
        let selector = |arch: &str| {
            let node_selector = [("kubernetes.io/arch".to_owned(), arch.to_owned())].into();
            of(&JobConfig { node_selector, ..JobConfig::new("builds", "hephy") })
        };
        assert_eq!((selector("arm64"), selector("riscv64")), (vec!["linux/arm64".to_owned()], vec![]));
        let toleration =
            Toleration { key: Some("builds".into()), value: Some("only".into()), ..Toleration::default() };
        assert_eq!(names(&[toleration]), ["linux/arm64", "linux/s390x"]);
    }
}
