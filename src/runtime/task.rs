//! Work that must not be left half done when whoever asked for it is gone.

use tokio_util::sync::CancellationToken;

use crate::model::AppName;
use crate::rollout::RuntimeError;

/// Runs `work` in a task that outlives its caller; the token is cancelled when the caller is gone.
pub(super) async fn in_task<T, F>(
    app: &AppName,
    work: impl FnOnce(CancellationToken) -> F,
) -> Result<T, RuntimeError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, RuntimeError>> + Send + 'static,
{
    let cancel = CancellationToken::new();
    let _cancelled_when_dropped = cancel.clone().drop_guard();
    let done = tokio::spawn(work(cancel)).await;
    done.map_err(|source| RuntimeError::BrokeOff { app: app.clone(), source })?
}
