//! From a request to a response: which app, which instance, and what to do when one does not answer.

use std::net::IpAddr;

use http::header::{HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{Extensions, HeaderMap, Method, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::body::{self, RequestBody, ResponseBody};
use super::config::RouterConfig;
use super::headers::{self, Origin};
use super::host::{self, Host};
use super::instance::Lease;
use super::pages::{self, Page};
use super::send::{self, Over, Patience, Unanswered};
use super::table::{Picked, RouteTable};
use super::tunnel;

/// Connections that may break under one request before its client is told.
const MAX_BROKEN: usize = 3;

/// What every connection shares.
pub(super) struct Proxy {
    pub(super) table: RouteTable,
    pub(super) config: RouterConfig,
    /// Cuts the tunnels when the router is done.
    pub(super) cut: CancellationToken,
}

/// A request without a body that can be written again.
#[derive(Clone)]
struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Head {
    fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        request.method_mut().clone_from(&self.method);
        request.uri_mut().clone_from(&self.uri);
        request.headers_mut().clone_from(&self.headers);
        request
    }
}

impl Proxy {
    /// The response to `request` of `client`: an app's, or a page of the router's own.
    pub(super) async fn respond(&self, request: Request<Incoming>, client: IpAddr) -> Response<ResponseBody> {
        match self.forward(request, client).await {
            Ok(response) => response,
            Err(page) => page.response(),
        }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        client: IpAddr,
    ) -> Result<Response<ResponseBody>, Page> {
        if request.method() == Method::CONNECT {
            return Err(Page::NoTunnels);
        }
        let host = named_host(&request).ok_or(Page::NoHost)?;
        let app = self.app(host.to_str().map_err(|_| Page::NoHost)?)?;
        let (parts, body) = request.into_parts();
        let mut extensions = parts.extensions;
        let mut headers = parts.headers;
        let protocol = headers::upgrade(&headers).filter(|_| parts.version == Version::HTTP_11);
        headers::remove_hop_by_hop(&mut headers);
        headers::join_cookies(&mut headers);
        let port = host.to_str().map_or("", host::port).trim_start_matches(':');
        let (scheme, usual) = if self.config.tls.is_some() { ("https", "443") } else { ("http", "80") };
        let port = if port.is_empty() { usual } else { port };
        let trust_forwarded = self.config.trust_forwarded;
        let id = headers::describe_origin(
            &mut headers,
            &Origin { client, host: &host, scheme, port, trust_forwarded },
        );
        headers.insert(HOST, host);
        if let Some(protocol) = &protocol {
            headers::set_upgrade(&mut headers, protocol.clone());
        }
        let head = Head { method: parts.method, uri: origin_form(&parts.uri), headers };
        let body = RequestBody::new(body, self.config.body_timeout);
        debug!(app, id, method = %head.method, "request");
        let (lease, response) = self.send(&app, &head, body, protocol.is_some()).await?;
        let mut response = self.relay(&app, lease, response, &mut extensions)?;
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().entry(headers::REQUEST_ID).or_insert(id);
        }
        Ok(response)
    }

    fn app(&self, host: &str) -> Result<String, Page> {
        let domain = self.config.domain.clone();
        match host::of(host, &domain) {
            Host::App(app) => Ok(app),
            Host::Domain => Err(Page::Domain { domain, port: host::port(host).to_owned() }),
            Host::Other => {
                let port = host::port(host).to_owned();
                Err(Page::UnknownHost { host: pages::shown(host), domain, port })
            }
        }
    }

    /// Sends to one instance after another until one answers, as far as sending again is safe.
    async fn send(
        &self,
        app: &str,
        head: &Head,
        body: RequestBody,
        upgrades: bool,
    ) -> Result<(Lease, Response<Incoming>), Page> {
        let deadline = Instant::now() + self.config.instance_wait;
        let patience =
            Patience { connect: self.config.connect_timeout, response: self.config.response_timeout };
        let repeatable = headers::is_repeatable(&head.method) && body.is_empty() && !upgrades;
        let mut over = if repeatable { Over::Any } else { Over::Fresh };
        let mut request = head.request(body);
        let mut broken = 0;
        loop {
            let lease = self.lease(app, deadline).await?;
            match send::send(lease.instance(), request, over, patience).await {
                Ok(response) => return Ok((lease, response)),
                Err(Unanswered::Unsent { request: unsent, refused }) => {
                    broken += usize::from(!refused);
                    if broken > MAX_BROKEN {
                        return Err(Page::Refused { app: app.to_owned() });
                    }
                    request = *unsent;
                }
                // Kept connections die of old age just when they are used. A fresh one that breaks is the app's doing.
                Err(Unanswered::Sent { kept_connection: true, .. }) if repeatable => {
                    request = head.request(RequestBody::Empty);
                }
                Err(Unanswered::Sent { error, .. }) if body::is_abandoned(&error) => {
                    return Err(Page::Abandoned);
                }
                Err(Unanswered::Sent { error, .. }) => {
                    warn!(%error, instance = lease.instance().backend.id(), "an instance ended a request unanswered");
                    return Err(Page::Crashed { app: app.to_owned() });
                }
                Err(Unanswered::Late) => {
                    let seconds = patience.response.as_secs();
                    return Err(Page::Late { app: app.to_owned(), seconds });
                }
            }
            over = Over::Fresh;
        }
    }

    /// An instance of `app`, waiting until `deadline` while all refuse.
    async fn lease(&self, app: &str, deadline: Instant) -> Result<Lease, Page> {
        loop {
            let mut changes = self.table.changes();
            let until = match self.table.pick(app) {
                Picked::Lease(lease) => return Ok(lease),
                Picked::Empty => return Err(Page::NoInstances { app: app.to_owned() }),
                Picked::Unknown => {
                    let domain = self.config.domain.clone();
                    return Err(Page::UnknownApp { app: pages::shown(app), domain });
                }
                Picked::Ejected(until) => until,
            };
            if until > deadline {
                return Err(Page::Refused { app: app.to_owned() });
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// The app's response for the client: its body streams through, or a tunnel takes its place.
    fn relay(
        &self,
        app: &str,
        lease: Lease,
        mut response: Response<Incoming>,
        client: &mut Extensions,
    ) -> Result<Response<ResponseBody>, Page> {
        let protocol = headers::upgrade(response.headers());
        headers::remove_hop_by_hop(response.headers_mut());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (mut parts, incoming) = response.into_parts();
            parts.version = Version::default();
            parts.extensions = Extensions::new();
            return Ok(Response::from_parts(parts, ResponseBody::App { incoming, _lease: lease }));
        }
        let (Some(protocol), Some(client)) = (protocol, client.remove::<OnUpgrade>()) else {
            return Err(Page::Crashed { app: app.to_owned() });
        };
        let upgraded = hyper::upgrade::on(&mut response);
        tunnel::open(client, upgraded, lease, self.config.idle_timeout, self.cut.child_token());
        let mut answer = Page::NoTunnels.response();
        *answer.body_mut() = ResponseBody::Page(http_body_util::Full::default());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        headers::set_upgrade(answer.headers_mut(), protocol);
        Ok(answer)
    }
}

/// The one host that a request names: in its target, else in its one Host header.
fn named_host<B>(request: &Request<B>) -> Option<HeaderValue> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return None;
    }
    match request.uri().authority() {
        Some(authority) if authority.as_str().contains('@') => None,
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => first.filter(|host| !host.is_empty()).cloned(),
    }
}

/// The target as an origin server is asked for it: path and query.
fn origin_form(uri: &Uri) -> Uri {
    let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::from(target)
}
