//! Leases: one holder at a time, taken up when the holder is gone, and lost in time when it cannot be renewed.

use std::time::{Duration, Instant};

use axum::http::Method;
use hephy::kubernetes::{Held, Leases};

use crate::store_conformance::api_server::ApiServer;

const SOON: Duration = Duration::from_secs(20);
/// Short for a test, and long for a machine that does much else.
const LASTING: Duration = Duration::from_secs(2);

fn leases(server: &ApiServer, owner: &str) -> Leases {
    Leases::lasting(server.client(), "hephy", owner, LASTING)
}

/// Takes the lease as soon as it can be had, which is when it was not renewed for as long as it lasts.
async fn taken(leases: &Leases, name: &str) -> Held {
    let taken = async {
        loop {
            match leases.hold(name).await.unwrap() {
                Some(held) => return held,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(SOON, taken).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_has_it_until_it_is_given_up() {
    let server = ApiServer::start().await;
    let (one, other) = (leases(&server, "one"), leases(&server, "other"));
    let held = one.hold("build--hello--7").await.unwrap().unwrap();
    assert!(other.hold("build--hello--7").await.unwrap().is_none());
    assert!(one.hold("build--hello--7").await.unwrap().is_none());
    held.release().await;
    assert!(other.hold("build--hello--7").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_renewed_does_not_end() {
    let server = ApiServer::start().await;
    let (one, other) = (leases(&server, "one"), leases(&server, "other"));
    let held = one.hold("a").await.unwrap().unwrap();
    let over = tokio::time::timeout(LASTING * 2, taken(&other, "a")).await;
    assert!(over.is_err() && !held.lost().is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_take_up_what_a_dead_holder_left_one_does() {
    let server = ApiServer::start().await;
    drop(leases(&server, "dead").hold("a").await.unwrap().unwrap());
    let others: Vec<Leases> = (0..5).map(|number| leases(&server, &format!("other-{number}"))).collect();
    // The first has it, and keeps it: nobody else gets it for longer than it lasts.
    let all = others.iter().map(|other| Box::pin(taken(other, "a")));
    let (first, _, rest) = futures::future::select_all(all).await;
    let second = tokio::time::timeout(LASTING * 2, futures::future::select_all(rest)).await;
    assert!(second.is_err() && !first.lost().is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_renew_knows_before_another_can_have_it() {
    let server = ApiServer::start().await;
    let (one, other) = (leases(&server, "one"), leases(&server, "other"));
    let held = one.hold("a").await.unwrap().unwrap();
    server.forbid("leases", Method::PUT);
    tokio::select! {
        biased;
        lost = tokio::time::timeout(SOON, held.lost().cancelled()) => lost.unwrap(),
        _ = taken(&other, "a") => panic!("another could have it"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_no_answer_knows_before_another_can_have_it() {
    let server = ApiServer::start().await;
    let (one, other) = (leases(&server, "one"), leases(&server, "other"));
    let held = one.hold("a").await.unwrap().unwrap();
    server.hang("leases", Method::PUT);
    let began = Instant::now();
    // Whoever looks meanwhile counts from the first look.
    assert!(other.hold("a").await.unwrap().is_none());
    tokio::time::timeout(SOON, held.lost().cancelled()).await.unwrap();
    assert!(began.elapsed() < LASTING, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_comes_at_once_is_not_asked_for_again_and_again() {
    let server = ApiServer::start().await;
    let held = leases(&server, "one").hold("a").await.unwrap().unwrap();
    server.forbid("leases", Method::PUT);
    tokio::time::timeout(SOON, held.lost().cancelled()).await.unwrap();
    let asked = server.forbidden();
    assert!((1..=6).contains(&asked), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_which_verb() {
    let server = ApiServer::start().await;
    server.forbid("leases", Method::GET);
    let refused = leases(&server, "one").hold("a").await.unwrap_err().to_string();
    assert!(refused.contains("may not get leases.coordination.k8s.io in namespace `hephy`"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_listed_by_what_they_begin_with_and_one_that_is_not_there_is_not_made() {
    let server = ApiServer::start().await;
    let one = leases(&server, "one");
    let held = [one.hold("app-a").await, one.hold("app-b").await, one.hold("upkeep").await];
    assert_eq!(one.names("app-").await.unwrap(), ["app-a", "app-b"]);
    assert!(one.hold_left("app-c").await.unwrap().is_none());
    assert_eq!(one.names("").await.unwrap(), ["app-a", "app-b", "upkeep"]);
    drop(held);
    server.forbid("leases", Method::GET);
    let error = one.names("app-").await.unwrap_err().to_string();
    assert!(error.contains("may not list leases") && error.contains("`hephy`"), "{error}");
}
