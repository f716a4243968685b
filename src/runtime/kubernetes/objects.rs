//! The calls to the API server, each for an app and with errors that say what was being done.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams,
};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kubernetes::{MANAGER, may_pass, once, patiently};
use crate::model::AppName;
use crate::rollout::RuntimeError;

/// How many objects a list asks for at a time.
const PAGE: u32 = 500;

/// A kind of object in a namespace.
pub(super) trait Kind:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug
{
}

impl<K> Kind for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug
{
}

/// What the API server answered, without the client's own debris.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// It refused.
    #[error("the API server refused: {message}")]
    Refused {
        /// Its HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
    /// It could not be asked, or its answer not be understood.
    #[error("the API server does not answer")]
    Unreachable(#[source] Box<kube::Error>),
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { code: status.code, message: status.message },
            other => Self::Unreachable(Box::new(other)),
        }
    }
}

impl ApiError {
    /// Whether the object was changed since it was read.
    pub(super) const fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code: 409, .. })
    }

    /// Whether our account may not do it.
    pub(super) const fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { code: 403, .. })
    }

    /// What an admission rule (a quota, a limit range, Pod Security) says; not that we lack a permission.
    pub(super) fn admission(&self) -> Option<&str> {
        match self {
            Self::Refused { code: 403, message } if !message.contains(" cannot ") => Some(message),
            _ => None,
        }
    }

    /// Whether the same call may do better in a moment.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Refused { code, .. } => matches!(*code, 401 | 408 | 429 | 500..=599),
            Self::Unreachable(error) => may_pass(error),
        }
    }
}

/// The objects of one namespace.
#[derive(Clone)]
pub(super) struct Objects {
    client: Client,
    namespace: String,
}

impl Objects {
    pub(super) const fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace }
    }

    pub(super) fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies `object` by its name; where it names a `resourceVersion`, only over that version.
    pub(super) async fn apply<K: Kind>(&self, object: &Value) -> Result<K, ApiError> {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let params = PatchParams::apply(MANAGER).force();
        let api = self.api::<K>();
        let patch = Patch::Apply(object);
        repeated(|| api.patch(name, &params, &patch)).await
    }

    /// The same for a kind that this program has no type for.
    pub(super) async fn apply_dynamic(&self, kind: &ApiResource, object: &Value) -> Result<(), ApiError> {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let params = PatchParams::apply(MANAGER).force();
        let (api, patch) = (self.dynamic(kind), Patch::Apply(object));
        repeated(|| async { api.patch(name, &params, &patch).await.map(drop) }).await
    }

    /// Makes an object that there is none of; not twice, so an answer that is lost is an error.
    pub(super) async fn create<K: Kind + serde::Serialize>(&self, object: &K) -> Result<K, ApiError> {
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        Ok(once(self.api::<K>().create(&params, object)).await?)
    }

    /// The log of a pod, once the API server begins to send it.
    pub(super) async fn log(
        &self,
        pod: &str,
        params: &LogParams,
    ) -> Result<impl futures::io::AsyncBufRead + Send + Unpin + 'static, ApiError> {
        let api = self.api::<Pod>();
        Ok(once(api.log_stream(pod, params)).await?)
    }

    /// Changes some fields of what is there.
    pub(super) async fn merge<K: Kind>(&self, name: &str, fields: &Value) -> Result<K, ApiError> {
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.api::<K>();
        let patch = Patch::Merge(fields);
        repeated(|| api.patch(name, &params, &patch)).await
    }

    pub(super) async fn get<K: Kind>(&self, name: &str) -> Result<Option<K>, ApiError> {
        let api = self.api::<K>();
        repeated(|| api.get_opt(name)).await
    }

    /// Everything that the selector finds, a page at a time.
    pub(super) async fn list<K: Kind>(&self, labels: &str) -> Result<Vec<K>, ApiError> {
        self.find(ListParams::default().labels(labels)).await
    }

    /// Everything that `params` asks for, a page at a time.
    pub(super) async fn find<K: Kind>(&self, params: ListParams) -> Result<Vec<K>, ApiError> {
        let api = self.api::<K>();
        let mut params = params.limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = repeated(|| api.list(&params)).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// Deletes an object; that it is not there is as good.
    pub(super) async fn delete<K: Kind>(&self, name: &str, params: &DeleteParams) -> Result<(), ApiError> {
        let api = self.api::<K>();
        absent_is_fine(repeated(|| async { api.delete(name, params).await.map(drop) }).await)
    }

    /// The same for a kind that this program has no type for, and that the cluster may not have.
    pub(super) async fn delete_dynamic(&self, kind: &ApiResource, name: &str) -> Result<(), ApiError> {
        let (api, params) = (self.dynamic(kind), DeleteParams::default());
        absent_is_fine(repeated(|| async { api.delete(name, &params).await.map(drop) }).await)
    }

    fn dynamic(&self, kind: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, kind)
    }
}

fn absent_is_fine(done: Result<(), ApiError>) -> Result<(), ApiError> {
    match done {
        Err(ApiError::Refused { code: 404, .. }) => Ok(()),
        done => done,
    }
}

async fn repeated<T, F>(call: impl Fn() -> F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    Ok(patiently(call).await?)
}

/// What an error is to whoever called the runtime: `error("list the pods", app)` makes one of what the API said.
pub(super) fn failed(action: impl Into<String>, app: &AppName) -> impl FnOnce(ApiError) -> RuntimeError {
    let (action, app) = (action.into(), app.clone());
    move |error| RuntimeError::Cluster { action, app, source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, message: &str) -> ApiError {
        ApiError::Refused { code, message: message.to_owned() }
    }

    #[test]
    fn what_admission_forbids_is_told_from_what_we_may_not_do() {
        let quota = "pods \"hello\" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1";
        assert_eq!(refused(403, quota).admission(), Some(quota));
        let rbac =
            "deployments.apps is forbidden: User \"system:serviceaccount:hephy:hephy\" cannot list resource";
        assert_eq!(refused(403, rbac).admission(), None);
        assert_eq!(refused(422, quota).admission(), None);
    }
}
