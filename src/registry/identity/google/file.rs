//! A file of application default credentials, of each kind that has one.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::jwt;
use super::{Given, LIFE};
use crate::model::Secret;
use crate::registry::identity::variables::read;
use crate::registry::identity::{Http, IdentityError, Token};

const TOKENS: &str = "https://oauth2.googleapis.com/token";
const SERVICE: &str = "Google's token service";

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum File {
    ServiceAccount(ServiceAccount),
    AuthorizedUser(AuthorizedUser),
    ExternalAccount(ExternalAccount),
}

#[derive(Deserialize)]
struct ServiceAccount {
    client_email: String,
    private_key_id: Option<String>,
    private_key: Secret<String>,
    token_uri: Option<String>,
}

#[derive(Deserialize)]
struct AuthorizedUser {
    client_id: String,
    client_secret: Secret<String>,
    refresh_token: Secret<String>,
}

/// Somebody whom another provider knows: a cluster elsewhere, a forge's job.
#[derive(Deserialize)]
struct ExternalAccount {
    audience: String,
    subject_token_type: String,
    token_url: String,
    service_account_impersonation_url: Option<String>,
    credential_source: Source,
}

/// Where the other provider's token is.
#[derive(Deserialize)]
struct Source {
    file: Option<String>,
    url: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, Secret<String>>,
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: Option<String>,
    subject_token_field_name: Option<String>,
}

/// A token for what a file says that we are.
pub(super) async fn token(
    http: &Http,
    path: &str,
    text: &Secret<String>,
    scope: &str,
) -> Result<Token, IdentityError> {
    let wrong = |problem: String| IdentityError::Unusable { what: format!("`{path}`"), problem };
    let file: File = serde_json::from_str(text.reveal()).map_err(|error| {
        // The message of the parser may repeat what is in the file.
        wrong(format!(
            "it is no service account, user or external account of Google's (line {}, column {})",
            error.line(),
            error.column()
        ))
    })?;
    match file {
        File::ServiceAccount(account) => of_service_account(http, &account, scope, &wrong).await,
        File::AuthorizedUser(user) => of_user(http, &user, path).await,
        File::ExternalAccount(account) => of_external(http, &account, scope, &wrong).await,
    }
}

async fn of_service_account(
    http: &Http,
    account: &ServiceAccount,
    scope: &str,
    wrong: &(dyn Fn(String) -> IdentityError + Sync),
) -> Result<Token, IdentityError> {
    let audience = account.token_uri.as_deref().unwrap_or(TOKENS);
    let url = secure(audience).map_err(|problem| wrong(format!("its `token_uri` {problem}")))?;
    let claims = jwt::Claims {
        issuer: &account.client_email,
        scope,
        audience,
        issued_at: Timestamp::now().as_second(),
    };
    let assertion = jwt::sign(&account.private_key, account.private_key_id.as_deref(), &claims)
        .map_err(|problem| wrong(format!("its `private_key` {problem}")))?;
    let grant = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
        ("assertion", assertion.reveal().as_str()),
    ];
    let origin = format!("the service account `{}`", account.client_email);
    Ok(ask(http, &url, &grant, &origin).await?.token(origin))
}

async fn of_user(http: &Http, user: &AuthorizedUser, path: &str) -> Result<Token, IdentityError> {
    let url =
        secure(TOKENS).map_err(|problem| IdentityError::Unusable { what: TOKENS.to_owned(), problem })?;
    let grant = [
        ("grant_type", "refresh_token"),
        ("client_id", user.client_id.as_str()),
        ("client_secret", user.client_secret.reveal().as_str()),
        ("refresh_token", user.refresh_token.reveal().as_str()),
    ];
    let origin = format!("the login in `{path}`");
    Ok(ask(http, &url, &grant, &origin).await?.token(origin))
}

async fn of_external(
    http: &Http,
    account: &ExternalAccount,
    scope: &str,
    wrong: &(dyn Fn(String) -> IdentityError + Sync),
) -> Result<Token, IdentityError> {
    let url = secure(&account.token_url).map_err(|problem| wrong(format!("its `token_url` {problem}")))?;
    let subject = subject(http, &account.credential_source, wrong).await?;
    let origin = format!("the identity of `{}`", account.audience);
    // A service account is impersonated with a token that may do no more than that.
    let impersonated = account.service_account_impersonation_url.as_deref();
    let grant = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("audience", account.audience.as_str()),
        ("scope", if impersonated.is_some() { super::CLOUD_PLATFORM } else { scope }),
        ("subject_token_type", account.subject_token_type.as_str()),
        ("subject_token", subject.reveal().trim()),
    ];
    let token = ask(http, &url, &grant, &origin).await?.token(origin);
    match impersonated {
        Some(url) => {
            let problem = |problem| wrong(format!("its `service_account_impersonation_url` {problem}"));
            impersonate(http, &secure(url).map_err(problem)?, &token, scope).await
        }
        None => Ok(token),
    }
}

/// The token of the other provider.
async fn subject(
    http: &Http,
    source: &Source,
    wrong: &(dyn Fn(String) -> IdentityError + Sync),
) -> Result<Secret<String>, IdentityError> {
    const PROVIDER: &str = "the provider of this machine's token";
    let text = match (&source.file, &source.url) {
        (Some(file), _) => read(Path::new(file), "`credential_source`")?,
        (None, Some(url)) => {
            let url = Url::parse(url).map_err(|error| wrong(format!("its `credential_source`: {error}")))?;
            let answer = http.ask(PROVIDER, |client| {
                source.headers.iter().fold(client.get(url.clone()), |request, (name, value)| {
                    request.header(name.as_str(), value.reveal().as_str())
                })
            });
            answer.await?.granted(PROVIDER, "this machine")?.text()
        }
        (None, None) => {
            let problem = "its `credential_source` is neither a `file` nor a `url`: others are not done";
            return Err(wrong(problem.to_owned()));
        }
    };
    if source.format.kind.as_deref() != Some("json") {
        return Ok(text);
    }
    let field = source.format.subject_token_field_name.as_deref().unwrap_or_default();
    let value: Option<serde_json::Value> = serde_json::from_str(text.reveal()).ok();
    let found = value.as_ref().and_then(|value| value.get(field)?.as_str());
    let none = || wrong(format!("what its `credential_source` gives has no `{field}`"));
    found.map(|token| Secret::new(token.to_owned())).ok_or_else(none)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: Secret<String>,
    expire_time: Option<Timestamp>,
}

async fn impersonate(http: &Http, url: &Url, token: &Token, scope: &str) -> Result<Token, IdentityError> {
    const SERVICE: &str = "Google's service of service accounts (IAM credentials)";
    let body = serde_json::json!({"scope": [scope], "lifetime": "3600s"}).to_string();
    let answer = http.ask(SERVICE, |client| {
        let request = client.post(url.clone()).bearer_auth(token.value.reveal());
        request.header("content-type", "application/json").body(body.clone())
    });
    let given: Impersonated = answer.await?.granted(SERVICE, &token.origin)?.json(SERVICE, "a token")?;
    let valid = given.expire_time.map_or(LIFE, |at| super::super::aws::left(at.as_second()));
    Ok(Token {
        value: given.access_token,
        valid: valid.min(Duration::from_hours(12)),
        origin: token.origin.clone(),
    })
}

async fn ask(http: &Http, url: &Url, grant: &[(&str, &str)], who: &str) -> Result<Given, IdentityError> {
    let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(grant).finish();
    let answer = http.ask(SERVICE, |client| {
        let form_type = "application/x-www-form-urlencoded";
        client.post(url.clone()).header("content-type", form_type).body(form.clone())
    });
    answer.await?.granted(SERVICE, who)?.json(SERVICE, "a token")
}

/// A URL that secrets may go to: by TLS, or on this machine.
fn secure(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    let is_own = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(_)) | None => false,
    };
    if url.scheme() == "https" || (url.scheme() == "http" && is_own) {
        Ok(url)
    } else {
        Err("is not https".to_owned())
    }
}
