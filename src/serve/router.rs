//! `hephy router`: hephy's own router as a Deployment of a cluster, for clusters without an ingress controller.
//!
//! It answers `APP.DOMAIN` by the Host header, over HTTP and, with a certificate, over TLS. It is told to stop by a
//! signal, first says on its health port that it is not ready, so that nothing sends it new connections, and then
//! drains.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use hyper::StatusCode;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ports::{ListenError, listen};
use crate::config::server::Domain;
use crate::kubernetes::{Cluster, ConnectError};
use crate::model::Chain;
use crate::router::{RouteTable, RouterConfig, serve};
use crate::runtime::kubernetes::routes;

/// How often a certificate is looked at, which is renewed in its place.
const RENEWAL: Duration = Duration::from_secs(60);

/// What the router is started with.
#[derive(Debug, Clone)]
pub struct RouterSettings {
    /// The kubeconfig, outside a cluster.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of the apps; that of the kubeconfig or of the pod where none is named.
    pub namespace: Option<String>,
    /// Apps are at `APP.DOMAIN`.
    pub domain: Domain,
    /// Where HTTP is answered.
    pub http: SocketAddr,
    /// Where TLS is answered.
    pub https: SocketAddr,
    /// The certificate chain and its key in PEM; no TLS without.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Where `/healthz` and `/readyz` are answered.
    pub health: SocketAddr,
    /// How long connections are still taken after the signal, while others learn of it.
    pub linger: Duration,
    /// How long requests in flight may take to end.
    pub drain: Duration,
    /// Whether every client is another proxy, whose `X-Forwarded-*` headers are to be believed.
    pub trust_forwarded: bool,
}

/// What there is to say once everything listens.
#[derive(Debug, Clone)]
pub struct Listening {
    /// The namespace of the apps.
    pub namespace: String,
    /// Where HTTP is answered.
    pub http: SocketAddr,
    /// Where TLS is answered, with a certificate.
    pub https: Option<SocketAddr>,
    /// Where `/healthz` and `/readyz` are answered.
    pub health: SocketAddr,
}

/// Why the router does not start.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The cluster.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// An address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Signals.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    /// The certificate or its key.
    #[error("cannot use the certificate `{certificate}` with the key `{key}`")]
    Certificate {
        /// The chain.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Routes until a signal, then drains.
pub async fn route(settings: RouterSettings, tell: impl FnOnce(&Listening)) -> Result<(), RouterError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RouterError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RouterError::Signals)?;
    let cluster = Cluster::connect(settings.kubeconfig.as_deref(), None).await?;
    let namespace = settings.namespace.clone().unwrap_or_else(|| cluster.namespace().to_owned());
    let certificate = settings.certificate.clone().map(Certificate::read).transpose()?;
    let http = listen(settings.http, "--http").await?;
    let https = match &certificate {
        Some(_) => Some(listen(settings.https, "--https").await?),
        None => None,
    };
    let health = listen(settings.health, "--health").await?;
    let address = |listener: &TcpListener, asked: SocketAddr| listener.local_addr().unwrap_or(asked);
    tell(&Listening {
        namespace: namespace.clone(),
        http: address(&http, settings.http),
        https: https.as_ref().map(|https| address(https, settings.https)),
        health: address(&health, settings.health),
    });
    let (table, ready) = (RouteTable::new(), watch::Sender::new(false));
    let (stopping, shutdown) = (CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    tasks.spawn(answer_health(health, ready.subscribe(), stopping.clone(), shutdown.clone()));
    let mut config = RouterConfig::new(settings.domain.as_str());
    config.trust_forwarded = settings.trust_forwarded;
    config.drain = settings.drain;
    if let (Some(listener), Some(certificate)) = (https, certificate) {
        let config = RouterConfig { tls: Some(Arc::new(certificate.tls())), ..config.clone() };
        tasks.spawn(serve(listener, table.clone(), config, shutdown.clone()));
        tasks.spawn(certificate.renew(shutdown.clone()));
    }
    tasks.spawn(serve(http, table.clone(), config, shutdown.clone()));
    let following = routes::follow(&cluster, &namespace, table, ready);
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
        tokio::select! {
            () = tokio::time::sleep(settings.linger) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
    };
    // The table is followed to the end: what drains must not go to pods that are gone.
    tokio::select! {
        () = stop => {}
        () = async { following.await; std::future::pending().await } => {}
    }
    Ok(())
}

/// `/healthz` while it runs; `/readyz` once the cluster was read and until the signal.
async fn answer_health(
    listener: TcpListener,
    ready: watch::Receiver<bool>,
    stopping: CancellationToken,
    shutdown: CancellationToken,
) {
    let readiness = move || {
        let is_ready = *ready.borrow() && !stopping.is_cancelled();
        std::future::ready(if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
    };
    let pages = Router::new().route("/healthz", get(async || "ok")).route("/readyz", get(readiness));
    let served = axum::serve(listener, pages).with_graceful_shutdown(shutdown.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(error = %Chain(&error), "health is answered no more");
    }
}

/// A certificate in files that somebody renews.
struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Certificate {
    fn read((chain, key): (PathBuf, PathBuf)) -> Result<Self, RouterError> {
        match certified(&chain, &key) {
            Ok(current) => {
                Ok(Self { chain, key, current: Arc::new(Current(RwLock::new(Arc::new(current)))) })
            }
            Err(source) => Err(RouterError::Certificate { certificate: chain, key, source }),
        }
    }

    fn tls(&self) -> rustls::ServerConfig {
        let resolver = Arc::clone(&self.current);
        let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }

    /// Takes what is in the files now and then, as long as it is of use.
    async fn renew(self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(RENEWAL)).await.is_some() {
            match certified(&self.chain, &self.key) {
                Ok(new) => {
                    *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                }
                Err(error) => {
                    tracing::error!(%error, path = %self.chain.display(), "the certificate cannot be renewed");
                }
            }
        }
    }
}

fn certified(chain: &Path, key: &Path) -> Result<CertifiedKey, Box<dyn std::error::Error + Send + Sync>> {
    let certificates = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() {
        return Err("there is no certificate in the file".into());
    }
    let key = rustls::crypto::ring::sign::any_supported_type(&PrivateKeyDer::from_pem_file(key)?)?;
    let certified = CertifiedKey::new(certificates, key);
    certified.keys_match()?;
    Ok(certified)
}
