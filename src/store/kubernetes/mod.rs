//! Objects as custom resources, and variables as Secrets, in one namespace of a cluster.
//!
//! A document is the resource's `spec`, whole; a `status` for people is derived from it in the same write. A version
//! is the `resourceVersion`, so compare-and-swap is the API server's own. Waiting is a shared watch for each kind, and
//! a reading now and then in case the watch sees nothing. Every write carries a mark of its own: one whose answer was
//! lost is recognised when it is tried again.

mod call;
mod resource;
mod status;
mod watches;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::Client;
use kube::core::params::{DeleteParams, GetParams, ListParams, PostParams, Preconditions};
use serde_json::Value;

use call::Asked;
use resource::Resource;
use watches::Watches;

use crate::kubernetes::{Caller, MANAGER, Refusal};
use crate::model::store::Document;
use crate::model::{Kind, ObjectName, Store, StoreError, Version};

/// The definitions of the custom resources, as YAML documents.
pub const DEFINITIONS: &str = include_str!("../../../charts/hephy/files/crds.yaml");

/// So many objects come with one answer.
const PAGE: u32 = 500;

/// How often a list is begun anew because its snapshot is gone, before it is given up.
const MAX_LISTS: usize = 5;

/// How long a waiter relies on the watch before it looks for itself.
const POLL: Duration = Duration::from_secs(15);

/// How often a waiter looks for itself while the watch is broken.
const POLL_BLIND: Duration = Duration::from_secs(2);

/// A store in a namespace. Clones share it.
#[derive(Debug, Clone)]
pub struct KubernetesStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    caller: Caller,
    namespace: String,
    watches: Watches,
}

impl KubernetesStore {
    /// The store in `namespace`. Nothing is asked of the cluster yet.
    #[must_use]
    pub fn new(client: &Client, namespace: &str) -> Self {
        let watches = Watches::new(client.clone(), namespace.to_owned());
        let caller = Caller::new(client.clone());
        Self { shared: Arc::new(Shared { caller, namespace: namespace.to_owned(), watches }) }
    }

    /// Whether the API server answers and lets us read every kind: for a readiness check.
    pub async fn check(&self) -> Result<(), StoreError> {
        for kind in Kind::ALL {
            let page = self.page(kind, &ListParams::default().limit(1)).await;
            page.map_err(|refusal| self.to_list(kind, "").error(refusal))?;
        }
        Ok(())
    }

    fn resource(&self, kind: Kind) -> Resource<'_> {
        Resource { kind, namespace: &self.shared.namespace }
    }

    fn asked<'a>(
        &'a self,
        kind: Kind,
        name: &'a ObjectName,
        (doing, verb): (&'static str, &'static str),
    ) -> Asked<'a> {
        Asked { kind, name: name.as_str(), doing, verb, namespace: &self.shared.namespace }
    }

    fn to_list<'a>(&'a self, kind: Kind, prefix: &'a str) -> Asked<'a> {
        Asked { kind, name: prefix, doing: "list", verb: "list", namespace: &self.shared.namespace }
    }

    async fn read(&self, kind: Kind, name: &ObjectName) -> Result<Option<Value>, StoreError> {
        let resource = self.resource(kind);
        let asked = self.asked(kind, name, ("read", "get"));
        let request = resource.request().get(&resource.name_of(name), &GetParams::default());
        match asked.sent_by(&self.shared.caller, request).await {
            Ok(object) => Ok(Some(object)),
            Err(Refusal::Missing | Refusal::MissingAfterRetry) => Ok(None),
            Err(refusal) => Err(asked.error(refusal)),
        }
    }

    async fn page(&self, kind: Kind, params: &ListParams) -> Result<Value, Refusal> {
        let resource = self.resource(kind);
        let params = match kind {
            Kind::Config => params.clone().fields(&format!("type={}", resource::SECRET_TYPE)),
            _ => params.clone(),
        };
        self.to_list(kind, "").sent_by(&self.shared.caller, resource.request().list(&params)).await
    }

    /// All pages of one snapshot; [`Refusal::Expired`] if it is gone before the last.
    async fn pages(&self, kind: Kind, prefix: &str) -> Result<BTreeMap<ObjectName, Document>, Refusal> {
        let resource = self.resource(kind);
        let mut params = ListParams::default().limit(PAGE);
        if let Some(selector) = resource::selector(prefix) {
            params = params.labels(&selector);
        }
        let mut documents = BTreeMap::new();
        loop {
            let mut page = self.page(kind, &params).await?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                let named = items.into_iter().filter_map(|item| resource.document(item));
                documents.extend(named.filter(|(name, _)| name.as_str().starts_with(prefix)));
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(token) if !token.is_empty() => params.continue_token = Some(token.to_owned()),
                _ => return Ok(documents),
            }
        }
    }

    /// Whether the object is as we wrote it: then a refusal answers a write of ours that was done already.
    async fn is_ours(
        &self,
        kind: Kind,
        name: &ObjectName,
        mark: &str,
    ) -> Result<Option<Version>, StoreError> {
        let read = self.read(kind, name).await?;
        Ok(read
            .filter(|object| resource::mark_of(object) == Some(mark))
            .as_ref()
            .and_then(resource::version_of))
    }
}

fn new_mark() -> String {
    format!("{:016x}", rand::random::<u64>())
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

#[async_trait]
impl Store for KubernetesStore {
    async fn get(&self, kind: Kind, name: &ObjectName) -> Result<Option<Document>, StoreError> {
        let read = self.read(kind, name).await?;
        Ok(read.and_then(|object| self.resource(kind).document(object)).map(|(_, document)| document))
    }

    async fn list(&self, kind: Kind, prefix: &str) -> Result<Vec<(ObjectName, Document)>, StoreError> {
        for _ in 0..MAX_LISTS {
            match self.pages(kind, prefix).await {
                Ok(documents) => return Ok(documents.into_iter().collect()),
                // The snapshot was compacted away under a slow reader.
                Err(Refusal::Expired) => {}
                Err(refusal) => return Err(self.to_list(kind, prefix).error(refusal)),
            }
        }
        Err(self.to_list(kind, prefix).error(Refusal::Expired))
    }

    async fn create(&self, kind: Kind, name: &ObjectName, json: Vec<u8>) -> Result<Version, StoreError> {
        let resource = self.resource(kind);
        let asked = self.asked(kind, name, ("write", "create"));
        let mark = new_mark();
        let body = resource.object(name, &json, &mark, None)?;
        let request = resource.request().create(&parameters(), body);
        match asked.sent_by(&self.shared.caller, request.map(resource::strictly)).await {
            Ok(object) => resource::version_of(&object).ok_or_else(|| asked.error(Refusal::Missing)),
            Err(Refusal::Exists) => match self.is_ours(kind, name, &mark).await? {
                Some(version) => Ok(version),
                None => Err(StoreError::Exists { kind, name: name.clone() }),
            },
            Err(refusal) => Err(asked.error(refusal)),
        }
    }

    async fn replace(
        &self,
        kind: Kind,
        name: &ObjectName,
        read: &Version,
        json: Vec<u8>,
    ) -> Result<Version, StoreError> {
        let resource = self.resource(kind);
        let asked = self.asked(kind, name, ("write", "update"));
        let mark = new_mark();
        let body = resource.object(name, &json, &mark, Some(read))?;
        let request = resource.request().replace(&resource.name_of(name), &parameters(), body);
        match asked.sent_by(&self.shared.caller, request.map(resource::strictly)).await {
            Ok(object) => resource::version_of(&object).ok_or_else(|| asked.error(Refusal::Missing)),
            Err(Refusal::Conflict) => match self.is_ours(kind, name, &mark).await? {
                Some(version) => Ok(version),
                None => Err(StoreError::Conflict { kind, name: name.clone() }),
            },
            Err(refusal) => Err(asked.error(refusal)),
        }
    }

    async fn delete(&self, kind: Kind, name: &ObjectName, read: &Version) -> Result<(), StoreError> {
        let resource = self.resource(kind);
        let asked = self.asked(kind, name, ("remove", "delete"));
        let preconditions = Preconditions { resource_version: Some(read.0.clone()), uid: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        let request = resource.request().delete(&resource.name_of(name), &params);
        match asked.sent_by(&self.shared.caller, request).await {
            // Or an earlier attempt did it, whose answer was lost.
            Ok(_) | Err(Refusal::MissingAfterRetry) => Ok(()),
            Err(refusal) => Err(asked.error(refusal)),
        }
    }

    async fn changed(&self, kind: Kind, name: &ObjectName, read: &Version) -> Result<(), StoreError> {
        let object_name = self.resource(kind).name_of(name);
        let mut watch = self.shared.watches.of(kind);
        loop {
            // What the watch has seen is noted before the reading: whatever happens after the reading changes it.
            let (seen, patience) = {
                let state = watch.borrow_and_update();
                (state.version(&object_name), if state.is_blind() { POLL_BLIND } else { POLL })
            };
            match self.get(kind, name).await? {
                Some(document) if document.version == *read => {}
                _ => return Ok(()),
            }
            let moved = watch.wait_for(|state| state.version(&object_name) != seen);
            // Whether it moved or the patience is over: the next reading says what is true.
            drop(tokio::time::timeout(patience, moved).await);
        }
    }
}
