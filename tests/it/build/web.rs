//! A web server with files and git repositories, for what builds fetch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use tempfile::TempDir;

use crate::registry::tls::{Front, Http2};

/// What a path gives.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) content: Vec<u8>,
    pub(crate) etag: Option<&'static str>,
    pub(crate) modified: Option<&'static str>,
}

#[derive(Default)]
struct Shared {
    pages: Mutex<BTreeMap<String, Page>>,
    /// Path and status, in order.
    asked: Mutex<Vec<(String, u16)>>,
    /// What repositories want to hear: `user:password`.
    password: Option<String>,
    repositories: PathBuf,
}

/// A server on a port of this machine; it ends with this value.
pub(crate) struct Web {
    pub(crate) base: String,
    shared: Arc<Shared>,
    directory: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Web {
    pub(crate) fn new() -> Self {
        Self::with_password(None)
    }

    pub(crate) fn with_password(password: Option<&str>) -> Self {
        Self::start("127.0.0.1", password)
    }

    /// One that others reach at `host`.
    pub(crate) fn at(host: &str) -> Self {
        Self::start(host, None)
    }

    /// One that speaks TLS too, with a certificate of the tests' authority; and its addresses are those.
    pub(crate) fn with_tls() -> Self {
        let mut web = Self::new();
        let backend = web.base.trim_start_matches("http://").parse().unwrap();
        let front = web.runtime.block_on(Front::start("server", backend, Http2::Unknown));
        web.base = format!("https://{}", front.host());
        web
    }

    fn start(host: &str, password: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repositories = directory.path().to_owned();
        let shared =
            Arc::new(Shared { password: password.map(ToOwned::to_owned), repositories, ..Shared::default() });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind((host, 0))).unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::clone(&shared);
        let answer = move |request: Request| {
            let shared = Arc::clone(&state);
            async move { answer(&shared, request).await }
        };
        let router = Router::new().fallback(answer);
        drop(runtime.spawn(async move { axum::serve(listener, router).await.unwrap() }));
        Self { base, shared, directory, runtime }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(crate) fn page(&self, path: &str, content: impl Into<Vec<u8>>) -> &Self {
        self.dated(path, content, None, None)
    }

    pub(crate) fn dated(
        &self,
        path: &str,
        content: impl Into<Vec<u8>>,
        etag: Option<&'static str>,
        modified: Option<&'static str>,
    ) -> &Self {
        let page = Page { content: content.into(), etag, modified };
        self.shared.pages.lock().unwrap().insert(path.to_owned(), page);
        self
    }

    /// What was asked since the last time, with the status of the answer.
    pub(crate) fn asked(&self) -> Vec<(String, u16)> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }

    /// Commits files into the repository `name` and returns the commit.
    pub(crate) fn commit(&self, name: &str, files: &[(&str, &str)]) -> String {
        let path = self.directory.path().join(name);
        if !path.exists() {
            git(&self.directory.path().to_owned(), &["init", "-q", "-b", "main", name]);
        }
        for (file, content) in files {
            let file = path.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        git(&path, &["add", "-A"]);
        git(&path, &["commit", "-q", "-m", "a commit"]);
        git(&path, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Runs git in the repository `name`.
    pub(crate) fn git(&self, name: &str, arguments: &[&str]) -> String {
        git(&self.directory.path().join(name), arguments)
    }

    /// The repository's directory.
    pub(crate) fn repository(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn git(directory: &PathBuf, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "protocol.file.allow=always"])
        .args(arguments)
        .env("GIT_AUTHOR_DATE", "1600000000 +0000")
        .env("GIT_COMMITTER_DATE", "1600000000 +0000")
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn answer(shared: &Arc<Shared>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let page = shared.pages.lock().unwrap().get(&path).cloned();
    let response = match page {
        Some(page) => of_page(page, request.headers()),
        None if path.contains(".git/") => of_repository(shared, request).await,
        None => StatusCode::NOT_FOUND.into_response(),
    };
    shared.asked.lock().unwrap().push((path, response.status().as_u16()));
    response
}

fn of_page(page: Page, asked: &HeaderMap) -> Response {
    let is = |name, value: Option<&str>| {
        value.is_some() && asked.get(name).and_then(|text| text.to_str().ok()) == value
    };
    let mut response = if is(header::IF_NONE_MATCH, page.etag) || is(header::IF_MODIFIED_SINCE, page.modified)
    {
        StatusCode::NOT_MODIFIED.into_response()
    } else if let Some(location) = page.content.strip_prefix(b"-> ") {
        (StatusCode::FOUND, [(header::LOCATION, location.to_vec())]).into_response()
    } else {
        page.content.into_response()
    };
    let headers = response.headers_mut();
    for (name, value) in [(header::ETAG, page.etag), (header::LAST_MODIFIED, page.modified)] {
        if let Some(value) = value {
            headers.insert(name, value.parse().unwrap());
        }
    }
    response
}

/// By git's own CGI program.
async fn of_repository(shared: &Arc<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let text = |name: &str| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    if let Some(password) = &shared.password {
        let expected = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(password));
        if text("authorization") != expected {
            return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")])
                .into_response();
        }
    }
    let body: Bytes = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &shared.repositories)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", text("content-type"))
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("GIT_PROTOCOL", text("git-protocol"))
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &body).unwrap();
        child.wait_with_output().unwrap().stdout
    });
    let output = output.await.unwrap();
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let mut response = Response::new(Body::from(output[end + 4..].to_vec()));
    for line in head.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "Status" {
            *response.status_mut() = value[..3].parse().unwrap();
        } else {
            let name: header::HeaderName = name.parse().unwrap();
            response.headers_mut().insert(name, value.parse().unwrap());
        }
    }
    response
}
