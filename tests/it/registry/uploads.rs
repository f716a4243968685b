//! How blobs get into registries that take them in different ways, and how many requests that is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Response};
use hephy::oci::Digest;
use hephy::registry::client::{BlobSource, Client, ClientConfig, Transfer};

use super::faulty::{Asked, Faulty, answer};

/// Twenty megabytes, no two parts alike, in a file.
fn large() -> (tempfile::NamedTempFile, BlobSource) {
    let content: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    let source = BlobSource::file(file.path(), Digest::of(&content), content.len() as u64);
    (file, source)
}

/// A registry that keeps what is uploaded in chunks.
#[derive(Default)]
struct Store {
    received: Vec<u8>,
    sessions: usize,
}

type Shared = Arc<Mutex<Store>>;

impl Store {
    fn answer(&mut self, asked: &Asked) -> Response<Body> {
        let at = |session: usize| format!("/upload/{session}");
        match asked.method {
            Method::HEAD => answer(404, &[], ""),
            Method::POST => {
                self.sessions += 1;
                self.received.clear();
                answer(202, &[("location", &at(self.sessions))], "")
            }
            Method::GET => {
                let end = self.received.len().saturating_sub(1);
                answer(204, &[("range", &format!("0-{end}")), ("location", &at(self.sessions))], "")
            }
            Method::PATCH => {
                let start: usize = asked.range.as_ref().unwrap().split_once('-').unwrap().0.parse().unwrap();
                if start != self.received.len() {
                    return answer(416, &[], "");
                }
                self.received.extend_from_slice(&asked.body);
                answer(202, &[("location", &at(self.sessions))], "")
            }
            _ => {
                self.received.extend_from_slice(&asked.body);
                let digest = Digest::of(&self.received).to_string().replace(':', "%3A");
                let is_right = asked.path.ends_with(&format!("digest={digest}"));
                answer(if is_right { 201 } else { 400 }, &[], "")
            }
        }
    }
}

/// Such a registry, which answers as `script` says where it says something.
async fn storing(
    script: impl Fn(usize, &Asked) -> Option<Response<Body>> + Clone + Send + Sync + 'static,
) -> Faulty {
    let store: Shared = Arc::default();
    Faulty::start(move |before, asked| match script(before, asked) {
        Some(answer) => answer,
        None => store.lock().unwrap().answer(asked),
    })
    .await
}

async fn push(registry: &Faulty, blob: BlobSource) -> Transfer {
    registry.client().push_blob(&registry.repository(), blob, &[]).await.unwrap()
}

#[tokio::test]
async fn a_registry_that_has_the_blob_anywhere_is_not_sent_it() {
    let registry = storing(|_, asked| {
        let is_mount = asked.method == Method::POST && asked.path.contains("?mount=sha256");
        is_mount.then(|| answer(201, &[], ""))
    })
    .await;
    assert_eq!(push(&registry, BlobSource::bytes("x")).await, Transfer::Mounted);
    assert_eq!(registry.methods(), "HEAD POST");
    let refusing = storing(|_, asked| asked.path.contains("mount=").then(|| answer(400, &[], ""))).await;
    assert_eq!(push(&refusing, BlobSource::bytes("x")).await, Transfer::Uploaded);
    assert_eq!(refusing.methods(), "HEAD POST POST PUT");
}

#[tokio::test]
async fn what_does_not_get_through_whole_is_sent_in_chunks() {
    let (_file, blob) = large();
    let whole = |asked: &Asked| asked.method == Method::PUT && !asked.body.is_empty();
    let registry = storing(move |_, asked| whole(asked).then(|| answer(504, &[], ""))).await;
    assert_eq!(push(&registry, blob.clone()).await, Transfer::Uploaded);
    assert_eq!(registry.methods(), "HEAD POST PUT HEAD POST PATCH PATCH PATCH PUT");
    // Not where chunks are not taken: there it is tried whole again.
    let monolithic = storing(|before, asked| match asked.method {
        Method::PATCH => Some(answer(405, &[], "")),
        Method::PUT if before < 3 => Some(answer(504, &[], "")),
        _ => None,
    })
    .await;
    assert_eq!(push(&monolithic, blob).await, Transfer::Uploaded);
    assert_eq!(monolithic.methods(), "HEAD POST PUT HEAD POST PATCH POST PUT");
}

#[tokio::test]
async fn chunks_become_as_small_as_a_proxy_wants_and_the_next_blob_begins_so() {
    let (_file, blob) = large();
    let too_large = |asked: &Asked| asked.body.len() > 1024 * 1024;
    let registry = storing(move |_, asked| too_large(asked).then(|| answer(413, &[], ""))).await;
    let client = registry.client();
    let mut wholes = Vec::new();
    for _ in 0..2 {
        let sent = client.push_blob(&registry.repository(), blob.clone(), &[]).await.unwrap();
        assert_eq!(sent, Transfer::Uploaded);
        let refused = registry.asked().iter().filter(|asked| too_large(asked)).count();
        wholes.push(refused);
    }
    assert_eq!(wholes[0], wholes[1], "the second knows what the first has learnt");
    let small = BlobSource::bytes(vec![7; 1000]);
    let before = registry.asked().len();
    client.push_blob(&registry.repository(), small, &[]).await.unwrap();
    assert_eq!(registry.asked()[before..].iter().filter(|asked| asked.method == Method::PATCH).count(), 0);
}

#[tokio::test]
async fn an_upload_that_the_registry_has_forgotten_begins_anew() {
    let (_file, blob) = large();
    let registry = storing(|before, asked| match (before, &asked.method) {
        (2, _) => Some(answer(413, &[], "")),
        // The second chunk comes after a restart.
        (5, &Method::PATCH) => Some(answer(404, &[], "")),
        _ => None,
    })
    .await;
    assert_eq!(push(&registry, blob).await, Transfer::Uploaded);
    assert_eq!(registry.methods(), "HEAD POST PUT POST PATCH PATCH HEAD POST PATCH PATCH PATCH PUT");
}

#[tokio::test]
async fn a_registry_that_has_less_than_we_think_gets_it_again() {
    let (_file, blob) = large();
    let lost = Arc::new(AtomicUsize::new(0));
    let registry = {
        let store: Shared = Arc::default();
        let lost = lost.clone();
        Faulty::start(move |_, asked| {
            let mut store = store.lock().unwrap();
            if asked.method == Method::PUT && !asked.body.is_empty() {
                return answer(413, &[], "");
            }
            let answered = store.answer(asked);
            // Half of the first chunk is lost after it was taken.
            if asked.method == Method::PATCH && lost.fetch_add(1, Ordering::Relaxed) == 0 {
                store.received.truncate(3_000_000);
            }
            answered
        })
        .await
    };
    assert_eq!(push(&registry, blob).await, Transfer::Uploaded);
    assert_eq!(registry.methods(), "HEAD POST PUT POST PATCH PATCH GET PATCH PATCH PATCH PUT");
}

#[tokio::test]
async fn several_blobs_take_two_tokens() {
    let exchanged = Arc::new(AtomicUsize::new(0));
    let count = exchanged.clone();
    let registry = storing(move |_, asked| {
        if asked.path.starts_with("/token") {
            count.fetch_add(1, Ordering::Relaxed);
            let scope = if asked.path.contains("push") { "wide" } else { "narrow" };
            return Some(answer(200, &[], format!(r#"{{"token":"{scope}","expires_in":300}}"#)));
        }
        let realm = format!(r#"Bearer realm="http://{}/token",service="s""#, asked.host);
        let writes = asked.method != Method::HEAD;
        let may = match asked.authorization.as_deref() {
            Some("Bearer wide") => true,
            Some("Bearer narrow") => !writes,
            _ => false,
        };
        (!may).then(|| answer(401, &[("www-authenticate", &realm)], ""))
    })
    .await;
    let client = registry.client();
    for content in ["a", "b", "c"] {
        client.push_blob(&registry.repository(), BlobSource::bytes(content), &[]).await.unwrap();
    }
    assert_eq!(exchanged.load(Ordering::Relaxed), 2, "{}", registry.methods());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_says_when_to_come_back_is_left_alone_by_everyone() {
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let log = times.clone();
    let registry = Faulty::start(move |before, _| {
        log.lock().unwrap().push(Instant::now());
        match before {
            0 => answer(429, &[("retry-after", "1")], ""),
            _ => answer(200, &[], r#"{"tags":[]}"#),
        }
    })
    .await;
    let (client, repository) = (registry.client(), registry.repository());
    let first = tokio::spawn({
        let (client, repository) = (client.clone(), repository.clone());
        async move { client.tags(&repository).await.unwrap() }
    });
    while registry.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    // The answer may still be on its way to the client: what was sent before it was read does not count.
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.tags(&repository).await.unwrap();
    first.await.unwrap();
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 3);
    assert!(times[1..].iter().all(|time| *time - times[0] >= Duration::from_millis(950)), "{times:?}");
}

#[tokio::test]
async fn a_registry_that_wants_hours_is_not_waited_for() {
    let registry = Faulty::start(|_, _| {
        answer(429, &[("retry-after", "21600")], r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#)
    })
    .await;
    let error = registry.client().tags(&registry.repository()).await.unwrap_err();
    assert_eq!(registry.asked().len(), 1);
    assert!(error.to_string().contains("it asks to wait 6h"), "{error}");
    let advice = error.advice().unwrap();
    assert!(advice.contains("docker login") && advice.contains("--registry-map"), "{advice}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn no_more_requests_than_allowed_are_under_way_at_once() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counter, peak) = (now, most.clone());
    let registry = Faulty::start(move |_, _| {
        let under_way = counter.fetch_add(1, Ordering::SeqCst) + 1;
        peak.fetch_max(under_way, Ordering::SeqCst);
        // As long as a registry takes to answer.
        std::thread::sleep(Duration::from_millis(20));
        counter.fetch_sub(1, Ordering::SeqCst);
        answer(200, &[], r#"{"tags":[]}"#)
    })
    .await;
    super::install_tls();
    let client = Client::new(ClientConfig { requests_per_host: 2, ..ClientConfig::default() });
    let mut asking = Vec::new();
    for _ in 0..10 {
        let (client, repository) = (client.clone(), registry.repository());
        asking.push(tokio::spawn(async move { client.tags(&repository).await.unwrap() }));
    }
    for task in asking {
        task.await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}
