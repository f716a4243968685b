//! Leases: one holder at a time, taken up when the holder is gone, and lost in time when it cannot be renewed.

use std::time::Duration;

use axum::http::Method;
use hephy::kubernetes::Leases;

use crate::store_conformance::api_server::ApiServer;

const SOON: Duration = Duration::from_secs(20);
/// Short for a test, and long for a machine that does much else.
const LASTING: Duration = Duration::from_secs(2);

fn leases(server: &ApiServer, owner: &str) -> Leases {
    Leases::lasting(server.client(), "hephy", owner, LASTING)
}

/// Asks until the lease is over.
async fn expired(leases: &Leases, name: &str) {
    let over = async {
        while !leases.expired(name).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, over).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_has_it_until_it_is_given_up() {
    let server = ApiServer::start().await;
    let (one, other) = (leases(&server, "one"), leases(&server, "other"));
    let held = one.hold("build--hello--7").await.unwrap().unwrap();
    assert!(other.hold("build--hello--7").await.unwrap().is_none());
    assert!(one.hold("build--hello--7").await.unwrap().is_none());
    assert!(!other.expired("build--hello--7").await.unwrap());
    held.release().await;
    assert!(other.expired("build--hello--7").await.unwrap());
    assert!(other.hold("build--hello--7").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_renewed_does_not_end() {
    let server = ApiServer::start().await;
    let (one, other) = (leases(&server, "one"), leases(&server, "other"));
    let held = one.hold("a").await.unwrap().unwrap();
    let over = tokio::time::timeout(LASTING * 2, expired(&other, "a")).await;
    assert!(over.is_err() && !held.lost().is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_take_up_what_a_dead_holder_left_one_does() {
    let server = ApiServer::start().await;
    drop(leases(&server, "dead").hold("a").await.unwrap().unwrap());
    let others: Vec<Leases> = (0..5).map(|number| leases(&server, &format!("other-{number}"))).collect();
    futures::future::join_all(others.iter().map(|other| expired(other, "a"))).await;
    let taken = futures::future::join_all(others.iter().map(|other| other.hold("a"))).await;
    let held: Vec<_> = taken.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(held.len(), 1);
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
        () = expired(&other, "a") => panic!("another could have it"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_which_verb() {
    let server = ApiServer::start().await;
    server.forbid("leases", Method::GET);
    let refused = leases(&server, "one").hold("a").await.unwrap_err().to_string();
    assert!(refused.contains("may not get leases.coordination.k8s.io in namespace `hephy`"), "{refused}");
}
