//! Stores that look at who asks, on loopback.

use std::io::Read as _;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};
use jiff::civil::DateTime;

use super::*;
use crate::model::Secret;
use crate::registry::identity::aws::Keys;
use crate::registry::identity::sigv4::{Scope, Signed, sign};

/// A question as it came.
struct Asked {
    url: Url,
    headers: HeaderMap,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Whether a user of S3 has signed it, as it came.
    fn is_signed(&self, region: &str) -> bool {
        let keys = Keys {
            access_key: "AKIA1".to_owned(),
            secret_key: Secret::new("hunter2".to_owned()),
            session_token: Some(Secret::new("session".to_owned())),
            valid: None,
        };
        let Ok(at) = DateTime::strptime("%Y%m%dT%H%M%SZ", self.header("x-amz-date")) else { return false };
        let at = at.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
        let request = Signed { method: "GET", url: &self.url, headers: &[], body: b"" };
        let signed = sign(request, &keys, Scope { region, service: "s3" }, at);
        signed.iter().all(|(name, value)| self.header(name) == value)
    }
}

async fn serve(
    answer: impl Fn(&Asked) -> Response<Body> + Clone + Send + Sync + 'static,
) -> (String, Arc<Mutex<usize>>) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(Mutex::new(0));
    let (own, counted) = (base.clone(), Arc::clone(&count));
    let handle = move |request: Request<Body>| {
        let url = format!("{own}{}", request.uri()).parse().unwrap();
        *counted.lock().unwrap() += 1;
        let response = answer(&Asked { url, headers: request.headers().clone() });
        async move { response }
    };
    let router = Router::new().fallback(handle);
    drop(tokio::spawn(async move { axum::serve(listener, router).await }));
    (base, count)
}

fn answer(status: u16, headers: &[(&str, &str)], text: &str) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Body::from(text.to_owned())).unwrap()
}

async fn get(given: &[(&str, &str)], object: &str, max_bytes: u64) -> Result<String, RemoteError> {
    let spool = tempfile::tempdir().unwrap();
    let objects = Objects::new(Variables::of(given), max_bytes, None).unwrap();
    let mut download = objects.get(&Object::parse(object).unwrap().unwrap(), spool.path()).await?;
    let mut text = String::new();
    download.file.read_to_string(&mut text).unwrap();
    Ok(text)
}

const KEYS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "AKIA1"), ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_SESSION_TOKEN", "session")];

#[tokio::test]
async fn an_object_of_s3_is_asked_for_with_a_signature_in_the_region_that_the_bucket_says() {
    let (store, asked) = serve(|asked| {
        if asked.url.path() != "/my-bucket/a%20b/context.tar.gz" {
            return answer(404, &[], "<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>");
        }
        if asked.is_signed("eu-west-1") {
            return answer(200, &[], "content");
        }
        if asked.is_signed("us-east-1") {
            return answer(400, &[("x-amz-bucket-region", "eu-west-1")], "<Error/>");
        }
        answer(
            403,
            &[],
            "<Error><Code>SignatureDoesNotMatch</Code><Message>wrong signature</Message></Error>",
        )
    })
    .await;
    let with = |region: &'static str| {
        let mut given = KEYS.to_vec();
        given.extend([("S3_ENDPOINT", store.as_str()), ("AWS_REGION", region)]);
        given
    };
    let object = "s3://my-bucket/a b/context.tar.gz";
    assert_eq!(get(&with("eu-west-1"), object, 7).await.unwrap(), "content");
    assert_eq!(*asked.lock().unwrap(), 1);
    assert_eq!(get(&with("us-east-1"), object, 7).await.unwrap(), "content");
    let error = get(&with("ap-east-1"), object, 7).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "`s3://my-bucket/a b/context.tar.gz` answers 403 Forbidden to `$AWS_ACCESS_KEY_ID`: wrong signature"
    );
    let error = get(&with("eu-west-1"), "s3://my-bucket/other", 7).await.unwrap_err();
    assert!(error.to_string().contains("404 Not Found") && error.is_app(), "{error}");
    let error = get(&with("eu-west-1"), object, 6).await.unwrap_err();
    assert!(matches!(error, RemoteError::TooLarge { max_bytes: 6, .. }), "{error}");
}

#[tokio::test]
async fn nothing_that_proves_who_we_are_follows_a_redirect() {
    let (elsewhere, asked) = serve(|_| answer(200, &[], "content")).await;
    let (store, _) = serve(move |_| answer(307, &[("location", &elsewhere)], "")).await;
    let mut given = KEYS.to_vec();
    given.push(("S3_ENDPOINT", store.as_str()));
    let error = get(&given, "s3://bucket/k", 100).await.unwrap_err().to_string();
    assert!(error.contains("307"), "{error}");
    assert_eq!(*asked.lock().unwrap(), 0);
}

#[tokio::test]
async fn who_has_no_keys_asks_as_anybody_and_is_told_so() {
    let (store, _) = serve(|asked| {
        let is_anybody = asked.header("authorization").is_empty();
        let is_open = is_anybody && asked.url.path().starts_with("/open/");
        if is_open { answer(200, &[], "content") } else { answer(403, &[], "<Error/>") }
    })
    .await;
    let given = [("S3_ENDPOINT", store.as_str()), ("AWS_EC2_METADATA_DISABLED", "true")];
    assert_eq!(get(&given, "s3://open/k", 100).await.unwrap(), "content");
    let error = get(&given, "s3://closed/k", 100).await.unwrap_err().to_string();
    assert!(error.contains("403 Forbidden to anybody, since AWS knows nobody here"), "{error}");
}

#[tokio::test]
async fn what_anybody_may_read_is_read_with_an_identity_that_the_store_does_not_take() {
    let (store, asked) = serve(|asked| {
        let is_anybody = asked.header("authorization").is_empty();
        match asked.url.path().strip_prefix("/open/").and_then(|status| status.parse().ok()) {
            Some(_) if is_anybody => answer(200, &[], "content"),
            Some(status) => answer(status, &[], "<Error/>"),
            None if is_anybody => answer(403, &[], "<Error><Message>not public</Message></Error>"),
            None => answer(403, &[], "<Error><Message>not yours</Message></Error>"),
        }
    })
    .await;
    let mut given = KEYS.to_vec();
    given.push(("S3_ENDPOINT", store.as_str()));
    for status in ["400", "401", "403"] {
        assert_eq!(get(&given, &format!("s3://open/{status}"), 100).await.unwrap(), "content");
    }
    assert_eq!(*asked.lock().unwrap(), 6);
    let error = get(&given, "s3://open/404", 100).await.unwrap_err().to_string();
    assert!(error.contains("404 Not Found to `$AWS_ACCESS_KEY_ID`"), "{error}");
    // If nobody may read it, what is told is what this machine was told.
    let error = get(&given, "s3://closed/k", 100).await.unwrap_err().to_string();
    assert!(error.contains("to `$AWS_ACCESS_KEY_ID`: not yours"), "{error}");
    let given = [
        ("S3_ENDPOINT", store.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent"),
    ];
    assert_eq!(get(&given, "s3://open/403", 100).await.unwrap(), "content");
    let error = get(&given, "s3://closed/k", 100).await.unwrap_err();
    assert!(matches!(error, RemoteError::Identity { .. }), "{error}");
}

#[tokio::test]
async fn an_emulator_of_cloud_storage_is_asked_as_nobody_and_a_failure_that_passes_again() {
    let failures = Arc::new(Mutex::new(1));
    let (store, asked) = serve(move |asked| {
        if std::mem::take(&mut *failures.lock().unwrap()) > 0 {
            return answer(503, &[], "");
        }
        let is_right = asked.url.path() == "/storage/v1/b/bucket/o/dir%2Fcontext.tar.gz"
            && asked.url.query() == Some("alt=media")
            && asked.header("authorization").is_empty();
        if is_right {
            answer(200, &[], "content")
        } else {
            answer(400, &[], r#"{"error":{"message":"wrong"}}"#)
        }
    })
    .await;
    // Who we are elsewhere is nothing for it.
    let given =
        [("STORAGE_EMULATOR_HOST", store.as_str()), ("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent")];
    assert_eq!(get(&given, "gs://bucket/dir/context.tar.gz", 100).await.unwrap(), "content");
    assert_eq!(*asked.lock().unwrap(), 2);
    let error = get(&given, "gs://bucket/other", 100).await.unwrap_err().to_string();
    assert!(error.ends_with(": wrong"), "{error}");
}

#[tokio::test]
async fn a_blob_of_azure_is_asked_for_with_the_accounts_key_and_not_by_another_name() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    let variables = Variables::of(&[("AZURE_STORAGE_ACCESS_KEY", key)]);
    let url: Url = "https://acme.blob.core.windows.net/c/a%20b.tar.gz?versionid=1".parse().unwrap();
    let question = azure::question(&variables, &Http::new(Vec::new()), Asker::Machine, &url).await.unwrap();
    let text = |name: &str| question.headers.get(name).unwrap().to_str().unwrap().to_owned();
    let own = [("x-ms-date", text("x-ms-date")), ("x-ms-version", text("x-ms-version"))];
    let expected = azure::sign(&Secret::new(key.to_owned()), "acme", &url, &own).unwrap();
    assert_eq!(text("authorization"), format!("SharedKey acme:{expected}"));
    assert!(!format!("{:?}", question.headers).contains(&expected));
    let anybody = azure::question(&variables, &Http::new(Vec::new()), Asker::Anybody, &url).await.unwrap();
    assert_eq!(anybody.headers.get("authorization"), None);
    assert!(anybody.headers.contains_key("x-ms-version"));
    for other in [
        "https://acme.blob.core.windows.net.evil.test/c/k",
        "https://evil.test/acme.blob.core.windows.net/c/k",
        "http://acme.blob.core.windows.net/c/k",
        "https://acme.blob.core.windows.net:444/c/k",
        "https://acme.blob.core.windows.net/only-a-container",
    ] {
        assert_eq!(Object::parse(other).unwrap(), None, "{other}");
    }
}

/// The text that is signed, as the documentation of Azure lays it out; the signature was made by another program.
#[test]
fn the_signature_of_azure_is_that_of_its_documentation() {
    let key = Secret::new("c2VjcmV0".to_owned());
    let url = "https://acme.blob.core.windows.net/c/k.tar?b=2&A=1".parse().unwrap();
    let own = [
        ("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT".to_owned()),
        ("x-ms-version", "2020-10-02".to_owned()),
    ];
    let signature = azure::sign(&key, "acme", &url, &own).unwrap();
    assert_eq!(signature, "UiahgO2NG1St7ss4FDDcgv9LYNnDvJrCJWfEZMWyBcA=");
    assert!(azure::sign(&Secret::new("%".to_owned()), "acme", &url, &own).is_err());
}

#[test]
fn a_bucket_alone_means_the_usual_name_and_a_name_has_no_way_up() {
    let parse = |text: &str| Object::parse(text).unwrap().unwrap().to_string();
    assert_eq!(parse("s3://bucket"), "s3://bucket/context.tar.gz");
    assert_eq!(parse("gs://bucket/"), "gs://bucket/context.tar.gz");
    for wrong in ["s3://", "s3:///k", "s3://a@b/k", "gs://b?x/k", "s3://b/../k", "s3://b/a/./k"] {
        assert!(Object::parse(wrong).is_err(), "{wrong}");
    }
}
