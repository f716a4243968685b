//! A collector of traces: takes what is sent by OTLP over HTTP, in JSON.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::Value;

/// A span as it was received.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    pub(crate) name: String,
    pub(crate) nanoseconds: (u64, u64),
    pub(crate) attributes: BTreeMap<String, String>,
    /// 0: unset, 1: well, 2: an error.
    pub(crate) status: u64,
}

/// Listens until it is dropped.
pub(crate) struct Collector {
    pub(crate) url: String,
    received: Received,
    _runtime: tokio::runtime::Runtime,
}

type Received = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

impl Collector {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let received = Received::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&received));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { url, received, _runtime: runtime }
    }

    /// What came so far, each span once: what two servers tell of the same is the same.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        let mut spans: Vec<Span> = Vec::new();
        for (_, body) in received.iter() {
            for resource in body["resourceSpans"].as_array().unwrap() {
                for scope in resource["scopeSpans"].as_array().unwrap() {
                    spans.extend(scope["spans"].as_array().unwrap().iter().map(span));
                }
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        spans.retain(|span| seen.insert((span.trace.clone(), span.id.clone())));
        spans
    }

    /// The values of a header in all requests so far.
    pub(crate) fn header(&self, name: &str) -> Vec<String> {
        let received = self.received.lock().unwrap();
        let values = received.iter().filter_map(|(headers, _)| headers.get(name)?.to_str().ok());
        values.map(ToOwned::to_owned).collect()
    }
}

async fn take(State(received): State<Received>, headers: HeaderMap, Json(body): Json<Value>) -> Json<Value> {
    received.lock().unwrap().push((headers, body));
    Json(serde_json::json!({ "partialSuccess": {} }))
}

fn span(value: &Value) -> Span {
    let text = |key: &str| value[key].as_str().unwrap().to_owned();
    let nanoseconds = |key: &str| value[key].as_str().unwrap().parse().unwrap();
    let id = |key: &str, digits| {
        let id = text(key);
        assert!(id.len() == digits && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        id
    };
    let attributes = value["attributes"].as_array().unwrap().iter().map(|attribute| {
        let value = attribute["value"].as_object().unwrap().values().next().unwrap();
        let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        (attribute["key"].as_str().unwrap().to_owned(), value)
    });
    Span {
        trace: id("traceId", 32),
        id: id("spanId", 16),
        parent: value.get("parentSpanId").map(|_| id("parentSpanId", 16)),
        name: text("name"),
        nanoseconds: (nanoseconds("startTimeUnixNano"), nanoseconds("endTimeUnixNano")),
        attributes: attributes.collect(),
        status: value["status"]["code"].as_u64().unwrap_or(0),
    }
}
