//! Clouds that answer as theirs document it, on loopback.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use url::Url;

use super::aws::Keys;
use super::sigv4::{Scope, Signed, sign};
use super::*;

/// A question as it came.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(super) fn field(&self, name: &str) -> String {
        let form = url::form_urlencoded::parse(self.body.as_bytes()).chain(self.url.query_pairs());
        form.filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    }

    /// Whether these keys have signed it, as it came.
    pub(super) fn is_signed(&self, keys: (&str, &str, Option<&str>), scope: Scope<'_>) -> bool {
        let given = self.header("authorization");
        let Some(names) = given.split("SignedHeaders=").nth(1).and_then(|rest| rest.split(',').next()) else {
            return false;
        };
        let ours = ["host", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"];
        let headers: Vec<(&str, &str)> = names
            .split(';')
            .filter(|name| !ours.contains(name))
            .map(|name| (name, self.header(name)))
            .collect();
        let keys = Keys {
            access_key: keys.0.to_owned(),
            secret_key: Secret::new(keys.1.to_owned()),
            session_token: keys.2.map(|token| Secret::new(token.to_owned())),
            valid: None,
        };
        let at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", self.header("x-amz-date")).unwrap();
        let at = at.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
        let request =
            Signed { method: &self.method, url: &self.url, headers: &headers, body: self.body.as_bytes() };
        sign(request, &keys, scope, at).iter().all(|(name, value)| self.header(name) == value)
    }
}

type Answer = (u16, Vec<(&'static str, &'static str)>, String);

/// A service that answers as it is told to, and what it was asked.
pub(super) struct Fake {
    pub(super) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    pub(super) async fn serve(answer: impl Fn(&Asked) -> Answer + Clone + Send + Sync + 'static) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (base, kept) = (url.clone(), Arc::clone(&asked));
        let handle = move |request: Request<Body>| {
            let (answer, base, kept) = (answer.clone(), base.clone(), Arc::clone(&kept));
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                let one = Asked {
                    method: parts.method.to_string(),
                    url: format!("{base}{}", parts.uri).parse().unwrap(),
                    headers: parts.headers,
                    body: String::from_utf8(body.to_vec()).unwrap(),
                };
                let (status, headers, text) = answer(&one);
                kept.lock().unwrap().push(one);
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                response.body(Body::from(text)).unwrap()
            }
        };
        let router = axum::Router::new().fallback(handle);
        drop(tokio::spawn(async move { axum::serve(listener, router).await }));
        Self { url, asked }
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn json(value: &Value) -> Answer {
    (200, vec![("content-type", "application/json")], value.to_string())
}

fn refusal(status: u16, text: &str) -> Answer {
    (status, Vec::new(), text.to_owned())
}

fn file(text: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    (file, path)
}

async fn find(variables: &[(&str, &str)], host: &str) -> Result<Option<Issued>, Arc<IdentityError>> {
    Identities::new(Variables::of(variables)).find(&host.parse().unwrap()).await
}

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// Amazon's registry, which gives a password to who signs with these keys.
async fn ecr(keys: (&'static str, &'static str, Option<&'static str>)) -> Fake {
    Fake::serve(move |asked| {
        let scope = Scope { region: "eu-west-1", service: "ecr" };
        let target = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
        if asked.header("x-amz-target") != target || asked.body != "{}" {
            return refusal(400, r#"{"__type":"UnknownOperationException"}"#);
        }
        if !asked.is_signed(keys, scope) {
            return refusal(403, r#"{"__type":"InvalidSignatureException","message":"no such signature"}"#);
        }
        let ends = jiff::Timestamp::now().as_second() + 12 * 3600;
        let token = STANDARD.encode("AWS:hunter2");
        json(&json!({"authorizationData": [{"authorizationToken": token, "expiresAt": ends,
            "proxyEndpoint": format!("https://{ECR}")}]}))
    })
    .await
}

fn in_an_hour() -> String {
    (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string()
}

#[tokio::test]
async fn a_pods_role_is_exchanged_for_a_password_of_ecr_once() {
    let (_token, path) = file("a.web.token\n");
    let sts = Fake::serve(|asked| {
        let fields = ["Action", "RoleArn", "WebIdentityToken"].map(|name| asked.field(name));
        if fields != ["AssumeRoleWithWebIdentity", "arn:aws:iam::1:role/r", "a.web.token"] {
            return refusal(400, "<ErrorResponse><Error><Message>not you</Message></Error></ErrorResponse>");
        }
        let keys = format!(
            "<AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>s/e&amp;c</SecretAccessKey>\
             <SessionToken>session</SessionToken><Expiration>{}</Expiration>",
            in_an_hour()
        );
        let name = "AssumeRoleWithWebIdentity";
        (200, Vec::new(), format!("<{name}Response><{name}Result><Credentials>{keys}</Credentials></{name}Result></{name}Response>"))
    })
    .await;
    let ecr = ecr(("ASIA1", "s/e&c", Some("session"))).await;
    let variables = [
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", path.as_str()),
        ("AWS_ENDPOINT_URL_STS", sts.url.as_str()),
        ("AWS_ENDPOINT_URL_ECR", ecr.url.as_str()),
    ];
    let identities = Identities::new(Variables::of(&variables));
    for _ in 0..3 {
        let issued = identities.find(&ECR.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!((issued.username.as_str(), issued.password.reveal().as_str()), ("AWS", "hunter2"));
        // It ends with the keys, not with what the registry says of it.
        assert!(issued.valid <= Duration::from_hours(1), "{:?}", issued.valid);
        assert!(!format!("{issued:?}").contains("hunter2"));
    }
    assert_eq!((sts.asked(), ecr.asked()), (1, 1));
    assert!(identities.find(&"registry.example".parse().unwrap()).await.unwrap().is_none());
    assert!(identities.at(&[Cloud::Google]).find(&ECR.parse().unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_refusal_says_who_asked_whom_and_nothing_secret() {
    let (_token, path) = file("eyJhbGciOiJIUzI1NiJ9.secret1");
    let sts = Fake::serve(|asked| {
        let said = format!("<Message>token {} is over</Message>", asked.field("WebIdentityToken"));
        refusal(400, &said)
    })
    .await;
    let variables = [
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", path.as_str()),
        ("AWS_ENDPOINT_URL_STS", sts.url.as_str()),
    ];
    let error = find(&variables, ECR).await.unwrap_err().to_string();
    let expected = "Amazon's token service (STS) refuses the role `arn:aws:iam::1:role/r` of this machine: 400, \
                    token [redacted] is over";
    assert_eq!(error, expected);
}

#[tokio::test]
async fn a_machine_of_ec2_asks_with_a_session_and_another_clouds_is_not_believed() {
    let machine = Fake::serve(|asked| {
        let path = "/latest/meta-data/iam/security-credentials/";
        match (asked.method.as_str(), asked.url.path()) {
            ("PUT", "/latest/api/token") => (200, Vec::new(), "session".to_owned()),
            ("GET", _) if asked.header("x-aws-ec2-metadata-token") != "session" => refusal(401, ""),
            ("GET", asked) if asked == path => (200, Vec::new(), "node".to_owned()),
            ("GET", asked) if asked == format!("{path}node") => json(&json!({"Code": "Success",
                "AccessKeyId": "ASIA2", "SecretAccessKey": "s", "Token": "t", "Expiration": in_an_hour()})),
            _ => refusal(404, ""),
        }
    })
    .await;
    let ecr = ecr(("ASIA2", "s", Some("t"))).await;
    let variables = |machine: &str| {
        [("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine.to_owned()), ("AWS_ENDPOINT_URL_ECR", ecr.url.clone())]
    };
    let ask = async |machine: &str| {
        let given = variables(machine);
        let given: Vec<(&str, &str)> = given.iter().map(|(name, value)| (*name, value.as_str())).collect();
        find(&given, ECR).await
    };
    let issued = ask(&machine.url).await.unwrap().unwrap();
    assert_eq!(issued.origin, "the role of this machine (`node`)");
    let other = Fake::serve(|_| refusal(405, "")).await;
    assert!(ask(&other.url).await.unwrap().is_none());
    // Nobody listens there.
    assert!(ask("http://127.0.0.1:1").await.unwrap().is_none());
}

#[tokio::test]
async fn a_container_asks_its_agent_and_nobody_else() {
    let (_token, path) = file("pod-token");
    let agent = Fake::serve(|asked| {
        if asked.header("authorization") != "pod-token" {
            return refusal(401, "");
        }
        json(&json!({"AccessKeyId": "ASIA3", "SecretAccessKey": "s", "Token": "t", "Expiration": in_an_hour()}))
    })
    .await;
    let ecr = ecr(("ASIA3", "s", Some("t"))).await;
    let url = format!("{}/v1/credentials", agent.url);
    let with = |url| {
        [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path.as_str()),
            ("AWS_ENDPOINT_URL_ECR", ecr.url.as_str()),
        ]
    };
    assert_eq!(find(&with(&url), ECR).await.unwrap().unwrap().username, "AWS");
    let error = find(&with("http://agent.evil.test/"), ECR).await.unwrap_err();
    assert!(matches!(*error, IdentityError::Unusable { .. }), "{error}");
}

#[tokio::test]
async fn everybodys_registry_of_amazon_has_an_api_of_its_own() {
    let api = Fake::serve(|asked| {
        let scope = Scope { region: "us-east-1", service: "ecr-public" };
        if asked.header("x-amz-target") != "SpencerFrontendService.GetAuthorizationToken"
            || !asked.is_signed(("A", "s", None), scope)
        {
            return refusal(403, "{}");
        }
        json(&json!({"authorizationData": {"authorizationToken": STANDARD.encode("AWS:p")}}))
    })
    .await;
    let variables = [
        ("AWS_ACCESS_KEY_ID", "A"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_ENDPOINT_URL_ECR_PUBLIC", api.url.as_str()),
    ];
    let issued = find(&variables, "public.ecr.aws").await.unwrap().unwrap();
    assert_eq!(issued.password.reveal(), "p");
    assert_eq!(issued.valid, Duration::from_hours(12));
}

#[tokio::test]
async fn a_machine_of_google_has_a_token_of_its_metadata_service() {
    let googles = |flavour: &'static str| {
        Fake::serve(move |asked| {
            let is_right = asked.header("metadata-flavor") == "Google"
                && asked.url.path() == "/computeMetadata/v1/instance/service-accounts/default/token"
                && asked.field("scopes") == google::CLOUD_PLATFORM;
            let body = json!({"access_token": "ya29.t", "expires_in": 1000, "token_type": "Bearer"});
            if is_right {
                (200, vec![("metadata-flavor", flavour)], body.to_string())
            } else {
                refusal(403, "")
            }
        })
    };
    let (right, wrong) = (googles("Google").await, googles("other").await);
    let ask = async |fake: &Fake| {
        let host = fake.url.trim_start_matches("http://");
        find(&[("GCE_METADATA_HOST", host)], "europe-docker.pkg.dev").await.unwrap()
    };
    let issued = ask(&right).await.unwrap();
    assert_eq!(
        (issued.username.as_str(), issued.password.reveal().as_str()),
        ("oauth2accesstoken", "ya29.t")
    );
    assert_eq!(issued.valid, Duration::from_secs(1000));
    assert!(ask(&wrong).await.is_none());
}

/// A key for these tests alone.
fn key() -> &'static str {
    static KEY: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    KEY.get_or_init(|| {
        let mut command = std::process::Command::new("openssl");
        command.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    })
}

fn is_signed_by_key(assertion: &str) -> bool {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;
    let (signed, signature) = assertion.rsplit_once('.').unwrap();
    let key = PrivateKeyDer::from_pem_slice(key().as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    // What is in a public key of 2048 bits, after what it says of its kind.
    let public = key.public_key().unwrap()[24..].to_vec();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let (_, algorithms) = algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == rustls::SignatureScheme::RSA_PKCS1_SHA256)
        .unwrap();
    algorithms[0].verify_signature(&public, signed.as_bytes(), &signature).is_ok()
}

#[tokio::test]
async fn a_service_account_signs_what_it_asserts() {
    let tokens = Fake::serve(|asked| {
        let assertion = asked.field("assertion");
        let part = |at: usize| -> Value {
            let part = assertion.split('.').nth(at).unwrap();
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        let (header, claims) = (part(0), part(1));
        let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        let is_right = asked.field("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer"
            && (&header["alg"], &header["kid"]) == (&json!("RS256"), &json!("k1"))
            && claims["iss"] == "ci@p.iam.gserviceaccount.com"
            && life == 3600
            && is_signed_by_key(&assertion);
        if is_right {
            json(&json!({"access_token": "ya29.s", "expires_in": 3599}))
        } else {
            refusal(400, r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#)
        }
    })
    .await;
    let account = |key: &str| {
        json!({"type": "service_account", "project_id": "p", "private_key_id": "k1", "private_key": key,
            "client_email": "ci@p.iam.gserviceaccount.com", "token_uri": format!("{}/token", tokens.url)})
        .to_string()
    };
    let (_file, path) = file(&account(key()));
    let issued = find(&[("GOOGLE_APPLICATION_CREDENTIALS", &path)], "gcr.io").await.unwrap().unwrap();
    assert_eq!((issued.password.reveal().as_str(), tokens.asked()), ("ya29.s", 1));
    let (_file, path) = file(&account("hunter2"));
    let error = find(&[("GOOGLE_APPLICATION_CREDENTIALS", &path)], "gcr.io").await.unwrap_err().to_string();
    assert!(error.contains("`private_key` is no private key") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn somebody_whom_another_provider_knows_impersonates_a_service_account() {
    let googles = Fake::serve(|asked| match asked.url.path() {
        "/sts" if asked.field("subject_token") == "job.token" => {
            json(&json!({"access_token": "federated", "expires_in": 3600}))
        }
        "/impersonate" if asked.header("authorization") == "Bearer federated" => {
            json(&json!({"accessToken": "ya29.i", "expireTime": in_an_hour()}))
        }
        _ => refusal(403, "{}"),
    })
    .await;
    let (_subject, subject) = file(r#"{"id_token":"job.token"}"#);
    let (_file, path) = file(
        &json!({"type": "external_account", "audience": "//iam.googleapis.com/pool",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": format!("{}/sts", googles.url),
        "service_account_impersonation_url": format!("{}/impersonate", googles.url),
        "credential_source": {"file": subject, "format": {"type": "json", "subject_token_field_name": "id_token"}}})
        .to_string(),
    );
    let issued = find(&[("GOOGLE_APPLICATION_CREDENTIALS", &path)], "eu.gcr.io").await.unwrap().unwrap();
    assert_eq!(issued.password.reveal(), "ya29.i");
    let (_file, path) =
        file(&json!({"type": "authorized_user", "client_id": 1, "client_secret": "hunter2"}).to_string());
    let error =
        find(&[("GOOGLE_APPLICATION_CREDENTIALS", &path)], "eu.gcr.io").await.unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn an_application_of_azure_proves_itself_by_secret_or_by_a_federated_token() {
    let login = Fake::serve(|asked| {
        let is_known = asked.url.path() == "/tenant/oauth2/v2.0/token"
            && asked.field("scope") == "https://management.azure.com/.default"
            && asked.field("client_id") == "app";
        let proof = (asked.field("client_secret"), asked.field("client_assertion"));
        match (is_known, proof.0.as_str(), proof.1.as_str()) {
            (true, "s", "") | (true, "", "pod.token") => {
                json(&json!({"access_token": "aad", "expires_in": 3599}))
            }
            _ => refusal(401, r#"{"error":"invalid_client","error_description":"AADSTS7000215"}"#),
        }
    })
    .await;
    let (_token, path) = file("pod.token");
    let authority = format!("{}/", login.url);
    let http = Http::new(Vec::new());
    for proof in [("AZURE_CLIENT_SECRET", "s"), ("AZURE_FEDERATED_TOKEN_FILE", path.as_str())] {
        let given = [
            ("AZURE_TENANT_ID", "tenant"),
            ("AZURE_CLIENT_ID", "app"),
            ("AZURE_AUTHORITY_HOST", authority.as_str()),
            proof,
        ];
        let variables = Variables::of(&given);
        let token = azure::token(&variables, &http, azure::Sovereign::Public, azure::For::Registry).await;
        assert_eq!(token.unwrap().unwrap().value.reveal(), "aad");
    }
}

#[tokio::test]
async fn a_managed_identity_is_exchanged_at_the_registry_for_a_token_of_its_own() {
    let machine = Fake::serve(|asked| {
        let is_right = asked.header("metadata") == "true"
            && asked.url.path() == "/metadata/identity/oauth2/token"
            && asked.field("resource") == "https://management.azure.com";
        if is_right {
            json(&json!({"access_token": "aad", "expires_in": "3599"}))
        } else {
            refusal(400, "{}")
        }
    })
    .await;
    let registry = Fake::serve(|asked| {
        let fields = ["grant_type", "service", "access_token"].map(|name| asked.field(name));
        if asked.url.path() != "/oauth2/exchange" || fields != ["access_token", "acme.azurecr.io", "aad"] {
            return refusal(401, r#"{"errors":[{"message":"denied"}]}"#);
        }
        let claims = json!({"exp": jiff::Timestamp::now().as_second() + 10_800}).to_string();
        json(&json!({"refresh_token": format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims))}))
    })
    .await;
    let (variables, http) =
        (Variables::of(&[("AZURE_POD_IDENTITY_AUTHORITY_HOST", &machine.url)]), Http::new(Vec::new()));
    let token = azure::token(&variables, &http, azure::Sovereign::Public, azure::For::Registry).await;
    let token = token.unwrap().unwrap();
    let at = registry.url.parse().unwrap();
    let issued = azure::exchange(&http, &at, "acme.azurecr.io", &token).await.unwrap();
    assert_eq!(issued.username, "00000000-0000-0000-0000-000000000000");
    let hours = issued.valid.as_secs_f64() / 3600.0;
    assert!((2.9..=3.0).contains(&hours), "{hours}");
    let error = azure::exchange(&http, &at, "other.azurecr.io", &token).await.unwrap_err().to_string();
    assert_eq!(error, "Azure's registry refuses the managed identity of this machine: 401, denied");
}
