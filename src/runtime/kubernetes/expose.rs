//! How requests reach an app: its Service, which also says which release is current, and an Ingress or HTTPRoute.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{ApiResource, DeleteParams};
use serde_json::{Value, json};

use super::deployment::changed;
use super::names::{self, PORT, RELEASE};
use super::objects::{ApiError, failed};
use super::{Exposure, Shared};
use crate::model::{AppName, ProcessType};
use crate::rollout::{RuntimeError, Version};

/// The port of the Service.
const HTTP: u16 = 80;

fn http_route() -> ApiResource {
    ApiResource {
        group: "gateway.networking.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "gateway.networking.k8s.io/v1".to_owned(),
        kind: "HTTPRoute".to_owned(),
        plural: "httproutes".to_owned(),
    }
}

/// Makes the way to an app that has none yet, so that it is there once its first instances are ready. It says of no
/// release that it is current.
pub(super) async fn prepare(shared: &Shared, version: &Version) -> Result<(), ApiError> {
    let app = &version.release.app;
    let mut annotations = changed(&shared.config, version);
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.remove(RELEASE);
    }
    shared.objects.apply::<Service>(&service(app, &annotations)).await?;
    apply_route(shared, app).await
}

/// Makes `version` the current one over the Service that was read, and sends the app's requests to its pods.
///
/// Fails with a conflict where the Service was changed since.
pub(super) async fn make_current(
    shared: &Shared,
    version: &Version,
    read: Option<&Service>,
) -> Result<(), ApiError> {
    let app = &version.release.app;
    let mut service = service(app, &changed(&shared.config, version));
    if let Some(version) = read.and_then(|service| service.metadata.resource_version.as_deref()) {
        service["metadata"]["resourceVersion"] = version.into();
    }
    shared.objects.apply::<Service>(&service).await?;
    apply_route(shared, app).await
}

async fn apply_route(shared: &Shared, app: &AppName) -> Result<(), ApiError> {
    match route(&shared.config.exposure, app) {
        Some(Route::Ingress(ingress)) => shared.objects.apply::<Ingress>(&ingress).await.map(drop)?,
        Some(Route::Http(route)) => shared.objects.apply_dynamic(&http_route(), &route).await?,
        None => {}
    }
    Ok(())
}

/// Makes the way to an app what the setting says, once in this process: the setting may be another than it was.
pub(super) async fn keep_route(shared: &Shared, app: &AppName) -> Result<(), ApiError> {
    if shared.exposed().contains(app) {
        return Ok(());
    }
    apply_route(shared, app).await?;
    remove_routes(shared, app, &shared.config.exposure).await?;
    shared.exposed().insert(app.clone());
    Ok(())
}

/// Deletes the ways to an app but the one that is kept, whatever the setting is or was.
async fn remove_routes(shared: &Shared, app: &AppName, keep: &Exposure) -> Result<(), ApiError> {
    let name = names::service(app);
    if !matches!(keep, Exposure::Ingress { .. }) {
        let deleted = shared.objects.delete::<Ingress>(&name, &DeleteParams::default()).await;
        unless_forbidden(deleted, matches!(shared.config.exposure, Exposure::Ingress { .. }))?;
    }
    if !matches!(keep, Exposure::HttpRoute { .. }) {
        let deleted = shared.objects.delete_dynamic(&http_route(), &name).await;
        unless_forbidden(deleted, matches!(shared.config.exposure, Exposure::HttpRoute { .. }))?;
    }
    Ok(())
}

/// A role that does not let us delete what the setting does not make is none of the app's trouble.
fn unless_forbidden(deleted: Result<(), ApiError>, is_the_setting: bool) -> Result<(), ApiError> {
    match deleted {
        Err(error) if error.is_forbidden() && !is_the_setting => Ok(()),
        deleted => deleted,
    }
}

/// Takes the way to the app away.
pub(super) async fn remove(shared: &Shared, app: &AppName) -> Result<(), RuntimeError> {
    shared.exposed().remove(app);
    // Nothing is kept: `Services` makes no route.
    let removed = remove_routes(shared, app, &Exposure::Services).await;
    removed.map_err(failed("delete the Ingress or HTTPRoute", app))?;
    let deleted = shared.objects.delete::<Service>(&names::service(app), &DeleteParams::default()).await;
    deleted.map_err(failed("delete the Service", app))
}

fn service(app: &AppName, annotations: &Value) -> Value {
    let labels = names::labels(app, &ProcessType::web());
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names::service(app),
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            "type": "ClusterIP",
            "selector": labels,
            // By the name of the port: releases may listen on different ones while one takes the other's place.
            "ports": [{"name": PORT, "port": HTTP, "targetPort": PORT, "protocol": "TCP"}],
        },
    })
}

#[derive(Debug, PartialEq)]
enum Route {
    Ingress(Value),
    Http(Value),
}

fn route(exposure: &Exposure, app: &AppName) -> Option<Route> {
    let metadata = |annotations: &Value| {
        let labels = names::labels(app, &ProcessType::web());
        json!({"name": names::service(app), "labels": labels, "annotations": annotations})
    };
    match exposure {
        Exposure::Services => None,
        Exposure::Ingress { domain, class, annotations, tls_secret } => {
            let host = format!("{app}.{domain}");
            let backend = json!({"service": {"name": names::service(app), "port": {"name": PORT}}});
            let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend}]);
            let mut spec = json!({"rules": [{"host": host, "http": {"paths": paths}}]});
            if let Some(class) = class {
                spec["ingressClassName"] = class.as_str().into();
            }
            if let Some(secret) = tls_secret {
                spec["tls"] = json!([{"hosts": [host], "secretName": secret}]);
            }
            let metadata = metadata(&json!(annotations));
            Some(Route::Ingress(json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec,
            })))
        }
        Exposure::HttpRoute { domain, gateway, gateway_namespace, section } => {
            let mut parent = json!({"name": gateway});
            if let Some(namespace) = gateway_namespace {
                parent["namespace"] = namespace.as_str().into();
            }
            if let Some(section) = section {
                parent["sectionName"] = section.as_str().into();
            }
            let backend = json!([{"name": names::service(app), "port": HTTP}]);
            Some(Route::Http(json!({
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": metadata(&json!({})),
                "spec": {
                    "parentRefs": [parent],
                    "hostnames": [format!("{app}.{domain}")],
                    "rules": [{"backendRefs": backend}],
                },
            })))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> AppName {
        "hello".parse().unwrap()
    }

    #[test]
    fn an_ingress_names_the_apps_host_class_and_certificate() {
        let exposure = Exposure::Ingress {
            domain: "apps.example.org".to_owned(),
            class: Some("nginx".to_owned()),
            annotations: [("a/b".to_owned(), "c".to_owned())].into(),
            tls_secret: Some("wildcard".to_owned()),
        };
        let Some(Route::Ingress(value)) = route(&exposure, &hello()) else { panic!("no ingress") };
        drop(serde_json::from_value::<Ingress>(value.clone()).unwrap());
        assert_eq!(value["spec"]["rules"][0]["host"], "hello.apps.example.org");
        assert_eq!(
            value["spec"]["tls"],
            json!([{"hosts": ["hello.apps.example.org"], "secretName": "wildcard"}])
        );
        assert_eq!(value["metadata"]["annotations"], json!({"a/b": "c"}));
        assert_eq!(value["spec"]["ingressClassName"], "nginx");
    }

    #[test]
    fn a_route_names_its_gateway_and_the_apps_service() {
        let exposure = Exposure::HttpRoute {
            domain: "example.org".to_owned(),
            gateway: "public".to_owned(),
            gateway_namespace: Some("gateways".to_owned()),
            section: None,
        };
        let Some(Route::Http(value)) = route(&exposure, &hello()) else { panic!("no route") };
        assert_eq!(value["spec"]["parentRefs"], json!([{"name": "public", "namespace": "gateways"}]));
        assert_eq!(value["spec"]["rules"][0]["backendRefs"], json!([{"name": "hello--web", "port": 80}]));
        assert_eq!(route(&Exposure::Services, &hello()), None);
    }
}
