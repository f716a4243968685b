//! What the router says itself: plain text that names what to do, and nothing about apps that were not asked for.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;

use super::body::ResponseBody;

/// Why a request did not reach an app, or which page was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Page {
    /// The router's own domain.
    Domain { domain: String, port: String },
    /// A name under the domain that is no app's.
    UnknownApp { app: String, domain: String },
    /// A host that is not under the domain.
    UnknownHost { host: String, domain: String, port: String },
    /// No host, or several.
    NoHost,
    /// `CONNECT`.
    NoTunnels,
    /// The app is scaled to nothing.
    NoInstances { app: String },
    /// Every instance refused for as long as was waited.
    Refused { app: String },
    /// The instance closed the connection without answering, or answered what is not HTTP.
    Crashed { app: String },
    /// The client stopped in the middle of its request.
    Abandoned,
    /// The app took too long to begin its answer.
    Late { app: String, seconds: u64 },
}

impl Page {
    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Domain { .. } => StatusCode::OK,
            Self::UnknownApp { .. } | Self::UnknownHost { .. } => StatusCode::NOT_FOUND,
            Self::NoHost => StatusCode::BAD_REQUEST,
            Self::Abandoned => StatusCode::REQUEST_TIMEOUT,
            Self::NoTunnels => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoInstances { .. } | Self::Refused { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Crashed { .. } => StatusCode::BAD_GATEWAY,
            Self::Late { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Domain { domain, port } => format!(
                "This is hephy. Each app answers at its own name:\n\n    http://<app>.{domain}{port}/\n\n\
                 `hephy apps` lists yours.\n"
            ),
            Self::UnknownApp { app, domain } => format!(
                "There is no app `{app}` at {domain}.\n\n\
                 If there should be one, its first `git push deis main` makes it; `hephy apps` lists yours.\n"
            ),
            Self::UnknownHost { host, domain, port } => format!(
                "Nothing is served at `{host}`: apps are at <app>.{domain}{port}.\n\n\
                 Where that name does not resolve, name the app yourself:\n\n    \
                 curl -H 'Host: <app>.{domain}' http://{host}/\n"
            ),
            Self::NoHost => "The request names no host, or more than one.\n".to_owned(),
            Self::NoTunnels => "CONNECT is not for this server.\n".to_owned(),
            Self::Abandoned => "The rest of the request did not come.\n".to_owned(),
            Self::NoInstances { app } => format!(
                "`{app}` has no web process running.\n\n`hephy ps scale web=1 -a {app}` starts one.\n"
            ),
            Self::Refused { app } => format!(
                "`{app}` does not answer at the moment: its web processes refuse connections.\n\n\
                 `hephy logs -a {app}` says why.\n"
            ),
            Self::Crashed { app } => format!(
                "`{app}` ended the connection before it answered.\n\n`hephy logs -a {app}` says why.\n"
            ),
            Self::Late { app, seconds } => format!(
                "`{app}` did not begin to answer in {seconds} seconds.\n\n`hephy logs -a {app}` shows what it did.\n"
            ),
        }
    }

    pub(super) fn response(&self) -> Response<ResponseBody> {
        let text = format!("{}\n", self.text().trim_end());
        let mut response = Response::new(ResponseBody::Page(Full::new(Bytes::from(text))));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(self, Self::Refused { .. }) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if matches!(self, Self::NoTunnels) {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        response
    }
}

/// What of a Host header may be shown: the characters of host names, and not too many of them.
pub(super) fn shown(host: &str) -> String {
    host.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(*c)).take(253).collect()
}
