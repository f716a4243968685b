//! What every implementation of `Store` does, run against each.

use std::sync::Arc;
use std::time::Duration;

use hephy::model::{App, Kind, ObjectName, Store, StoreError, store};
use hephy::store::DirectoryStore;

fn name(text: &str) -> ObjectName {
    ObjectName::of(&text)
}

async fn a_created_document_is_read_back_byte_for_byte(store: &dyn Store) {
    let version = store.create(Kind::App, &name("bytes"), b"{ \"a\": 1 }".to_vec()).await.unwrap();
    let document = store.get(Kind::App, &name("bytes")).await.unwrap().unwrap();
    assert_eq!((document.version, document.json.as_slice()), (version, b"{ \"a\": 1 }".as_slice()));
    assert_eq!(store.get(Kind::Build, &name("bytes")).await.unwrap(), None);
}

async fn creating_claims_a_name_once(store: &dyn Store) {
    store.create(Kind::Build, &name("claim--1"), b"{}".to_vec()).await.unwrap();
    let again = store.create(Kind::Build, &name("claim--1"), b"{}".to_vec()).await;
    assert!(matches!(again, Err(StoreError::Exists { .. })), "{again:?}");
}

async fn a_stale_version_changes_nothing(store: &dyn Store) {
    let first = store.create(Kind::App, &name("stale"), b"{\"n\":1}".to_vec()).await.unwrap();
    let second = store.replace(Kind::App, &name("stale"), &first, b"{\"n\":2}".to_vec()).await.unwrap();
    let replaced = store.replace(Kind::App, &name("stale"), &first, b"{\"n\":3}".to_vec()).await;
    assert!(matches!(replaced, Err(StoreError::Conflict { .. })), "{replaced:?}");
    let deleted = store.delete(Kind::App, &name("stale"), &first).await;
    assert!(matches!(deleted, Err(StoreError::Conflict { .. })), "{deleted:?}");
    assert_eq!(store.get(Kind::App, &name("stale")).await.unwrap().unwrap().version, second);
}

async fn what_is_not_there_cannot_be_replaced_or_deleted(store: &dyn Store) {
    let version = store.create(Kind::App, &name("gone"), b"{}".to_vec()).await.unwrap();
    store.delete(Kind::App, &name("gone"), &version).await.unwrap();
    assert_eq!(store.get(Kind::App, &name("gone")).await.unwrap(), None);
    let replaced = store.replace(Kind::App, &name("gone"), &version, b"{}".to_vec()).await;
    assert!(matches!(replaced, Err(StoreError::Missing { .. })), "{replaced:?}");
    let deleted = store.delete(Kind::App, &name("gone"), &version).await;
    assert!(matches!(deleted, Err(StoreError::Missing { .. })), "{deleted:?}");
}

async fn lists_are_by_kind_and_prefix_and_in_order(store: &dyn Store) {
    for object in ["list--2", "list--1", "lister--1"] {
        store.create(Kind::Release, &name(object), b"{}".to_vec()).await.unwrap();
    }
    let names =
        |list: Vec<(ObjectName, _)>| list.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(store.list(Kind::Release, "list--").await.unwrap()), ["list--1", "list--2"]);
    assert_eq!(names(store.list(Kind::User, "list--").await.unwrap()), [""; 0]);
}

async fn a_waiter_wakes_when_its_document_changes_and_not_before(store: Arc<dyn Store>) {
    let version = store.create(Kind::Build, &name("wait--1"), b"{\"n\":1}".to_vec()).await.unwrap();
    let waiter = tokio::spawn({
        let (store, version) = (Arc::clone(&store), version.clone());
        async move { store.changed(Kind::Build, &name("wait--1"), &version).await }
    });
    store.create(Kind::Build, &name("wait--2"), b"{}".to_vec()).await.unwrap();
    tokio::task::yield_now().await;
    assert!(!waiter.is_finished());
    store.replace(Kind::Build, &name("wait--1"), &version, b"{\"n\":2}".to_vec()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), waiter).await.unwrap().unwrap().unwrap();
    store.changed(Kind::Build, &name("wait--1"), &version).await.unwrap();
}

async fn of_many_writers_none_loses_a_change(store: Arc<dyn Store>) {
    let app = App::new("race".parse().unwrap(), "ada".parse().unwrap(), jiff::Timestamp::UNIX_EPOCH);
    store::create(&*store, app).await.unwrap();
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
    store.create(Kind::App, &name("newer"), b"{\"format\":99,\"future\":true}".to_vec()).await.unwrap();
    let read = store::load::<App>(store, &name("newer")).await.unwrap_err();
    assert_eq!(
        read.to_string(),
        "apps `newer` has format 99, which needs a newer hephy (this one knows up to 1)"
    );
}

async fn conforms(store: Arc<dyn Store>) {
    a_created_document_is_read_back_byte_for_byte(&*store).await;
    creating_claims_a_name_once(&*store).await;
    a_stale_version_changes_nothing(&*store).await;
    what_is_not_there_cannot_be_replaced_or_deleted(&*store).await;
    lists_are_by_kind_and_prefix_and_in_order(&*store).await;
    a_waiter_wakes_when_its_document_changes_and_not_before(Arc::clone(&store)).await;
    of_many_writers_none_loses_a_change(Arc::clone(&store)).await;
    a_newer_format_is_refused_by_name(&*store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_directory_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conforms(Arc::new(DirectoryStore::open(directory.path()).unwrap())).await;
}
