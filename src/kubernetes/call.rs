//! Calls to the API server: tried again while that helps, and what a refusal means.

use std::error::Error as StdError;
use std::time::Duration;

use http::Request;
use kube::core::Status;
use kube::core::request::Error as RequestError;
use kube::{Client, Error};
use serde_json::Value;
use tokio::time::Instant;

/// How long a call is tried again.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(20);

/// The first and the longest wait between attempts.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Sends requests and gives their answers as JSON.
#[derive(Clone)]
pub struct Caller {
    client: Client,
    patience: Duration,
}

/// What the API server says no with.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such object.
    #[error("there is no such object")]
    Missing,
    /// There is none any more, after an attempt whose end is not known.
    #[error("there is no such object any more")]
    MissingAfterRetry,
    /// There is one already.
    #[error("there is one already")]
    Exists,
    /// It has another version.
    #[error("it was changed meanwhile")]
    Conflict,
    /// The snapshot of a list is gone.
    #[error("the snapshot is gone")]
    Expired,
    /// Our account may not do it.
    #[error("it is forbidden: {0}")]
    Forbidden(String),
    /// There is no such kind, or no such namespace.
    #[error("the cluster does not know the kind or the namespace: {0}")]
    Unknown(String),
    /// The object is not what its kind may be.
    #[error("the object is not valid: {0}")]
    Invalid(String),
    /// The object is too large.
    #[error("{0} bytes are too many")]
    TooLarge(usize),
    /// No answer, or none of use, for as long as it was tried.
    #[error("the API server does not answer")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
}

/// Makes a call through the client, again and again until it is answered, for half a minute.
///
/// The client's own retries are few and its attempts have no end. Whoever makes a write must know its own: one whose
/// answer was lost is made again.
pub async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut pace = Pace::new(PATIENCE);
    loop {
        let error = match once(call()).await {
            Err(error) if may_pass(&error) => error,
            done => return done,
        };
        if !pace.may_go_on() {
            return Err(error);
        }
        tracing::debug!(%error, "a call to the API server is made again");
        pace.pause().await;
    }
}

/// Makes a call through the client once, for as long as one attempt may take: one that is not to be made twice.
pub async fn once<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(ATTEMPT, call).await {
        Ok(done) => done,
        Err(_) => Err(Error::Service(format!("no answer within {} s", ATTEMPT.as_secs()).into())),
    }
}

/// Whether the same call may be answered otherwise in a moment.
#[must_use]
pub fn may_pass(error: &Error) -> bool {
    match error {
        Error::Api(status) => refusal("", status, 0).is_none(),
        Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// How a call is made again.
struct Pace {
    until: Instant,
    wait: Duration,
}

impl Pace {
    fn new(patience: Duration) -> Self {
        Self { until: Instant::now() + patience, wait: WAITS.0 }
    }

    /// Whether there is time for another attempt.
    fn may_go_on(&self) -> bool {
        Instant::now() + self.wait <= self.until
    }

    /// Not all at the same moment, when it comes back.
    async fn pause(&mut self) {
        tokio::time::sleep(self.wait.mul_f64(rand::random_range(0.5..1.0))).await;
        self.wait = WAITS.1.min(self.wait * 2);
    }
}

impl Caller {
    /// Calls that are tried for half a minute.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self { client, patience: PATIENCE }
    }

    /// The same, tried for so long.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sends a request on `plural`, again and again until it is answered.
    ///
    /// The answer is parsed here: the client would write one that it cannot parse to the log, and with it a secret.
    /// Whoever sends a write must know its own: one whose answer was lost is sent again.
    pub async fn call(
        &self,
        plural: &str,
        request: Result<Request<Vec<u8>>, RequestError>,
    ) -> Result<Value, Refusal> {
        let request = request.map_err(|error| Refusal::Unavailable(Box::new(error)))?;
        let mut pace = Pace::new(self.patience);
        let mut is_retry = false;
        loop {
            let error = match self.attempt(plural, request.clone()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Refusal::Missing)) if is_retry => return Err(Refusal::MissingAfterRetry),
                Ok(Err(refusal)) => return Err(refusal),
                Err(error) => error,
            };
            if !pace.may_go_on() {
                return Err(Refusal::Unavailable(error));
            }
            tracing::debug!(plural, %error, "a call to the API server is tried again");
            pace.pause().await;
            is_retry = true;
        }
    }

    /// `Err` is what may be otherwise next time.
    async fn attempt(
        &self,
        plural: &str,
        request: Request<Vec<u8>>,
    ) -> Result<Result<Value, Refusal>, Box<dyn StdError + Send + Sync>> {
        let bytes = request.body().len();
        let answer = tokio::time::timeout(self.patience.min(ATTEMPT), self.client.request_text(request));
        let refusal = match answer.await? {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(answer) => return Ok(Ok(answer)),
                Err(error) => Refusal::Unavailable(Box::new(error)),
            },
            Err(Error::Api(status)) => match refusal(plural, &status, bytes) {
                Some(refusal) => refusal,
                None => return Err(format!("it answers {}: {}", status.code, status.message).into()),
            },
            Err(error @ (Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_))) => {
                return Err(Box::new(error));
            }
            Err(error) => Refusal::Unavailable(Box::new(error)),
        };
        Ok(Err(refusal))
    }
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// What a status says for good; none where it may say something else next time.
fn refusal(plural: &str, status: &Status, bytes: usize) -> Option<Refusal> {
    let message = || status.message.clone();
    let says = |text: &str| status.message.contains(text);
    if status.code == 413 || says("request is too large") || says("Too long: may not be more than") {
        return Some(Refusal::TooLarge(bytes));
    }
    Some(match (status.code, status.reason.as_str()) {
        (404, "NotFound") if is_about(status, plural) => Refusal::Missing,
        (404, _) => Refusal::Unknown(message()),
        (409, "AlreadyExists") => Refusal::Exists,
        (409, _) => Refusal::Conflict,
        (410, _) => Refusal::Expired,
        (403, _) => Refusal::Forbidden(message()),
        (400 | 422, _) => Refusal::Invalid(message()),
        (401 | 408 | 429 | 500..=599, _) => return None,
        (code, _) => Refusal::Unavailable(format!("it answers {code}: {}", status.message).into()),
    })
}

/// Whether it is an object that is not found, and not its kind or its namespace.
fn is_about(status: &Status, plural: &str) -> bool {
    status.details.as_ref().is_some_and(|details| details.kind == plural && !details.name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, reason: &str, kind: &str, message: &str) -> Status {
        let details = kube::core::response::StatusDetails {
            name: "hello".to_owned(),
            group: String::new(),
            kind: kind.to_owned(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        };
        Status { details: Some(details), ..Status::failure(message, reason).with_code(code) }
    }

    #[test]
    fn an_object_that_is_missing_is_told_from_a_kind_and_a_namespace_that_are() {
        let missing = status(404, "NotFound", "apps", "apps.hephy.dev \"hello\" not found");
        assert!(matches!(refusal("apps", &missing, 0), Some(Refusal::Missing)));
        let namespace = status(404, "NotFound", "namespaces", "namespaces \"hephy-apps\" not found");
        assert!(matches!(refusal("apps", &namespace, 0), Some(Refusal::Unknown(_))));
        let kind = Status::failure("404 page not found", "Failed to parse error data").with_code(404);
        assert!(matches!(refusal("apps", &kind, 0), Some(Refusal::Unknown(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_made_again_and_one_that_is_refused_is_not() {
        let calls = std::cell::Cell::new(0);
        let hanging = patiently(|| async {
            calls.set(calls.get() + 1);
            if calls.get() == 1 { std::future::pending().await } else { Ok(7) }
        });
        assert_eq!(hanging.await.unwrap(), 7);
        let began = Instant::now();
        let dead = patiently(std::future::pending::<Result<(), Error>>);
        assert!(may_pass(&dead.await.unwrap_err()));
        assert!(began.elapsed() < PATIENCE + ATTEMPT + ATTEMPT);
        calls.set(0);
        let refused = patiently(|| async {
            calls.set(calls.get() + 1);
            Err::<(), _>(Error::Api(Box::new(status(403, "Forbidden", "pods", "no"))))
        });
        assert!(refused.await.is_err() && calls.get() == 1);
    }

    #[test]
    fn what_may_pass_is_no_refusal_and_what_is_too_large_is_one_of_its_own() {
        for code in [401, 429, 500, 502, 503, 504] {
            assert!(refusal("apps", &status(code, "", "apps", "try again"), 0).is_none(), "{code}");
        }
        for (code, message) in [(500, "etcdserver: request is too large"), (413, "limit is 3145728")] {
            assert!(matches!(
                refusal("apps", &status(code, "", "apps", message), 9),
                Some(Refusal::TooLarge(9))
            ));
        }
    }
}
