//! One request to a registry: where, with which token, how often.

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Body, Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::{Client, ClientError, challenge};
use crate::oci::{Host, Repository, RepositoryName};

/// How long a registry may take to begin its answer, and between two parts of it.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// How long an upload may stand still; some registries take minutes to store what they have received.
const UPLOAD_LIMIT: Duration = Duration::from_mins(5);
/// The longest `Retry-After` that is obeyed.
const RETRY_AFTER_LIMIT: Duration = Duration::from_mins(2);
/// The largest error answer that is read.
const ERROR_BYTES: usize = 64 * 1024;
/// How much of a file is read at once for an upload.
const FILE_BUFFER_BYTES: usize = 256 * 1024;

/// What is asked of a registry.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) repository: &'a Repository,
    /// What this is, for an error: "pushing manifest `v4`".
    pub(super) doing: String,
    pub(super) access: Access<'a>,
    pub(super) headers: HeaderMap,
    pub(super) body: CallBody,
}

/// What a token must allow.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access<'a> {
    Pull,
    Push,
    /// Pushing, and pulling from another repository in the same request.
    Mount(&'a RepositoryName),
    Delete,
}

/// What is sent; it can be sent again.
#[derive(Clone)]
pub(super) enum CallBody {
    Empty,
    Bytes(Bytes),
    File { path: PathBuf, offset: u64, length: u64 },
}

impl<'a> Call<'a> {
    pub(super) fn new(
        method: Method,
        url: Url,
        repository: &'a Repository,
        doing: impl Into<String>,
    ) -> Self {
        let (headers, body) = (HeaderMap::new(), CallBody::Empty);
        Self { method, url, repository, doing: doing.into(), access: Access::Pull, headers, body }
    }

    pub(super) fn protocol_error(&self, what: impl Into<String>) -> ClientError {
        let (repository, doing) = (self.repository.clone(), self.doing.clone());
        ClientError::Protocol { repository, doing, what: what.into() }
    }

    pub(super) fn denied(&self, message: String, had_credentials: bool) -> ClientError {
        let (repository, doing) = (self.repository.clone(), self.doing.clone());
        ClientError::Denied { repository, doing, message, had_credentials }
    }

    pub(super) fn broken(&self, source: reqwest::Error) -> ClientError {
        let (repository, doing) = (self.repository.clone(), self.doing.clone());
        ClientError::Broken { repository, doing, source: source.without_url() }
    }

    pub(super) fn stalled(&self, limit: Duration) -> ClientError {
        ClientError::Stalled { repository: self.repository.clone(), doing: self.doing.clone(), limit }
    }
}

impl Client {
    /// Where the registry `host` is.
    pub(super) fn base(&self, host: &Host) -> Result<Url, ClientError> {
        let plain = host.is_loopback() || self.shared.config.plain_http.contains(host);
        let scheme = if plain { "http" } else { "https" };
        let name = if *host == Host::docker_hub() { "registry-1.docker.io" } else { host.as_str() };
        Url::parse(&format!("{scheme}://{name}/v2/")).map_err(|_| ClientError::Realm {
            host: host.clone(),
            realm: name.to_owned(),
            reason: "it is not a host",
        })
    }

    /// `/v2/<name>/<path>`.
    pub(super) fn url(&self, repository: &Repository, path: &str) -> Result<Url, ClientError> {
        let mut url = self.base(&repository.host)?;
        url.set_path(&format!("/v2/{}/{path}", repository.name));
        Ok(url)
    }

    /// Sends until there is an answer that is not a passing failure, or no more retries.
    ///
    /// Any other answer is `Ok`, whatever its status.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Response, ClientError> {
        (|| async {
            let response = self.send_once(call).await?;
            let status = response.status();
            if !status.is_client_error() && !status.is_server_error() {
                return Ok(response);
            }
            if status.is_server_error() || matches!(status.as_u16(), 408 | 429 | 499) {
                return Err(status_error(call, response).await);
            }
            Ok(response)
        })
        .retry(self.backoff())
        .when(ClientError::may_pass)
        .adjust(|error, delay| delay.map(|delay| wait(error, delay)))
        .await
    }

    /// The delays between retries: jittered, from a fifth of a second, doubling.
    pub(super) fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(20))
            .with_max_times(self.shared.config.retries)
    }

    /// Sends, and once more with a new token if the registry wants one.
    pub(super) async fn send_once(&self, call: &Call<'_>) -> Result<Response, ClientError> {
        let own = same_origin(&self.base(&call.repository.host)?, &call.url);
        let first = if own { self.authorization(call).await? } else { None };
        let response = self.execute(call, first.as_ref().map(super::auth::Authorization::value)).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !own {
            return Ok(response);
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenge::choose(headers.iter().filter_map(|value| value.to_str().ok()));
        let refusal = error_message(response).await;
        let had_credentials = self.shared.config.credentials.find(call.repository).is_some();
        let Some(challenge) = challenge else {
            return Err(call.denied(refusal, had_credentials));
        };
        let second = self.authorization_after(call, challenge, first.as_ref()).await?;
        let Some(second) = second else {
            return Err(call.denied(refusal, had_credentials));
        };
        let response = self.execute(call, Some(second.value())).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(call.denied(error_message(response).await, had_credentials));
        }
        Ok(response)
    }

    async fn execute(
        &self,
        call: &Call<'_>,
        authorization: Option<&reqwest::header::HeaderValue>,
    ) -> Result<Response, ClientError> {
        let client = self.http(&call.repository.host, &call.url)?;
        let mut request = client.request(call.method.clone(), call.url.clone()).headers(call.headers.clone());
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let sent = Arc::new(AtomicU64::new(0));
        let limit = if matches!(call.body, CallBody::Empty) { ANSWER_LIMIT } else { UPLOAD_LIMIT };
        request = match &call.body {
            CallBody::Empty if matches!(call.method, Method::POST | Method::PUT | Method::PATCH) => {
                request.header(CONTENT_LENGTH, 0)
            }
            CallBody::Empty => request,
            CallBody::Bytes(bytes) => request.body(bytes.clone()),
            CallBody::File { path, offset, length } => request
                .header(CONTENT_LENGTH, *length)
                .body(file_body(path, *offset, *length, sent.clone()).await?),
        };
        let mut answer = std::pin::pin!(request.send());
        let mut before = 0;
        loop {
            match tokio::time::timeout(limit, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(self.send_error(call, error)),
                Err(_) => {
                    let now = sent.load(Ordering::Relaxed);
                    if now == before {
                        return Err(call.stalled(limit));
                    }
                    before = now;
                }
            }
        }
    }

    #[expect(clippy::unused_self, reason = "reads as the other steps of sending do")]
    fn send_error(&self, call: &Call<'_>, error: reqwest::Error) -> ClientError {
        // Reading our own file fails inside the body stream.
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(file) = inner.downcast_ref::<std::io::Error>()
                && let Some(own) = file.get_ref().and_then(|inner| inner.downcast_ref::<FileFailed>())
                && let CallBody::File { path, .. } = &call.body
            {
                let source = std::io::Error::new(own.0, own.1.clone());
                return ClientError::File { path: path.clone(), source };
            }
            cause = inner.source();
        }
        if error.is_connect() || error.is_dns() {
            let host = call.repository.host.clone();
            return ClientError::Unreachable { host, source: error.without_url() };
        }
        call.broken(error)
    }

    /// The connections to use for `url`.
    pub(super) fn http(&self, host: &Host, url: &Url) -> Result<&reqwest::Client, ClientError> {
        let tls = |source| ClientError::Tls { host: host.clone(), source };
        let loopback = url.scheme() == "http" && host.is_loopback();
        let cell: &OnceLock<reqwest::Client> =
            if loopback { &self.shared.loopback } else { &self.shared.remote };
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let builder = reqwest::Client::builder()
            .user_agent(concat!("hephy/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(15))
            .tcp_nodelay(true)
            // One broken stream of HTTP/2 has broken every upload beside it too often.
            .http1_only()
            .redirect(redirects());
        let builder = if loopback { builder.no_proxy().tls_certs_only([]) } else { builder };
        let built = builder.build().map_err(tls)?;
        Ok(cell.get_or_init(|| built))
    }
}

fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let downgraded = attempt.previous().last().is_some_and(|from| from.scheme() == "https")
            && attempt.url().scheme() != "https";
        if downgraded {
            attempt.error("the registry redirects from https to http")
        } else if attempt.previous().len() > 5 {
            attempt.error("the registry redirects more than five times")
        } else {
            attempt.follow()
        }
    })
}

pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// Marks an error as being of the file we send and not of the connection.
#[derive(Debug, thiserror::Error)]
#[error("{1}")]
struct FileFailed(std::io::ErrorKind, String);

fn own_failure(error: &std::io::Error) -> std::io::Error {
    std::io::Error::other(FileFailed(error.kind(), error.to_string()))
}

async fn file_body(
    path: &PathBuf,
    offset: u64,
    length: u64,
    sent: Arc<AtomicU64>,
) -> Result<Body, ClientError> {
    let error = |source| ClientError::File { path: path.clone(), source };
    let mut file = tokio::fs::File::open(path).await.map_err(error)?;
    file.seek(std::io::SeekFrom::Start(offset)).await.map_err(error)?;
    let stream =
        ReaderStream::with_capacity(file.take(length), FILE_BUFFER_BYTES).map(move |part| match part {
            Ok(part) => {
                sent.fetch_add(part.len() as u64, Ordering::Relaxed);
                Ok(part)
            }
            Err(source) => Err(own_failure(&source)),
        });
    Ok(Body::wrap_stream(stream))
}

/// What to wait before the next try: our delay, or what the registry asks for if that is longer.
pub(super) fn wait(error: &ClientError, delay: Duration) -> Duration {
    error.retry_after().map_or(delay, |asked| asked.min(RETRY_AFTER_LIMIT).max(delay))
}

/// The error that an answer stands for.
pub(super) async fn status_error(call: &Call<'_>, response: Response) -> ClientError {
    let (repository, doing, status) = (call.repository.clone(), call.doing.clone(), response.status());
    let retry_after = retry_after(response.headers());
    let message = error_message(response).await;
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => call.denied(message, true),
        _ => ClientError::Status { repository, doing, status, message, retry_after },
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    SystemTime::from(date.timestamp()).duration_since(SystemTime::now()).ok()
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    code: Option<String>,
    message: Option<String>,
}

/// What the registry says went wrong, on one printable line.
async fn error_message(response: Response) -> String {
    let status = response.status();
    let body = read_up_to(response, ERROR_BYTES).await.unwrap_or_default();
    let said = serde_json::from_slice::<Errors>(&body).ok().map(|errors| {
        let texts = errors.errors.into_iter().take(5).filter_map(|error| match (error.code, error.message) {
            (code, Some(message)) if !message.is_empty() => Some(match code {
                Some(code) => format!("{message} ({code})"),
                None => message,
            }),
            (code, _) => code,
        });
        texts.collect::<Vec<_>>().join("; ")
    });
    let text = said
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| status.canonical_reason().map_or_else(|| status.to_string(), str::to_lowercase));
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
    printable.trim().trim_end_matches('.').to_owned()
}

async fn read_up_to(mut response: Response, max_bytes: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Ok(Ok(Some(part))) = tokio::time::timeout(ANSWER_LIMIT, response.chunk()).await {
        if body.len() + part.len() > max_bytes {
            return None;
        }
        body.extend_from_slice(&part);
    }
    Some(body)
}

/// The whole body of an answer that may not be longer than `max_bytes`.
pub(super) async fn body(
    call: &Call<'_>,
    mut response: Response,
    what: &str,
    max_bytes: u64,
) -> Result<Bytes, ClientError> {
    let mut body = Vec::new();
    loop {
        let part = tokio::time::timeout(ANSWER_LIMIT, response.chunk()).await;
        let part = part.map_err(|_| call.stalled(ANSWER_LIMIT))?.map_err(|source| call.broken(source))?;
        let Some(part) = part else { return Ok(body.into()) };
        if body.len() as u64 + part.len() as u64 > max_bytes {
            let (repository, what) = (call.repository.clone(), what.to_owned());
            return Err(ClientError::TooLarge { repository, what, max_bytes });
        }
        body.extend_from_slice(&part);
    }
}
