//! One file over HTTP.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use reqwest::header::{ETAG, HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::{Guard, RemoteError, shown};
use crate::oci::Digest;
use crate::registry::client::{Trust, certificates_of, tls_configuration};

/// The largest download.
pub(crate) const MAX_DOWNLOAD_BYTES: u64 = 16 << 30;
/// How long a server may take to begin its answer, and between two parts of it.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// How many redirects are followed.
const MAX_REDIRECTS: usize = 10;
/// How often a request is repeated after a failure that may pass.
const RETRIES: usize = 3;

/// Fetches files.
pub(crate) struct Web {
    client: reqwest::Client,
    guard: Guard,
    max_bytes: u64,
}

/// What a server says of a file, to ask it later whether that is still so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Validators {
    etag: Option<String>,
    last_modified: Option<String>,
}

/// A file that was fetched.
#[derive(Debug)]
pub(crate) struct Download {
    /// It, with no name on the disk.
    pub(crate) file: File,
    pub(crate) digest: Digest,
    /// `Last-Modified`, in seconds; 0 without.
    pub(crate) modified: i64,
    pub(crate) validators: Validators,
}

/// What a server answers.
#[derive(Debug)]
pub(crate) enum Answer {
    /// What it said before is still so.
    Unchanged,
    /// The file.
    New(Download),
}

impl Web {
    /// One that believes the system's authorities, and the certificates of `trusted` (PEM).
    pub(crate) fn new(guard: Guard, max_bytes: u64, trusted: Option<&str>) -> Result<Self, RemoteError> {
        let redirects = Policy::custom(move |attempt| redirect(guard, attempt));
        Self::redirected(guard, max_bytes, trusted, redirects)
    }

    /// One that goes where it is sent and nowhere else: its requests prove who we are.
    pub(super) fn direct(max_bytes: u64, trusted: Option<&str>) -> Result<Self, RemoteError> {
        Self::redirected(Guard::Open, max_bytes, trusted, Policy::none())
    }

    fn redirected(
        guard: Guard,
        max_bytes: u64,
        trusted: Option<&str>,
        redirects: Policy,
    ) -> Result<Self, RemoteError> {
        let trust = Trust::Authorities(trusted.map(certificates_of).unwrap_or_default());
        let builder = reqwest::Client::builder()
            .user_agent(concat!("hephy/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls_configuration(trust).map_err(RemoteError::Tls)?)
            // A file has a connection to itself.
            .http1_only()
            .connect_timeout(Duration::from_secs(15))
            .read_timeout(ANSWER_LIMIT)
            .redirect(redirects);
        let builder = if guard == Guard::Open { builder } else { builder.dns_resolver(guard) };
        let client = builder
            .build()
            .map_err(|source| RemoteError::Web { address: "the network".to_owned(), source })?;
        Ok(Self { client, guard, max_bytes })
    }

    /// Fetches a file into an unnamed one in `spool`, unless the server says that it is as `known` says.
    pub(crate) async fn get(
        &self,
        url: &Url,
        known: Option<&Validators>,
        spool: &Path,
    ) -> Result<Answer, RemoteError> {
        self.guard.check(url)?;
        (|| self.get_once(url, known, spool)).retry(backoff()).when(may_pass).await
    }

    /// Asks with these headers; any answer is one.
    pub(super) async fn ask(&self, url: &Url, headers: HeaderMap) -> Result<Response, RemoteError> {
        self.client.get(url.clone()).headers(headers).send().await.map_err(|error| broken(url, error))
    }

    async fn get_once(
        &self,
        url: &Url,
        known: Option<&Validators>,
        spool: &Path,
    ) -> Result<Answer, RemoteError> {
        let mut request = self.client.get(url.clone());
        if let Some(known) = known {
            let pairs = [(IF_NONE_MATCH, &known.etag), (IF_MODIFIED_SINCE, &known.last_modified)];
            for (name, value) in pairs {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
        }
        let response = request.send().await.map_err(|error| broken(url, error))?;
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED && known.is_some() {
            return Ok(Answer::Unchanged);
        }
        if status != StatusCode::OK {
            return Err(RemoteError::Status { address: shown(url), status });
        }
        self.read(url, response, spool).await.map(Answer::New)
    }

    /// Reads what was answered into an unnamed file in `spool`.
    pub(super) async fn read(
        &self,
        url: &Url,
        mut response: Response,
        spool: &Path,
    ) -> Result<Download, RemoteError> {
        let too_large = || RemoteError::TooLarge { address: shown(url), max_bytes: self.max_bytes };
        let announced = response.content_length();
        if announced.is_some_and(|bytes| bytes > self.max_bytes) {
            return Err(too_large());
        }
        let write_error = "write a download";
        let mut file = tempfile::tempfile_in(spool).map_err(RemoteError::io(write_error))?;
        let (mut hash, mut size) = (Sha256::new(), 0u64);
        while let Some(part) = response.chunk().await.map_err(|error| broken(url, error))? {
            size += part.len() as u64;
            if size > self.max_bytes {
                return Err(too_large());
            }
            hash.update(&part);
            // Into the page cache: as fast as copying.
            file.write_all(&part).map_err(RemoteError::io(write_error))?;
        }
        if announced.is_some_and(|bytes| bytes != size) {
            return Err(RemoteError::Cut { address: shown(url) });
        }
        file.rewind().map_err(RemoteError::io(write_error))?;
        let digest = Digest::from_sha256(hash.finalize().into());
        let validators = Validators {
            etag: header(response.headers(), ETAG),
            last_modified: header(response.headers(), LAST_MODIFIED),
        };
        let modified = validators.last_modified.as_deref().and_then(seconds).unwrap_or(0);
        Ok(Download { file, digest, modified, validators })
    }
}

impl Validators {
    /// Whether there is anything to ask with.
    pub(crate) const fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    (text.len() <= 1024).then(|| text.to_owned())
}

fn seconds(date: &str) -> Option<i64> {
    jiff::fmt::rfc2822::parse(date).ok().map(|date| date.timestamp().as_second())
}

fn broken(url: &Url, error: reqwest::Error) -> RemoteError {
    let address = shown(url);
    if error.is_timeout() && !error.is_connect() {
        return RemoteError::Stalled { address, limit: ANSWER_LIMIT };
    }
    RemoteError::Web { address, source: error.without_url() }
}

/// The delays between tries.
pub(super) fn backoff() -> ExponentialBuilder {
    let delays = ExponentialBuilder::default().with_jitter().with_min_delay(Duration::from_millis(200));
    delays.with_max_times(RETRIES)
}

pub(super) fn may_pass(error: &RemoteError) -> bool {
    match error {
        RemoteError::Web { source, .. } => !source.is_redirect() && !source.is_builder(),
        RemoteError::Status { status, .. } | RemoteError::Object { status, .. } => {
            status.is_server_error() || matches!(status.as_u16(), 408 | 429)
        }
        RemoteError::Cut { .. } => true,
        _ => false,
    }
}

fn redirect(guard: Guard, attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let from_https = attempt.previous().last().is_some_and(|from| from.scheme() == "https");
    if !matches!(attempt.url().scheme(), "http" | "https") {
        attempt.error("it redirects to something else than http and https")
    } else if from_https && attempt.url().scheme() != "https" {
        attempt.error("it redirects from https to http")
    } else if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("it redirects more than ten times")
    } else if guard.check(attempt.url()).is_err() {
        attempt.error("it redirects to this machine itself, or to its own link")
    } else {
        attempt.follow()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use axum::Router;
    use axum::http::header::{LAST_MODIFIED, LOCATION};
    use axum::response::IntoResponse as _;
    use axum::routing::get;

    use super::*;

    async fn serve(router: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
        format!("http://{address}")
    }

    async fn fetch(base: &str, path: &str, guard: Guard, max_bytes: u64) -> Result<Answer, RemoteError> {
        // Installed by the program; here by whoever is first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let spool = tempfile::tempdir().unwrap();
        let url = Url::parse(&format!("{base}{path}")).unwrap();
        Web::new(guard, max_bytes, None).unwrap().get(&url, None, spool.path()).await
    }

    fn to(location: &'static str) -> axum::routing::MethodRouter {
        get(move || async move { (StatusCode::FOUND, [(LOCATION, location)]).into_response() })
    }

    #[tokio::test]
    async fn a_file_comes_with_its_digest_and_its_time() {
        let date = "Sun, 09 Sep 2001 01:46:40 GMT";
        let file = get(move || async move { ([(LAST_MODIFIED, date)], "hello") });
        let base = serve(Router::new().route("/f", file).route("/moved", to("/f"))).await;
        for path in ["/f", "/moved"] {
            let Answer::New(mut got) = fetch(&base, path, Guard::Open, 5).await.unwrap() else { panic!() };
            let mut text = String::new();
            got.file.read_to_string(&mut text).unwrap();
            assert_eq!(
                (text.as_str(), got.digest, got.modified),
                ("hello", Digest::of("hello"), 1_000_000_000)
            );
            assert_eq!(got.validators.last_modified.as_deref(), Some(date));
        }
    }

    #[tokio::test]
    async fn redirects_lead_to_http_only_and_end() {
        let base = serve(
            Router::new()
                .route("/file", to("file:///etc/passwd"))
                .route("/data", to("data:,x"))
                .route("/loop", to("/loop")),
        )
        .await;
        for path in ["/file", "/data", "/loop"] {
            let error = fetch(&base, path, Guard::Open, 100).await.unwrap_err();
            assert!(
                matches!(error, RemoteError::Web { .. } | RemoteError::Status { .. }),
                "{path}: {error:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_announced_or_not() {
        let chunks = || (0..100).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 1000]));
        let stream = move || async move { axum::body::Body::from_stream(futures::stream::iter(chunks())) };
        let base = serve(
            Router::new()
                .route("/known", get(|| async { vec![b'x'; 100_000] }))
                .route("/stream", get(stream)),
        )
        .await;
        for path in ["/known", "/stream"] {
            let error = fetch(&base, path, Guard::Open, 99_999).await.unwrap_err();
            assert!(matches!(error, RemoteError::TooLarge { max_bytes: 99_999, .. }), "{path}: {error:?}");
        }
        assert!(fetch(&base, "/stream", Guard::Open, 100_000).await.is_ok());
    }

    #[tokio::test]
    async fn a_guarded_build_reaches_no_loopback_by_address_or_name() {
        let base = serve(Router::new().route("/f", get(|| async { "inside" }))).await;
        assert!(fetch(&base, "/f", Guard::Open, 100).await.is_ok());
        for base in [base.clone(), base.replace("127.0.0.1", "localhost")] {
            let error = fetch(&base, "/f", Guard::Outward, 100).await.unwrap_err();
            let text = crate::build::driver::chain(&error).join(": ");
            assert!(text.contains("this machine itself"), "{text}");
        }
    }

    #[tokio::test]
    async fn an_error_answer_is_told_without_what_is_secret_in_the_address() {
        let base = serve(Router::new()).await.replace("http://", "http://me:s3cret@");
        let error = fetch(&base, "/none?token=s3cret", Guard::Open, 100).await.unwrap_err().to_string();
        assert!(error.contains("/none` answers 404") && !error.contains("s3cret"), "{error}");
    }
}
