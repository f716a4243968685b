//! What every implementation of `Store` does, run against each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hephy::model::{
    App, AppName, Build, BuildNumber, BuildState, Config, EnvName, FORMAT, Kind, Object, ObjectName, Secret,
    Store, StoreError, Version, store,
};
use hephy::store::{DirectoryStore, KubernetesStore};
use serde_json::Value;

pub(crate) mod api_server;

use api_server::{ApiServer, Fault};

const SOON: Duration = Duration::from_secs(20);

fn name(text: &str) -> ObjectName {
    ObjectName::of(&text)
}

fn app(name: &str) -> App {
    App::new(name.parse().unwrap(), "ada".parse().unwrap(), jiff::Timestamp::UNIX_EPOCH)
}

/// The document of an app whose last build is `number`.
fn app_document(name: &str, number: u64) -> Vec<u8> {
    serde_json::to_vec(&App { last_build: number, ..app(name) }).unwrap()
}

fn build(app: &str, number: u64) -> Build {
    let (app, number): (AppName, _) = (app.parse().unwrap(), BuildNumber(number));
    let state = match crate::crds::build_state() {
        BuildState::Received(source) => {
            BuildState::Received(hephy::model::Source { app: app.clone(), build: number, ..source })
        }
        other => other,
    };
    Build { app, number, ..crate::crds::build(state) }
}

fn build_document(app: &str, number: u64) -> Vec<u8> {
    serde_json::to_vec(&build(app, number)).unwrap()
}

fn value(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap()
}

async fn a_created_document_is_read_back(store: &dyn Store) {
    let document = app_document("read", 3);
    let version = store.create(Kind::App, &name("read"), document.clone()).await.unwrap();
    let read = store.get(Kind::App, &name("read")).await.unwrap().unwrap();
    assert_eq!((read.version, value(&read.json)), (version, value(&document)));
    assert_eq!(store.get(Kind::User, &name("read")).await.unwrap(), None);
}

async fn variables_are_kept_byte_for_byte(store: &dyn Store) {
    let value = "line\nline \"é\" \u{1f600} $X".repeat(100);
    let variables = BTreeMap::from([("NAME".parse::<EnvName>().unwrap(), Secret::new(value))]);
    let config = Config { format: FORMAT, app: "vars".parse().unwrap(), release: None, variables };
    let created = store::create(store, config.clone()).await.unwrap();
    assert_eq!(store::load::<Config>(store, &config.name()).await.unwrap(), Some(created));
}

async fn creating_claims_a_name_once(store: &dyn Store) {
    store.create(Kind::Build, &name("claim--1"), build_document("claim", 1)).await.unwrap();
    let again = store.create(Kind::Build, &name("claim--1"), build_document("claim", 1)).await;
    assert!(matches!(again, Err(StoreError::Exists { .. })), "{again:?}");
}

async fn of_two_who_create_at_once_one_wins(store: Arc<dyn Store>) {
    let creators = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(
            async move { store.create(Kind::Build, &name("both--1"), build_document("both", 1)).await },
        )
    });
    let mut won = 0;
    for creator in creators.collect::<Vec<_>>() {
        match creator.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert!(matches!(error, StoreError::Exists { .. }), "{error:?}"),
        }
    }
    assert_eq!(won, 1);
}

async fn a_stale_version_changes_nothing(store: &dyn Store) {
    let first = store.create(Kind::App, &name("stale"), app_document("stale", 1)).await.unwrap();
    let second = store.replace(Kind::App, &name("stale"), &first, app_document("stale", 2)).await.unwrap();
    let replaced = store.replace(Kind::App, &name("stale"), &first, app_document("stale", 3)).await;
    assert!(matches!(replaced, Err(StoreError::Conflict { .. })), "{replaced:?}");
    let deleted = store.delete(Kind::App, &name("stale"), &first).await;
    assert!(matches!(deleted, Err(StoreError::Conflict { .. })), "{deleted:?}");
    assert_eq!(store.get(Kind::App, &name("stale")).await.unwrap().unwrap().version, second);
}

async fn what_is_not_there_cannot_be_replaced_or_deleted(store: &dyn Store) {
    let version = store.create(Kind::App, &name("gone"), app_document("gone", 1)).await.unwrap();
    store.delete(Kind::App, &name("gone"), &version).await.unwrap();
    assert_eq!(store.get(Kind::App, &name("gone")).await.unwrap(), None);
    let replaced = store.replace(Kind::App, &name("gone"), &version, app_document("gone", 2)).await;
    assert!(matches!(replaced, Err(StoreError::Missing { .. })), "{replaced:?}");
    let deleted = store.delete(Kind::App, &name("gone"), &version).await;
    assert!(matches!(deleted, Err(StoreError::Missing { .. })), "{deleted:?}");
}

async fn lists_are_by_kind_and_prefix_and_in_order(store: &dyn Store) {
    for (app, number) in [("list", 2), ("list", 1), ("lister", 1)] {
        store
            .create(Kind::Build, &name(&format!("{app}--{number}")), build_document(app, number))
            .await
            .unwrap();
    }
    let names =
        |list: Vec<(ObjectName, _)>| list.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(store.list(Kind::Build, "list--").await.unwrap()), ["list--1", "list--2"]);
    assert_eq!(names(store.list(Kind::Build, "list").await.unwrap()), ["list--1", "list--2", "lister--1"]);
    assert_eq!(names(store.list(Kind::Release, "list--").await.unwrap()), [""; 0]);
}

/// More than any store gives in one answer.
async fn a_long_list_is_whole(store: Arc<dyn Store>, count: u64) {
    for first in (1..=count).step_by(50) {
        let created = (first..=count.min(first + 49)).map(|number| {
            let store = Arc::clone(&store);
            async move {
                store
                    .create(Kind::Build, &name(&format!("long--{number}")), build_document("long", number))
                    .await
            }
        });
        futures::future::try_join_all(created).await.unwrap();
    }
    let mut numbers: Vec<u64> =
        store::list::<Build>(&*store, "long--").await.unwrap().iter().map(|build| build.number.0).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
}

fn wait(
    store: &Arc<dyn Store>,
    object: &str,
    version: &Version,
) -> tokio::task::JoinHandle<Result<(), StoreError>> {
    let (store, object, version) = (Arc::clone(store), name(object), version.clone());
    tokio::spawn(async move { store.changed(Kind::Build, &object, &version).await })
}

async fn a_waiter_wakes_when_its_document_changes_and_not_before(store: Arc<dyn Store>) {
    let version = store.create(Kind::Build, &name("wait--1"), build_document("wait", 1)).await.unwrap();
    let waiter = wait(&store, "wait--1", &version);
    store.create(Kind::Build, &name("wait--2"), build_document("wait", 2)).await.unwrap();
    let other = store.get(Kind::Build, &name("wait--2")).await.unwrap().unwrap().version;
    let others = wait(&store, "wait--2", &other);
    tokio::task::yield_now().await;
    assert!(!waiter.is_finished());
    store.replace(Kind::Build, &name("wait--1"), &version, build_document("wait", 1)).await.unwrap();
    // Of a store of values, and of one of bytes: a change is another document.
    let mut changed = build("wait", 1);
    changed.options.detach = true;
    let read = store.get(Kind::Build, &name("wait--1")).await.unwrap().unwrap().version;
    let changed = serde_json::to_vec(&changed).unwrap();
    store.replace(Kind::Build, &name("wait--1"), &read, changed).await.unwrap();
    tokio::time::timeout(SOON, waiter).await.unwrap().unwrap().unwrap();
    store.changed(Kind::Build, &name("wait--1"), &version).await.unwrap();
    assert!(!others.is_finished());
    store.delete(Kind::Build, &name("wait--2"), &other).await.unwrap();
    tokio::time::timeout(SOON, others).await.unwrap().unwrap().unwrap();
}

async fn of_many_writers_none_loses_a_change(store: Arc<dyn Store>) {
    store::create(&*store, app("race")).await.unwrap();
    let writers = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..5 {
                store::modify(&*store, &name("race"), |app: &mut App| Ok::<_, StoreError>(app.next_build()))
                    .await
                    .unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let app = store::require::<App>(&*store, &name("race")).await.unwrap().object;
    assert_eq!(app.last_build, 40);
}

async fn a_newer_format_is_refused_by_name(store: &dyn Store) {
    let newer = App { format: 99, ..app("newer") };
    store.create(Kind::App, &name("newer"), serde_json::to_vec(&newer).unwrap()).await.unwrap();
    let read = store::load::<App>(store, &name("newer")).await.unwrap_err();
    let expected = "apps `newer` has format 99, which needs a newer hephy (this one knows up to 1)";
    assert_eq!(read.to_string(), expected);
}

async fn a_document_under_another_name_is_refused(store: &dyn Store) {
    store.create(Kind::App, &name("mask"), app_document("face", 1)).await.unwrap();
    let read = store::load::<App>(store, &name("mask")).await.unwrap_err();
    assert_eq!(read.to_string(), "apps `mask` says of itself that it is `face`");
}

/// Everything, on a store that is empty; a list of `many` objects is long for it.
pub(crate) async fn conforms(store: Arc<dyn Store>, many: u64) {
    a_created_document_is_read_back(&*store).await;
    variables_are_kept_byte_for_byte(&*store).await;
    creating_claims_a_name_once(&*store).await;
    of_two_who_create_at_once_one_wins(Arc::clone(&store)).await;
    a_stale_version_changes_nothing(&*store).await;
    what_is_not_there_cannot_be_replaced_or_deleted(&*store).await;
    lists_are_by_kind_and_prefix_and_in_order(&*store).await;
    a_waiter_wakes_when_its_document_changes_and_not_before(Arc::clone(&store)).await;
    of_many_writers_none_loses_a_change(Arc::clone(&store)).await;
    a_newer_format_is_refused_by_name(&*store).await;
    a_document_under_another_name_is_refused(&*store).await;
    a_long_list_is_whole(store, many).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_directory_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conforms(Arc::new(DirectoryStore::open(directory.path()).unwrap()), 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_conforms() {
    let server = ApiServer::start().await;
    conforms(Arc::new(KubernetesStore::new(&server.client(), "hephy-apps")), 1001).await;
}

async fn cluster() -> (ApiServer, Arc<dyn Store>) {
    let server = ApiServer::start().await;
    let store = Arc::new(KubernetesStore::new(&server.client(), "hephy-apps"));
    (server, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_done_once() {
    let (server, store) = cluster().await;
    server.fail_next_writes([Fault::LoseAnswer]);
    let first = store.create(Kind::App, &name("lost"), app_document("lost", 1)).await.unwrap();
    server.fail_next_writes([Fault::Refuse(503), Fault::LoseAnswer]);
    let second = store.replace(Kind::App, &name("lost"), &first, app_document("lost", 2)).await.unwrap();
    assert_eq!(store.get(Kind::App, &name("lost")).await.unwrap().unwrap().version, second);
    server.fail_next_writes([Fault::LoseAnswer]);
    store.delete(Kind::App, &name("lost"), &second).await.unwrap();
    assert_eq!(store.get(Kind::App, &name("lost")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_account_may_not_do_is_named() {
    let (server, store) = cluster().await;
    server.forbid("builds", axum::http::Method::POST);
    let refused = store.create(Kind::Build, &name("a--1"), build_document("a", 1)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "hephy's account may not create builds.hephy.dev in namespace `hephy-apps`: add the verb to its Role \
         (User \"hephy\" cannot do that)"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_the_definitions_do_not_allow_is_refused_by_name() {
    let (_server, store) = cluster().await;
    let refused = store.create(Kind::App, &name("a"), b"{\"format\":1}".to_vec()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused { .. }), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_sees_a_change_that_its_watch_did_not() {
    let (server, store) = cluster().await;
    let version = store.create(Kind::Build, &name("w--1"), build_document("w", 1)).await.unwrap();
    let waiter = wait(&store, "w--1", &version);
    let mut build = build("w", 1);
    for gone in [false, true] {
        tokio::task::yield_now().await;
        server.cut_watches();
        let read = store.get(Kind::Build, &name("w--1")).await.unwrap().unwrap().version;
        build.options.detach = gone;
        build.options.wait = true;
        if gone {
            server.compact();
        }
        store.replace(Kind::Build, &name("w--1"), &read, serde_json::to_vec(&build).unwrap()).await.unwrap();
        let again = wait(&store, "w--1", &read);
        tokio::time::timeout(SOON, again).await.unwrap().unwrap().unwrap();
    }
    tokio::time::timeout(SOON, waiter).await.unwrap().unwrap().unwrap();
}
