//! Documents as Kubernetes objects, and back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::core::{ApiResource, Request};
use serde_json::{Map, Value, json};

use super::status;
use crate::kubernetes::{API_GROUP, API_VERSION, Label, managed_by};
use crate::model::store::Document;
use crate::model::{Kind, ObjectName, StoreError, Version};

/// The type of the Secrets that hold variables.
pub(super) const SECRET_TYPE: &str = "hephy.dev/config";

/// The key of the document in a Secret.
const SECRET_KEY: &str = "config.json";

/// What the names of the Secrets begin with.
const SECRET_PREFIX: &str = "config--";

/// Tells one write from another.
const MARK: &str = "hephy.dev/write";

/// The largest object that is sent: etcd takes 1.5 MiB, and the API server adds a little of its own.
const MAX_OBJECT_BYTES: usize = 1536 * 1024 - 16 * 1024;

/// The largest document that a Secret holds.
const MAX_SECRET_BYTES: usize = 1024 * 1024;

/// A kind's resource in a namespace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resource<'a> {
    pub(super) kind: Kind,
    pub(super) namespace: &'a str,
}

/// The plural under which the API has a kind.
pub(super) const fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Config => "secrets",
        Kind::App | Kind::Build | Kind::Release | Kind::User => kind.plural(),
    }
}

/// The kind as roles name it: `apps.hephy.dev`.
pub(super) fn full_name(kind: Kind) -> String {
    match kind {
        Kind::Config => "secrets".to_owned(),
        Kind::App | Kind::Build | Kind::Release | Kind::User => format!("{}.{API_GROUP}", kind.plural()),
    }
}

const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::App => "App",
        Kind::Build => "Build",
        Kind::Release => "Release",
        Kind::User => "User",
        Kind::Config => "Secret",
    }
}

/// The kind as kube knows it.
pub(super) fn api_resource(kind: Kind) -> ApiResource {
    let (group, version) = match kind {
        Kind::Config => ("", "v1"),
        _ => (API_GROUP, API_VERSION),
    };
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind_name(kind).to_owned(),
        plural: plural(kind).to_owned(),
    }
}

/// The app that an object belongs to.
fn app_of(kind: Kind, name: &ObjectName) -> Option<&str> {
    match kind {
        Kind::User => None,
        Kind::App => Some(name.as_str()),
        Kind::Build | Kind::Release | Kind::Config => name.as_str().split("--").next(),
    }
}

/// The label selector for what may begin with `prefix`, where there is one: the objects of an app.
pub(super) fn selector(prefix: &str) -> Option<String> {
    prefix.strip_suffix("--").filter(|app| !app.is_empty()).map(|app| Label::App.is(app))
}

impl Resource<'_> {
    /// The requests below the resource's path.
    pub(super) fn request(self) -> Request {
        let Self { kind, namespace } = self;
        Request::new(match kind {
            Kind::Config => format!("/api/v1/namespaces/{namespace}/secrets"),
            _ => format!("/apis/{API_GROUP}/{API_VERSION}/namespaces/{namespace}/{}", plural(kind)),
        })
    }

    /// The name of a document's object.
    pub(super) fn name_of(self, name: &ObjectName) -> String {
        match self.kind {
            Kind::Config => format!("{SECRET_PREFIX}{name}"),
            _ => name.to_string(),
        }
    }

    /// The object to send for a document.
    pub(super) fn object(
        self,
        name: &ObjectName,
        document: &[u8],
        mark: &str,
        read: Option<&Version>,
    ) -> Result<Vec<u8>, StoreError> {
        let kind = self.kind;
        let malformed = |source| StoreError::Malformed { kind, name: name.clone(), source };
        let app = app_of(kind, name).map(|app| (Label::App, app));
        let mut metadata = json!({
            "name": self.name_of(name),
            "namespace": self.namespace,
            "labels": managed_by(app.as_slice()),
            "annotations": { MARK: mark },
        });
        if let (Some(metadata), Some(Version(version))) = (metadata.as_object_mut(), read) {
            metadata.insert("resourceVersion".to_owned(), Value::from(version.as_str()));
        }
        let resource = api_resource(kind);
        let mut object = Map::from_iter([
            ("apiVersion".to_owned(), Value::from(resource.api_version)),
            ("kind".to_owned(), Value::from(resource.kind)),
            ("metadata".to_owned(), metadata),
        ]);
        let max_bytes = if kind == Kind::Config {
            object.insert("type".to_owned(), Value::from(SECRET_TYPE));
            object.insert("data".to_owned(), json!({ SECRET_KEY: STANDARD.encode(document) }));
            MAX_SECRET_BYTES
        } else {
            object.insert("spec".to_owned(), serde_json::from_slice(document).map_err(malformed)?);
            if let Some(status) = status::of(kind, document) {
                object.insert("status".to_owned(), status);
            }
            MAX_OBJECT_BYTES
        };
        let body = serde_json::to_vec(&object).map_err(malformed)?;
        let bytes = if kind == Kind::Config { document.len() } else { body.len() };
        if bytes > max_bytes {
            return Err(StoreError::TooLarge { kind, name: name.clone(), bytes });
        }
        Ok(body)
    }

    /// The document in an object; none if it is not one of ours.
    pub(super) fn document(self, mut object: Value) -> Option<(ObjectName, Document)> {
        let version = version_of(&object)?;
        let name = object.pointer("/metadata/name")?.as_str()?;
        let (name, json) = if self.kind == Kind::Config {
            let name = ObjectName::of(&name.strip_prefix(SECRET_PREFIX)?);
            let encoded =
                object.pointer("/data").and_then(|data| data.get(SECRET_KEY)).and_then(Value::as_str);
            // What is damaged is a document that cannot be read, which is an error with a name.
            (name, encoded.and_then(|encoded| STANDARD.decode(encoded).ok()).unwrap_or_default())
        } else {
            let name = ObjectName::of(&name);
            let spec = object.get_mut("spec").map(Value::take).unwrap_or_default();
            (name, spec.to_string().into_bytes())
        };
        Some((name, Document { version, json }))
    }
}

/// The version of an object.
pub(super) fn version_of(object: &Value) -> Option<Version> {
    Some(Version(object.pointer("/metadata/resourceVersion")?.as_str()?.to_owned()))
}

/// The mark of the last write of an object.
pub(super) fn mark_of(object: &Value) -> Option<&str> {
    object.pointer("/metadata/annotations")?.get(MARK)?.as_str()
}

/// Has a field that the definitions do not know refused: it would be dropped otherwise, and with it what hephy knows.
pub(super) fn strictly(mut request: http::Request<Vec<u8>>) -> http::Request<Vec<u8>> {
    let uri = request.uri().to_string();
    let separator = if uri.contains('?') { '&' } else { '?' };
    if let Ok(strict) = format!("{uri}{separator}fieldValidation=Strict").parse() {
        *request.uri_mut() = strict;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(kind: Kind) -> Resource<'static> {
        Resource { kind, namespace: "hephy-apps" }
    }

    #[test]
    fn a_document_survives_the_way_there_and_back() {
        let name = ObjectName::of(&"hello--v4");
        for kind in [Kind::Release, Kind::Config] {
            let sent = resource(kind).object(&name, br#"{"n":1}"#, "m", Some(&Version("7".into()))).unwrap();
            let sent: Value = serde_json::from_slice(&sent).unwrap();
            assert_eq!(mark_of(&sent), Some("m"));
            assert_eq!(sent.pointer("/metadata/labels/hephy.dev~1app"), Some(&Value::from("hello")));
            let (read, document) = resource(kind).document(sent).unwrap();
            assert_eq!((read, document.version.0.as_str()), (name.clone(), "7"));
            assert_eq!(document.json, br#"{"n":1}"#);
        }
    }

    #[test]
    fn what_is_too_large_for_the_cluster_is_refused_here() {
        let name = ObjectName::of(&"hello");
        let document = serde_json::to_vec(&json!({ "x": "x".repeat(MAX_OBJECT_BYTES) })).unwrap();
        let refused = resource(Kind::App).object(&name, &document, "m", None).unwrap_err();
        assert!(matches!(refused, StoreError::TooLarge { .. }), "{refused}");
        let document = serde_json::to_vec(&json!({ "x": "x".repeat(MAX_SECRET_BYTES) })).unwrap();
        assert!(resource(Kind::Config).object(&name, &document, "m", None).is_err());
        assert!(resource(Kind::App).object(&name, &document, "m", None).is_ok());
    }

    #[test]
    fn the_objects_of_an_app_are_asked_for_by_its_label() {
        assert_eq!(selector("hello--").as_deref(), Some("hephy.dev/app=hello"));
        assert_eq!((selector(""), selector("hello"), selector("--")), (None, None, None));
    }
}
