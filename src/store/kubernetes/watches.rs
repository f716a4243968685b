//! One watch for each kind that somebody waits for, shared by all who wait.
//!
//! It keeps names and versions, no documents. What it says is a hint: who is woken reads the object.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::resource::{SECRET_TYPE, api_resource, full_name};
use crate::model::{Chain, Kind};

/// Longer than the watch ever waits before it tries again after a failure.
const BLIND: Duration = Duration::from_secs(35);

/// What the watch of a kind has seen.
#[derive(Debug)]
pub(super) struct Seen {
    versions: HashMap<String, String>,
    blind_until: Instant,
}

impl Seen {
    /// The version of the object of this name that was seen last; none if it is gone, or not seen yet.
    pub(super) fn version(&self, name: &str) -> Option<String> {
        self.versions.get(name).cloned()
    }

    /// Whether changes may go unseen.
    pub(super) fn is_blind(&self) -> bool {
        Instant::now() < self.blind_until
    }
}

#[derive(Debug)]
struct KindWatch {
    seen: Arc<watch::Sender<Seen>>,
    task: AbortHandle,
}

impl Drop for KindWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The watches of one namespace; each begins when somebody first waits, and they end with the value.
pub(super) struct Watches {
    client: Client,
    namespace: String,
    kinds: [OnceLock<KindWatch>; Kind::ALL.len()],
}

impl std::fmt::Debug for Watches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watches").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Watches {
    pub(super) fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace, kinds: Default::default() }
    }

    /// What is seen of a kind, from now on.
    pub(super) fn of(&self, kind: Kind) -> watch::Receiver<Seen> {
        let [apps, builds, releases, users, configs] = &self.kinds;
        let place = match kind {
            Kind::App => apps,
            Kind::Build => builds,
            Kind::Release => releases,
            Kind::User => users,
            Kind::Config => configs,
        };
        let watch = place.get_or_init(|| {
            let seen = Seen { versions: HashMap::new(), blind_until: Instant::now() + BLIND };
            let seen = Arc::new(watch::Sender::new(seen));
            let task =
                tokio::spawn(follow(self.client.clone(), self.namespace.clone(), kind, Arc::clone(&seen)));
            KindWatch { seen, task: task.abort_handle() }
        });
        watch.seen.subscribe()
    }
}

/// Follows a kind for ever: the watcher lists again where the server no longer knows from where to go on, and waits
/// longer from one failure to the next.
async fn follow(client: Client, namespace: String, kind: Kind, seen: Arc<watch::Sender<Seen>>) {
    let api: Api<PartialObjectMeta<DynamicObject>> =
        Api::namespaced_with(client, &namespace, &api_resource(kind));
    let config = match kind {
        Kind::Config => Config::default().fields(&format!("type={SECRET_TYPE}")),
        _ => Config::default(),
    };
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut fresh = HashMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => fresh.clear(),
            Ok(Event::InitApply(object)) => fresh.extend(name_and_version(object)),
            Ok(Event::InitDone) => seen.send_modify(|seen| {
                seen.versions = std::mem::take(&mut fresh);
                seen.blind_until = Instant::now();
            }),
            Ok(Event::Apply(object)) => seen.send_modify(|seen| {
                seen.versions.extend(name_and_version(object));
                seen.blind_until = Instant::now();
            }),
            Ok(Event::Delete(object)) => seen.send_modify(|seen| {
                if let Some((name, _)) = name_and_version(object) {
                    seen.versions.remove(&name);
                }
                seen.blind_until = Instant::now();
            }),
            Err(error) => {
                let resource = full_name(kind);
                tracing::warn!(resource, error = %Chain(&error), "a watch failed; it is tried again, and who waits looks every two seconds");
                seen.send_modify(|seen| seen.blind_until = Instant::now() + BLIND);
            }
        }
    }
}

fn name_and_version(object: PartialObjectMeta<DynamicObject>) -> Option<(String, String)> {
    object.metadata.name.zip(object.metadata.resource_version)
}
