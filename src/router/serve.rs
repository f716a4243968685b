//! The listener's loop: accept, serve, and drain at the end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::backend::Connection;
use super::config::RouterConfig;
use super::connection::Watched;
use super::proxy::Proxy;
use super::table::RouteTable;

/// How long the listener rests when the system has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MAX_HEADERS: usize = 128;
const MAX_CONCURRENT_STREAMS: u32 = 128;

/// Serves `listener` until `shutdown` is cancelled, then gives the requests in flight `config.drain` to end.
///
/// Tunnels are cut once the requests are done: they would never end by themselves.
pub async fn serve(
    listener: TcpListener,
    table: RouteTable,
    config: RouterConfig,
    shutdown: CancellationToken,
) {
    let drain = config.drain;
    let permits = Arc::new(Semaphore::new(config.max_connections));
    let builder = builder(&config);
    let cut = CancellationToken::new();
    let _cut_at_the_end = cut.clone().drop_guard();
    let proxy = Arc::new(Proxy { table, config, cut });
    let graceful = GracefulShutdown::new();
    while let Some((stream, permit)) = shutdown.run_until_cancelled(accept(&listener, &permits)).await {
        let Ok(peer) = stream.peer_addr() else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let (proxy, builder, watcher) = (Arc::clone(&proxy), builder.clone(), graceful.watcher());
        tokio::spawn(async move {
            let client = Client { peer, proxy, builder, watcher };
            match client.proxy.config.tls.clone() {
                None => client.serve(stream).await,
                Some(tls) => {
                    let handshake = TlsAcceptor::from(tls).accept(stream);
                    match tokio::time::timeout(client.proxy.config.header_timeout, handshake).await {
                        Ok(Ok(stream)) => client.serve(stream).await,
                        Ok(Err(error)) => debug!(%error, "a client's handshake failed"),
                        Err(_) => debug!("a client's handshake took too long"),
                    }
                }
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        warn!("requests were still in flight when the router's time to drain was over");
    }
}

/// Somebody who is connected.
struct Client {
    peer: SocketAddr,
    proxy: Arc<Proxy>,
    builder: Builder<TokioExecutor>,
    watcher: Watcher,
}

impl Client {
    /// Answers what comes over `stream` until it ends.
    async fn serve(self, stream: impl Connection) {
        let config = &self.proxy.config;
        let stream = Watched::new(stream, config.header_timeout, config.idle_timeout);
        let (proxy, peer) = (Arc::clone(&self.proxy), self.peer);
        let service = service_fn(move |request| {
            let proxy = Arc::clone(&proxy);
            async move { Ok::<_, Infallible>(proxy.respond(request, peer.ip()).await) }
        });
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        if let Err(error) = self.watcher.watch(connection.into_owned()).await {
            debug!(error, "a client's connection ended");
        }
    }
}

fn builder(config: &RouterConfig) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let max_header_bytes = config.max_header_bytes;
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size((max_header_bytes as usize).max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(max_header_bytes)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .keep_alive_interval(config.header_timeout)
        .keep_alive_timeout(config.header_timeout);
    builder
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, Option<tokio::sync::OwnedSemaphorePermit>) {
    // Closed never, so an error is impossible and would only mean no limit.
    let permit = Arc::clone(permits).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) if is_the_client_gone(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_the_client_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}
