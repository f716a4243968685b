//! One backend as the router sees it: requests in flight, idle connections, and whether it answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::sync::watch;
use tokio::time::Instant;

use super::backend::Backend;
use super::body::RequestBody;

/// Idle connections kept to one instance.
const MAX_IDLE: usize = 64;
/// Shorter than any common server keeps an idle connection for, so that few are found closed.
const IDLE_FOR: Duration = Duration::from_secs(30);
const FIRST_EJECTION: Duration = Duration::from_millis(25);
const LONGEST_EJECTION: Duration = Duration::from_secs(1);

/// A backend with what the router remembers of it.
pub(super) struct Instance {
    pub(super) backend: Arc<dyn Backend>,
    in_flight: watch::Sender<usize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    idle: Vec<(Instant, SendRequest<RequestBody>)>,
    retired: bool,
    failures: u32,
    ejected_until: Option<Instant>,
}

impl Instance {
    pub(super) fn new(backend: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { backend, in_flight: watch::Sender::new(0), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one request; the count falls when the lease is dropped.
    pub(super) fn lease(self: &Arc<Self>) -> Lease {
        self.in_flight.send_modify(|count| *count += 1);
        Lease(Arc::clone(self))
    }

    /// Requests and tunnels that are here now.
    pub(super) fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Ends when nothing is in flight.
    pub(super) async fn drained(&self) {
        let mut count = self.in_flight.subscribe();
        // An error means that the sender is gone, and with it every lease.
        drop(count.wait_for(|count| *count == 0).await);
    }

    /// No route has it any more: idle connections are closed, and none is kept from now on.
    pub(super) fn retire(&self) {
        let mut state = self.state();
        state.retired = true;
        state.idle.clear();
    }

    /// An idle connection that still looks open.
    pub(super) fn take_idle(&self) -> Option<SendRequest<RequestBody>> {
        let mut state = self.state();
        while let Some((since, sender)) = state.idle.pop() {
            if since.elapsed() < IDLE_FOR && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection whose response is complete for the next request.
    pub(super) fn keep(&self, sender: SendRequest<RequestBody>) {
        let mut state = self.state();
        state.idle.retain(|(since, idle)| since.elapsed() < IDLE_FOR && !idle.is_closed());
        if !state.retired && state.idle.len() < MAX_IDLE {
            state.idle.push((Instant::now(), sender));
        }
    }

    /// Sets the instance aside, longer each time in a row, since it refused a connection.
    pub(super) fn eject(&self) {
        let mut state = self.state();
        let pause = FIRST_EJECTION.saturating_mul(1 << state.failures.min(10)).min(LONGEST_EJECTION);
        state.failures += 1;
        state.ejected_until = Some(Instant::now() + pause);
    }

    /// It took a connection: it is as good as any other again.
    pub(super) fn restore(&self) {
        let mut state = self.state();
        state.failures = 0;
        state.ejected_until = None;
    }

    /// Until when it is set aside, if it is.
    pub(super) fn ejected_until(&self) -> Option<Instant> {
        self.state().ejected_until.filter(|until| *until > Instant::now())
    }
}

/// One request in flight on an instance.
pub(super) struct Lease(Arc<Instance>);

impl Lease {
    pub(super) fn instance(&self) -> &Arc<Instance> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.in_flight.send_modify(|count| *count -= 1);
    }
}
