//! Our client against registries that break off, refuse, redirect and lie.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, Response};
use bytes::Bytes;
use hephy::model::Secret;
use hephy::oci::{Descriptor, Digest, MAX_MANIFEST_BYTES, MediaType, RawManifest, Repository, Target};
use hephy::registry::client::{BlobSource, Client, ClientError, Credential, Credentials, Transfer};

use super::client;

/// What a faulty registry has been asked, in order: method, path with query, and the headers looked at.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) body: Bytes,
}

pub(crate) struct Faulty {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Faulty {
    /// A registry that answers as `answer` says; it is told how many requests came before.
    ///
    /// It asks nobody who he is at its root.
    pub(crate) async fn start(
        script: impl Fn(usize, &Asked) -> Response<Body> + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(std::net::Ipv4Addr::LOCALHOST.into(), script).await
    }

    /// The same at another address of this machine.
    pub(crate) async fn start_at(
        address: IpAddr,
        script: impl Fn(usize, &Asked) -> Response<Body> + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::start_whole(address, |path: &str| path == "/v2/", script).await
    }

    async fn start_whole(
        address: IpAddr,
        is_open: impl Fn(&str) -> bool + Clone + Send + Sync + 'static,
        answer: impl Fn(usize, &Asked) -> Response<Body> + Clone + Send + Sync + 'static,
    ) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let service = axum::Router::new().fallback(move |request: Request| {
            let (log, answer, is_open) = (log.clone(), answer.clone(), is_open.clone());
            async move {
                let (head, body) = request.into_parts();
                let text = |name: &str| Some(head.headers.get(name)?.to_str().ok()?.to_owned());
                let asked = Asked {
                    method: head.method.clone(),
                    path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
                    host: text("host").unwrap_or_default(),
                    authorization: text("authorization"),
                    range: text("range").or_else(|| text("content-range")),
                    body: axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default(),
                };
                if is_open(&asked.path) {
                    return Ok(self::answer(200, &[], "{}"));
                }
                let before = {
                    let mut log = log.lock().unwrap();
                    log.push(asked.clone());
                    log.len() - 1
                };
                Ok::<_, Infallible>(answer(before, &asked))
            }
        });
        let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        Self { address, asked }
    }

    pub(crate) fn repository(&self) -> Repository {
        format!("{}/hello", self.address).parse().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        let password = Secret::new("secret".to_owned());
        let credential = Credential::Basic { username: "ada".to_owned(), password };
        client(Credentials::none().with(&self.address.to_string().parse().unwrap(), credential))
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn methods(&self) -> String {
        self.asked().iter().map(|asked| asked.method.to_string()).collect::<Vec<_>>().join(" ")
    }
}

pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

/// A body that ends in a broken connection after these bytes.
fn broken(bytes: &'static [u8]) -> Body {
    let part = futures::stream::iter([Ok(Bytes::from_static(bytes))]);
    let end = futures::stream::once(async {
        // Lets the part out before the connection breaks.
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("broken"))
    });
    Body::from_stream(futures::StreamExt::chain(part, end))
}

fn descriptor(content: &[u8]) -> Descriptor {
    Descriptor::of(MediaType::LayerTar, content)
}

#[tokio::test]
async fn a_pull_goes_on_where_the_connection_broke() {
    let registry = Faulty::start(|before, asked| match (before, asked.range.as_deref()) {
        (0, None) => answer(200, &[], broken(b"abc")),
        (1, Some("bytes=3-")) => answer(206, &[("content-range", "bytes 3-9/10")], broken(b"def")),
        (2, Some("bytes=6-")) => answer(503, &[], "busy"),
        // One that does not know ranges begins again.
        (3, Some("bytes=6-")) => answer(200, &[], "abcdefghij"),
        other => panic!("{other:?}"),
    })
    .await;
    let mut pulled = Vec::new();
    registry
        .client()
        .pull_blob(&registry.repository(), &descriptor(b"abcdefghij"), &mut pulled)
        .await
        .unwrap();
    assert_eq!(pulled, b"abcdefghij");
}

#[tokio::test]
async fn content_that_is_not_what_was_asked_for_is_an_error() {
    let registry = Faulty::start(|_, asked| match asked.path.as_str() {
        path if path.contains("/manifests/") => answer(200, &[], r#"{"schemaVersion":2,"manifests":[]}"#),
        _ => answer(200, &[], "other text"),
    })
    .await;
    let (client, repository) = (registry.client(), registry.repository());
    let wrong = client.blob(&repository, &descriptor(b"expected! "), 100).await.unwrap_err();
    assert!(matches!(wrong, ClientError::Digest { .. }), "{wrong}");
    for expected in [&b"longer than that"[..], b"short"] {
        let wrong = client.blob(&repository, &descriptor(expected), 100).await.unwrap_err();
        assert!(matches!(wrong, ClientError::Size { .. }), "{wrong}");
    }
    let wrong = client.manifest(&repository, &Target::Digest(Digest::of("x"))).await.unwrap_err();
    assert!(matches!(wrong, ClientError::Digest { .. }), "{wrong}");
    let large = client.blob(&repository, &descriptor(b"0123456789"), 9).await.unwrap_err();
    assert!(matches!(large, ClientError::TooLarge { .. }), "{large}");
}

#[tokio::test]
async fn an_endless_manifest_is_not_read_to_its_end() {
    let registry = Faulty::start(|_, _| {
        let endless = futures::stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b' '; 4096])));
        answer(200, &[], Body::from_stream(endless))
    })
    .await;
    let error = registry
        .client()
        .manifest(&registry.repository(), &Target::Tag("v1".parse().unwrap()))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::TooLarge { max_bytes, .. } if max_bytes == MAX_MANIFEST_BYTES as u64),
        "{error}"
    );
}

#[tokio::test]
async fn what_may_pass_is_tried_again_after_the_time_asked_for() {
    let registry = Faulty::start(|before, _| match before {
        0 => answer(429, &[("retry-after", "1")], "slow down"),
        1 => answer(502, &[], ""),
        _ => answer(200, &[], r#"{"tags":["a","not a tag","b"]}"#),
    })
    .await;
    let started = Instant::now();
    let tags = registry.client().tags(&registry.repository()).await.unwrap();
    assert_eq!(tags.len(), 2);
    assert!(started.elapsed() >= Duration::from_secs(1));
    let stubborn = Faulty::start(|_, _| {
        answer(500, &[], r#"{"errors":[{"code":"X","message":"out of\u001b[2J order"}]}"#)
    })
    .await;
    let error = stubborn.client().tags(&stubborn.repository()).await.unwrap_err();
    assert!(error.to_string().ends_with("500 Internal Server Error: out of [2J order (X)"), "{error}");
    assert_eq!(stubborn.asked().len(), 4);
    let refusing = Faulty::start(|_, _| answer(400, &[], "")).await;
    assert!(refusing.client().tags(&refusing.repository()).await.is_err());
    assert_eq!(refusing.asked().len(), 1);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let repository: Repository = format!("{address}/hello").parse().unwrap();
    let error = client(Credentials::none()).tags(&repository).await.unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn credentials_do_not_follow_to_another_host() {
    let other = Faulty::start(|_, _| answer(200, &[], "0123456789")).await;
    let location = format!("http://{}/elsewhere?signature=x", other.address);
    let registry = Faulty::start(move |_, asked| match (&asked.method, asked.authorization.is_some()) {
        (_, false) => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
        (&Method::HEAD, _) => answer(404, &[], ""),
        (&Method::POST, _) => answer(202, &[("location", &location)], ""),
        _ => answer(307, &[("location", &location)], ""),
    })
    .await;
    let (client, repository) = (registry.client(), registry.repository());
    client.blob(&repository, &descriptor(b"0123456789"), 100).await.unwrap();
    client.push_blob(&repository, BlobSource::bytes("new"), &[]).await.unwrap();
    let asked = other.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|asked| asked.authorization.is_none()), "{asked:?}");
    let upload = &asked[1];
    assert_eq!((&upload.method, upload.body.as_ref()), (&Method::PUT, &b"new"[..]));
    let query =
        format!("/elsewhere?signature=x&digest={}", Digest::of("new").to_string().replace(':', "%3A"));
    assert_eq!(upload.path, query);
}

#[tokio::test]
async fn a_location_on_another_host_that_wants_credentials_does_not_get_them() {
    let other = Faulty::start(|_, _| answer(401, &[("www-authenticate", "Basic realm=\"x\"")], "")).await;
    let location = format!("http://{}/upload", other.address);
    let registry = Faulty::start(move |_, asked| match asked.method {
        Method::HEAD => answer(404, &[], ""),
        _ => answer(202, &[("location", &location)], ""),
    })
    .await;
    let error =
        registry.client().push_blob(&registry.repository(), BlobSource::bytes("new"), &[]).await.unwrap_err();
    assert!(error.is_denied(), "{error}");
    assert!(other.asked().iter().all(|asked| asked.authorization.is_none()));
}

#[tokio::test]
async fn a_token_is_got_once_and_again_when_it_is_refused() {
    let uses: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let uses = Arc::new(uses);
    let registry = Faulty::start(move |before, asked| {
        if asked.path.starts_with("/token") {
            return answer(200, &[], format!(r#"{{"token":"t{before}","expires_in":300}}"#));
        }
        let realm = format!(r#"Bearer realm="http://{}/token",service="s""#, asked.host);
        let refused = || answer(401, &[("www-authenticate", &realm)], "");
        let Some(token) = asked.authorization.clone().filter(|token| token.starts_with("Bearer t")) else {
            return refused();
        };
        // Each token ends after two requests.
        let mut uses = uses.lock().unwrap();
        let count = uses.entry(token).or_default();
        *count += 1;
        if *count > 2 { refused() } else { answer(200, &[], r#"{"tags":[]}"#) }
    })
    .await;
    let client = registry.client();
    for _ in 0..4 {
        client.tags(&registry.repository()).await.unwrap();
    }
    let exchanges: Vec<Asked> =
        registry.asked().into_iter().filter(|asked| asked.path.starts_with("/token")).collect();
    assert_eq!(exchanges.len(), 2, "{}", registry.methods());
    assert_eq!(exchanges[0].path, "/token?service=s&scope=repository%3Ahello%3Apull");
    assert!(exchanges[0].authorization.as_ref().unwrap().starts_with("Basic "));
}

#[tokio::test]
async fn a_registry_that_hides_what_it_has_is_asked_once_how_to_log_in() {
    let registry = Faulty::start_whole(
        std::net::Ipv4Addr::LOCALHOST.into(),
        |_| false,
        |_, asked| match (asked.authorization.is_some(), asked.path.as_str()) {
            (false, "/v2/") => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
            (false, _) => answer(404, &[], ""),
            (true, _) => answer(200, &[], r#"{"tags":["v1"]}"#),
        },
    )
    .await;
    let (client, repository) = (registry.client(), registry.repository());
    assert_eq!(client.tags(&repository).await.unwrap().len(), 1);
    assert_eq!(registry.methods(), "GET GET GET");
    client.tags(&repository).await.unwrap();
    assert_eq!(registry.methods(), "GET GET GET GET");
    // Of whom nothing is known, nothing is asked.
    assert!(super::anonymous().tags(&repository).await.unwrap().is_empty());
    assert_eq!(registry.asked().len(), 5);
    let empty =
        Faulty::start_whole(std::net::Ipv4Addr::LOCALHOST.into(), |_| false, |_, _| answer(404, &[], ""))
            .await;
    let client = empty.client();
    for _ in 0..3 {
        assert!(client.tags(&empty.repository()).await.unwrap().is_empty());
    }
    assert_eq!(empty.asked().len(), 4);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let registry = Faulty::start(|_, asked| match asked.path.as_str() {
        "/token" => answer(200, &[], r#"{"access_token":"good"}"#),
        _ if asked.authorization.as_deref() == Some("Bearer good") => answer(200, &[], r#"{"tags":null}"#),
        _ => {
            answer(401, &[("www-authenticate", &format!("Bearer realm=\"http://{}/token\"", asked.host))], "")
        }
    })
    .await;
    let credential = Credential::IdentityToken(Secret::new("identity".to_owned()));
    let credentials = Credentials::none().with(&registry.repository().host, credential);
    client(credentials).tags(&registry.repository()).await.unwrap();
    let exchange = registry.asked().into_iter().find(|asked| asked.path == "/token").unwrap();
    let form =
        "grant_type=refresh_token&client_id=hephy&scope=repository%3Ahello%3Apull&refresh_token=identity";
    assert_eq!((exchange.method, exchange.body.as_ref()), (Method::POST, form.as_bytes()));
    assert!(exchange.authorization.is_none());
}

#[tokio::test]
async fn a_token_server_that_knows_oauth2_alone_is_asked_so() {
    let registry = Faulty::start(|_, asked| match (asked.path.split('?').next(), &asked.method) {
        (Some("/token"), &Method::GET) => answer(405, &[], ""),
        (Some("/token"), _) => answer(200, &[], r#"{"access_token":"good"}"#),
        _ if asked.authorization.as_deref() == Some("Bearer good") => answer(200, &[], r#"{"tags":null}"#),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", asked.host);
            answer(401, &[("www-authenticate", &realm)], "")
        }
    })
    .await;
    registry.client().tags(&registry.repository()).await.unwrap();
    let asked = registry.asked();
    let exchange = asked.iter().find(|asked| asked.path == "/token").unwrap();
    let form = "service=s&grant_type=password&client_id=hephy&scope=repository%3Ahello%3Apull&username=ada&password=secret";
    assert_eq!((&exchange.method, exchange.body.as_ref()), (&Method::POST, form.as_bytes()));
    assert!(exchange.authorization.is_none());
}

#[tokio::test]
async fn an_upload_too_large_for_one_request_goes_in_chunks_and_resumes() {
    let content: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = Digest::of(&content);
    let received = Arc::new(Mutex::new(Vec::new()));
    let stored = received.clone();
    let registry = Faulty::start(move |_, asked| {
        let mut stored = stored.lock().unwrap();
        match asked.method {
            Method::HEAD => answer(404, &[], ""),
            Method::POST => answer(202, &[("location", "/upload/0")], ""),
            Method::PUT if asked.body.is_empty() => answer(201, &[], ""),
            Method::PUT => answer(413, &[], "proxy says no"),
            Method::GET => {
                let range = format!("0-{}", stored.len() - 1);
                answer(204, &[("range", &range), ("location", "/upload/resumed")], "")
            }
            // The second chunk arrives by half, and the answer is lost.
            _ if asked.path == "/upload/1" => {
                stored.extend_from_slice(&asked.body[..4_000_000]);
                answer(503, &[], "")
            }
            _ => {
                let start =
                    asked.range.as_ref().unwrap().split_once('-').unwrap().0.parse::<usize>().unwrap();
                assert_eq!(start, stored.len());
                stored.extend_from_slice(&asked.body);
                answer(202, &[("location", if start == 0 { "/upload/1" } else { "/upload/2" })], "")
            }
        }
    })
    .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    let blob = BlobSource::file(file.path(), digest, content.len() as u64);
    let sent = registry.client().push_blob(&registry.repository(), blob, &[]).await.unwrap();
    assert_eq!(sent, Transfer::Uploaded);
    assert_eq!(registry.methods(), "HEAD POST PUT POST PATCH PATCH GET PATCH PUT");
    assert_eq!(Digest::of(received.lock().unwrap().as_slice()), digest);
}

#[tokio::test]
async fn a_mount_that_is_refused_costs_no_more_than_an_upload() {
    for refusal in [400, 401, 403, 404, 405] {
        let registry = Faulty::start(move |_, asked| match asked.method {
            Method::HEAD => answer(404, &[], ""),
            Method::POST if asked.path.contains("mount=") => answer(refusal, &[], ""),
            Method::POST => answer(202, &[("location", "/upload")], ""),
            _ => answer(201, &[], ""),
        })
        .await;
        let from = ["other".parse().unwrap()];
        let sent =
            registry.client().push_blob(&registry.repository(), BlobSource::bytes("x"), &from).await.unwrap();
        assert_eq!(
            (sent, registry.methods().as_str()),
            (Transfer::Uploaded, "HEAD POST POST PUT"),
            "{refusal}"
        );
    }
    let accepting = Faulty::start(|_, asked| match asked.method {
        Method::HEAD => answer(404, &[], ""),
        Method::POST => answer(202, &[("location", "/upload?state=1")], ""),
        _ => answer(201, &[], ""),
    })
    .await;
    let from = ["other".parse().unwrap()];
    accepting.client().push_blob(&accepting.repository(), BlobSource::bytes("x"), &from).await.unwrap();
    assert_eq!(accepting.methods(), "HEAD POST PUT");
    assert!(accepting.asked()[2].path.starts_with("/upload?state=1&digest=sha256"));
}

#[tokio::test]
async fn a_tag_that_is_there_is_not_written_again() {
    let manifest = RawManifest::parse(r#"{"schemaVersion":2,"manifests":[]}"#, None).unwrap();
    let digest = manifest.digest().to_string();
    let registry = Faulty::start(move |_, asked| match asked.method {
        Method::HEAD => {
            let headers = [
                ("content-type", MediaType::ImageIndex.as_str()),
                ("docker-content-digest", &digest),
                ("content-length", "34"),
            ];
            answer(200, &headers, "")
        }
        _ => answer(403, &[], r#"{"errors":[{"code":"DENIED","message":"tags are immutable"}]}"#),
    })
    .await;
    let target = Target::Tag("v1".parse().unwrap());
    registry.client().push_manifest(&registry.repository(), &target, &manifest).await.unwrap();
    assert_eq!(registry.methods(), "HEAD");
}
