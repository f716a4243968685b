//! Tokens: got as the registry's challenge says, kept by realm, service and scopes, renewed when refused.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;

use super::advice::Given;
use super::answer::{body, status_error};
use super::call::{Access, Call};
use super::challenge::Challenge;
use super::connections::Protocol;
use super::credentials::{Found, Identity};
use super::host::{HostState, lock};
use super::transport::{ANSWER_LIMIT, same_origin};
use super::{Client, ClientError, Credential};
use crate::model::Secret;
use crate::oci::{Host, Repository};

/// The longest answer of a token server.
const TOKEN_BYTES: u64 = 1024 * 1024;
/// How long a token lives when the server does not say (distribution token specification).
const DEFAULT_LIFE: Duration = Duration::from_mins(1);
/// A token is renewed this long before it ends.
const MARGIN: Duration = Duration::from_secs(10);

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    realm: String,
    service: Option<String>,
    scopes: Vec<String>,
    /// Credentials may differ by path in one registry.
    credential_of: String,
}

#[derive(Debug, Clone)]
pub(super) struct Token {
    value: Secret<String>,
    ends: Instant,
}

/// A header, which token is in it, and whose credentials are behind it.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    value: HeaderValue,
    key: Option<TokenKey>,
    given: Given,
}

impl Authorization {
    pub(super) const fn value(&self) -> &HeaderValue {
        &self.value
    }

    /// What a registry was given with it.
    pub(super) fn given(authorization: Option<&Self>) -> Given {
        authorization.map_or(Given::NotAsked, |authorization| authorization.given.clone())
    }
}

impl TokenKey {
    /// Whether a token for this one is as good as one for `other`.
    fn covers(&self, other: &Self) -> bool {
        let same = self.realm == other.realm
            && self.service == other.service
            && self.credential_of == other.credential_of;
        same && other.scopes.iter().all(|scope| is_covered(&self.scopes, scope))
    }
}

impl Client {
    /// Who we are for a repository.
    pub(super) async fn identity(&self, repository: &Repository) -> Result<Identity, ClientError> {
        let host = || repository.host.clone();
        let found = self.shared.config.credentials.find(repository).await;
        found.map_err(|source| ClientError::Credentials { host: host(), source })
    }

    /// What to send with a first try, from what earlier answers of the registry taught.
    pub(super) async fn authorization(&self, call: &Call<'_>) -> Result<Option<Authorization>, ClientError> {
        let state = self.host_state(&call.repository.host);
        let known = lock(&state.challenge).clone();
        match known {
            Some(challenge) => self.answer(call, &state, &challenge, scopes(call, None)).await,
            None => Ok(None),
        }
    }

    /// What to send after the registry refused a try that was sent with `refused`.
    pub(super) async fn authorization_after(
        &self,
        call: &Call<'_>,
        challenge: Challenge,
        refused: Option<&Authorization>,
    ) -> Result<Option<Authorization>, ClientError> {
        let state = self.host_state(&call.repository.host);
        if let Some(key) = refused.and_then(|refused| refused.key.as_ref()) {
            lock(&state.tokens).remove(key);
        }
        let wanted = match &challenge {
            Challenge::Bearer { scope, .. } => scopes(call, scope.as_deref()),
            Challenge::Basic => Vec::new(),
        };
        *lock(&state.challenge) = Some(challenge.clone());
        let answer = self.answer(call, &state, &challenge, wanted).await?;
        let same = |a: &Authorization| refused.is_some_and(|refused| refused.value == a.value);
        Ok(answer.filter(|answer| !same(answer)))
    }

    async fn answer(
        &self,
        call: &Call<'_>,
        state: &HostState,
        challenge: &Challenge,
        scopes: Vec<String>,
    ) -> Result<Option<Authorization>, ClientError> {
        let identity = self.identity(call.repository).await?;
        let given = identity.given();
        let with = |value: Option<HeaderValue>, key| value.map(|value| Authorization { value, key, given });
        let Challenge::Bearer { realm, service, .. } = challenge else {
            return Ok(with(basic(identity.credential()), None));
        };
        if let Some(Credential::RegistryToken(token)) = identity.credential() {
            return Ok(with(bearer(token), None));
        }
        let credential_of = match &identity {
            Identity::Known(found) => credential_of(found),
            Identity::Anonymous { .. } => String::new(),
        };
        let key = TokenKey { realm: realm.clone(), service: service.clone(), scopes, credential_of };
        let _one_at_a_time = state.exchange.lock().await;
        let known = usable(state, &key);
        let (key, token) = match known {
            Some(known) => known,
            None => {
                let token = self.exchange(call, &key, &identity).await?;
                lock(&state.tokens).insert(key.clone(), token.clone());
                (key, token)
            }
        };
        Ok(with(bearer(&token.value), Some(key)))
    }

    async fn exchange(
        &self,
        call: &Call<'_>,
        key: &TokenKey,
        identity: &Identity,
    ) -> Result<Token, ClientError> {
        let host = &call.repository.host;
        let credential = identity.credential();
        let url = self.realm(host, &self.base(host).await?, &key.realm)?;
        let http = self.shared.connections.to(host, &url, Protocol::Any)?;
        let request = match credential {
            Some(Credential::IdentityToken(token)) => {
                let grant = [("grant_type", "refresh_token"), ("refresh_token", token.reveal().as_str())];
                by_oauth2(&http, &url, key, &grant)
            }
            _ => by_query(&http, &url, key, credential),
        };
        let mut answer = ask(call, &url, request).await?;
        // Some token servers know OAuth2 alone.
        if let (404 | 405, Some(Credential::Basic { username, password })) =
            (answer.status().as_u16(), credential)
        {
            let grant = [
                ("grant_type", "password"),
                ("username", username.as_str()),
                ("password", password.reveal().as_str()),
            ];
            answer = ask(call, &url, by_oauth2(&http, &url, key, &grant)).await?;
        }
        if !answer.status().is_success() {
            answer.extensions_mut().insert(identity.given());
            return Err(status_error(call, answer).await);
        }
        let bytes = body(call, answer, "token", TOKEN_BYTES).await?;
        parse_token(&bytes).ok_or_else(|| call.protocol_error("the token server's answer holds no token"))
    }

    /// The token server, if it is one that may see credentials for `host`.
    fn realm(&self, host: &Host, base: &Url, realm: &str) -> Result<Url, ClientError> {
        let error = |reason| ClientError::Realm { host: host.clone(), realm: realm.to_owned(), reason };
        let url = Url::parse(realm).map_err(|_| error("it is not a URL"))?;
        if same_origin(base, &url) {
            return Ok(url);
        }
        let inner = match url.host() {
            Some(url::Host::Ipv4(ip)) => {
                ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified()
            }
            Some(url::Host::Ipv6(ip)) => {
                ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()
            }
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            None => return Err(error("it has no host")),
        };
        let same_host = base.host_str() == url.host_str();
        match url.scheme() {
            "https" if !inner || same_host => Ok(url),
            "http" if base.scheme() == "http" && (same_host || self.is_insecure(&url)) => Ok(url),
            "https" => Err(error("it is an inner address and not the registry's")),
            _ => Err(error("it is not https")),
        }
    }

    /// Whether somebody said that the host of a URL may be spoken to without TLS.
    fn is_insecure(&self, url: &Url) -> bool {
        let name = url.host_str().unwrap_or_default();
        let text = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        let reach = &self.shared.connections.reach;
        text.parse().is_ok_and(|host| reach.plain.contains(&host) || reach.insecure.contains(&host))
    }
}

/// A question for a token by the distribution token specification: a query, and Basic credentials if there are some.
fn by_query(
    http: &reqwest::Client,
    url: &Url,
    key: &TokenKey,
    credential: Option<&Credential>,
) -> reqwest::RequestBuilder {
    let mut url = url.clone();
    let service = key.service.as_deref().map(|service| ("service", service));
    let scopes = key.scopes.iter().map(|scope| ("scope", scope.as_str()));
    url.query_pairs_mut().extend_pairs(service.into_iter().chain(scopes));
    let request = http.get(url);
    match basic(credential) {
        Some(value) => request.header(AUTHORIZATION, value),
        None => request,
    }
}

/// The same by OAuth2: a form with a grant, the first of whose fields is its type.
fn by_oauth2(
    http: &reqwest::Client,
    url: &Url,
    key: &TokenKey,
    grant: &[(&str, &str)],
) -> reqwest::RequestBuilder {
    let scope = key.scopes.join(" ");
    let (kind, rest) = grant.split_at(grant.len().min(1));
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(key.service.as_deref().map(|service| ("service", service)));
    form.extend_pairs(kind).extend_pairs([("client_id", "hephy"), ("scope", &scope)]).extend_pairs(rest);
    http.post(url.clone())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
        .body(form.finish())
}

async fn ask(
    call: &Call<'_>,
    url: &Url,
    request: reqwest::RequestBuilder,
) -> Result<reqwest::Response, ClientError> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, request.send()).await;
    answer.map_err(|_| call.stalled(ANSWER_LIMIT))?.map_err(|source| {
        if source.is_connect() {
            ClientError::unreachable(&call.repository.host, url, source)
        } else {
            call.broken(source)
        }
    })
}

/// A token that is known and good for `key`.
fn usable(state: &HostState, key: &TokenKey) -> Option<(TokenKey, Token)> {
    let mut tokens = lock(&state.tokens);
    tokens.retain(|_, token| token.ends > Instant::now());
    let exact = tokens.get_key_value(key);
    let found = exact.or_else(|| tokens.iter().find(|(known, _)| known.covers(key)));
    found.map(|(known, token)| (known.clone(), token.clone()))
}

fn credential_of(found: &Found) -> String {
    format!("{} of {}", found.prefix, found.origin)
}

/// Whether one of `scopes` allows all that `scope` would.
fn is_covered(scopes: &[String], scope: &str) -> bool {
    let Some((of, actions)) = scope.rsplit_once(':') else { return false };
    scopes.iter().any(|known| {
        known == scope
            || known.rsplit_once(':').is_some_and(|(known_of, known)| {
                known_of == of
                    && actions.split(',').all(|action| known.split(',').any(|known| known == action))
            })
    })
}

/// The scopes of a call, its own first since some servers honour one only, then what the registry asks for besides.
fn scopes(call: &Call<'_>, asked: Option<&str>) -> Vec<String> {
    let name = &call.repository.name;
    let mut scopes = match call.access {
        Access::Pull => vec![format!("repository:{name}:pull")],
        Access::Push => vec![format!("repository:{name}:pull,push")],
        Access::Mount(from) => {
            vec![format!("repository:{name}:pull,push"), format!("repository:{from}:pull")]
        }
        Access::Delete => vec![format!("repository:{name}:delete")],
    };
    let own = call.repository.name.as_str();
    for scope in asked.unwrap_or_default().split_ascii_whitespace() {
        let of = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':'));
        // A registry that wants more than the call does (another repository, say) is not given it.
        let is_wanted = of.is_none_or(|(of, _)| of == own);
        if is_wanted && !is_covered(&scopes, scope) {
            scopes.push(scope.to_owned());
        }
    }
    scopes
}

fn basic(credential: Option<&Credential>) -> Option<HeaderValue> {
    let Some(Credential::Basic { username, password }) = credential else { return None };
    secret_header(format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.reveal()))))
}

fn bearer(token: &Secret<String>) -> Option<HeaderValue> {
    secret_header(format!("Bearer {}", token.reveal()))
}

fn secret_header(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret<String>>,
    access_token: Option<Secret<String>>,
    expires_in: Option<u64>,
}

fn parse_token(bytes: &[u8]) -> Option<Token> {
    let answer: TokenAnswer = serde_json::from_slice(bytes).ok()?;
    let value = answer.token.filter(|token| !token.reveal().is_empty()).or(answer.access_token)?;
    let life = answer.expires_in.filter(|seconds| *seconds > 0).map_or(DEFAULT_LIFE, Duration::from_secs);
    let life = life.min(Duration::from_hours(1)).saturating_sub(MARGIN);
    (!value.reveal().is_empty()).then(|| Token { value, ends: Instant::now() + life })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::client::ClientConfig;

    #[test]
    fn credentials_go_to_no_inner_or_plain_token_server_of_a_foreign_registry() {
        let client = Client::new(ClientConfig::default());
        let realm = |host: &str, realm: &str| {
            let host: Host = host.parse().unwrap();
            let scheme = if host.is_loopback() { "http" } else { "https" };
            let base = crate::registry::client::transport::base_url(&host, scheme).unwrap();
            client.realm(&host, &base, realm).is_ok()
        };
        assert!(realm("docker.io", "https://auth.docker.io/token"));
        assert!(realm("127.0.0.1:5000", "http://127.0.0.1:5000/token"));
        assert!(realm("10.0.0.1:5000", "https://10.0.0.1:5001/token"));
        for bad in [
            "http://auth.docker.io/token",
            "https://169.254.169.254/latest",
            "https://127.0.0.1/token",
            "https://[::1]/token",
            "https://localhost/token",
            "file:///etc/passwd",
            "token",
        ] {
            assert!(!realm("docker.io", bad), "{bad}");
        }
        assert!(!realm("127.0.0.1:5000", "http://127.0.0.2:5000/token"));
    }

    #[test]
    fn a_registry_that_asks_for_another_repository_is_not_given_it() {
        let repository: Repository = "127.0.0.1:5000/a".parse().unwrap();
        let url = Url::parse("http://127.0.0.1:5000/v2/").unwrap();
        let mut call = Call::new(reqwest::Method::GET, url, &repository, "x");
        let asked = "repository:secret:pull repository:a:pull registry:catalog:*";
        assert_eq!(scopes(&call, Some(asked)), ["repository:a:pull", "registry:catalog:*"]);
        let from = "b".parse().unwrap();
        call.access = Access::Mount(&from);
        assert_eq!(
            scopes(&call, Some("repository:a:push,pull")),
            ["repository:a:pull,push", "repository:b:pull"]
        );
    }

    #[test]
    fn a_token_for_more_serves_for_less_and_not_for_others() {
        let key = |scopes: &[&str], credential_of: &str| TokenKey {
            realm: "r".to_owned(),
            service: None,
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            credential_of: credential_of.to_owned(),
        };
        let push = key(&["repository:a:pull,push", "repository:b:pull"], "ada");
        assert!(push.covers(&key(&["repository:a:pull"], "ada")));
        assert!(push.covers(&key(&["repository:b:pull", "repository:a:push"], "ada")));
        for other in [
            key(&["repository:b:pull,push"], "ada"),
            key(&["repository:aa:pull"], "ada"),
            key(&["repository:a:delete"], "ada"),
            key(&["repository:a:pull"], "bob"),
        ] {
            assert!(!push.covers(&other), "{other:?}");
        }
    }

    #[test]
    fn a_token_is_kept_as_long_as_it_lives_and_not_longer() {
        let token = |text: &str| parse_token(text.as_bytes());
        assert!(token("{}").is_none() && token("[]").is_none() && token(r#"{"token":""}"#).is_none());
        let short = token(r#"{"access_token":"x","expires_in":5}"#).unwrap();
        assert!(short.ends <= Instant::now());
        let long = token(r#"{"token":"x","expires_in":18446744073709551615}"#).unwrap();
        assert!(long.ends <= Instant::now() + Duration::from_hours(1));
    }
}
