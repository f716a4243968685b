//! What the cluster has of an app, and how it is put there and taken back.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Preconditions};
use serde_json::{Value, json};

use super::deployment::Recipe;
use super::names::{self, ENVIRONMENT_TYPE, RELEASE};
use super::objects::{ApiError, failed};
use super::work::{self, Work};
use super::{Shared, expose};
use crate::kubernetes::Label;
use crate::model::{AppName, ProcessType, ReleaseNumber};
use crate::rollout::{InstanceName, NotReady, Obstacle, RuntimeError, Version};

/// How often an object is read and written again that somebody changed in between; its controller does.
const CONFLICTS: u32 = 10;

/// What there is of an app.
#[derive(Default)]
pub(super) struct State {
    pub(super) deployments: Vec<Deployment>,
    pub(super) service: Option<Service>,
}

impl State {
    pub(super) async fn read(shared: &Shared, app: &AppName) -> Result<Self, RuntimeError> {
        let deployments = shared.objects.list(&names::selector(Some(app))).await;
        let service = shared.objects.get(&names::service(app)).await;
        Ok(Self {
            deployments: deployments.map_err(failed("list the Deployments", app))?,
            service: service.map_err(failed("read the Service", app))?,
        })
    }

    /// The release that requests are meant to reach.
    pub(super) fn current(&self) -> Option<ReleaseNumber> {
        self.service.as_ref().and_then(|service| release_of(&service.metadata))
    }

    pub(super) fn deployment(&self, process_type: &ProcessType) -> Option<&Deployment> {
        let is = |found: &&Deployment| type_of(&found.metadata).as_ref() == Some(process_type);
        self.deployments.iter().find(is)
    }

    /// The highest release of which anything was started.
    pub(super) fn newest(&self) -> Option<ReleaseNumber> {
        self.deployments.iter().filter_map(|found| release_of(&found.metadata)).max()
    }

    /// Whether anything of a release is there.
    pub(super) fn has(&self, release: ReleaseNumber) -> bool {
        self.deployments.iter().any(|found| release_of(&found.metadata) == Some(release))
    }

    /// Whether every process type is there, of the version's release and in its number, and requests reach it.
    pub(super) fn is(&self, version: &Version) -> bool {
        let is = |found: &Deployment, count: u32| {
            let replicas = found.spec.replicas.unwrap_or(0);
            release_of(&found.metadata) == Some(version.release.number)
                && u32::try_from(replicas).unwrap_or(0) == count
        };
        let is_there =
            |(name, count): (&ProcessType, u32)| self.deployment(name).is_some_and(|found| is(found, count));
        self.current() == Some(version.release.number)
            && self.deployments.len() == version.release.processes.len()
            && version.wanted().all(is_there)
    }

    /// Whether there is just what there was with `previous`, or nothing where there was none.
    pub(super) fn is_untouched(&self, previous: Option<&Version>) -> bool {
        match previous {
            Some(previous) => self.is(previous),
            None => self.deployments.is_empty() && self.service.is_none(),
        }
    }

    /// Who is at work on the app.
    pub(super) fn work(&self, identity: &str) -> Work {
        let of = |metadata| work::of(metadata, identity, Timestamp::now());
        // What Deployments say is not taken back when the work is done.
        let deployments = self.deployments.iter().map(|found| of(&found.metadata));
        let service = self.service.as_ref().map(|service| of(&service.metadata));
        service.or(deployments.max()).unwrap_or(Work::Nobody)
    }
}

/// Of which release an object is, by its annotation.
pub(super) fn release_of(metadata: &ObjectMeta) -> Option<ReleaseNumber> {
    metadata.annotations.as_ref()?.get(RELEASE)?.parse().ok()
}

/// Of which process type an object is, by its label.
pub(super) fn type_of(metadata: &ObjectMeta) -> Option<ProcessType> {
    metadata.labels.as_ref()?.get(Label::ProcessType.key())?.parse().ok()
}

/// Of which app an object is, by its label.
pub(super) fn app_of(metadata: &ObjectMeta) -> Option<AppName> {
    metadata.labels.as_ref()?.get(Label::App.key())?.parse().ok()
}

/// Applies the environment and the Deployment of every process type, nowhere over a release above `ceiling`.
pub(super) async fn put(
    shared: &Shared,
    recipe: &Recipe<'_>,
    version: &Version,
    ceiling: ReleaseNumber,
) -> Result<(), RuntimeError> {
    let app = &version.release.app;
    put_environment(shared, recipe, app).await?;
    for (process_type, count) in version.wanted() {
        put_deployment(shared, (app, process_type), Over::UpTo(ceiling), |resource_version| {
            recipe.deployment(process_type, count, resource_version)
        })
        .await?;
        put_budget(shared, recipe, (app, process_type), count).await?;
    }
    Ok(())
}

pub(super) async fn put_environment(
    shared: &Shared,
    recipe: &Recipe<'_>,
    app: &AppName,
) -> Result<(), RuntimeError> {
    let applied = shared.objects.apply::<Secret>(&recipe.environment()).await;
    applied.map(drop).map_err(refused("write the environment", app, &ProcessType::web()))
}

/// Over what a Deployment is applied.
#[derive(Debug, Clone, Copy)]
pub(super) enum Over {
    /// What is of no higher release.
    UpTo(ReleaseNumber),
    /// What this process put there; all else is left as it is.
    Ours,
}

/// Applies a Deployment over what is there, in the version of it that was read. False where that was left as it is.
pub(super) async fn put_deployment(
    shared: &Shared,
    (app, process_type): (&AppName, &ProcessType),
    over: Over,
    make: impl Fn(Option<&str>) -> Value,
) -> Result<bool, RuntimeError> {
    let name = names::deployment(app, process_type);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let there = shared.objects.get::<Deployment>(&name).await;
        let there = there.map_err(failed(format!("read the Deployment {name}"), app))?;
        match (over, &there) {
            (Over::UpTo(ceiling), Some(there)) => {
                if let Some(current) = release_of(&there.metadata).filter(|release| *release > ceiling) {
                    return Err(RuntimeError::Stale { app: app.clone(), release: ceiling, current });
                }
            }
            (Over::Ours, Some(there)) if !work::is_ours(&there.metadata, &shared.config) => return Ok(false),
            (Over::UpTo(_), None) | (Over::Ours, _) => {}
        }
        let version = there.as_ref().and_then(|there| there.metadata.resource_version.as_deref());
        match shared.objects.apply::<Deployment>(&make(version)).await {
            Ok(_) => return Ok(true),
            Err(error) if error.is_conflict() && attempt < CONFLICTS => {}
            Err(error) => {
                return Err(refused(&format!("apply the Deployment {name}"), app, process_type)(error));
            }
        }
    }
}

/// Deletes a Deployment that this process put there, in the version of it that was read.
async fn remove_ours(shared: &Shared, app: &AppName, process_type: &ProcessType) -> Result<(), RuntimeError> {
    let name = names::deployment(app, process_type);
    for _ in 0..CONFLICTS {
        let there = shared.objects.get::<Deployment>(&name).await;
        let there = there.map_err(failed(format!("read the Deployment {name}"), app))?;
        let Some(there) = there.filter(|there| work::is_ours(&there.metadata, &shared.config)) else {
            return Ok(());
        };
        let preconditions =
            Preconditions { resource_version: there.metadata.resource_version, uid: there.metadata.uid };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match shared.objects.delete::<Deployment>(&name, &params).await {
            Err(error) if error.is_conflict() => {}
            deleted => {
                deleted.map_err(failed(format!("delete the Deployment {name}"), app))?;
                return remove_budget(shared, app, process_type).await;
            }
        }
    }
    Ok(())
}

/// Keeps a budget for what has several instances, and none for what has one: that would make a drain hang.
pub(super) async fn put_budget(
    shared: &Shared,
    recipe: &Recipe<'_>,
    (app, process_type): (&AppName, &ProcessType),
    count: u32,
) -> Result<(), RuntimeError> {
    if count < 2 {
        return remove_budget(shared, app, process_type).await;
    }
    let applied = shared.objects.apply::<PodDisruptionBudget>(&recipe.budget(process_type)).await;
    applied.map(drop).map_err(failed("apply the PodDisruptionBudget", app))
}

async fn remove_budget(
    shared: &Shared,
    app: &AppName,
    process_type: &ProcessType,
) -> Result<(), RuntimeError> {
    let (name, params) = (names::deployment(app, process_type), DeleteParams::default());
    let deleted = shared.objects.delete::<PodDisruptionBudget>(&name, &params).await;
    deleted.map_err(failed("delete the PodDisruptionBudget", app))
}

/// Deletes a Deployment with its pods, and its budget.
pub(super) async fn remove_deployment(
    shared: &Shared,
    app: &AppName,
    process_type: &ProcessType,
) -> Result<(), RuntimeError> {
    let name = names::deployment(app, process_type);
    let deleted = shared.objects.delete::<Deployment>(&name, &DeleteParams::background()).await;
    deleted.map_err(failed(format!("delete the Deployment {name}"), app))?;
    remove_budget(shared, app, process_type).await
}

/// Deletes the environments of the app's releases that `is_old` says.
pub(super) async fn remove_environments(
    shared: &Shared,
    app: &AppName,
    is_old: impl Fn(ReleaseNumber) -> bool,
) -> Result<(), RuntimeError> {
    // By their type: others of hephy's Secrets are in the same namespace, with the same labels.
    let params =
        ListParams::default().labels(&names::selector(Some(app))).fields(&format!("type={ENVIRONMENT_TYPE}"));
    let secrets =
        shared.objects.find::<Secret>(params).await.map_err(failed("list the environments", app))?;
    for secret in secrets {
        let labels = secret.metadata.labels.as_ref();
        let release = labels.and_then(|labels| labels.get(Label::Release.key())?.parse().ok());
        if let (Some(name), true) = (&secret.metadata.name, release.is_some_and(&is_old)) {
            let deleted = shared.objects.delete::<Secret>(name, &DeleteParams::default()).await;
            deleted.map_err(failed("delete an environment", app))?;
        }
    }
    Ok(())
}

/// Deletes everything of the app but its pods that run a command once.
pub(super) async fn remove_all(shared: &Shared, app: &AppName) -> Result<(), RuntimeError> {
    expose::remove(shared, app).await?;
    for deployment in State::read(shared, app).await?.deployments {
        if let Some(process_type) = type_of(&deployment.metadata) {
            remove_deployment(shared, app, &process_type).await?;
        }
    }
    remove_environments(shared, app, |_| true).await
}

/// Makes the Deployments what they were `before` the start of `version`.
///
/// What another server has put there since is left as it is: it goes on with the version, or has taken it back.
pub(super) async fn restore(
    shared: &Shared,
    recipe: &Recipe<'_>,
    version: &Version,
    before: &State,
) -> Result<(), RuntimeError> {
    let (app, release) = (&version.release.app, version.release.number);
    for process_type in version.release.processes.keys() {
        match before.deployment(process_type) {
            Some(old) => {
                let put = put_deployment(shared, (app, process_type), Over::Ours, |resource_version| {
                    again(old, resource_version)
                });
                if put.await? {
                    let count = u32::try_from(old.spec.replicas.unwrap_or(0)).unwrap_or(0);
                    put_budget(shared, recipe, (app, process_type), count).await?;
                }
            }
            None => remove_ours(shared, app, process_type).await?,
        }
    }
    let now = State::read(shared, app).await?;
    // Its pods need the environment, whoever put it there.
    if now.work(&shared.config.identity) == Work::Anothers || now.has(release) {
        return Ok(());
    }
    if before.service.is_none() && now.deployments.is_empty() {
        expose::remove(shared, app).await?;
    }
    remove_environments(shared, app, |number| number == release).await
}

/// A Deployment as it was read, to be applied again.
fn again(old: &Deployment, resource_version: Option<&str>) -> Value {
    let metadata = &old.metadata;
    let annotations = metadata.annotations.clone().unwrap_or_default();
    let ours = annotations.into_iter().filter(|(key, _)| key.starts_with("hephy.dev/"));
    let mut value = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": metadata.name,
            "labels": metadata.labels,
            "annotations": ours.collect::<std::collections::BTreeMap<_, _>>(),
        },
        "spec": old.spec,
    });
    if let Some(version) = resource_version {
        value["metadata"]["resourceVersion"] = version.into();
    }
    value
}

/// Like [`failed`], but what an admission rule forbids is told to the pusher as what keeps the app from running.
pub(super) fn refused(
    action: &str,
    app: &AppName,
    process_type: &ProcessType,
) -> impl FnOnce(ApiError) -> RuntimeError {
    let (action, app, process_type) = (action.to_owned(), app.clone(), process_type.clone());
    move |error| match error.admission() {
        Some(why) => {
            let obstacle = Obstacle::Blocked { why: why.to_owned(), hint: hint(why) };
            let instance = InstanceName { process_type, number: 1 };
            let lines = Vec::new();
            RuntimeError::NotReady(Box::new(NotReady { app, instance, obstacle, lines }))
        }
        None => failed(action, &app)(error),
    }
}

/// Sets how many instances of a release run, in the version of the Deployment that was read. False where it is of another
/// release, or gone.
pub(super) async fn put_count(
    shared: &Shared,
    (app, process_type): (&AppName, &ProcessType),
    release: ReleaseNumber,
    count: u32,
) -> Result<bool, RuntimeError> {
    let name = names::deployment(app, process_type);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let there = shared.objects.get::<Deployment>(&name).await;
        let there = there.map_err(failed(format!("read the Deployment {name}"), app))?;
        let Some(there) = there.filter(|there| release_of(&there.metadata) == Some(release)) else {
            return Ok(false);
        };
        if there.spec.replicas.and_then(|now| u32::try_from(now).ok()) == Some(count) {
            return Ok(true);
        }
        let version = json!({"resourceVersion": there.metadata.resource_version});
        let fields = json!({"metadata": version, "spec": {"replicas": count}});
        match shared.objects.merge::<Deployment>(&name, &fields).await {
            Ok(_) => return Ok(true),
            Err(error) if error.is_conflict() && attempt < CONFLICTS => {}
            Err(error) => return Err(failed(format!("scale the Deployment {name}"), app)(error)),
        }
    }
}

/// What to do about a refusal, where its words say which rule it was.
pub(super) fn hint(why: &str) -> Option<String> {
    let hint = if why.contains("exceeded quota") {
        "The namespace's ResourceQuota is used up: `hephy ps scale` runs fewer instances, or the cluster's operator raises it. A rollout needs room for one more instance than run."
    } else if why.contains("violates PodSecurity") {
        "The namespace's Pod Security level forbids it: a numeric `USER` that is not 0 in the Dockerfile makes an image pass `restricted`."
    } else if why.contains("usage per Container") || why.contains("usage per Pod") {
        "The namespace's LimitRange forbids the resources that the cluster's operator set for apps."
    } else {
        return None;
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_that_is_applied_again_keeps_what_is_ours_and_no_bookkeeping() {
        let old: Deployment = serde_json::from_value(json!({
            "metadata": {
                "name": "hello--web", "uid": "1", "resourceVersion": "5", "generation": 3,
                "labels": {"hephy.dev/app": "hello"},
                "annotations": {"hephy.dev/release": "v3", "deployment.kubernetes.io/revision": "3"},
            },
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": {"replicas": 2},
        }))
        .unwrap();
        assert_eq!(release_of(&old.metadata), Some(ReleaseNumber(3)));
        let value = again(&old, Some("9"));
        assert_eq!(
            value["metadata"],
            json!({"name": "hello--web", "labels": {"hephy.dev/app": "hello"},
                "annotations": {"hephy.dev/release": "v3"}, "resourceVersion": "9"})
        );
        assert_eq!((&value["spec"]["replicas"], &value["status"]), (&json!(2), &Value::Null));
    }
}
