//! Which headers end at the router, and which it writes.

use std::net::IpAddr;

use http::header::{
    CONNECTION, COOKIE, EXPECT, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method};

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// The name of the header that follows one request through every log.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;

/// RFC 9110 §7.6.1, and what was never standard but is sent.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes what is about this connection and no further, and what the `Connection` header adds to that.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_options(headers)
        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
        // Of whom the request is and how long it is no client decides by naming it here.
        .filter(|name| !matches!(name.as_str(), "host" | "content-length" | "cookie" | "authorization"))
        .collect();
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")));
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// The protocol that a request or a response asks to change to on this connection, if the router carries it.
///
/// `h2c` is not carried: behind it requests would pass that the router never saw.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE).filter(|_| asked)?;
    let text = protocol.to_str().ok()?;
    (!text.split(',').any(|p| p.trim().to_ascii_lowercase().starts_with("h2c"))).then(|| protocol.clone())
}

/// Puts the change of protocol back, which is hop by hop, for the next hop.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// What an app is told of where a request came from.
pub(super) struct Origin<'a> {
    pub(super) client: IpAddr,
    pub(super) host: &'a HeaderValue,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// The port that the client named, or else the scheme's own.
    pub(super) port: &'a str,
    pub(super) trust_forwarded: bool,
}

/// Writes the `X-Forwarded-*` headers and the request's id; returns the id.
pub(super) fn describe_origin(headers: &mut HeaderMap, origin: &Origin<'_>) -> String {
    headers.remove("proxy");
    headers.remove(EXPECT);
    if !origin.trust_forwarded {
        for name in [FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PORT, FORWARDED_PROTO, REAL_IP] {
            headers.remove(name);
        }
    }
    let earlier = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let mut hops: Vec<String> = earlier.map(str::to_owned).collect();
    hops.push(origin.client.to_canonical().to_string());
    if let Ok(value) = HeaderValue::from_str(&hops.join(", ")) {
        headers.insert(FORWARDED_FOR, value);
    }
    headers.entry(FORWARDED_HOST).or_insert_with(|| origin.host.clone());
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(origin.scheme));
    if let Ok(port) = HeaderValue::from_str(origin.port) {
        headers.entry(FORWARDED_PORT).or_insert(port);
    }
    request_id(headers)
}

fn request_id(headers: &mut HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+/=:".contains(&b);
        !id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES && id.bytes().all(plain)
    });
    let id = given.map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned);
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    id
}

/// Joins the `Cookie` headers that HTTP/2 allows to be several (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Whether a request may be sent a second time without harm when its first connection broke unanswered.
pub(super) fn is_repeatable(method: &Method) -> bool {
    method.is_idempotent()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_end_here() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Secret"),
            ("connection", "Host, content-length"),
            ("keep-alive", "5"),
            ("x-secret", "1"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AA"),
            ("host", "a.localhost"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(left, ["accept: */*", "host: a.localhost", "te: trailers"]);
    }

    #[test]
    fn an_upgrade_needs_both_headers_and_is_never_to_h2c() {
        assert_eq!(
            upgrade(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).unwrap(),
            "websocket"
        );
        assert_eq!(upgrade(&map(&[("upgrade", "websocket")])), None);
        assert_eq!(upgrade(&map(&[("connection", "upgrade")])), None);
        assert_eq!(upgrade(&map(&[("connection", "upgrade"), ("upgrade", "websocket, H2C")])), None);
    }

    fn described(mut headers: HeaderMap, trust_forwarded: bool) -> HeaderMap {
        let host = HeaderValue::from_static("a.localhost:8080");
        let client = "::ffff:192.0.2.7".parse().unwrap();
        describe_origin(
            &mut headers,
            &Origin { client, host: &host, scheme: "http", port: "8080", trust_forwarded },
        );
        headers
    }

    #[test]
    fn what_a_client_says_of_its_origin_is_replaced() {
        let headers = described(
            map(&[
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-real-ip", "10.0.0.1"),
                ("proxy", "evil"),
            ]),
            false,
        );
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "a.localhost:8080");
        assert_eq!(headers["x-forwarded-port"], "8080");
        assert!(!headers.contains_key("x-real-ip") && !headers.contains_key("proxy"));
    }

    #[test]
    fn what_a_trusted_proxy_says_is_added_to() {
        let headers = described(
            map(&[
                ("x-forwarded-for", "203.0.113.9"),
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-proto", "https"),
            ]),
            true,
        );
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9, 10.0.0.1, 192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn a_plain_request_id_is_kept_and_any_other_replaced() {
        assert_eq!(described(map(&[("x-request-id", "abc-1")]), false)["x-request-id"], "abc-1");
        let made = described(map(&[("x-request-id", "a b")]), false);
        assert_eq!(made["x-request-id"].len(), 32);
    }
}
