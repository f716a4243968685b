//! Bodies stream both ways, upgrades become tunnels, HTTP/2 clients are served, and who goes away is noticed.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::{Router, app, client, read_until, text};

const WEBSOCKET: &[u8] = b"GET /chat HTTP/1.1\r\nHost: hello.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// Takes the upgrade, greets at once, and sends back what it gets, until the client closes.
async fn websocket_app() -> Arc<app::Instance> {
    app::served("ws", |mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
        assert!(
            head.contains("\r\nupgrade: websocket\r\n") && head.contains("\r\nconnection: upgrade\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nsec-websocket-key: "), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x05hello";
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_that_is_in_flight_until_it_closes() {
    let router = Router::start().await;
    let _none = router.route(1, &[websocket_app().await]);
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    // The first frame comes with the request: what was read ahead must not be lost.
    stream.write_all(&[WEBSOCKET, b"one"].concat()).await.unwrap();
    let answer = read_until(&mut stream, "helloone").await;
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nsec-websocket-accept: "), "{answer}");
    let retired = router.route(2, &[]);
    stream.write_all(b"two").await.unwrap();
    read_until(&mut stream, "two").await;
    assert_eq!(retired.in_flight(), 1, "the switch leaves the tunnel alone");
    drop(stream);
    retired.drained().await;
}

#[tokio::test]
async fn an_app_that_declines_an_upgrade_answers_as_to_any_request() {
    let router = Router::start().await;
    let _none = router.route(1, &[app::echo("one").await]);
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    stream.write_all(WEBSOCKET).await.unwrap();
    assert!(read_until(&mut stream, "x-request-id").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_upgrade_that_nobody_asked_for_is_a_bad_gateway() {
    let router = Router::start().await;
    let instance = app::served("one", |mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        drop(stream.read_to_end(&mut Vec::new()).await);
    })
    .await;
    let _none = router.route(1, &[instance]);
    assert_eq!(router.get("hello.localhost", "/").await.0, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn events_reach_the_client_one_by_one() {
    let router = Router::start().await;
    let next = Arc::new(Notify::new());
    let sends = Arc::clone(&next);
    let instance = app::served("sse", move |mut stream| {
        let sends = Arc::clone(&sends);
        async move {
            read_until(&mut stream, "\r\n\r\n").await;
            let head =
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head).await.unwrap();
            for number in 0..3 {
                sends.notified().await;
                stream.write_all(format!("8\r\ndata: {number}\n\r\n").as_bytes()).await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let _none = router.route(1, &[instance]);
    let mut response = client().request(router.request("hello.localhost", "/")).await.unwrap();
    for number in 0..3 {
        next.notify_one();
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("data: {number}\n"));
    }
    assert!(response.body_mut().frame().await.is_none());
}

#[tokio::test]
async fn a_slow_request_body_reaches_the_app_as_it_comes() {
    let router = Router::start().await;
    let half = Arc::new(Notify::new());
    let has_half = Arc::clone(&half);
    let instance = app::served("one", move |mut stream| {
        let has_half = Arc::clone(&has_half);
        async move {
            read_until(&mut stream, "first").await;
            has_half.notify_one();
            read_until(&mut stream, "second").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let _none = router.route(1, &[instance]);
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 11\r\n\r\nfirst")
        .await
        .unwrap();
    half.notified().await;
    stream.write_all(b"second").await.unwrap();
    assert!(read_until(&mut stream, "\r\n\r\nok").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_app_may_answer_before_it_has_read_the_body() {
    let router = Router::start().await;
    let instance = app::served("one", |mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream
            .write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
            .await
            .unwrap();
        drop(stream.read_to_end(&mut Vec::new()).await);
    })
    .await;
    let _none = router.route(1, &[instance]);
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 1000000\r\n\r\nfirst")
        .await
        .unwrap();
    assert!(read_until(&mut stream, "\r\n\r\nno").await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn a_client_that_goes_away_is_gone_for_the_app_too() {
    let router = Router::start().await;
    let (arrived, closed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (notifies_arrival, notifies_close) = (Arc::clone(&arrived), Arc::clone(&closed));
    let instance = app::served("one", move |mut stream| {
        let (notifies_arrival, notifies_close) = (Arc::clone(&notifies_arrival), Arc::clone(&notifies_close));
        async move {
            read_until(&mut stream, "\r\n\r\n").await;
            notifies_arrival.notify_one();
            while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
            notifies_close.notify_one();
        }
    })
    .await;
    let _none = router.route(1, &[instance]);
    for request in [
        &b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n"[..],
        b"POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 100\r\n\r\nhalf",
    ] {
        let mut stream = TcpStream::connect(router.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        arrived.notified().await;
        drop(stream);
        closed.notified().await;
    }
    router.route(2, &[]).drained().await;
}

#[tokio::test]
async fn http_2_with_prior_knowledge_reaches_the_app_as_http_1() {
    let router = Router::start().await;
    let _none = router.route(1, &[app::echo("one").await]);
    let stream = TcpStream::connect(router.address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://hello.localhost/x")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let (status, body) = text(sender.send_request(request).await.unwrap()).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("GET /x HTTP/1.1\n") && body.contains("\nhost: hello.localhost\n"), "{body}");
    assert!(body.contains("\ncookie: a=1; b=2\n"), "{body}");
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_and_its_body_follows() {
    let router = Router::start().await;
    let _none = router.route(1, &[app::echo("one").await]);
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    let head =
        b"POST / HTTP/1.1\r\nHost: hello.localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    stream.write_all(head).await.unwrap();
    read_until(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
    stream.write_all(b"body").await.unwrap();
    let answer = read_until(&mut stream, "\n\nbody").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && !answer.contains("\nexpect:"), "{answer}");
}

#[tokio::test]
async fn the_length_of_a_response_to_head_is_kept_and_no_body_awaited() {
    let router = Router::start().await;
    let instance = app::served("one", |mut stream| async move {
        for _ in 0..2 {
            read_until(&mut stream, "\r\n\r\n").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let _none = router.route(1, &[instance]);
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"HEAD / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n").await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.contains("\r\ncontent-length: 1234\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_large_body_is_not_gathered_on_the_way() {
    let router = Router::start().await;
    // An app that sends without end: only one that is not buffered reaches a client at all.
    let instance = app::served("one", |mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 16384]).await.is_ok() {}
    })
    .await;
    let _none = router.route(1, &[instance]);
    let mut response = client().request(router.request("hello.localhost", "/")).await.unwrap();
    let mut read = 0;
    while read < 8 << 20 {
        read += response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    let retired = router.route(2, &[]);
    drop(response);
    retired.drained().await;
}
