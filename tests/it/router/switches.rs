//! No request is lost: across switches, dying connections and the router's own end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{Router, app, client, read_until, text};

/// Requests from several clients at once until `stop`; any that does not succeed fails the test.
fn load(router: &Router, stop: &Arc<AtomicBool>, answered: &Arc<AtomicUsize>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for number in 0..6 {
        let (stop, answered, address) = (Arc::clone(stop), Arc::clone(answered), router.address);
        clients.spawn(async move {
            let client = client();
            while !stop.load(Ordering::SeqCst) {
                let method = if number % 2 == 0 { Method::GET } else { Method::POST };
                let sent = if number % 2 == 0 { String::new() } else { "x".repeat(30_000) };
                let request = Request::builder()
                    .method(method)
                    .uri(format!("http://{address}/"))
                    .header("host", "hello.localhost")
                    .body(Full::new(Bytes::from(sent.clone())))
                    .unwrap();
                let (status, body) = text(client.request(request).await.unwrap()).await;
                assert_eq!(status, StatusCode::OK, "{body}");
                assert!(body.ends_with(&format!("\n\n{sent}")), "the body came back whole");
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    clients
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn continuous_load_across_fifty_switches_loses_no_request() {
    let router = Router::start().await;
    let _none = router.route(0, &[app::echo("v0").await]);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = load(&router, &stop, &answered);
    for generation in 1..=50_u64 {
        let before = answered.load(Ordering::SeqCst);
        let instances: Vec<_> =
            vec![app::echo(&format!("v{generation}.1")).await, app::echo(&format!("v{generation}.2")).await];
        let retired = router.route(generation, &instances);
        drop(instances);
        retired.drained().await;
        // The old processes die here, with all their connections.
        drop(retired);
        while answered.load(Ordering::SeqCst) < before + 10 && clients.try_join_next().is_none() {
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert!(answered.load(Ordering::SeqCst) >= 500);
}

#[tokio::test]
async fn an_app_that_closes_its_connections_without_a_word_loses_no_request() {
    let router = Router::start().await;
    let instance = app::served("one", |mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let _none = router.route(1, &[instance]);
    for _ in 0..200 {
        assert_eq!(router.get("hello.localhost", "/").await, (StatusCode::OK, "ok".to_owned()));
    }
}

#[tokio::test]
async fn a_request_in_flight_stays_on_the_old_release_and_holds_it_back() {
    let router = Router::start().await;
    let (arrived, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (notifies_arrival, finishes) = (Arc::clone(&arrived), Arc::clone(&finish));
    let old = app::served("old", move |mut stream| {
        let (notifies_arrival, finishes) = (Arc::clone(&notifies_arrival), Arc::clone(&finishes));
        async move {
            read_until(&mut stream, "\r\n\r\n").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nold").await.unwrap();
            notifies_arrival.notify_one();
            finishes.notified().await;
            stream.write_all(b"end").await.unwrap();
        }
    })
    .await;
    let _none = router.route(1, &[old]);
    let slow = tokio::spawn(client().request(router.request("hello.localhost", "/")));
    arrived.notified().await;
    let retired = router.route(2, &[app::echo("new").await]);
    assert_eq!(retired.in_flight(), 1);
    assert!(router.get("hello.localhost", "/").await.1.starts_with("new\n"));
    assert_eq!(retired.in_flight(), 1);
    finish.notify_one();
    assert_eq!(text(slow.await.unwrap().unwrap()).await, (StatusCode::OK, "oldend".to_owned()));
    retired.drained().await;
}

#[tokio::test]
async fn an_app_that_dies_under_a_request_is_a_bad_gateway_and_named() {
    let router = Router::start().await;
    let instance = app::served("one", |mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
    })
    .await;
    let _none = router.route(1, &[instance]);
    let (status, body) = router.get("hello.localhost", "/").await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(body.contains("`hello` ended the connection"), "{body}");
}

#[tokio::test]
async fn a_response_that_breaks_off_reaches_the_client_as_broken() {
    let router = Router::start().await;
    let instance = app::served("one", |mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let _none = router.route(1, &[instance]);
    let response = client().request(router.request("hello.localhost", "/")).await.unwrap();
    assert!(http_body_util::BodyExt::collect(response.into_body()).await.is_err());
}

#[tokio::test]
async fn an_app_that_is_late_is_a_gateway_timeout() {
    let router = Router::with(|config| config.response_timeout = Duration::from_millis(50)).await;
    let instance = app::served("one", |mut stream| async move {
        drop(stream.read_to_end(&mut Vec::new()).await);
    })
    .await;
    let _none = router.route(1, &[instance]);
    assert_eq!(router.get("hello.localhost", "/").await.0, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn shutting_down_ends_the_requests_in_flight_and_takes_no_more() {
    let router = Router::start().await;
    let (arrived, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (notifies_arrival, finishes) = (Arc::clone(&arrived), Arc::clone(&finish));
    let instance = app::served("one", move |mut stream| {
        let (notifies_arrival, finishes) = (Arc::clone(&notifies_arrival), Arc::clone(&finishes));
        async move {
            read_until(&mut stream, "\r\n\r\n").await;
            notifies_arrival.notify_one();
            finishes.notified().await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let _none = router.route(1, &[instance]);
    let mut idle = TcpStream::connect(router.address).await.unwrap();
    let slow = tokio::spawn(client().request(router.request("hello.localhost", "/")));
    arrived.notified().await;
    router.shutdown.cancel();
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0, "an idle connection is closed");
    assert!(TcpStream::connect(router.address).await.is_err(), "nobody listens any more");
    assert!(!router.served.is_finished());
    finish.notify_one();
    assert_eq!(text(slow.await.unwrap().unwrap()).await, (StatusCode::OK, "ok".to_owned()));
    router.served.await.unwrap();
}
