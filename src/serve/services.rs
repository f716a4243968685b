//! The listening parts of a server, and how they end.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::telemetry::LAST_TRACES;
use super::up::Notice;
use super::{Server, Sessions, Verbs};
use crate::model::Chain;
use crate::receive::{self, HostKey};
use crate::registry::server as registry;

/// How long sessions have to end, once the server does.
const SESSIONS_GRACE: Duration = Duration::from_secs(5);

/// What listens: SSH, and everything that builds and apps need to the end.
#[derive(Debug, Default)]
pub(super) struct Services {
    pub(super) tasks: TaskTracker,
    ssh: CancellationToken,
    /// Fires last: for the registry, the router, the probes.
    pub(super) rest: CancellationToken,
}

impl Services {
    /// Serves git and the verbs.
    pub(super) fn receive(
        &self,
        server: &Server,
        listener: TcpListener,
        host_key: &HostKey,
        verbs: Arc<dyn Verbs>,
    ) {
        let handler = Arc::new(Sessions { server: server.clone(), verbs });
        let directory = Arc::new(server.people.clone());
        let receiver = receive::Server::new(host_key, directory, handler, receive::Limits::default());
        self.tasks.spawn(receiver.serve(listener, self.ssh.clone(), SESSIONS_GRACE));
    }

    /// Serves a registry of our own.
    pub(super) fn registry(&self, registry: registry::Server, listener: TcpListener) {
        let stop = self.rest.clone();
        self.tasks.spawn(async move {
            if let Err(error) = registry.serve(listener, stop).await {
                tracing::error!(error = %Chain(&error), "the registry ended");
            }
        });
    }

    /// Answers health, metrics and whatever else `router` has.
    pub(super) fn answer(&self, listener: TcpListener, router: axum::Router) {
        let stop = self.rest.clone();
        self.tasks.spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(error = %Chain(&error), "health and metrics ended");
            }
        });
    }

    /// No new connections; builds end, or are left to whoever comes next; then everything stops.
    pub(super) async fn drain(
        self,
        server: &Server,
        at_most: Duration,
        tell: &(impl Fn(Notice) + Send + Sync),
    ) {
        server.stages().stopping.cancel();
        tell(Notice::Draining { builds: server.pushes.len(), at_most });
        // A push that is being received becomes a build, and who follows a build hears its end.
        let idle = async {
            server.receiving.close();
            server.receiving.wait().await;
            server.pushes.idle().await;
        };
        let idle = tokio::time::timeout(at_most, idle).await.is_ok();
        if !idle {
            tell(Notice::Left { builds: server.pushes.len() });
        }
        self.ssh.cancel();
        if !idle {
            server.pushes.leave().await;
        }
        self.rest.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        server.stages().traces.flush(LAST_TRACES).await;
    }
}
