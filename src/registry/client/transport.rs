//! One request to a registry: with which token, over which connection, how often.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use futures::StreamExt as _;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Body, Method, Response, StatusCode, Url};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::advice::Given;
use super::answer::{error_message, retry_after, status_error};
use super::auth::Authorization;
use super::call::{Call, CallBody};
use super::challenge::{self, Challenge};
use super::connections::Protocol;
use super::host::{HostState, RETRY_AFTER_LIMIT};
use super::{Client, ClientError};
use crate::oci::{Host, Repository};

/// How long a registry may take to begin its answer, and between two parts of it.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// How long an upload may stand still; some registries take minutes to store what they have received.
const UPLOAD_LIMIT: Duration = Duration::from_mins(5);
/// How often in a row a registry may send us elsewhere.
const REDIRECTS: usize = 5;
/// How much of a file is read at once for an upload.
const FILE_BUFFER_BYTES: usize = 256 * 1024;

impl Client {
    /// Where the registry `host` is.
    pub(super) async fn base(&self, host: &Host) -> Result<Url, ClientError> {
        let scheme = self.scheme(host).await?;
        base_url(host, scheme)
    }

    /// `/v2/<name>/<path>`.
    pub(super) async fn url(&self, repository: &Repository, path: &str) -> Result<Url, ClientError> {
        let mut url = self.base(&repository.host).await?;
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
        let base = self.base(&call.repository.host).await?;
        if !same_origin(&base, &call.url) {
            return Ok(marked(self.execute(call, None).await?, Given::Elsewhere));
        }
        let first = self.authorization(call).await?;
        let response = self.execute(call, first.as_ref()).await?;
        let challenge = match response.status() {
            StatusCode::UNAUTHORIZED => challenge_of(&response),
            // Some hide what they would show to somebody they know.
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND if first.is_none() => {
                match self.hidden_challenge(call, base).await? {
                    None => return Ok(marked(response, Given::NotAsked)),
                    found => found,
                }
            }
            _ => return Ok(marked(response, Authorization::given(first.as_ref()))),
        };
        let refusal = error_message(response).await;
        let given = self.identity(call.repository).await?.given();
        let Some(challenge) = challenge else {
            return Err(call.denied(refusal, given));
        };
        let second = self.authorization_after(call, challenge, first.as_ref()).await?;
        let Some(second) = second else {
            return Err(call.denied(refusal, given));
        };
        let response = self.execute(call, Some(&second)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(call.denied(error_message(response).await, given));
        }
        Ok(marked(response, Authorization::given(Some(&second))))
    }

    /// How the registry wants to know us, of one that did not ask although there are credentials for it. Asks once.
    async fn hidden_challenge(&self, call: &Call<'_>, base: Url) -> Result<Option<Challenge>, ClientError> {
        let state = self.host_state(&call.repository.host);
        let is_known = self.identity(call.repository).await?.credential().is_some();
        if !is_known || state.was_asked.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let ask = Call::new(Method::GET, base, call.repository, "asking how to log in");
        let response = self.execute(&ask, None).await?;
        Ok(if response.status() == StatusCode::UNAUTHORIZED { challenge_of(&response) } else { None })
    }

    /// Sends, and follows redirects; what proves who we are goes to the registry's own host alone.
    async fn execute(
        &self,
        call: &Call<'_>,
        authorization: Option<&Authorization>,
    ) -> Result<Response, ClientError> {
        let state = self.host_state(&call.repository.host);
        let slot = state.turn().await;
        let mut url = call.url.clone();
        for _ in 0..=REDIRECTS {
            let own = authorization.filter(|_| same_origin(&call.url, &url));
            let mut response = self.request(call, &state, &url, own.map(Authorization::value)).await?;
            if let Some(next) = redirect(call, &url, &response)? {
                url = next;
                continue;
            }
            if let (429 | 503, Some(asked)) = (response.status().as_u16(), retry_after(response.headers())) {
                state.pause(asked);
            }
            response.extensions_mut().insert(slot);
            return Ok(response);
        }
        Err(call.protocol_error(format!("it redirects more than {REDIRECTS} times")))
    }

    async fn request(
        &self,
        call: &Call<'_>,
        state: &HostState,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, ClientError> {
        let is_http1 = call.is_transfer || state.is_http1.load(Ordering::Relaxed);
        let protocol = if is_http1 { Protocol::Http1 } else { Protocol::Any };
        let client = self.shared.connections.to(&call.repository.host, url, protocol)?;
        let mut request = client.request(call.method.clone(), url.clone()).headers(call.headers.clone());
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
                Ok(Err(error)) => {
                    // Streams of a shared connection break together, and some proxies break each of them.
                    state.is_http1.store(true, Ordering::Relaxed);
                    return Err(send_error(call, url, error));
                }
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
}

/// `/v2/` of a registry.
pub(super) fn base_url(host: &Host, scheme: &str) -> Result<Url, ClientError> {
    let name = if *host == Host::docker_hub() { "registry-1.docker.io" } else { host.as_str() };
    Url::parse(&format!("{scheme}://{name}/v2/")).map_err(|_| ClientError::Realm {
        host: host.clone(),
        realm: name.to_owned(),
        reason: "it is not a host",
    })
}

fn challenge_of(response: &Response) -> Option<Challenge> {
    let headers = response.headers().get_all(WWW_AUTHENTICATE);
    challenge::choose(headers.iter().filter_map(|value| value.to_str().ok()))
}

fn marked(mut response: Response, given: Given) -> Response {
    response.extensions_mut().insert(given);
    response
}

/// Where an answer sends us, if it does: anywhere but from https to http.
fn redirect(call: &Call<'_>, from: &Url, response: &Response) -> Result<Option<Url>, ClientError> {
    let is_reading = matches!(call.method, Method::GET | Method::HEAD);
    let is_redirect = match response.status().as_u16() {
        301..=303 => is_reading,
        307 | 308 => true,
        _ => false,
    };
    let Some(location) = response.headers().get(LOCATION).filter(|_| is_redirect) else { return Ok(None) };
    let location = location.to_str().ok().and_then(|text| from.join(text).ok());
    let url = location.ok_or_else(|| call.protocol_error("it redirects to what is not a URL"))?;
    match (from.scheme(), url.scheme()) {
        ("http" | "https", "https") | ("http", "http") => Ok(Some(url)),
        ("https", "http") => Err(call.protocol_error("it redirects from https to http")),
        _ => Err(call.protocol_error("it redirects to what is not http")),
    }
}

fn send_error(call: &Call<'_>, url: &Url, error: reqwest::Error) -> ClientError {
    // Reading our own file fails inside the body stream.
    let mut cause = std::error::Error::source(&error);
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
        return ClientError::unreachable(&call.repository.host, url, error);
    }
    call.broken(error)
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
