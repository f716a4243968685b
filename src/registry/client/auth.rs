//! Tokens: got as the registry's challenge says, kept by realm, service and scopes, renewed when refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::transport::{Access, Call, body, same_origin};
use super::{Client, ClientError, Credential};
use crate::model::Secret;
use crate::oci::{Host, Repository};

/// The longest answer of a token server.
const TOKEN_BYTES: u64 = 1024 * 1024;
/// How long a token lives when the server does not say (distribution token specification).
const DEFAULT_LIFE: Duration = Duration::from_mins(1);
/// A token is renewed this long before it ends.
const MARGIN: Duration = Duration::from_secs(10);

/// What we know of one registry.
#[derive(Debug, Default)]
pub(super) struct HostState {
    challenge: Mutex<Option<Challenge>>,
    tokens: Mutex<HashMap<TokenKey, Token>>,
    /// One exchange at a time: parallel transfers wait for the token of the first.
    exchange: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    realm: String,
    service: Option<String>,
    scopes: Vec<String>,
    /// Credentials may differ by path in one registry.
    credential_of: String,
}

#[derive(Debug, Clone)]
struct Token {
    value: Secret<String>,
    ends: Instant,
}

/// A header, and which token is in it.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    value: HeaderValue,
    key: Option<TokenKey>,
}

impl Authorization {
    pub(super) const fn value(&self) -> &HeaderValue {
        &self.value
    }
}

impl Client {
    fn host_state(&self, host: &Host) -> Arc<HostState> {
        lock(&self.shared.hosts).entry(host.clone()).or_default().clone()
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
        let credential = self.shared.config.credentials.find(call.repository);
        let Challenge::Bearer { realm, service, .. } = challenge else {
            return Ok(basic(credential).map(|value| Authorization { value, key: None }));
        };
        if let Some(Credential::RegistryToken(token)) = credential {
            return Ok(bearer(token).map(|value| Authorization { value, key: None }));
        }
        let credential_of = credential.map_or_else(String::new, |_| call.repository.to_string());
        let key = TokenKey { realm: realm.clone(), service: service.clone(), scopes, credential_of };
        let _one_at_a_time = state.exchange.lock().await;
        let known = lock(&state.tokens).get(&key).cloned();
        let token = match known {
            Some(token) if token.ends > Instant::now() => token,
            _ => {
                let token = self.exchange(call, &key, credential).await?;
                lock(&state.tokens).insert(key.clone(), token.clone());
                token
            }
        };
        Ok(bearer(&token.value).map(|value| Authorization { value, key: Some(key) }))
    }

    async fn exchange(
        &self,
        call: &Call<'_>,
        key: &TokenKey,
        credential: Option<&Credential>,
    ) -> Result<Token, ClientError> {
        let mut url = self.realm(&call.repository.host, &key.realm)?;
        let mut fields: Vec<(&str, &str)> = Vec::new();
        fields.extend(key.service.as_deref().map(|service| ("service", service)));
        let mut headers = HeaderMap::new();
        let joined = key.scopes.join(" ");
        let request = if let Some(Credential::IdentityToken(token)) = credential {
            fields.extend([("grant_type", "refresh_token"), ("client_id", "hephy"), ("scope", &joined)]);
            fields.push(("refresh_token", token.reveal()));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
            self.http(&call.repository.host, &url)?.request(Method::POST, url).body(form)
        } else {
            fields.extend(key.scopes.iter().map(|scope| ("scope", scope.as_str())));
            url.query_pairs_mut().extend_pairs(fields);
            if let Some(value) = basic(credential) {
                headers.insert(AUTHORIZATION, value);
            }
            self.http(&call.repository.host, &url)?.get(url)
        };
        let answer =
            tokio::time::timeout(super::transport::ANSWER_LIMIT, request.headers(headers).send()).await;
        let answer = answer.map_err(|_| call.stalled(super::transport::ANSWER_LIMIT))?;
        let answer = answer.map_err(|source| call.broken(source))?;
        let status = answer.status();
        if !status.is_success() {
            let error = super::transport::status_error(call, answer).await;
            return Err(match error {
                ClientError::Denied { message, .. } => call.denied(message, credential.is_some()),
                other => other,
            });
        }
        let bytes = body(call, answer, "token", TOKEN_BYTES).await?;
        parse_token(&bytes).ok_or_else(|| call.protocol_error("the token server's answer holds no token"))
    }

    /// The token server, if it is one that may see credentials for `host`.
    fn realm(&self, host: &Host, realm: &str) -> Result<Url, ClientError> {
        let base = self.base(host)?;
        let error = |reason| ClientError::Realm { host: host.clone(), realm: realm.to_owned(), reason };
        let url = Url::parse(realm).map_err(|_| error("it is not a URL"))?;
        if same_origin(&base, &url) {
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
            "http" if base.scheme() == "http" && same_host => Ok(url),
            "https" => Err(error("it is an inner address and not the registry's")),
            _ => Err(error("it is not https")),
        }
    }
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
    let own = Repository::clone(call.repository).name;
    for scope in asked.unwrap_or_default().split_ascii_whitespace() {
        let is_ours = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':'));
        let covered = is_ours.is_some_and(|(of, actions)| {
            let ours = scopes.iter().find_map(|known| known.strip_prefix(&format!("repository:{of}:")));
            ours.is_some_and(|ours| {
                actions.split(',').all(|action| ours.split(',').any(|known| known == action))
            })
        });
        // A registry that wants more than the call does (another repository, say) is not given it.
        let wanted = is_ours.is_none_or(|(of, _)| of == own.as_str());
        if wanted && !covered {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::client::ClientConfig;

    #[test]
    fn credentials_go_to_no_inner_or_plain_token_server_of_a_foreign_registry() {
        let client = Client::new(ClientConfig::default());
        let realm = |host: &str, realm: &str| client.realm(&host.parse().unwrap(), realm).is_ok();
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
        let mut call = Call::new(Method::GET, url, &repository, "x");
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
    fn a_token_is_kept_as_long_as_it_lives_and_not_longer() {
        let token = |text: &str| parse_token(text.as_bytes());
        assert!(token("{}").is_none() && token("[]").is_none() && token(r#"{"token":""}"#).is_none());
        let short = token(r#"{"access_token":"x","expires_in":5}"#).unwrap();
        assert!(short.ends <= Instant::now());
        let long = token(r#"{"token":"x","expires_in":18446744073709551615}"#).unwrap();
        assert!(long.ends <= Instant::now() + Duration::from_hours(1));
    }
}
