//! Apps of the router's tests: a server that echoes, and one that does as a test says byte by byte.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use hephy::router::{Backend, Connection};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// One instance: where it listens, and whether it takes connections.
pub(super) struct Instance {
    id: String,
    address: SocketAddr,
    pub(super) refuses: AtomicBool,
    pub(super) connections: AtomicUsize,
    _server: DropGuard,
}

#[async_trait]
impl Backend for Instance {
    fn id(&self) -> &str {
        &self.id
    }

    async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.connections.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(TcpStream::connect(self.address).await?))
    }
}

/// An instance that echoes. When the last hold on it is gone it dies at once, with every connection it has.
pub(super) async fn echo(id: &str) -> Arc<Instance> {
    let name = id.to_owned();
    served(id, move |stream| {
        let name = name.clone();
        async move {
            let service = service_fn(move |request| answer(name.clone(), request));
            // Clients come and go as a test wants.
            drop(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        }
    })
    .await
}

/// An instance whose every connection is handled by `connection`.
pub(super) async fn served<F, C>(id: &str, connection: F) -> Arc<Instance>
where
    F: Fn(TcpStream) -> C + Send + 'static,
    C: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            connections.spawn(connection(stream));
        }
    });
    let (refuses, connections) = (AtomicBool::new(false), AtomicUsize::new(0));
    Arc::new(Instance { id: id.to_owned(), address, refuses, connections, _server: guard })
}

/// Says who answers, and everything of the request.
async fn answer(name: String, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let mut text = format!("{name}\n{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (header, value) in &parts.headers {
        writeln!(text, "{header}: {}", value.to_str().unwrap()).unwrap();
    }
    // An aborted client is no concern of the echo.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    text += "\n";
    text += &String::from_utf8_lossy(&body);
    Ok(Response::new(Full::from(text)))
}
