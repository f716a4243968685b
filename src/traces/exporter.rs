//! Sends spans, some at a time, and drops what it cannot.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Span, otlp, tls};
use crate::config::traces::TraceSettings;
use crate::model::Chain;

/// How many spans wait to be sent; what comes while so many do is dropped.
const QUEUE: usize = 4096;

/// How many spans one request has.
const BATCH: usize = 512;

/// How long is waited for more spans, before those that are there are sent.
const DELAY: Duration = Duration::from_secs(1);

/// How often the same spans are sent before they are dropped.
const ATTEMPTS: u32 = 4;

/// The pause before spans are sent again; twice as long each time.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause, whatever the collector asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// How much of an answer is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Takes spans, to send them. Clones share a queue; the last one that goes ends the sending.
#[derive(Debug, Clone, Default)]
pub struct Exporter {
    queue: Option<mpsc::Sender<Item>>,
    counts: Counts,
}

/// What became of spans.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// The collector has them.
    pub sent: Counter,
    /// Nobody has them.
    pub dropped: Counter,
}

/// Why spans cannot be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The file with the authorities.
    #[error("cannot use the certificates in `{path}` (OTEL_EXPORTER_OTLP_CERTIFICATE): {why}")]
    Certificate {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// TLS.
    #[error("TLS to the collector of traces cannot be set up")]
    Tls(#[source] rustls::Error),
    /// The HTTP client.
    #[error("the HTTP client for traces cannot be made")]
    Http(#[source] reqwest::Error),
}

#[derive(Debug)]
enum Item {
    Span(Box<Span>),
    /// Everything that came before is to be sent now.
    Flush(oneshot::Sender<()>),
}

impl Exporter {
    /// Sends nothing, and counts nothing.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// Sends as `settings` say, from a task of its own. Within a tokio runtime.
    pub fn start(settings: TraceSettings) -> Result<Self, ExporterError> {
        let host = settings.url.host_str().unwrap_or_default();
        let is_here = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        let builder = reqwest::Client::builder()
            .user_agent(concat!("hephy/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .timeout(settings.timeout)
            .tls_backend_preconfigured(tls::configuration(settings.certificate.as_deref())?)
            // The headers are for this collector and for nobody that it names.
            .redirect(reqwest::redirect::Policy::none());
        let builder = if is_here { builder.no_proxy() } else { builder };
        let http = builder.build().map_err(ExporterError::Http)?;
        let (queue, items) = mpsc::channel(QUEUE);
        let counts = Counts::default();
        let sender = Sender { settings, http, items, counts: counts.clone(), is_failing: false };
        // Ends when the last exporter is gone.
        tokio::spawn(sender.run());
        Ok(Self { queue: Some(queue), counts })
    }

    /// Keeps what it is given, for a test to look at.
    #[cfg(test)]
    pub(crate) fn keeping() -> (Self, impl FnMut() -> Vec<Span>) {
        let (queue, mut items) = mpsc::channel(QUEUE);
        let kept = move || {
            std::iter::from_fn(|| items.try_recv().ok())
                .filter_map(|item| match item {
                    Item::Span(span) => Some(*span),
                    Item::Flush(_) => None,
                })
                .collect()
        };
        (Self { queue: Some(queue), counts: Counts::default() }, kept)
    }

    /// Whether anything is sent.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// What became of spans so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Sends a span, or drops it if too many wait. Never waits.
    pub fn send(&self, span: Span) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Item::Span(Box::new(span))).is_err() {
            self.counts.dropped.inc();
        }
    }

    /// Returns when everything that was given before is sent or dropped, or after `at_most`.
    pub async fn flush(&self, at_most: Duration) {
        let Some(queue) = &self.queue else { return };
        let flushed = async {
            let (done, received) = oneshot::channel();
            if queue.send(Item::Flush(done)).await.is_ok() {
                // An error means that the sender is gone, which has then nothing more to send.
                drop(received.await);
            }
        };
        if tokio::time::timeout(at_most, flushed).await.is_err() {
            tracing::warn!(?at_most, "the last traces could not be sent in time");
        }
    }
}

/// Sends what comes from the queue.
struct Sender {
    settings: TraceSettings,
    http: reqwest::Client,
    items: mpsc::Receiver<Item>,
    counts: Counts,
    is_failing: bool,
}

/// Why a request did not bring the spans where they belong.
struct Refused {
    why: String,
    /// When to try again, if it helps to.
    again: Option<Option<Duration>>,
}

impl Sender {
    async fn run(mut self) {
        while let Some(first) = self.items.recv().await {
            let (spans, flushed) = self.gather(first).await;
            if !spans.is_empty() {
                self.deliver(&spans).await;
            }
            for done in flushed {
                let _may_have_stopped_waiting = done.send(());
            }
        }
    }

    /// A batch: what is there, and what comes within a moment.
    async fn gather(&mut self, first: Item) -> (Vec<Span>, Vec<oneshot::Sender<()>>) {
        let (mut spans, mut flushed) = (Vec::new(), Vec::new());
        let until = Instant::now() + DELAY;
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Span(span) => spans.push(*span),
                Item::Flush(done) => flushed.push(done),
            }
            if spans.len() >= BATCH || !flushed.is_empty() {
                break;
            }
            next = tokio::time::timeout_at(until, self.items.recv()).await.ok().flatten();
        }
        (spans, flushed)
    }

    async fn deliver(&mut self, spans: &[Span]) {
        let body = otlp::body(&self.settings.resource, spans).to_string();
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS {
            let Err(refused) = self.post(body.clone(), spans.len()).await else { return };
            if !std::mem::replace(&mut self.is_failing, true) {
                let collector = self.settings.url.host_str().unwrap_or_default();
                tracing::warn!(collector, error = refused.why, "traces cannot be sent");
            }
            let Some(asked) = refused.again.filter(|_| attempt < ATTEMPTS) else { break };
            // Many servers that lost the same collector do not come back at the same moment.
            let jittered = asked.unwrap_or(pause).min(LONGEST_PAUSE).mul_f64(rand::random_range(0.8..1.2));
            tokio::time::sleep(jittered).await;
            pause *= 2;
        }
        self.counts.dropped.inc_by(spans.len() as u64);
    }

    async fn post(&mut self, body: String, spans: usize) -> Result<(), Refused> {
        let request = self
            .http
            .post(self.settings.url.clone())
            .headers(self.settings.headers.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let answer = request.send().await.map_err(|error| {
            // The URL is the operator's own and is in no log.
            let error = error.without_url();
            Refused { why: Chain(&error).to_string(), again: Some(None) }
        })?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Refused {
                why: format!("the collector answers {status}"),
                again: is_passing(status).then(|| retry_after(&answer)),
            });
        }
        if std::mem::replace(&mut self.is_failing, false) {
            tracing::info!("traces are sent again");
        }
        let rejected = self.rejected(answer).await.min(spans as u64);
        self.counts.dropped.inc_by(rejected);
        self.counts.sent.inc_by(spans as u64 - rejected);
        Ok(())
    }

    /// How many spans the collector did not want
    /// (<https://opentelemetry.io/docs/specs/otlp/#partial-success-1>).
    async fn rejected(&self, mut answer: Response) -> u64 {
        let mut text = Vec::new();
        while let Ok(Some(part)) = answer.chunk().await {
            if text.len() + part.len() > MAX_ANSWER_BYTES {
                return 0;
            }
            text.extend_from_slice(&part);
        }
        let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&text) else { return 0 };
        let rejected = &answer["partialSuccess"]["rejectedSpans"];
        // A 64-bit number is a text in this JSON, and some write it as a number.
        let number = rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0);
        if number > 0 {
            let why = answer["partialSuccess"]["errorMessage"].as_str().unwrap_or_default();
            tracing::warn!(number, why, "the collector does not take all spans");
        }
        number
    }
}

/// The answers after which the same is sent again (<https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes>).
const fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// After how long, if the collector says it: in seconds, or as a time.
fn retry_after(answer: &Response) -> Option<Duration> {
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?;
    match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            at.duration_since(Timestamp::now()).try_into().ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::{Request, State};
    use axum::http::HeaderValue;
    use axum::response::IntoResponse;
    use axum::routing::post;
    use serde_json::Value;

    use super::super::{Kind, SpanId, Status, TraceId};
    use super::*;

    /// What a collector is to answer, and what it was sent.
    #[derive(Clone, Default)]
    struct Collector {
        answers: Arc<Mutex<Vec<(u16, &'static str)>>>,
        received: Arc<Mutex<Vec<Received>>>,
    }

    /// A header of ours, and the body.
    type Received = (Option<HeaderValue>, Value);

    impl Collector {
        /// Answers these, the last one first, and then 200.
        async fn start(answers: &[(u16, &'static str)]) -> (Self, TraceSettings) {
            drop(rustls::crypto::ring::default_provider().install_default());
            let this = Self { answers: Arc::new(Mutex::new(answers.to_vec())), ..Self::default() };
            let router = Router::new().route("/v1/traces", post(take)).with_state(this.clone());
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let settings = settings(&format!("http://{}", listener.local_addr().unwrap()));
            tokio::spawn(async move { axum::serve(listener, router).await });
            (this, settings)
        }

        fn names(&self) -> Vec<String> {
            let received = self.received.lock().unwrap();
            let spans = received
                .iter()
                .flat_map(|(_, body)| body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap());
            spans.map(|span| span["name"].as_str().unwrap().to_owned()).collect()
        }
    }

    async fn take(State(collector): State<Collector>, request: Request) -> impl IntoResponse {
        let header = request.headers().get("x-team").cloned();
        assert_eq!(request.headers()[CONTENT_TYPE], "application/json");
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let (status, text) = collector.answers.lock().unwrap().pop().unwrap_or((200, "{}"));
        if status == 200 {
            collector.received.lock().unwrap().push((header, serde_json::from_slice(&body).unwrap()));
        }
        (StatusCode::from_u16(status).unwrap(), [(RETRY_AFTER, "0")], text)
    }

    fn settings(url: &str) -> TraceSettings {
        let variable = |name: &str| (name == "OTEL_EXPORTER_OTLP_HEADERS").then(|| "x-team=a".to_owned());
        TraceSettings::read(Some(&url.parse().unwrap()), "one", variable).unwrap().unwrap()
    }

    fn span(name: &str) -> Span {
        let trace = TraceId::of(&["x"]);
        let (start, end) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
        Span {
            trace,
            id: SpanId::of(trace, name),
            parent: None,
            name: name.to_owned(),
            kind: Kind::Internal,
            start,
            end,
            attributes: Vec::new(),
            events: Vec::new(),
            status: Status::Ok,
        }
    }

    const SOON: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_is_given_is_sent_in_order_with_the_headers() {
        let (collector, settings) = Collector::start(&[]).await;
        let exporter = Exporter::start(settings).unwrap();
        for name in ["a", "b", "c"] {
            exporter.send(span(name));
        }
        exporter.flush(SOON).await;
        assert_eq!(collector.names(), ["a", "b", "c"]);
        assert_eq!((exporter.counts().sent.get(), exporter.counts().dropped.get()), (3, 0));
        let received = collector.received.lock().unwrap();
        assert_eq!(received[0].0.as_ref().unwrap(), "a");
        let resource = &received[0].1["resourceSpans"][0]["resource"]["attributes"];
        assert!(resource.to_string().contains(r#""service.instance.id","value":{"stringValue":"one"}"#));
    }

    #[tokio::test]
    async fn without_a_flush_it_is_sent_after_a_moment() {
        let (collector, settings) = Collector::start(&[]).await;
        let exporter = Exporter::start(settings).unwrap();
        exporter.send(span("a"));
        let sent = async {
            while collector.names().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, sent).await.unwrap();
    }

    #[tokio::test]
    async fn a_collector_that_is_busy_is_asked_again() {
        let (collector, settings) = Collector::start(&[(503, ""), (429, "")]).await;
        let exporter = Exporter::start(settings).unwrap();
        exporter.send(span("a"));
        exporter.flush(SOON).await;
        assert_eq!(collector.names(), ["a"]);
        assert_eq!((exporter.counts().sent.get(), exporter.counts().dropped.get()), (1, 0));
    }

    #[tokio::test]
    async fn what_a_collector_does_not_want_is_counted_and_not_sent_again() {
        let some = r#"{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}"#;
        let (collector, settings) = Collector::start(&[(200, some), (400, "")]).await;
        let exporter = Exporter::start(settings).unwrap();
        exporter.send(span("refused"));
        exporter.flush(SOON).await;
        assert_eq!((exporter.counts().sent.get(), exporter.counts().dropped.get()), (0, 1));
        exporter.send(span("a"));
        exporter.send(span("b"));
        exporter.flush(SOON).await;
        assert_eq!(collector.names(), ["a", "b"]);
        assert_eq!((exporter.counts().sent.get(), exporter.counts().dropped.get()), (1, 2));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_collector_that_does_not_answer_and_what_is_too_much_is_counted() {
        drop(rustls::crypto::ring::default_provider().install_default());
        // Takes connections, and says nothing.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let exporter =
            Exporter::start(settings(&format!("http://{}", silent.local_addr().unwrap()))).unwrap();
        for _ in 0..QUEUE + 1000 {
            exporter.send(span("a"));
        }
        // Nothing was awaited meanwhile, so none is on its way.
        assert_eq!(exporter.counts().dropped.get(), 1000);
        assert_eq!(exporter.counts().sent.get(), 0);
        exporter.flush(Duration::from_millis(10)).await;
    }

    #[tokio::test]
    async fn one_that_is_off_counts_nothing() {
        let exporter = Exporter::off();
        exporter.send(span("a"));
        exporter.flush(SOON).await;
        assert!(!exporter.is_on() && exporter.counts().dropped.get() == 0);
    }
}
