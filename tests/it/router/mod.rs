//! The router over real sockets: apps are small servers in the test, clients are hyper's or raw bytes.

mod app;
mod hostile;
mod pages;
mod streams;
mod switches;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use hephy::router::{Backend, RouteTable, RouterConfig, serve};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running router.
struct Router {
    address: SocketAddr,
    table: RouteTable,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl Router {
    async fn start() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut RouterConfig)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = RouterConfig::new("localhost");
        change(&mut config);
        let (table, shutdown) = (RouteTable::new(), CancellationToken::new());
        let served = tokio::spawn(serve(listener, table.clone(), config, shutdown.clone()));
        Self { address, table, shutdown, served }
    }

    /// Sends `hello` to these backends.
    fn route(&self, generation: u64, backends: &[Arc<app::Instance>]) -> hephy::router::Retired {
        let backends = backends.iter().map(|b| Arc::clone(b) as Arc<dyn Backend>).collect();
        self.table.switch("hello", generation, backends)
    }

    async fn get(&self, host: &str, path: &str) -> (StatusCode, String) {
        let response = client().request(self.request(host, path)).await.unwrap();
        text(response).await
    }

    fn request(&self, host: &str, path: &str) -> Request<Full<Bytes>> {
        let uri = format!("http://{}{path}", self.address);
        Request::builder().uri(uri).header("host", host).body(Full::default()).unwrap()
    }

    /// Writes raw bytes and reads until the router closes the connection.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is as good as a close.
        drop(stream.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

async fn text<B: hyper::body::Body>(response: Response<B>) -> (StatusCode, String)
where
    B::Error: std::fmt::Debug,
{
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Reads from `stream` until what was read contains `end`.
async fn read_until(stream: &mut (impl tokio::io::AsyncRead + Unpin), end: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(end) {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).await.unwrap();
        assert_ne!(count, 0, "closed after {}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&read).into_owned()
}
