//! The route table of hephy's own router on a cluster: the Services that are ours, and the pods behind each.
//!
//! Pods and not the Service's address: one that is leaving gets no request from the moment it is known, and the
//! router sees which of them refuse. It needs no more than to list and watch Services and EndpointSlices.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::{info, warn};

use super::names::{self, PORT};
use super::state::{app_of, release_of};
use crate::kubernetes::{Cluster, Label};
use crate::model::{AppName, ProcessType};
use crate::router::{Backend, Connection, RouteTable};

/// The label that says of which Service an EndpointSlice is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Keeps `table` as `namespace` has it, for as long as it runs; `ready` becomes true once all was read.
///
/// While the API server does not answer, the table stays as it is.
pub async fn follow(cluster: &Cluster, namespace: &str, table: RouteTable, ready: watch::Sender<bool>) {
    let web = Label::ProcessType.is(ProcessType::web().as_str());
    let config = watcher::Config::default().labels(&format!("{},{web}", names::selector(None)));
    let services: Api<Service> = Api::namespaced(cluster.client(), namespace);
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client(), namespace);
    let mut services = watcher(services, config.clone()).default_backoff().boxed();
    let mut slices = watcher(slices, config).default_backoff().boxed();
    let mut routes =
        Routes { table, services: Known::default(), slices: Known::default(), routed: BTreeSet::new() };
    loop {
        let changed = tokio::select! {
            Some(event) = services.next() => routes.services.take(event, |service| app_of(&service.metadata)),
            Some(event) = slices.next() => routes.slices.take(event, |slice| app_of(&slice.metadata)),
            else => return,
        };
        if routes.services.complete && routes.slices.complete {
            routes.update(changed);
            ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
    }
}

/// What is known of one kind.
struct Known<K> {
    objects: BTreeMap<String, (AppName, K)>,
    /// What a new list has brought so far.
    listed: BTreeMap<String, (AppName, K)>,
    complete: bool,
}

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listed: BTreeMap::new(), complete: false }
    }
}

/// The apps of which something changed.
enum Changed {
    Nothing,
    One(AppName),
    All,
}

impl<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned> Known<K> {
    fn take(
        &mut self,
        event: Result<Event<K>, watcher::Error>,
        app_of: impl Fn(&K) -> Option<AppName>,
    ) -> Changed {
        let named = |object: K| {
            let (name, app) = (object.meta().name.clone()?, app_of(&object)?);
            Some((name, (app, object)))
        };
        match event {
            Ok(Event::Init) => self.listed = BTreeMap::new(),
            Ok(Event::InitApply(object)) => self.listed.extend(named(object)),
            Ok(Event::InitDone) => {
                self.objects = std::mem::take(&mut self.listed);
                self.complete = true;
                return Changed::All;
            }
            Ok(Event::Apply(object)) => {
                let Some((name, (app, object))) = named(object) else { return Changed::Nothing };
                self.objects.insert(name, (app.clone(), object));
                return Changed::One(app);
            }
            Ok(Event::Delete(object)) => {
                let Some((name, (app, _))) = named(object) else { return Changed::Nothing };
                self.objects.remove(&name);
                return Changed::One(app);
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "cannot watch the cluster; trying on");
            }
        }
        Changed::Nothing
    }
}

struct Routes {
    table: RouteTable,
    services: Known<Service>,
    slices: Known<EndpointSlice>,
    routed: BTreeSet<AppName>,
}

impl Routes {
    fn update(&mut self, changed: Changed) {
        let apps: Vec<AppName> = match changed {
            Changed::Nothing => return,
            Changed::One(app) => vec![app],
            Changed::All => {
                let services = self.services.objects.values().map(|(app, _)| app);
                services.chain(&self.routed).cloned().collect::<BTreeSet<_>>().into_iter().collect()
            }
        };
        for app in apps {
            self.update_app(&app);
        }
    }

    fn update_app(&mut self, app: &AppName) {
        let name = names::service(app);
        let Some((_, service)) = self.services.objects.get(&name) else {
            if self.routed.remove(app) {
                info!(%app, "an app is gone");
                drop(self.table.remove(app.as_str()));
            }
            return;
        };
        self.routed.insert(app.clone());
        let slices = self.slices.objects.values().map(|(_, slice)| slice);
        let ours = slices.filter(|slice| {
            let labels = slice.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(SERVICE_NAME)).is_some_and(|service| *service == name)
        });
        let pods = pods(ours);
        let backends = pods.into_iter().map(|pod| Arc::new(pod) as Arc<dyn Backend>).collect();
        let generation = release_of(&service.metadata).map_or(0, |release| release.0);
        // Requests that are there go on: a pod ends only after its grace.
        drop(self.table.switch(app.as_str(), generation, backends));
    }
}

/// Those that are ready; where none is, those that are leaving and still serve.
fn pods<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<PodBackend> {
    let (mut ready, mut leaving) = (HashMap::new(), HashMap::new());
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let port = ports.filter(|port| port.name.as_deref() == Some(PORT)).find_map(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let Some(address) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let address = SocketAddr::new(address, port);
            let target = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
            let id = format!("{}@{address}", target.unwrap_or_default());
            // Absent is to be taken for ready.
            if conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false) {
                ready.insert(id.clone(), PodBackend { id, address });
            } else if conditions.serving.unwrap_or(false) {
                leaving.insert(id.clone(), PodBackend { id, address });
            }
        }
    }
    let mut chosen: Vec<_> = if ready.is_empty() { leaving } else { ready }.into_values().collect();
    chosen.sort_by(|a, b| a.id.cmp(&b.id));
    chosen
}

/// A pod that takes requests.
struct PodBackend {
    id: String,
    address: SocketAddr,
}

#[async_trait]
impl Backend for PodBackend {
    fn id(&self) -> &str {
        &self.id
    }

    async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, endpoints: &Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {SERVICE_NAME: "hello--web", "hephy.dev/app": "hello"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 5000, "protocol": "TCP"}],
            "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn endpoint(address: &str, ready: bool, serving: bool, terminating: bool) -> Value {
        json!({"addresses": [address], "targetRef": {"uid": address},
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
    }

    fn chosen(endpoints: &[Value]) -> Vec<String> {
        let slice = slice("a", &json!(endpoints));
        pods(std::iter::once(&slice)).into_iter().map(|pod| pod.address.to_string()).collect()
    }

    #[test]
    fn a_pod_that_leaves_gets_requests_only_where_no_other_takes_them() {
        let (good, leaving, fresh) = (
            endpoint("10.0.0.1", true, true, false),
            endpoint("10.0.0.2", false, true, true),
            endpoint("10.0.0.3", false, false, false),
        );
        assert_eq!(chosen(&[good, leaving.clone(), fresh.clone()]), ["10.0.0.1:5000"]);
        assert_eq!(chosen(&[leaving, fresh.clone()]), ["10.0.0.2:5000"]);
        assert!(chosen(&[fresh]).is_empty());
    }

    fn service(app: &str, release: &str) -> Service {
        serde_json::from_value(json!({"metadata": {
            "name": format!("{app}--web"), "labels": {"hephy.dev/app": app},
            "annotations": {"hephy.dev/release": release},
        }}))
        .unwrap()
    }

    #[test]
    fn a_new_list_forgets_what_is_gone_and_only_once_it_is_whole() {
        let table = RouteTable::new();
        let mut routes = Routes {
            table: table.clone(),
            services: Known::default(),
            slices: Known::default(),
            routed: BTreeSet::new(),
        };
        let take = |routes: &mut Routes, event| {
            let changed = routes.services.take(Ok(event), |service| app_of(&service.metadata));
            routes.update(changed);
        };
        for event in [
            Event::Init,
            Event::InitApply(service("one", "v1")),
            Event::InitApply(service("two", "v7")),
            Event::InitDone,
        ] {
            take(&mut routes, event);
        }
        assert_eq!((table.generation("one"), table.generation("two")), (Some(1), Some(7)));
        take(&mut routes, Event::Init);
        take(&mut routes, Event::InitApply(service("two", "v8")));
        assert_eq!((table.generation("one"), table.generation("two")), (Some(1), Some(7)));
        take(&mut routes, Event::InitDone);
        assert_eq!((table.generation("one"), table.generation("two")), (None, Some(8)));
        take(&mut routes, Event::Delete(service("two", "v8")));
        assert_eq!(table.generation("two"), None);
    }
}
