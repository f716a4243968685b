//! Where an engine in a pod exchanges its ticket for the credentials of its app's repositories.
//!
//! A ticket is good once: that it was used is written into the Job by a compare-and-swap before anything is handed out,
//! so that of several receivers one answers, and a RUN that finds the ticket afterwards finds nothing.
//!
//! A cloud's credentials end, some after minutes. With such ones the engine gets what renews them while its Job runs: a
//! second secret, which only its memory has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};

use crate::build::{RENEWAL_HEADER, RENEWAL_PATH, VALID_HEADER};
use crate::driver::kubernetes::{TICKET_RENEWAL, TICKET_SUM, TICKET_USED, Ticket};
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
    let router =
        Router::new().route(PATH, post(exchange)).route(&format!("{PATH}/{RENEWAL_PATH}"), post(renew));
    router.with_state(Arc::new(Tickets { jobs, place, valid }))
}

async fn exchange(State(tickets): State<Arc<Tickets>>, headers: HeaderMap) -> Result<Response, Refusal> {
    let shown = Shown::of(&headers)?;
    let renewal = tickets.place.valid().map(|_| Ticket::new(shown.job));
    let app = tickets.take(&shown, renewal.as_ref()).await?;
    tracing::info!(app = %app, "a build exchanged its ticket");
    let mut response = tickets.credentials(&app);
    // It is made of a name and of hexadecimal digits.
    if let Some(mut value) = renewal.and_then(|new| HeaderValue::try_from(new.text.reveal()).ok()) {
        value.set_sensitive(true);
        response.headers_mut().insert(RENEWAL_HEADER, value);
    }
    Ok(response)
}

async fn renew(State(tickets): State<Arc<Tickets>>, headers: HeaderMap) -> Result<Response, Refusal> {
    let shown = Shown::of(&headers)?;
    let app = whose(&tickets.job(shown.job).await?, TICKET_RENEWAL, &shown.sum)?;
    Ok(tickets.credentials(&app))
}

/// What an engine shows.
struct Shown<'a> {
    job: &'a str,
    sum: String,
}

impl<'a> Shown<'a> {
    fn of(headers: &'a HeaderMap) -> Result<Self, Refusal> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Refusal::Unknown)?;
        let (job, secret) = given.rsplit_once('.').ok_or(Refusal::Unknown)?;
        let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if given.len() > MAX_TICKET_BYTES || job.is_empty() || !is_name(job) {
            return Err(Refusal::Unknown);
        }
        Ok(Self { job, sum: Digest::of(secret).to_string() })
    }
}

impl Tickets {
    /// Marks a ticket as used, and says whose it is.
    async fn take(&self, shown: &Shown<'_>, renewal: Option<&Ticket>) -> Result<AppName, Refusal> {
        for _ in 0..TRIES {
            let job = self.job(shown.job).await?;
            let app = usable(&job, &shown.sum)?;
            match self.mark(shown.job, &job, renewal).await {
                Ok(_) => return Ok(app),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(unavailable(&error)),
            }
        }
        Err(Refusal::Unavailable)
    }

    async fn job(&self, name: &str) -> Result<Job, Refusal> {
        let found = self.jobs.get_opt(name).await.map_err(|error| unavailable(&error))?;
        found.ok_or(Refusal::Unknown)
    }

    async fn mark(&self, name: &str, job: &Job, renewal: Option<&Ticket>) -> Result<Job, kube::Error> {
        let mut annotations = BTreeMap::from([(TICKET_USED, Timestamp::now().to_string())]);
        annotations.extend(renewal.map(|renewal| (TICKET_RENEWAL, renewal.sum.to_string())));
        let patch = serde_json::json!({"metadata": {
            "resourceVersion": job.metadata.resource_version,
            "annotations": annotations,
        }});
        self.jobs.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    /// What a build of an app may do in the registry, and how long.
    fn credentials(&self, app: &AppName) -> Response {
        let valid = self.place.valid();
        let config = self.place.docker_config(app, self.valid);
        let config = config.unwrap_or_else(|| "{\"auths\":{}}".to_owned());
        let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
        let mut response = (headers, config).into_response();
        if let Some(valid) = valid {
            response.headers_mut().insert(VALID_HEADER, valid.as_secs().into());
        }
        response
    }
}

/// Whose ticket it is, if it is this Job's and was not used.
fn usable(job: &Job, sum: &str) -> Result<AppName, Refusal> {
    let app = whose(job, TICKET_SUM, sum);
    let is_its_own = annotation(job, TICKET_SUM) == Some(sum);
    if is_its_own && annotation(job, TICKET_USED).is_some() {
        return Err(Refusal::Used);
    }
    app
}

/// Whose Job it is that has this sum, if it may still run.
fn whose(job: &Job, key: &str, sum: &str) -> Result<AppName, Refusal> {
    // Of sums, so that the time it takes says nothing of the ticket.
    if annotation(job, key) != Some(sum) {
        return Err(Refusal::Unknown);
    }
    let has_ended = job.status.as_ref().is_some_and(has_ended);
    let labels = job.metadata.labels.as_ref();
    let app = labels.and_then(|labels| labels.get(Label::App.key())).and_then(|app| app.parse().ok());
    app.filter(|_| !has_ended && job.metadata.deletion_timestamp.is_none()).ok_or(Refusal::Unknown)
}

fn annotation<'a>(job: &'a Job, key: &str) -> Option<&'a str> {
    job.metadata.annotations.as_ref()?.get(key).map(String::as_str)
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
    use crate::build::{Exchanged, TicketError, exchange_ticket, keep_ticket};
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
    async fn receivers(credentials: DockerConfig) -> ([url::Url; 2], Server) {
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "hello--1--arm64",
            "resourceVersion": "1", "labels": {"hephy.dev/app": "hello"},
            "annotations": {TICKET_SUM: Digest::of("secret").to_string()}}});
        let path = "/apis/batch/v1/namespaces/builds/jobs/{name}";
        let server = Router::new().route(path, get(read).patch(write));
        let job = Arc::new(Mutex::new(job));
        let address = serve(server.with_state(Arc::clone(&job))).await;
        let config = kube::Config::new(address.parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let place = Place {
            host: "registry.example".parse().unwrap(),
            prefix: None,
            is_plain: true,
            access: Access::DockerConfig(credentials),
            reach: Reach::default(),
        };
        let mut urls = Vec::new();
        for _ in 0..2 {
            let jobs = Api::namespaced(client.clone(), "builds");
            let address = serve(router(jobs, place.clone(), Duration::from_secs(60))).await;
            urls.push(format!("{address}{PATH}").parse().unwrap());
        }
        (urls.try_into().unwrap(), job)
    }

    fn config(user: &str) -> Secret<String> {
        Secret::new(format!(r#"{{"auths":{{"registry.example":{{"username":"{user}","password":"p"}}}}}}"#))
    }

    fn refused(answer: Result<Exchanged, TicketError>) -> u16 {
        match answer {
            Err(TicketError::Refused { status, .. }) => status,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn of_two_receivers_one_takes_a_ticket_and_once() {
        let ([one, other], _) = receivers(DockerConfig::parse(config("ada")).unwrap()).await;
        let ticket = Secret::new("hello--1--arm64.secret".to_owned());
        let answers = tokio::join!(exchange_ticket(&one, &ticket), exchange_ticket(&other, &ticket));
        let (given, late): (Vec<_>, Vec<_>) = [answers.0, answers.1].into_iter().partition(Result::is_ok);
        assert_eq!((given.len(), late.len()), (1, 1));
        let given = given.into_iter().next().unwrap().unwrap();
        assert!(given.config.reveal().contains("registry.example") && given.renewal.is_none());
        assert!(late.into_iter().all(|answer| refused(answer) == 409));
        assert_eq!(refused(exchange_ticket(&one, &ticket).await), 409);
    }

    #[tokio::test]
    async fn what_is_no_ticket_is_told_nothing() {
        let ([one, _], _) = receivers(DockerConfig::parse(config("ada")).unwrap()).await;
        for text in ["hello--1--arm64.wrong", "other--1--arm64.secret", "../x.secret", "secret", "."] {
            assert_eq!(refused(exchange_ticket(&one, &Secret::new(text.to_owned())).await), 401, "{text}");
        }
    }

    #[tokio::test]
    async fn credentials_that_end_are_renewed_while_the_job_runs() {
        let held = DockerConfig::for_now(config("first"), Duration::from_secs(1)).unwrap();
        let ([one, other], job) = receivers(held.clone()).await;
        let ticket = Secret::new("hello--1--arm64.secret".to_owned());
        let given = exchange_ticket(&one, &ticket).await.unwrap();
        let renewal = given.renewal.unwrap();
        let of_engine = DockerConfig::for_now(given.config, renewal.valid).unwrap();
        held.replace(config("second"), Some(Duration::from_secs(1))).unwrap();
        // Whichever receiver is asked.
        let kept = tokio::spawn(keep_ticket(other, of_engine.clone(), renewal));
        while !of_engine.text().reveal().contains("second") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!job.lock().unwrap().to_string().contains("secret"));
        job.lock().unwrap()["status"] = json!({"completionTime": "2026-01-01T00:00:00Z"});
        // It ends with the Job.
        kept.await.unwrap();
        assert_eq!(refused(exchange_ticket(&one, &ticket).await), 409);
    }
}
