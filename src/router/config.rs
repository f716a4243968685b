//! What the router is told: its domain and its limits.

use std::sync::Arc;
use std::time::Duration;

/// The router's settings; [`RouterConfig::new`] gives every limit its default.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// Apps are at `<app>.<domain>`.
    pub domain: String,
    /// Whether the `X-Forwarded-*` headers of a request are believed and added to: true only where every client
    /// is another proxy. Otherwise they are replaced.
    pub trust_forwarded: bool,
    /// How many client connections are served at once; more wait to be accepted.
    pub max_connections: usize,
    /// The longest request line and header block.
    pub max_header_bytes: u32,
    /// How long a request's header block may take, and an idle connection waits for the next request.
    pub header_timeout: Duration,
    /// How long a client may send nothing in the middle of a request's body.
    pub body_timeout: Duration,
    /// How long a connection (a stream of events, a WebSocket) may carry nothing either way.
    pub idle_timeout: Duration,
    /// How long a request waits for an instance while all of them refuse, as they do while one restarts.
    pub instance_wait: Duration,
    /// How long connecting to one instance may take.
    pub connect_timeout: Duration,
    /// How long an app may take to begin its response.
    pub response_timeout: Duration,
    /// How long requests in flight may take to end once the router shuts down.
    pub drain: Duration,
    /// What clients are spoken to over TLS with; plainly where there is none.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

impl RouterConfig {
    /// The settings for apps at `<app>.<domain>`.
    #[must_use]
    pub fn new(domain: &str) -> Self {
        Self {
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            trust_forwarded: false,
            max_connections: 8192,
            max_header_bytes: 64 * 1024,
            header_timeout: Duration::from_mins(1),
            body_timeout: Duration::from_mins(1),
            idle_timeout: Duration::from_hours(1),
            instance_wait: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_mins(5),
            drain: Duration::from_secs(30),
            tls: None,
        }
    }
}
