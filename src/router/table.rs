//! Which backends each route has, and the atomic switch from some to others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;
use tokio::time::Instant;

use super::backend::Backend;
use super::instance::{Instance, Lease};

/// Which backends each route (an app's name) has; shared by who runs apps and the router.
#[derive(Clone, Default)]
pub struct RouteTable {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    routes: RwLock<HashMap<String, Route>>,
    changes: watch::Sender<u64>,
}

struct Route {
    generation: u64,
    instances: Vec<Arc<Instance>>,
    turn: AtomicUsize,
}

/// What a request finds for a route.
pub(super) enum Picked {
    /// An instance, with the request counted there.
    Lease(Lease),
    /// Every instance refused connections lately; the first may be asked again then.
    Ejected(Instant),
    /// The route has no instance.
    Empty,
    /// There is no such route.
    Unknown,
}

impl RouteTable {
    /// A table without routes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From this moment on requests to `route` go to `backends`; returns those that the route had and has no more.
    ///
    /// A backend whose id the route already has stays as it is, with its connections, so adding and removing
    /// instances of one generation is the same call.
    #[must_use = "the instances that left still have requests in flight"]
    pub fn switch(&self, route: &str, generation: u64, backends: Vec<Arc<dyn Backend>>) -> Retired {
        let mut routes = self.shared.routes.write().unwrap_or_else(PoisonError::into_inner);
        let mut old = routes.remove(route).map(|route| route.instances).unwrap_or_default();
        let instances = backends
            .into_iter()
            .map(|backend| match old.iter().position(|known| known.backend.id() == backend.id()) {
                Some(at) => old.swap_remove(at),
                None => Instance::new(backend),
            })
            .collect();
        routes.insert(route.to_owned(), Route { generation, instances, turn: AtomicUsize::new(0) });
        drop(routes);
        self.retire(old)
    }

    /// Forgets `route`: from now on it is unknown.
    #[must_use = "the instances that left still have requests in flight"]
    pub fn remove(&self, route: &str) -> Retired {
        let removed = self.shared.routes.write().unwrap_or_else(PoisonError::into_inner).remove(route);
        self.retire(removed.map(|route| route.instances).unwrap_or_default())
    }

    /// The generation that `route` was last switched to.
    #[must_use]
    pub fn generation(&self, route: &str) -> Option<u64> {
        let routes = self.shared.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.get(route).map(|route| route.generation)
    }

    fn retire(&self, instances: Vec<Arc<Instance>>) -> Retired {
        for instance in &instances {
            instance.retire();
        }
        self.shared.changes.send_modify(|change| *change += 1);
        Retired { instances }
    }

    /// The least busy instance of `route` that answers, with the request counted there.
    pub(super) fn pick(&self, route: &str) -> Picked {
        let routes = self.shared.routes.read().unwrap_or_else(PoisonError::into_inner);
        let Some(route) = routes.get(route) else { return Picked::Unknown };
        let count = route.instances.len();
        let first = route.turn.fetch_add(1, Ordering::Relaxed);
        let turn = (0..count).filter_map(|i| route.instances.get((first.wrapping_add(i)) % count));
        match turn.clone().filter(|i| i.ejected_until().is_none()).min_by_key(|i| i.in_flight()) {
            Some(instance) => Picked::Lease(instance.lease()),
            None => turn.filter_map(|i| i.ejected_until()).min().map_or_else(
                || if count == 0 { Picked::Empty } else { Picked::Ejected(Instant::now()) },
                Picked::Ejected,
            ),
        }
    }

    /// Counts changes of the table; subscribe before picking to miss none.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}

/// Instances that left a route. They get no new request.
#[must_use = "requests may still be in flight"]
pub struct Retired {
    instances: Vec<Arc<Instance>>,
}

impl Retired {
    /// How many requests and tunnels are still there.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.instances.iter().map(|instance| instance.in_flight()).sum()
    }

    /// Ends when the last request and tunnel is done, which a WebSocket may never be: put a time limit on it.
    ///
    /// Cancel safe.
    pub async fn drained(&self) {
        for instance in &self.instances {
            instance.drained().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use async_trait::async_trait;
    use futures::FutureExt as _;

    use super::*;
    use crate::router::Connection;

    struct Named(&'static str);

    #[async_trait]
    impl Backend for Named {
        fn id(&self) -> &str {
            self.0
        }

        async fn connect(&self) -> io::Result<Box<dyn Connection>> {
            Err(io::ErrorKind::ConnectionRefused.into())
        }
    }

    fn backends(names: &[&'static str]) -> Vec<Arc<dyn Backend>> {
        names.iter().map(|name| Arc::new(Named(name)) as Arc<dyn Backend>).collect()
    }

    fn picked(table: &RouteTable) -> Lease {
        match table.pick("a") {
            Picked::Lease(lease) => lease,
            _ => panic!("no instance"),
        }
    }

    #[test]
    fn the_old_instances_are_drained_when_the_last_request_there_is_done() {
        let table = RouteTable::new();
        let first = table.switch("a", 1, backends(&["one"]));
        assert_eq!(first.in_flight(), 0);
        let lease = picked(&table);
        let retired = table.switch("a", 2, backends(&["two"]));
        assert_eq!((retired.in_flight(), table.generation("a")), (1, Some(2)));
        assert!(retired.drained().now_or_never().is_none());
        assert_eq!(picked(&table).instance().backend.id(), "two");
        drop(lease);
        assert!(retired.drained().now_or_never().is_some());
    }

    #[test]
    fn an_instance_that_stays_keeps_its_requests_and_is_not_retired() {
        let table = RouteTable::new();
        drop(table.switch("a", 1, backends(&["one"])));
        let lease = picked(&table);
        let retired = table.switch("a", 1, backends(&["one", "two"]));
        assert_eq!(retired.in_flight(), 0);
        assert_eq!(picked(&table).instance().backend.id(), "two", "the busy one is passed over");
        drop(lease);
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_refuses_is_passed_over_for_a_while() {
        let table = RouteTable::new();
        drop(table.switch("a", 1, backends(&["one", "two"])));
        let lease = picked(&table);
        let refusing = lease.instance().backend.id().to_owned();
        lease.instance().eject();
        drop(lease);
        for _ in 0..4 {
            assert_ne!(picked(&table).instance().backend.id(), refusing);
        }
        picked(&table).instance().eject();
        let Picked::Ejected(until) = table.pick("a") else { panic!("both are ejected") };
        tokio::time::sleep_until(until).await;
        let _lease = picked(&table);
    }

    #[test]
    fn a_route_without_instances_is_not_an_unknown_one() {
        let table = RouteTable::new();
        assert!(matches!(table.pick("a"), Picked::Unknown));
        drop(table.switch("a", 1, Vec::new()));
        assert!(matches!(table.pick("a"), Picked::Empty));
        drop(table.remove("a"));
        assert!(matches!(table.pick("a"), Picked::Unknown));
    }
}
