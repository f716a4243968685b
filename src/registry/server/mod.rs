//! An OCI registry (distribution-spec 1.1) over a directory.
//!
//! Anyone on this machine may read it, but for the build caches; writing takes a token. Content is addressed by
//! digest and checked before it is stored, so a crash leaves an upload that can go on, or garbage, and never
//! a blob or a manifest that lies.

mod access;
mod blobs;
mod garbage;
mod manifests;
mod refusal;
mod route;
mod storage;
mod token;
mod uploads;

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;

pub use access::docker_config;
pub use garbage::{Collected, Keep};
pub use token::{Action, RepositoryPattern, Scope, ScopeError, TokenIssuer};

use access::Caller;
use refusal::Refusal;
use route::Route;
use storage::Storage;
use uploads::Uploads;

/// How often abandoned uploads are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_mins(10);

/// How a registry behaves.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where everything is.
    pub directory: PathBuf,
    /// The largest blob that is taken.
    pub max_blob_bytes: u64,
    /// After this long without a byte an upload is dropped.
    pub upload_idle: Duration,
    /// How many uploads may be open.
    pub max_uploads: usize,
    /// Whether callers on this machine read without a token. A proxy on this machine would make everyone one.
    pub anonymous_read_from_loopback: bool,
}

impl ServerConfig {
    /// The usual limits, in this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            max_blob_bytes: 32 << 30,
            upload_idle: Duration::from_hours(24),
            max_uploads: 256,
            anonymous_read_from_loopback: true,
        }
    }
}

/// Why a registry cannot start or collect garbage.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its directory cannot be used.
    #[error("cannot use the registry's directory `{}`", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another server has it.
    #[error("the registry's directory `{}` is in use by another hephy: stop that one first", .0.display())]
    Locked(PathBuf),
    /// The key of its tokens cannot be used.
    #[error("cannot use the registry's key `{}`", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A registry. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ServerConfig,
    storage: Storage,
    tokens: TokenIssuer,
    uploads: Uploads,
    /// Read by what stores or links, written by what collects garbage.
    collecting: RwLock<()>,
    /// Holds the lock on the directory.
    _lock: File,
}

/// A request, understood.
struct Ask {
    method: Method,
    route: Route,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    caller: Caller,
}

impl Ask {
    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Server {
    /// Opens the registry in its directory, which is made if it is missing, and locks it.
    pub async fn open(config: ServerConfig) -> Result<Self, ServerError> {
        let path = config.directory.clone();
        let error = |source| ServerError::Directory { path: path.clone(), source };
        tokio::task::spawn_blocking(move || Self::open_blocking(config))
            .await
            .map_err(|e| error(io::Error::other(e)))?
    }

    fn open_blocking(config: ServerConfig) -> Result<Self, ServerError> {
        let path = config.directory.clone();
        let error = |source| ServerError::Directory { path: path.clone(), source };
        fs::create_dir_all(&path).map_err(error)?;
        let lock = File::create(path.join("lock")).map_err(error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ServerError::Locked(path.clone())),
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        let storage = Storage::open(&path).map_err(error)?;
        let tokens = TokenIssuer::open(&path)?;
        let uploads = Uploads::new(storage.clone(), &config);
        let collecting = RwLock::new(());
        Ok(Self { shared: Arc::new(Shared { config, storage, tokens, uploads, collecting, _lock: lock }) })
    }

    /// What issues the tokens that this registry takes.
    #[must_use]
    pub fn tokens(&self) -> &TokenIssuer {
        &self.shared.tokens
    }

    /// The service. It sees who is on this machine by `ConnectInfo<SocketAddr>`; without it, nobody is.
    pub fn router(&self) -> Router {
        Router::new().fallback(handle).with_state(self.clone())
    }

    /// Serves until `stop`, then finishes the requests under way; put a timeout around it.
    pub async fn serve(&self, listener: tokio::net::TcpListener, stop: CancellationToken) -> io::Result<()> {
        let service = self.router().into_make_service_with_connect_info::<SocketAddr>();
        let serving = axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned());
        let expiring = async {
            let mut ticks = tokio::time::interval(EXPIRY_INTERVAL);
            loop {
                ticks.tick().await;
                if let Err(error) = self.expire_uploads().await {
                    tracing::warn!(error = %error, "abandoned uploads could not be dropped");
                }
            }
        };
        tokio::select! {
            result = serving => result,
            () = expiring => Ok(()),
        }
    }

    /// Drops uploads that have stood still for too long, and says how many.
    pub async fn expire_uploads(&self) -> Result<u64, ServerError> {
        let server = self.clone();
        let expired = tokio::task::spawn_blocking(move || server.shared.uploads.expire()).await;
        expired.map_err(io::Error::other).flatten().map_err(|source| self.directory_error(source))
    }

    fn directory_error(&self, source: io::Error) -> ServerError {
        ServerError::Directory { path: self.shared.config.directory.clone(), source }
    }

    async fn answer(&self, ask: Ask, body: Body) -> Result<Response<Body>, Refusal> {
        match ask.route.clone() {
            Route::Base => Ok(json(StatusCode::OK, &serde_json::json!({}))),
            Route::Token => self.exchange(&ask, body).await,
            Route::Blob(name, digest) => self.blob(&ask, &name, &digest).await,
            Route::Uploads(name) => self.start_upload(&ask, &name, body).await,
            Route::Upload(name, id) => self.upload(&ask, &name, &id, body).await,
            Route::Manifest(name, target) => self.manifest(&ask, &name, &target, body).await,
            Route::Tags(name) => self.tags(&ask, &name).await,
            Route::Referrers(name, digest) => self.referrers(&ask, &name, &digest).await,
        }
    }

    /// Runs what works on files where it may block.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Storage) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let storage = self.shared.storage.clone();
        let done = tokio::task::spawn_blocking(move || work(&storage)).await;
        done.map_err(|error| Refusal::from(io::Error::other(error)))?
    }
}

async fn handle(State(server): State<Server>, request: Request) -> Response<Body> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let result = match server.understand(&request, peer) {
        Ok(ask) => server.answer(ask, request.into_body()).await,
        Err(refusal) => Err(refusal),
    };
    let mut response = result.unwrap_or_else(|refusal| {
        tracing::debug!(method = %method, path, status = refusal.status.as_u16(), why = refusal.message, "registry request refused");
        refusal.into_response()
    });
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert("docker-distribution-api-version", version);
    response
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

/// An answer with these headers. Values of ours are printable.
fn answer(status: StatusCode, headers: &[(&'static str, String)], body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(*name, value);
        }
    }
    response
}

fn not_allowed(ask: &Ask) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "UNSUPPORTED",
        format!("{} is not supported here", ask.method),
    )
}
