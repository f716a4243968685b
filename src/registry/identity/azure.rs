//! Who we are at Azure: an application's secret or federated token, else the managed identity of the machine.
//!
//! <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>,
//! <https://github.com/Azure/acr/blob/main/docs/AAD-OAuth.md>

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use url::Url;

use super::variables::read;
use super::{Http, IdentityError, Issued, Token, Variables};
use crate::model::Secret;
use crate::oci::Host;

/// The user of a registry's refresh token.
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";
/// Where a machine is told what it is.
const MACHINE: &str = "http://169.254.169.254";
/// How long a token is good if nothing is said.
const LIFE: Duration = Duration::from_mins(5);
const REGISTRY: &str = "Azure's registry";

/// One of the clouds that are called Azure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sovereign {
    Public,
    China,
    Government,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    Registry,
    Storage,
}

impl Sovereign {
    pub(super) const ALL: [Self; 3] = [Self::Public, Self::China, Self::Government];

    pub(super) const fn registries(self) -> &'static str {
        match self {
            Self::Public => ".azurecr.io",
            Self::China => ".azurecr.cn",
            Self::Government => ".azurecr.us",
        }
    }

    /// The domain of its object stores.
    pub(crate) const fn storage(self) -> &'static str {
        match self {
            Self::Public => ".blob.core.windows.net",
            Self::China => ".blob.core.chinacloudapi.cn",
            Self::Government => ".blob.core.usgovcloudapi.net",
        }
    }

    /// The cloud whose object store a host is.
    pub(crate) fn of_storage(host: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cloud| {
            host.strip_suffix(cloud.storage()).is_some_and(|account| {
                !account.is_empty() && account.bytes().all(|b| b.is_ascii_alphanumeric())
            })
        })
    }

    const fn authority(self) -> &'static str {
        match self {
            Self::Public => "https://login.microsoftonline.com/",
            Self::China => "https://login.chinacloudapi.cn/",
            Self::Government => "https://login.microsoftonline.us/",
        }
    }

    /// What a token is asked for by. A registry takes one for the management of resources.
    const fn resource(self, purpose: For) -> &'static str {
        match (purpose, self) {
            (For::Storage, _) => "https://storage.azure.com",
            (For::Registry, Self::Public) => "https://management.azure.com",
            (For::Registry, Self::China) => "https://management.chinacloudapi.cn",
            (For::Registry, Self::Government) => "https://management.usgovcloudapi.net",
        }
    }
}

/// How Entra gives a token, and machines do; these write numbers as texts.
#[derive(Deserialize)]
struct Given {
    access_token: Secret<String>,
    expires_in: Option<serde_json::Value>,
    expires_on: Option<serde_json::Value>,
}

impl Given {
    fn token(self, origin: String) -> Token {
        let number = |value: Option<serde_json::Value>| {
            let value = value?;
            value.as_i64().or_else(|| value.as_str()?.parse().ok())
        };
        let of_end = number(self.expires_on).map(super::aws::left);
        let of_life = number(self.expires_in).and_then(|seconds| u64::try_from(seconds).ok());
        let valid = of_life.map(Duration::from_secs).or(of_end).unwrap_or(LIFE);
        Token { value: self.access_token, valid, origin }
    }
}

/// A token of this machine's.
pub(crate) async fn token(
    variables: &Variables,
    http: &Http,
    cloud: Sovereign,
    purpose: For,
) -> Result<Option<Token>, IdentityError> {
    let resource = cloud.resource(purpose);
    let application = (variables.get("AZURE_TENANT_ID"), variables.get("AZURE_CLIENT_ID"));
    if let (Some(tenant), Some(client)) = application {
        let proof = if let Some(secret) = variables.secret("AZURE_CLIENT_SECRET") {
            Some(vec![("client_secret", secret)])
        } else if let Some(file) = variables.get("AZURE_FEDERATED_TOKEN_FILE") {
            // Anew each time: it is renewed.
            let token = read(Path::new(&file), "`$AZURE_FEDERATED_TOKEN_FILE`")?;
            let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer".to_owned();
            let assertion = Secret::new(token.reveal().trim().to_owned());
            Some(vec![("client_assertion_type", Secret::new(kind)), ("client_assertion", assertion)])
        } else {
            None
        };
        if let Some(proof) = proof {
            let authority = variables.get("AZURE_AUTHORITY_HOST");
            let authority = authority.as_deref().unwrap_or(cloud.authority());
            let application = Application { tenant: &tenant, client: &client, proof: &proof };
            return of_application(http, authority, &application, resource).await.map(Some);
        }
    }
    of_machine(variables, http, resource).await
}

struct Application<'a> {
    tenant: &'a str,
    client: &'a str,
    proof: &'a [(&'static str, Secret<String>)],
}

async fn of_application(
    http: &Http,
    authority: &str,
    application: &Application<'_>,
    resource: &str,
) -> Result<Token, IdentityError> {
    const SERVICE: &str = "Azure's login (Entra)";
    let Application { tenant, client, proof } = application;
    let url =
        Url::parse(authority).and_then(|authority| authority.join(&format!("/{tenant}/oauth2/v2.0/token")));
    let url = url.map_err(|error| IdentityError::Unusable {
        what: "`$AZURE_AUTHORITY_HOST`".to_owned(),
        problem: error.to_string(),
    })?;
    let scope = format!("{resource}/.default");
    let form = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("grant_type", "client_credentials"), ("client_id", client), ("scope", &scope)])
        .extend_pairs(proof.iter().map(|(key, value)| (*key, value.reveal())))
        .finish();
    let origin = format!("the application `{client}` of Azure");
    let answer = http.ask(SERVICE, |http| {
        let form_type = "application/x-www-form-urlencoded";
        http.post(url.clone()).header("content-type", form_type).body(form.clone())
    });
    let given: Given = answer.await?.granted(SERVICE, &origin)?.json(SERVICE, "a token")?;
    Ok(given.token(origin))
}

/// The managed identity: of a container app or function, where there are variables for it, else of a virtual machine.
async fn of_machine(
    variables: &Variables,
    http: &Http,
    resource: &str,
) -> Result<Option<Token>, IdentityError> {
    const SERVICE: &str = "Azure's metadata service";
    const ORIGIN: &str = "the managed identity of this machine";
    let service = (variables.get("IDENTITY_ENDPOINT"), variables.secret("IDENTITY_HEADER"));
    let (text, version, header) = match service {
        (Some(endpoint), Some(header)) => (endpoint, "2019-08-01", ("x-identity-header", header)),
        _ => {
            let base = variables.get("AZURE_POD_IDENTITY_AUTHORITY_HOST");
            let base = base.as_deref().unwrap_or(MACHINE).trim_end_matches('/').to_owned();
            let text = format!("{base}/metadata/identity/oauth2/token");
            (text, "2018-02-01", ("metadata", Secret::new("true".to_owned())))
        }
    };
    let mut url = Url::parse(&text)
        .map_err(|error| IdentityError::Unusable { what: format!("`{text}`"), problem: error.to_string() })?;
    url.query_pairs_mut().append_pair("api-version", version).append_pair("resource", resource);
    if let Some(client) = variables.get("AZURE_CLIENT_ID") {
        url.query_pairs_mut().append_pair("client_id", &client);
    }
    let (name, value) = header;
    let asked =
        http.ask_near(SERVICE, |client| client.get(url.clone()).header(name, value.reveal().as_str()));
    // Another cloud has another service at this address.
    let Some(answer) = asked.await?.filter(|answer| !matches!(answer.status.as_u16(), 404 | 405)) else {
        return Ok(None);
    };
    let given: Given = answer.granted(SERVICE, ORIGIN)?.json(SERVICE, "a token")?;
    Ok(Some(given.token(ORIGIN.to_owned())))
}

/// Where a registry exchanges tokens: at itself, by TLS.
pub(super) fn registry_url(host: &Host) -> Result<Url, IdentityError> {
    let url = Url::parse(&format!("https://{host}"));
    url.map_err(|error| IdentityError::Unusable { what: format!("`{host}`"), problem: error.to_string() })
}

/// Exchanges a token of the cloud for one that is good at one registry alone.
pub(super) async fn exchange(
    http: &Http,
    at: &Url,
    registry: &str,
    token: &Token,
) -> Result<Issued, IdentityError> {
    const EXPECTED: &str = "a refresh token";
    #[derive(Deserialize)]
    struct Exchanged {
        refresh_token: Secret<String>,
    }
    let mut url = at.clone();
    url.set_path("/oauth2/exchange");
    let form = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs([
            ("grant_type", "access_token"),
            ("service", registry),
            ("access_token", token.value.reveal().as_str()),
        ])
        .finish();
    let answer = http.ask(REGISTRY, |client| {
        let form_type = "application/x-www-form-urlencoded";
        client.post(url.clone()).header("content-type", form_type).body(form.clone())
    });
    let given: Exchanged = answer.await?.granted(REGISTRY, &token.origin)?.json(REGISTRY, EXPECTED)?;
    let valid = end(given.refresh_token.reveal()).map_or(token.valid, super::aws::left);
    let (username, origin) = (TOKEN_USER.to_owned(), token.origin.clone());
    Ok(Issued { username, password: given.refresh_token, valid, origin })
}

/// When a JSON web token ends, as it says itself; nobody else's signature is checked here, since it is ours to use only.
fn end(token: &str) -> Option<i64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    serde_json::from_slice::<Claims>(&claims).ok().map(|claims| claims.exp)
}
