//! Which platforms a cluster builds natively: those of its nodes that take pods now.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Toleration};

use super::JobConfig;
use crate::oci::Platform;

/// The names of the nodes that are ready and take the pods of builds, by their platforms.
pub(super) fn by_platform(nodes: &[Node], config: &JobConfig) -> BTreeMap<Platform, Vec<String>> {
    let mut found: BTreeMap<Platform, Vec<String>> = BTreeMap::new();
    for node in nodes.iter().filter(|node| is_selected(node, config) && takes_pods(node, &config.tolerations))
    {
        if let Some(platform) = platform(node) {
            found.entry(platform).or_default().push(node.metadata.name.clone().unwrap_or_default());
        }
    }
    for names in found.values_mut() {
        names.sort();
    }
    found
}

fn is_selected(node: &Node, config: &JobConfig) -> bool {
    let label = |name: &String| node.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    config.node_selector.iter().all(|(name, value)| label(name) == Some(value))
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

    fn node(name: &str, arch: &str, ready: &str, more: &serde_json::Value) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": name,
                "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": arch, "disk": name},
            },
            "spec": more,
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_platform_counts_if_one_of_its_nodes_takes_pods() {
        let nodes = [
            node("b", "arm64", "True", &serde_json::json!({})),
            node("a", "arm64", "True", &serde_json::json!({})),
            node("c", "arm64", "Unknown", &serde_json::json!({})),
            node("d", "amd64", "True", &serde_json::json!({"unschedulable": true})),
            node(
                "e",
                "s390x",
                "True",
                &serde_json::json!({"taints": [{"key": "builds", "value": "only", "effect": "NoSchedule"}]}),
            ),
        ];
        let names = |config: &JobConfig| {
            let found = by_platform(&nodes, config).into_iter();
            found.map(|(platform, names)| format!("{platform}: {}", names.join(" "))).collect::<Vec<_>>()
        };
        let config = JobConfig::new("builds", "hephy");
        assert_eq!(names(&config), ["linux/arm64: a b"]);
        let toleration =
            Toleration { key: Some("builds".into()), value: Some("only".into()), ..Toleration::default() };
        let tolerant = JobConfig { tolerations: vec![toleration], ..config.clone() };
        assert_eq!(names(&tolerant), ["linux/arm64: a b", "linux/s390x: e"]);
        let node_selector = [("disk".to_owned(), "b".to_owned())].into();
        assert_eq!(names(&JobConfig { node_selector, ..config }), ["linux/arm64: b"]);
    }
}
