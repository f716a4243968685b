//! What our server makes of bad requests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hephy::oci::{Digest, MAX_MANIFEST_BYTES, MediaType};
use hephy::registry::client::BlobSource;
use reqwest::{Method, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Registry, install_tls};

struct Raw<'a> {
    registry: &'a Registry,
    http: reqwest::Client,
}

impl<'a> Raw<'a> {
    fn new(registry: &'a Registry) -> Self {
        install_tls();
        Self { registry, http: reqwest::Client::new() }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.registry.url(path)).bearer_auth(self.registry.token().reveal())
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Response {
        self.request(method, path).body(body).send().await.unwrap()
    }

    async fn start(&self) -> String {
        let response = self.send(Method::POST, "/v2/hello/blobs/uploads/", "").await;
        assert_eq!(response.status(), 202);
        response.headers()["location"].to_str().unwrap().to_owned()
    }
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    (status, body["errors"][0]["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_does_not_have_its_digest_is_not_stored() {
    let registry = Registry::start().await;
    let raw = Raw::new(&registry);
    let wrong = Digest::of("expected");
    let location = raw.start().await;
    let refused = code(raw.send(Method::PUT, &format!("{location}?digest={wrong}"), "other").await).await;
    assert_eq!(refused, (400, "DIGEST_INVALID".to_owned()));
    let whole = raw.send(Method::POST, &format!("/v2/hello/blobs/uploads/?digest={wrong}"), "other").await;
    assert_eq!(code(whole).await, (400, "DIGEST_INVALID".to_owned()));
    let empty = r#"{"schemaVersion":2,"manifests":[]}"#;
    let manifest = raw.send(Method::PUT, &format!("/v2/hello/manifests/{wrong}"), empty).await;
    assert_eq!(code(manifest).await, (400, "DIGEST_INVALID".to_owned()));
    assert!(registry.files("blobs").is_empty() && registry.files("repositories").is_empty());
}

#[tokio::test]
async fn names_and_references_that_are_none_are_refused() {
    let registry = Registry::start().await;
    let raw = Raw::new(&registry);
    for (path, expected) in [
        ("/v2/Hello/blobs/uploads/", "NAME_INVALID"),
        ("/v2/_blobs/blobs/uploads/", "NAME_INVALID"),
        ("/v2/a%2f..%2f..%2fx/blobs/uploads/", "NAME_INVALID"),
        ("/v2/hello/blobs/sha256:00", "DIGEST_INVALID"),
        ("/v2/hello/manifests/-x", "TAG_INVALID"),
        ("/v2/hello/blobs/uploads/..%2f..%2ftoken.key", "BLOB_UPLOAD_UNKNOWN"),
    ] {
        let (status, said) = code(raw.send(Method::PUT, path, "").await).await;
        assert_eq!(said, expected, "{path}");
        assert!((400..500).contains(&status), "{path}: {status}");
    }
    // A path that a client would clean up before it sends it.
    let mut stream = tokio::net::TcpStream::connect(registry.address).await.unwrap();
    let request =
        "GET /v2/../../../../etc/passwd/manifests/x HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_huge_or_deep_manifest_is_refused() {
    let registry = Registry::start().await;
    let raw = Raw::new(&registry);
    let huge = raw.send(Method::PUT, "/v2/hello/manifests/x", vec![b' '; MAX_MANIFEST_BYTES + 1]).await;
    assert_eq!(code(huge).await, (413, "MANIFEST_INVALID".to_owned()));
    for text in ["[".repeat(1_000_000), "{\"schemaVersion\":1}".to_owned(), "\u{0}".to_owned(), String::new()]
    {
        let refused = raw.send(Method::PUT, "/v2/hello/manifests/x", text).await;
        assert_eq!(code(refused).await, (400, "MANIFEST_INVALID".to_owned()));
    }
    let nothing = r#"{"schemaVersion":2,"manifests":[]}"#;
    let typed = raw
        .request(Method::PUT, "/v2/hello/manifests/x")
        .header("content-type", MediaType::ImageManifest.as_str());
    assert_eq!(code(typed.body(nothing).send().await.unwrap()).await, (400, "MANIFEST_INVALID".to_owned()));
}

#[tokio::test]
async fn chunks_come_in_order_and_an_upload_says_how_far_it_is() {
    let registry = Registry::start().await;
    let raw = Raw::new(&registry);
    let location = raw.start().await;
    let patch = async |range: &str, body: &'static str| {
        raw.request(Method::PATCH, &location).header("content-range", range).body(body).send().await.unwrap()
    };
    let first = patch("0-2", "abc").await;
    assert_eq!((first.status().as_u16(), &first.headers()["range"]), (202, &"0-2".parse().unwrap()));
    let gap = patch("4-5", "ef").await;
    assert_eq!((gap.status().as_u16(), &gap.headers()["range"]), (416, &"0-2".parse().unwrap()));
    assert_eq!(patch("3-9", "def").await.status(), 400);
    assert_eq!(patch("x-y", "def").await.status(), 400);
    assert_eq!(patch("3-5", "def").await.status(), 202);
    let status = raw.send(Method::GET, &location, "").await;
    assert_eq!((status.status().as_u16(), &status.headers()["range"]), (204, &"0-5".parse().unwrap()));
    let digest = Digest::of("abcdefgh");
    let done = raw.send(Method::PUT, &format!("{location}?digest={digest}"), "gh").await;
    assert_eq!(done.status(), 201);
    assert_eq!(
        code(raw.send(Method::GET, &location, "").await).await,
        (404, "BLOB_UPLOAD_UNKNOWN".to_owned())
    );
    let part = raw
        .request(Method::GET, &format!("/v2/hello/blobs/{digest}"))
        .header("range", "bytes=2-4")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (part.status().as_u16(), &part.headers()["content-range"]),
        (206, &"bytes 2-4/8".parse().unwrap())
    );
    assert_eq!(part.text().await.unwrap(), "cde");
}

#[tokio::test]
async fn an_upload_belongs_to_its_repository() {
    let registry = Registry::start().await;
    let raw = Raw::new(&registry);
    let elsewhere = raw.start().await.replace("/v2/hello/", "/v2/other/");
    assert_eq!(
        code(raw.send(Method::PATCH, &elsewhere, "x").await).await,
        (404, "BLOB_UPLOAD_UNKNOWN".to_owned())
    );
}

/// Sends a request whose body ends early, and waits until the server has noticed.
async fn break_off(registry: &Registry, method: &str, path: &str, sent: &[u8]) {
    let mut stream = tokio::net::TcpStream::connect(registry.address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: 1000000\r\n\r\n",
        registry.address,
        registry.token().reveal()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(sent).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream.read_to_end(&mut Vec::new()).await);
}

#[tokio::test]
async fn a_chunk_that_breaks_off_is_resumed_and_a_whole_put_begins_again() {
    let registry = Registry::start().await;
    let raw = Raw::new(&registry);
    let location = raw.start().await;
    break_off(&registry, "PATCH", &location, b"abc").await;
    let received =
        async || raw.send(Method::GET, &location, "").await.headers()["range"].to_str().unwrap().to_owned();
    let arrived = async |wanted: &str| {
        for _ in 0..1000 {
            if received().await == wanted {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    };
    assert!(arrived("0-2").await, "{}", received().await);
    let digest = Digest::of("abcdef");
    break_off(&registry, "PUT", &format!("{location}?digest={digest}"), b"xyz").await;
    assert!(arrived("0-2").await, "{}", received().await);
    assert!(registry.files("blobs").is_empty());
    assert_eq!(raw.send(Method::PUT, &format!("{location}?digest={digest}"), "def").await.status(), 201);
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let registry = Registry::start().await;
    let raw = Raw::new(&registry);
    let location = raw.start().await;
    assert_eq!(raw.send(Method::PATCH, &location, "abc").await.status(), 202);
    drop(raw);
    let registry = Registry::start_in(registry.stop().await, |config| config).await;
    let raw = Raw::new(&registry);
    let digest = Digest::of("abcdef");
    assert_eq!(raw.send(Method::PUT, &format!("{location}?digest={digest}"), "def").await.status(), 201);
    let blob = raw.send(Method::GET, &format!("/v2/hello/blobs/{digest}"), "").await;
    assert_eq!(blob.text().await.unwrap(), "abcdef");
}

#[tokio::test]
async fn one_blob_uploaded_by_many_at_once_is_stored_once() {
    let registry = Arc::new(Registry::start().await);
    let content = vec![7; 2_000_000];
    let pushes = (0..16).map(|_| {
        let (client, repository, content) =
            (registry.client(), registry.repository("hello"), content.clone());
        tokio::spawn(
            async move { client.push_blob(&repository, BlobSource::bytes(content), &[]).await.map(drop) },
        )
    });
    for push in futures::future::join_all(pushes).await {
        push.unwrap().unwrap();
    }
    assert_eq!(registry.files("blobs"), [format!("sha256/{}", Digest::of(&content).hex())].into());
    assert!(registry.files("tmp").is_empty());
}

#[tokio::test]
async fn a_blob_above_the_limit_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start_in(directory, |mut config| {
        config.max_blob_bytes = 10;
        config
    })
    .await;
    let raw = Raw::new(&registry);
    let digest = Digest::of("elevenbytes");
    let location = raw.start().await;
    let said = raw.send(Method::PUT, &format!("{location}?digest={digest}"), "elevenbytes").await;
    assert_eq!(code(said).await, (413, "SIZE_INVALID".to_owned()));
    // Without a length said in advance.
    let stream = futures::stream::iter(vec![Ok::<_, std::io::Error>("eleven"), Ok("bytes")]);
    let unsaid = raw.send(Method::PATCH, &location, reqwest::Body::wrap_stream(stream)).await;
    assert_eq!(code(unsaid).await, (413, "SIZE_INVALID".to_owned()));
    assert!(registry.files("repositories").is_empty());
}

#[tokio::test]
async fn abandoned_uploads_expire_and_their_number_is_limited() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start_in(directory, |mut config| {
        config.max_uploads = 3;
        config
    })
    .await;
    let raw = Raw::new(&registry);
    for _ in 0..3 {
        raw.start().await;
    }
    let refused = raw.send(Method::POST, "/v2/hello/blobs/uploads/", "").await;
    assert_eq!(code(refused).await, (429, "TOOMANYREQUESTS".to_owned()));
    assert_eq!(registry.server.expire_uploads().await.unwrap(), 0);
    for file in registry.files("repositories") {
        let path = registry.directory.path().join("repositories").join(file);
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(25)).unwrap();
    }
    assert_eq!(registry.server.expire_uploads().await.unwrap(), 3);
    assert!(registry.files("repositories").is_empty());
    raw.start().await;
}

#[tokio::test]
async fn a_page_in_a_browser_on_this_machine_reads_nothing_under_its_own_name() {
    let registry = Registry::start().await;
    let raw = Raw::new(&registry);
    raw.start().await;
    let get = async |host: &str| {
        let request = raw.http.get(registry.url("/v2/hello/tags/list")).header("host", host);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(get(&registry.address.to_string()).await, 404);
    assert_eq!(get("localhost:5000").await, 404);
    assert_eq!(get("evil.example").await, 401);
    assert_eq!(get("evil\"example").await, 401);
}
