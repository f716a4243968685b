//! After a change of protocol: bytes both ways until both sides are done.

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::connection::Watched;
use super::instance::Lease;

/// Copies between `client` and `app` in a task of its own, counted in flight on the instance until it ends.
///
/// Ends when both sides have closed, when neither has sent anything for `idle`, or when `cut` is cancelled.
pub(super) fn open(client: OnUpgrade, app: OnUpgrade, lease: Lease, idle: Duration, cut: CancellationToken) {
    tokio::spawn(async move {
        let copied = cut.run_until_cancelled(copy(client, app, idle)).await;
        if let Some(Err(error)) = copied {
            debug!(%error, instance = lease.instance().backend.id(), "a tunnel ended");
        }
    });
}

async fn copy(client: OnUpgrade, app: OnUpgrade, idle: Duration) -> Result<(), std::io::Error> {
    let (client, app) = tokio::try_join!(client, app).map_err(std::io::Error::other)?;
    let mut client = TokioIo::new(client);
    let mut app = Watched::new(TokioIo::new(app), idle, idle);
    tokio::io::copy_bidirectional(&mut client, &mut app).await.map(drop)
}
