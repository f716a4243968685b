//! Clients that lie, smuggle, flood or dawdle.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Router, app, read_until};

async fn router() -> Router {
    let router = Router::with(|config| {
        config.header_timeout = Duration::from_millis(300);
        config.body_timeout = Duration::from_millis(100);
        config.max_header_bytes = 16 * 1024;
    })
    .await;
    let _none = router.route(1, &[app::echo("one").await]);
    router
}

#[tokio::test]
async fn ambiguous_lengths_do_not_smuggle_a_request() {
    let router = router().await;
    // If the router passed both lengths on, the app could see `GET /admin` as a request of its own.
    let both = "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n\
        0\r\n\r\nGET /admin HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";
    let answer = router.raw(both.as_bytes()).await;
    assert!(!answer.contains("/admin"), "{answer}");
    for lengths in [
        "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: +1",
        "Content-Length: 1, 1, 2",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked\r\n Content-Length: 3",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: hello.localhost\r\n{lengths}\r\n\r\nab");
        let answer = router.raw(request.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{lengths}: {answer}");
    }
}

#[tokio::test]
async fn a_request_names_exactly_one_host() {
    let router = router().await;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: hello.localhost\r\nHost: other.localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET http://a@hello.localhost/ HTTP/1.1\r\nHost: hello.localhost\r\n\r\n",
    ] {
        let answer = router.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request}: {answer}");
    }
    let absolute =
        "GET http://hello.localhost/p HTTP/1.1\r\nHost: other.localhost\r\nConnection: close\r\n\r\n";
    let answer = router.raw(absolute.as_bytes()).await;
    assert!(answer.contains("GET /p HTTP/1.1\n") && answer.contains("\nhost: hello.localhost\n"), "{answer}");
}

#[tokio::test]
async fn connect_and_h2c_upgrades_reach_no_app() {
    let router = router().await;
    let answer = router.raw(b"CONNECT hello.localhost:80 HTTP/1.1\r\nHost: hello.localhost:80\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let h2c = "GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n\
        HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
    let answer = router.raw(h2c.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ")
            && !answer.contains("upgrade")
            && !answer.contains("http2-settings"),
        "{answer}"
    );
}

#[tokio::test]
async fn header_blocks_have_a_limit() {
    let router = router().await;
    let long = format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    let answer = router.raw(long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let many = format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\n{}\r\n", "X: y\r\n".repeat(500));
    let answer = router.raw(many.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn connections_that_dawdle_are_closed() {
    let router = router().await;
    for start in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nHost: hel", "\x16\x03\x01\x02\x00"] {
        router.raw(start.as_bytes()).await;
    }
    // Closed by the router, or `raw` would not have returned.
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n").await.unwrap();
    read_until(&mut stream, "x-request-id").await;
    stream.read_to_end(&mut Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    let router = router().await;
    let request = "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 100\r\n\r\nhalf";
    let answer = router.raw(request.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    router.route(2, &[]).drained().await;
}

#[tokio::test]
async fn more_connections_than_the_limit_wait_their_turn() {
    let router = Router::with(|config| config.max_connections = 1).await;
    let _none = router.route(1, &[app::echo("one").await]);
    let first = TcpStream::connect(router.address).await.unwrap();
    let waiting = router.get("hello.localhost", "/");
    let ((status, _), ()) = tokio::join!(waiting, async { drop(first) });
    assert_eq!(status, hyper::StatusCode::OK);
}
