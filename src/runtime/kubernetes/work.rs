//! Who is at work on an app: said on its Service, again and again while it lasts, so that what a dead server left half
//! done is told from what a server does just now.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::names::{self, CHANGED_BY, CHANGING_UNTIL};
use super::{KubernetesConfig, Shared};
use crate::model::AppName;
use crate::rollout::RuntimeError;
use crate::runtime::task::in_task;

/// For how long it is believed: longer than the API server is away, and than two clocks differ.
const BELIEVED: Duration = Duration::from_secs(45);
/// How often it is said.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long after its last change an app that no record names is stopped: the records may be older.
const REST: Duration = Duration::from_secs(60);

/// Who is at work on an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// Nobody, for a while.
    Nobody,
    /// Nobody, but somebody was a moment ago.
    Rests,
    /// This process.
    Ours,
    /// Another server.
    Anothers,
}

/// What tells one process from every other, its pod's earlier ones included.
pub(super) fn identity(pod: &str) -> String {
    format!("{pod}/{:08x}", rand::random::<u32>())
}

/// Until when what is done now is believed to be done.
pub(super) fn until() -> Timestamp {
    Timestamp::now() + BELIEVED
}

/// Who is at work, as one of an app's objects says.
pub(super) fn of(metadata: &ObjectMeta, identity: &str, now: Timestamp) -> Work {
    let annotation = |key: &str| metadata.annotations.as_ref().and_then(|all| all.get(key));
    let until = annotation(CHANGING_UNTIL).and_then(|until| until.parse::<Timestamp>().ok());
    let (Some(by), Some(until)) = (annotation(CHANGED_BY), until) else { return Work::Nobody };
    let pod = |identity: &str| identity.split_once('/').map(|(pod, _)| pod.to_owned());
    // An earlier process of our own pod is dead for sure.
    let is_dead = by != identity && pod(by).is_some() && pod(by) == pod(identity);
    match until > now {
        true if by == identity => Work::Ours,
        true if !is_dead => Work::Anothers,
        _ if until + REST > now => Work::Rests,
        _ => Work::Nobody,
    }
}

/// Whether this process was the last to put an object there.
pub(super) fn is_ours(metadata: &ObjectMeta, config: &KubernetesConfig) -> bool {
    let by = metadata.annotations.as_ref().and_then(|all| all.get(CHANGED_BY));
    by == Some(&config.identity)
}

/// Says that an app is being worked on, until this is dropped.
pub(super) fn say(shared: &Arc<Shared>, app: &AppName) -> AbortOnDropHandle<()> {
    let (shared, app) = (Arc::clone(shared), app.clone());
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            write(&shared, &app, until()).await;
            tokio::time::sleep(INTERVAL).await;
        }
    }))
}

/// Says that the work on an app is done.
pub(super) async fn done(shared: &Shared, app: &AppName) {
    write(shared, app, Timestamp::now()).await;
}

/// There may be no Service yet, or none any more; and what cannot be said is only believed for a shorter time.
async fn write(shared: &Shared, app: &AppName, until: Timestamp) {
    let annotations = json!({CHANGED_BY: shared.config.identity, CHANGING_UNTIL: until.to_string()});
    let fields = json!({"metadata": {"annotations": annotations}});
    if let Err(error) = shared.objects.merge::<Service>(&names::service(app), &fields).await {
        debug!(%app, error = &error as &dyn std::error::Error, "it cannot be said who is at work on an app");
    }
}

/// Runs `work` in a task that outlives its caller, until the app is left to another server; the token is cancelled when the
/// caller is gone.
pub(super) async fn acting<T, F>(
    shared: &Arc<Shared>,
    app: &AppName,
    work: impl FnOnce(CancellationToken) -> F,
) -> Result<T, RuntimeError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, RuntimeError>> + Send + 'static,
{
    let left = shared.left(app);
    in_task(app, |cancel| {
        let (work, app) = (work(cancel), app.clone());
        async move {
            let done = left.run_until_cancelled_owned(work).await;
            done.unwrap_or(Err(RuntimeError::Left { app }))
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_anothers_until_the_other_no_longer_says_so() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let of = |by: &str, until: &str| {
            let annotations = [(CHANGED_BY, by), (CHANGING_UNTIL, until)];
            let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let metadata = ObjectMeta { annotations: Some(annotations.into()), ..ObjectMeta::default() };
            of(&metadata, "one/1", now)
        };
        assert_eq!(of("two/1", "2026-01-01T00:00:01Z"), Work::Anothers);
        assert_eq!(of("two/1", "2025-12-31T23:59:59Z"), Work::Rests);
        assert_eq!(of("two/1", "2025-12-31T23:58:59Z"), Work::Nobody);
        assert_eq!(of("one/1", "2026-01-01T00:00:01Z"), Work::Ours);
        assert_eq!(of("one/2", "2026-01-01T00:00:01Z"), Work::Rests, "our pod was started again");
        assert_eq!(super::of(&ObjectMeta::default(), "one/1", now), Work::Nobody);
    }
}
