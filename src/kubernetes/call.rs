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
        let until = Instant::now() + self.patience;
        let (mut wait, longest) = WAITS;
        let mut is_retry = false;
        loop {
            let error = match self.attempt(plural, request.clone()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Refusal::Missing)) if is_retry => return Err(Refusal::MissingAfterRetry),
                Ok(Err(refusal)) => return Err(refusal),
                Err(error) => error,
            };
            if Instant::now() + wait > until {
                return Err(Refusal::Unavailable(error));
            }
            tracing::debug!(plural, %error, "a call to the API server is tried again");
            // Not all at the same moment, when it comes back.
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
            wait = longest.min(wait * 2);
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
