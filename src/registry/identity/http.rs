//! Questions to a cloud: with limits, and without anything secret in an error.

use std::sync::OnceLock;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, StatusCode};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;

use super::IdentityError;
use crate::model::Secret;
use crate::registry::client::{Trust, shown, tls_configuration};

/// The longest answer.
const MAX_BYTES: usize = 256 * 1024;
/// How long a cloud may take.
const LIMIT: Duration = Duration::from_secs(15);
/// How long it may take until a metadata service has accepted a connection: it is on this machine or beside it, or is not.
const NEAR_CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long a metadata service may take.
const NEAR_LIMIT: Duration = Duration::from_secs(5);
/// How often is asked again after a failure that may pass.
const RETRIES: usize = 2;

/// Connections to clouds.
#[derive(Debug)]
pub(crate) struct Http {
    authorities: Vec<CertificateDer<'static>>,
    far: OnceLock<reqwest::Client>,
    near: OnceLock<reqwest::Client>,
}

/// What a cloud answers.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Secret<Vec<u8>>,
}

impl Http {
    pub(crate) fn new(authorities: Vec<CertificateDer<'static>>) -> Self {
        Self { authorities, far: OnceLock::new(), near: OnceLock::new() }
    }

    /// A client as the system would have it: TLS that is checked, its proxies.
    pub(crate) fn far(&self) -> Result<reqwest::Client, IdentityError> {
        if let Some(client) = self.far.get() {
            return Ok(client.clone());
        }
        let builder = builder(Trust::Authorities(self.authorities.clone()))?;
        let client = build(builder.connect_timeout(LIMIT))?;
        Ok(self.far.get_or_init(|| client).clone())
    }

    /// A client for what is on this machine or its link: no TLS, no proxy.
    fn near(&self) -> Result<reqwest::Client, IdentityError> {
        if let Some(client) = self.near.get() {
            return Ok(client.clone());
        }
        let builder = builder(Trust::Nobody)?.no_proxy();
        let client = build(builder.connect_timeout(NEAR_CONNECT_LIMIT).timeout(NEAR_LIMIT))?;
        Ok(self.near.get_or_init(|| client).clone())
    }

    /// Asks a service of a cloud, again after a failure that may pass.
    pub(crate) async fn ask(
        &self,
        service: &str,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Answer, IdentityError> {
        let client = self.far()?;
        let backoff = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(200))
            .with_max_times(RETRIES);
        let asked = (|| async {
            let answer = send(service, request(&client).timeout(LIMIT)).await.map_err(Try::Failed)?;
            let passes = answer.status.is_server_error() || answer.status.as_u16() == 429;
            if passes { Err(Try::Passing(answer)) } else { Ok(answer) }
        })
        .retry(backoff)
        .await;
        match asked {
            Ok(answer) | Err(Try::Passing(answer)) => Ok(answer),
            Err(Try::Failed(error)) => Err(error),
        }
    }

    /// Asks a metadata service, once; `None` if there is none.
    pub(crate) async fn ask_near(
        &self,
        service: &str,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Option<Answer>, IdentityError> {
        match send(service, request(&self.near()?)).await {
            Ok(answer) => Ok(Some(answer)),
            Err(IdentityError::Unreachable { source, .. }) if source.is_connect() || source.is_timeout() => {
                tracing::debug!(service, "nobody answers");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Why it is asked again.
enum Try {
    Passing(Answer),
    Failed(IdentityError),
}

fn builder(trust: Trust) -> Result<reqwest::ClientBuilder, IdentityError> {
    let tls = tls_configuration(trust).map_err(IdentityError::Tls)?;
    Ok(reqwest::Client::builder()
        .user_agent(concat!("hephy/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(tls)
        .http1_only()
        // Nobody who is asked sends us elsewhere.
        .redirect(reqwest::redirect::Policy::none()))
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, IdentityError> {
    builder.build().map_err(|error| IdentityError::Tls(crate::registry::client::TlsError::Http(error)))
}

async fn send(service: &str, request: RequestBuilder) -> Result<Answer, IdentityError> {
    let failed = |source: reqwest::Error| IdentityError::Unreachable {
        service: service.to_owned(),
        source: source.without_url(),
    };
    let mut answer = request.send().await.map_err(failed)?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(failed)? {
        if body.len() + part.len() > MAX_BYTES {
            return Err(IdentityError::Answer { service: service.to_owned(), expected: "a short answer" });
        }
        body.extend_from_slice(&part);
    }
    Ok(Answer { status, headers, body: Secret::new(body) })
}

impl Answer {
    /// The answer, if it is a yes to `who`.
    pub(crate) fn granted(self, service: &str, who: &str) -> Result<Self, IdentityError> {
        if self.status.is_success() {
            return Ok(self);
        }
        Err(IdentityError::Refused {
            service: service.to_owned(),
            who: who.to_owned(),
            status: self.status.as_u16(),
            message: self.message(),
        })
    }

    pub(crate) fn text(&self) -> Secret<String> {
        Secret::new(String::from_utf8_lossy(self.body.reveal()).into_owned())
    }

    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        service: &str,
        expected: &'static str,
    ) -> Result<T, IdentityError> {
        let wrong = |_| IdentityError::Answer { service: service.to_owned(), expected };
        serde_json::from_slice(self.body.reveal()).map_err(wrong)
    }

    /// What it says of why not: clouds have several forms.
    fn message(&self) -> String {
        let text = self.text();
        let text = text.reveal();
        let of_json = || -> Option<String> {
            let value: serde_json::Value = serde_json::from_str(text).ok()?;
            let error = value.get("error").filter(|error| error.is_object()).unwrap_or(&value);
            let found = ["error_description", "message", "Message", "error", "__type"]
                .iter()
                .find_map(|key| error.get(key)?.as_str());
            let of_list = || value.get("errors")?.get(0)?.get("message")?.as_str();
            found.or_else(of_list).map(str::to_owned)
        };
        let said = of_json().or_else(|| element(text, "Message")).unwrap_or_default();
        shown(&said, None)
    }
}

/// The text of the first element of this name in XML that has neither attributes nor children there.
pub(crate) fn element(xml: &str, name: &str) -> Option<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let from = xml.find(&open)? + open.len();
    let until = xml.get(from..)?.find(&close)? + from;
    let text = xml.get(from..until)?.trim();
    // `&amp;` last: it makes no others.
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    Some(text.replace("&#39;", "'").replace("&#34;", "\"").replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> String {
        let body = Secret::new(body.as_bytes().to_vec());
        Answer { status: StatusCode::BAD_REQUEST, headers: HeaderMap::new(), body }.message()
    }

    #[test]
    fn what_a_cloud_says_is_told_in_each_of_its_forms() {
        for (body, expected) in [
            (r#"{"error":"invalid_grant","error_description":"Invalid JWT"}"#, "Invalid JWT"),
            (r#"{"error":{"code":403,"message":"no permission"}}"#, "no permission"),
            (r#"{"__type":"AccessDeniedException","Message":"not authorised"}"#, "not authorised"),
            (r#"{"errors":[{"code":"UNAUTHORIZED","message":"denied"}]}"#, "denied"),
            ("<ErrorResponse><Error><Message>a &amp;lt; b</Message></Error></ErrorResponse>", "a &lt; b"),
            ("something else", ""),
            (r#"{"message":"bad token eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"}"#, "bad token [redacted]"),
        ] {
            assert_eq!(message(body), expected, "{body}");
        }
    }
}
