//! Where an engine in a pod exchanges its ticket for the credentials of its app's repositories.
//!
//! A ticket is good once: that it was used is written into the Job by a compare-and-swap before anything is handed out,
//! so that of several receivers one answers, and a RUN that finds the ticket afterwards finds nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};

use crate::driver::kubernetes::{TICKET_SUM, TICKET_USED};
use crate::kubernetes::Label;
use crate::model::AppName;
use crate::oci::Digest;
use crate::publish::Place;

/// The path of the exchange.
pub const PATH: &str = "/tickets";
/// The longest ticket.
const MAX_TICKET_BYTES: usize = 256;
/// How often a Job is read again that somebody else, mostly its controller, wrote to meanwhile.
const TRIES: usize = 8;

struct Tickets {
    jobs: Api<Job>,
    place: Place,
    valid: Duration,
}

/// Why a ticket is not taken. The engine is told no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// It is none, or not of any Job that may still run.
    Unknown,
    /// It was exchanged before.
    Used,
    /// The API server did not do its part.
    Unavailable,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Unknown => (StatusCode::UNAUTHORIZED, "no build has this ticket"),
            Self::Used => (StatusCode::CONFLICT, "the ticket was used before"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "the cluster does not answer"),
        };
        (status, text).into_response()
    }
}

/// Answers `POST /tickets` with a Docker configuration, for the tickets of the Jobs in `jobs`. What is handed out is good
/// for `valid`: as long as a build may take, and a little longer.
pub fn router(jobs: Api<Job>, place: Place, valid: Duration) -> Router {
    Router::new().route(PATH, post(exchange)).with_state(Arc::new(Tickets { jobs, place, valid }))
}

async fn exchange(State(tickets): State<Arc<Tickets>>, headers: HeaderMap) -> Result<Response, Refusal> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Refusal::Unknown)?;
    let app = tickets.take(given).await?;
    let config = tickets.place.docker_config(&app, tickets.valid);
    let config = config.unwrap_or_else(|| "{\"auths\":{}}".to_owned());
    tracing::info!(app = %app, "a build exchanged its ticket");
    Ok(([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], config)
        .into_response())
}

impl Tickets {
    /// Marks a ticket as used, and says whose it is.
    async fn take(&self, ticket: &str) -> Result<AppName, Refusal> {
        let (name, secret) = ticket.rsplit_once('.').ok_or(Refusal::Unknown)?;
        let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if ticket.len() > MAX_TICKET_BYTES || name.is_empty() || !is_name(name) {
            return Err(Refusal::Unknown);
        }
        let sum = Digest::of(secret).to_string();
        for _ in 0..TRIES {
            let found = self.jobs.get_opt(name).await.map_err(|error| unavailable(&error))?;
            let job = found.ok_or(Refusal::Unknown)?;
            let app = usable(&job, &sum)?;
            match self.mark(name, &job).await {
                Ok(_) => return Ok(app),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(unavailable(&error)),
            }
        }
        Err(Refusal::Unavailable)
    }

    async fn mark(&self, name: &str, job: &Job) -> Result<Job, kube::Error> {
        let patch = serde_json::json!({"metadata": {
            "resourceVersion": job.metadata.resource_version,
            "annotations": {TICKET_USED: Timestamp::now().to_string()},
        }});
        self.jobs.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
    }
}

/// Whose ticket it is, if it is this Job's and was not used.
fn usable(job: &Job, sum: &str) -> Result<AppName, Refusal> {
    let annotation = |key: &str| job.metadata.annotations.as_ref().and_then(|all| all.get(key));
    // Of sums, so that the time it takes says nothing of the ticket.
    if annotation(TICKET_SUM).map(String::as_str) != Some(sum) {
        return Err(Refusal::Unknown);
    }
    if annotation(TICKET_USED).is_some() {
        return Err(Refusal::Used);
    }
    let has_ended = job.status.as_ref().is_some_and(has_ended);
    let labels = job.metadata.labels.as_ref();
    let app = labels.and_then(|labels| labels.get(Label::App.key())).and_then(|app| app.parse().ok());
    app.filter(|_| !has_ended && job.metadata.deletion_timestamp.is_none()).ok_or(Refusal::Unknown)
}

/// Whether a Job is over. Its completion time is that of a success only.
fn has_ended(status: &JobStatus) -> bool {
    let over = ["Complete", "Failed", "FailureTarget", "SuccessCriteriaMet"];
    let mut conditions = status.conditions.iter().flatten();
    status.completion_time.is_some()
        || conditions.any(|condition| condition.status == "True" && over.contains(&condition.type_.as_str()))
}

fn unavailable(error: &kube::Error) -> Refusal {
    tracing::warn!(error = %error, "a ticket cannot be looked at");
    Refusal::Unavailable
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Json;
    use axum::extract::Path;
    use axum::routing::get;
    use serde_json::{Value, json};

    use super::*;
    use crate::build::{TicketError, exchange_ticket};
    use crate::model::Secret;
    use crate::publish::Access;
    use crate::registry::client::{DockerConfig, Reach};

    /// One Job in an API server that compares resource versions.
    type Server = Arc<Mutex<Value>>;

    async fn read(State(job): State<Server>, Path(name): Path<String>) -> Response {
        let job = job.lock().unwrap().clone();
        if job["metadata"]["name"] == name { Json(job).into_response() } else { status(404) }
    }

    async fn write(State(job): State<Server>, Json(patch): Json<Value>) -> Response {
        let mut job = job.lock().unwrap();
        if patch["metadata"]["resourceVersion"] != job["metadata"]["resourceVersion"] {
            return status(409);
        }
        for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
            job["metadata"]["annotations"][key] = value.clone();
        }
        let version: u64 = job["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        job["metadata"]["resourceVersion"] = (version + 1).to_string().into();
        Json(job.clone()).into_response()
    }

    fn status(code: u16) -> Response {
        let reason = if code == 404 { "NotFound" } else { "Conflict" };
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": reason, "message": reason});
        (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
    }

    async fn serve(router: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    /// Two receivers before one API server with one Job, whose ticket is `hello--1--arm64.secret`.
    async fn receivers() -> [url::Url; 2] {
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "hello--1--arm64",
            "resourceVersion": "1", "labels": {"hephy.dev/app": "hello"},
            "annotations": {TICKET_SUM: Digest::of("secret").to_string()}}});
        let path = "/apis/batch/v1/namespaces/builds/jobs/{name}";
        let server = Router::new().route(path, get(read).patch(write));
        let address = serve(server.with_state(Arc::new(Mutex::new(job)))).await;
        let config = kube::Config::new(address.parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let place = Place {
            host: "registry.example".parse().unwrap(),
            prefix: None,
            is_plain: true,
            access: Access::DockerConfig(
                DockerConfig::parse(Secret::new("{\"auths\":{\"registry.example\":{}}}".to_owned())).unwrap(),
            ),
            reach: Reach::default(),
        };
        let mut urls = Vec::new();
        for _ in 0..2 {
            let jobs = Api::namespaced(client.clone(), "builds");
            let address = serve(router(jobs, place.clone(), Duration::from_secs(60))).await;
            urls.push(format!("{address}{PATH}").parse().unwrap());
        }
        urls.try_into().unwrap()
    }

    fn refused(answer: Result<Secret<String>, TicketError>) -> u16 {
        match answer {
            Err(TicketError::Refused { status, .. }) => status,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn of_two_receivers_one_takes_a_ticket_and_once() {
        let [one, other] = receivers().await;
        let ticket = Secret::new("hello--1--arm64.secret".to_owned());
        let answers = tokio::join!(exchange_ticket(&one, &ticket), exchange_ticket(&other, &ticket));
        let (given, late): (Vec<_>, Vec<_>) = [answers.0, answers.1].into_iter().partition(Result::is_ok);
        assert_eq!((given.len(), late.len()), (1, 1));
        assert!(given.into_iter().all(|config| config.unwrap().reveal().contains("registry.example")));
        assert!(late.into_iter().all(|answer| refused(answer) == 409));
        assert_eq!(refused(exchange_ticket(&one, &ticket).await), 409);
    }

    #[tokio::test]
    async fn what_is_no_ticket_is_told_nothing() {
        let [one, _] = receivers().await;
        for text in ["hello--1--arm64.wrong", "other--1--arm64.secret", "../x.secret", "secret", "."] {
            assert_eq!(refused(exchange_ticket(&one, &Secret::new(text.to_owned())).await), 401, "{text}");
        }
    }
}
