//! Which app a request reaches, what the app is told, and what the router says where there is none.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::StatusCode;

use super::{Router, app};

#[tokio::test]
async fn a_request_reaches_the_app_of_its_host_with_its_origin_described() {
    let router = Router::start().await;
    let _none = router.route(1, &[app::echo("one").await]);
    for host in ["hello.localhost", "HELLO.Localhost.:8080"] {
        let (status, body) = router.get(host, "/a%2Fb?c=d").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.starts_with("one\nGET /a%2Fb?c=d HTTP/1.1\n"), "{body}");
        assert!(body.contains(&format!("\nhost: {host}\n")), "{body}");
        assert!(body.contains(&format!("\nx-forwarded-host: {host}\n")), "{body}");
        assert!(body.contains("\nx-forwarded-for: 127.0.0.1\n"), "{body}");
        assert!(body.contains("\nx-forwarded-proto: http\n"), "{body}");
        assert!(body.contains("\nx-request-id: "), "{body}");
    }
}

#[tokio::test]
async fn an_unknown_app_is_told_what_to_do_and_no_app_is_named() {
    let router = Router::start().await;
    let _none = router.route(1, &[app::echo("one").await]);
    let (status, body) = router.get("other.localhost:8080", "/").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body.contains("no app `other`") && body.contains("git push deis main"), "{body}");
    assert!(!body.contains("hello"), "{body}");
    let (status, body) = router.get("192.0.2.1:8080", "/").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body.contains("curl -H 'Host: <app>.localhost' http://192.0.2.1:8080/"), "{body}");
}

#[tokio::test]
async fn the_domain_itself_says_where_apps_are() {
    let router = Router::start().await;
    let (status, body) = router.get("localhost:8080", "/").await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("http://<app>.localhost:8080/"), "{body}");
}

#[tokio::test]
async fn an_app_without_instances_is_unavailable_with_the_command_that_starts_one() {
    let router = Router::start().await;
    let _none = router.route(1, &[]);
    let (status, body) = router.get("hello.localhost", "/").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("hephy ps scale web=1 -a hello"), "{body}");
}

#[tokio::test]
async fn a_request_waits_for_an_instance_that_restarts_but_not_for_ever() {
    let router = Router::with(|config| config.instance_wait = Duration::from_millis(200)).await;
    let instance = app::echo("one").await;
    instance.refuses.store(true, Ordering::SeqCst);
    let _none = router.route(1, std::slice::from_ref(&instance));
    let (status, body) = router.get("hello.localhost", "/").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("hephy logs -a hello"), "{body}");

    let patient = Router::with(|config| config.instance_wait = Duration::from_mins(1)).await;
    let _none = patient.route(1, std::slice::from_ref(&instance));
    let waiting = patient.get("hello.localhost", "/");
    let restarted = async { instance.refuses.store(false, Ordering::SeqCst) };
    let ((status, _), ()) = tokio::join!(waiting, restarted);
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_request_that_waits_goes_to_the_release_that_is_switched_to_meanwhile() {
    let router = Router::with(|config| config.instance_wait = Duration::from_mins(1)).await;
    let broken = app::echo("old").await;
    broken.refuses.store(true, Ordering::SeqCst);
    let _none = router.route(1, &[broken]);
    let new = app::echo("new").await;
    let switch = async { router.route(2, &[new]) };
    let ((status, body), _retired) = tokio::join!(router.get("hello.localhost", "/"), switch);
    assert_eq!(status, StatusCode::OK);
    assert!(body.starts_with("new\n"), "{body}");
}

#[tokio::test]
async fn instances_share_the_load_and_one_that_refuses_is_left_out() {
    let router = Router::start().await;
    let (one, two) = (app::echo("one").await, app::echo("two").await);
    let _none = router.route(1, &[one.clone(), two.clone()]);
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..8 {
        answered.insert(router.get("hello.localhost", "/").await.1.lines().next().unwrap().to_owned());
    }
    assert_eq!(answered.into_iter().collect::<Vec<_>>(), ["one", "two"]);
    let _none = router.route(2, &[app::echo("three").await, two]);
    drop(one);
    for _ in 0..8 {
        assert_eq!(router.get("hello.localhost", "/").await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn connections_to_an_instance_are_used_again() {
    let router = Router::start().await;
    let instance = app::echo("one").await;
    let _none = router.route(1, std::slice::from_ref(&instance));
    for _ in 0..20 {
        assert_eq!(router.get("hello.localhost", "/").await.0, StatusCode::OK);
    }
    assert!(instance.connections.load(Ordering::SeqCst) < 5);
}
