//! What the driver of Jobs and the runtime of Deployments are told, from the settings of `hephy serve`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{AppArmorProfile, Capabilities, ResourceRequirements, SecurityContext};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{PULL_SECRET, ServeError, Start, has_pull_secret, host};
use crate::config::cluster::{ClusterSettings, Pods};
use crate::config::server::{Settings, SettingsError};
use crate::driver::kubernetes::{CaBundle, JobConfig, RegistryNames};
use crate::publish::Place;
use crate::runtime::kubernetes::{Exposure, KubernetesConfig, Policy, Resources};
use crate::serve::tickets;

pub(super) fn job_config(
    settings: &ClusterSettings,
    pods: &Pods,
    place: &Place,
) -> Result<JobConfig, ServeError> {
    let pods = &pods.build;
    let tolerations =
        pods.tolerations.iter().cloned().map(serde_json::from_value).collect::<Result<Vec<_>, _>>();
    let path = || settings.pods.clone().unwrap_or_default();
    let tolerations =
        tolerations.map_err(|source| SettingsError::Json { path: path(), source: Box::new(source) })?;
    let url = settings.internal_url.join(tickets::PATH);
    let registry = match &settings.registry_service {
        Some(service) => Some(RegistryNames { here: place.host.clone(), engine: host(service)? }),
        None => None,
    };
    Ok(JobConfig {
        image_pull_policy: pods.image_pull_policy.clone(),
        image_pull_secrets: pods.image_pull_secrets.clone(),
        ticket_url: Some(url.map_err(|source| ServeError::Url { source })?),
        isolation: (settings.isolation != "auto").then(|| settings.isolation.clone()),
        resources: ResourceRequirements {
            requests: quantities(&pods.resources.requests),
            limits: quantities(&pods.resources.limits),
            ..ResourceRequirements::default()
        },
        tolerations,
        node_selector: pods.node_selector.clone(),
        host_users: (!pods.host_users).then_some(false),
        security_context: (!pods.host_users).then(own_users),
        scratch_size_limit: pods.scratch_size_limit.clone().filter(|limit| !limit.is_empty()),
        registry,
        ca_bundle: pods
            .ca_bundle
            .as_ref()
            .map(|bundle| CaBundle::ConfigMap { name: bundle.config_map.clone(), key: bundle.key.clone() }),
        spool: Some(settings.data.join("tmp")),
        parallel_per_architecture: settings.builds.unwrap_or(2),
        ..JobConfig::new(settings.builds_namespace.clone(), settings.image.clone())
    })
}

/// What an engine needs to mount in a user namespace that is its pod's alone, and so stands on the highest rung there.
fn own_users() -> SecurityContext {
    let added = Capabilities { add: Some(vec!["SYS_ADMIN".to_owned()]), drop: None };
    // The usual profile of AppArmor refuses every mount.
    let unconfined = AppArmorProfile { type_: "Unconfined".to_owned(), localhost_profile: None };
    SecurityContext {
        capabilities: Some(added),
        app_armor_profile: Some(unconfined),
        ..SecurityContext::default()
    }
}

fn quantities(given: &BTreeMap<String, String>) -> Option<BTreeMap<String, Quantity>> {
    let quantities: BTreeMap<_, _> =
        given.iter().map(|(name, value)| (name.clone(), Quantity(value.clone()))).collect();
    (!quantities.is_empty()).then_some(quantities)
}

pub(super) fn runtime_config(
    start: &Start,
    settings: &Settings,
    pods: &Pods,
) -> Result<KubernetesConfig, ServeError> {
    let given = &start.settings;
    let exposure = if given.ingress {
        Exposure::Ingress {
            domain: given.domain.as_str().to_owned(),
            class: given.ingress_class.clone(),
            annotations: given.ingress_annotation.iter().cloned().collect(),
            tls_secret: given.ingress_tls_secret.clone(),
        }
    } else if let Some(gateway) = &given.gateway {
        Exposure::HttpRoute {
            domain: given.domain.as_str().to_owned(),
            gateway: gateway.clone(),
            gateway_namespace: given.gateway_namespace.clone(),
            section: given.gateway_section.clone(),
        }
    } else {
        Exposure::Services
    };
    let pull_host = given.pull_host.split_once('/').map_or(given.pull_host.as_str(), |(name, _)| name);
    Ok(KubernetesConfig {
        namespace: given.apps_namespace.clone(),
        identity: start.identity.clone(),
        pull_host: host(pull_host)?,
        pull_secret: has_pull_secret(given).then(|| PULL_SECRET.to_owned()),
        resources: Resources {
            requests: pods.app.resources.requests.clone(),
            limits: pods.app.resources.limits.clone(),
        },
        exposure,
        policy: Policy {
            ready_timeout: settings.ready_timeout,
            minimum_ready: settings.minimum_ready,
            stop_grace: settings.stop_grace,
            ..Policy::default()
        },
    })
}
