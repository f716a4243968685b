//! Who asks, and whether they may.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use url::form_urlencoded;

use super::refusal::Refusal;
use super::route::Route;
use super::token::{Action, Claims, RepositoryPattern, Scope, now_seconds};
use super::{Ask, Server, json};
use crate::model::Secret;
use crate::oci::{Host, RepositoryName};

const SERVICE: &str = "hephy registry";
/// How long a token lives that was got for another.
const EXCHANGED_LIFE: Duration = Duration::from_mins(5);
/// The largest form that the token server reads.
const FORM_BYTES: usize = 16 * 1024;
/// The most scopes that one token is asked for.
const MAX_SCOPES: usize = 32;

/// Who asks.
#[derive(Debug)]
pub(super) struct Caller {
    claims: Option<Claims>,
    /// Reads without a token, being on this machine.
    local: bool,
    /// How the caller names this registry.
    host: Option<Host>,
}

impl Caller {
    pub(super) fn may(&self, repository: &RepositoryName, action: Action) -> bool {
        let by_token = self.claims.as_ref().is_some_and(|claims| claims.allow(repository, action));
        by_token || (action == Action::Pull && self.local && !is_cache(repository))
    }

    fn user(&self) -> &str {
        self.claims.as_ref().map_or("", |claims| &claims.user)
    }
}

/// A build's cache holds the layers of every stage, also of those that are in no image: its app's alone.
fn is_cache(repository: &RepositoryName) -> bool {
    let mut parts = repository.as_str().split('/');
    parts.next() != Some("mirror") && parts.any(|part| part == "cache")
}

impl Server {
    /// Reads a request's head and refuses what the caller may not do.
    pub(super) fn understand(&self, request: &Request, peer: Option<SocketAddr>) -> Result<Ask, Refusal> {
        let route = Route::parse(request.uri().path())?;
        let headers = request.headers();
        let named = request.uri().authority().map(ToString::to_string);
        let named = named.or_else(|| Some(headers.get(header::HOST)?.to_str().ok()?.to_owned()));
        let host = named.and_then(|text| text.parse::<Host>().ok());
        let from_here = peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback());
        // A page in a browser on this machine reaches us too, under a name of its own (DNS rebinding).
        let as_this_machine = host.as_ref().is_some_and(|host| {
            host.is_loopback()
                || host.without_port().trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
        });
        let local = self.shared.config.anonymous_read_from_loopback && from_here && as_this_machine;
        let mut caller = Caller { claims: None, local, host };
        if let Some(secret) = secret_of(headers) {
            caller.claims = secret.and_then(|secret| self.shared.tokens.verify(secret.reveal()));
            if caller.claims.is_none() {
                let message =
                    "the token is not valid here or has ended: get another with `hephy registry token`";
                return Err(challenge(&caller, &route, None, message));
            }
        }
        let query = request.uri().query().unwrap_or_default();
        let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let ask = Ask { method: request.method().clone(), route, query, headers: headers.clone(), caller };
        permit(&ask)?;
        Ok(ask)
    }

    /// The token server: a token for these scopes, as far as the caller's own allows them.
    pub(super) async fn exchange(&self, ask: &Ask, body: Body) -> Result<Response<Body>, Refusal> {
        let (fields, claims) = match ask.method {
            Method::GET => (ask.query.clone(), ask.caller.claims.clone()),
            Method::POST => {
                let form = axum::body::to_bytes(body, FORM_BYTES).await;
                let form = form.map_err(|_| Refusal::bad("UNSUPPORTED", "the form is too large"))?;
                let fields: Vec<(String, String)> = form_urlencoded::parse(&form).into_owned().collect();
                let secret = fields.iter().find(|(name, _)| name == "password" || name == "refresh_token");
                let claims = secret.and_then(|(_, secret)| self.shared.tokens.verify(secret));
                (fields, claims.or_else(|| ask.caller.claims.clone()))
            }
            _ => return Err(super::not_allowed(ask)),
        };
        if claims.is_none() && !ask.caller.local {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", NEED_TOKEN)
                .with("www-authenticate", format!("Basic realm=\"{SERVICE}\"")));
        }
        let caller = Caller { claims, local: ask.caller.local, host: None };
        let scopes =
            fields.iter().filter(|(name, _)| name == "scope").flat_map(|(_, value)| value.split(' '));
        let granted: Vec<Scope> = scopes.take(MAX_SCOPES).filter_map(|scope| grant(&caller, scope)).collect();
        let own_end = caller.claims.as_ref().map_or(u64::MAX, |claims| claims.ends);
        let ends = own_end.min(now_seconds() + EXCHANGED_LIFE.as_secs());
        let claims = Claims { user: caller.user().to_owned(), scopes: granted, ends };
        let token = self.shared.tokens.sign(&claims);
        let answer = serde_json::json!({
            "token": token.reveal(),
            "access_token": token.reveal(),
            "expires_in": ends.saturating_sub(now_seconds()).max(1),
            "issued_at": jiff::Timestamp::now().to_string(),
        });
        Ok(json(StatusCode::OK, &answer))
    }
}

const NEED_TOKEN: &str =
    "a token is needed: log in as user `hephy` with the output of `hephy registry token` as the password";

/// What of a scope `repository:<name>:<actions>` the caller may have.
fn grant(caller: &Caller, scope: &str) -> Option<Scope> {
    let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    let name: RepositoryName = name.parse().ok()?;
    let wanted = actions.split(',').flat_map(|action| match action {
        "*" => vec![Action::Pull, Action::Push, Action::Delete],
        _ => Action::parse(action).into_iter().collect(),
    });
    let actions = wanted.filter(|action| caller.may(&name, *action)).collect();
    Some(Scope { pattern: RepositoryPattern::Exactly(name), actions })
}

/// What a request needs.
fn permit(ask: &Ask) -> Result<(), Refusal> {
    let reads = matches!(ask.method, Method::GET | Method::HEAD);
    let (name, action) = match &ask.route {
        Route::Token => return Ok(()),
        // Clients learn here how to log in, and ask for it only if they are told to, also those that may read.
        Route::Base if ask.caller.claims.is_some() => return Ok(()),
        Route::Base => return Err(challenge(&ask.caller, &ask.route, None, NEED_TOKEN)),
        Route::Uploads(name) | Route::Upload(name, _) => (name, Action::Push),
        Route::Blob(name, _) | Route::Manifest(name, _) | Route::Tags(name) | Route::Referrers(name, _) => {
            match ask.method {
                _ if reads => (name, Action::Pull),
                Method::DELETE => (name, Action::Delete),
                _ => (name, Action::Push),
            }
        }
    };
    if ask.caller.may(name, action) {
        return Ok(());
    }
    let message = match ask.caller.user() {
        "" => NEED_TOKEN.to_owned(),
        _ => format!("this token does not allow {} in `{name}`", action.as_str()),
    };
    Err(challenge(&ask.caller, &ask.route, Some(action), &message))
}

/// 401, and where to get a token.
fn challenge(caller: &Caller, route: &Route, action: Option<Action>, message: &str) -> Refusal {
    let refusal = Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message);
    if *route == Route::Token {
        return refusal.with("www-authenticate", format!("Basic realm=\"{SERVICE}\""));
    }
    let Some(host) = &caller.host else { return refusal };
    let scope = route.repository().map(|name| {
        let actions = match action {
            Some(Action::Delete) => "delete",
            Some(Action::Push) => "pull,push",
            Some(Action::Pull) | None => "pull",
        };
        format!(",scope=\"repository:{name}:{actions}\"")
    });
    let scope = scope.unwrap_or_default();
    let error = if caller.claims.is_some() { ",error=\"insufficient_scope\"" } else { "" };
    let text = format!("Bearer realm=\"http://{host}/token\",service=\"{SERVICE}\"{scope}{error}");
    refusal.with("www-authenticate", text)
}

/// The secret of an `Authorization` header: `None` without one, `Some(None)` if it is not understood.
#[expect(clippy::option_option, reason = "absent and broken are told apart")]
fn secret_of(headers: &HeaderMap) -> Option<Option<Secret<String>>> {
    let value = headers.get(header::AUTHORIZATION)?;
    let read = || {
        let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(rest.trim().to_owned());
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
        text.split_once(':').map(|(_, password)| password.to_owned())
    };
    Some(read().map(Secret::new))
}

/// The text of a docker `config.json` that holds this token for one registry.
#[must_use]
pub fn docker_config(host: &Host, token: &Secret<String>) -> String {
    let auth = STANDARD.encode(format!("hephy:{}", token.reveal()));
    serde_json::json!({ "auths": { host.as_str(): { "auth": auth } } }).to_string()
}
