//! Enough of a Kubernetes API server to keep objects: versions, conditions, pages, watches, schemas, and faults to order.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::crds::Definitions;

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is answered with this status, and nothing is done.
    Refuse(u16),
    /// It is done, and the answer is lost.
    LoseAnswer,
}

#[derive(Default)]
struct Kept {
    version: u64,
    /// By collection and name.
    objects: BTreeMap<(String, String), Value>,
    /// What happened, by version.
    events: Vec<(u64, String, Value)>,
    /// Events up to this version are forgotten.
    forgotten: u64,
    /// For the writes to come.
    faults: VecDeque<Fault>,
    /// Collections that are forbidden.
    forbidden: Option<(&'static str, Method)>,
    /// How often that was told.
    told: usize,
    /// Collections of which nothing is answered.
    hanging: Option<(&'static str, Method)>,
}

/// A server, which ends with the runtime of the test.
#[derive(Clone)]
pub(crate) struct ApiServer {
    kept: Arc<Mutex<Kept>>,
    /// The last version, and how often all watches were cut.
    news: Arc<watch::Sender<(u64, u64)>>,
    definitions: Arc<Definitions>,
    pub(crate) address: std::net::SocketAddr,
}

type Answer = Result<Value, (u16, &'static str, String)>;

struct Target {
    collection: String,
    plural: String,
    name: Option<String>,
}

impl Target {
    fn of(uri: &Uri) -> Option<Self> {
        let (before, after) = uri.path().split_once("/namespaces/")?;
        let mut parts = after.split('/');
        let (namespace, plural) = (parts.next()?, parts.next()?);
        let collection = format!("{before}/namespaces/{namespace}/{plural}");
        Some(Self { collection, plural: plural.to_owned(), name: parts.next().map(ToOwned::to_owned) })
    }

    fn refusal(&self, code: u16, reason: &'static str, message: &str) -> Response {
        let details = json!({ "name": self.name.as_deref().unwrap_or_default(), "kind": self.plural });
        let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "details": details, "code": code });
        (StatusCode::from_u16(code).unwrap(), axum::Json(status)).into_response()
    }
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            kept: Arc::default(),
            news: Arc::new(watch::Sender::new((0, 0))),
            definitions: Arc::new(Definitions::load()),
            address: listener.local_addr().unwrap(),
        };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        server
    }

    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::try_from(kube::Config::new(format!("http://{}", self.address).parse().unwrap()))
            .unwrap()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    /// What happens to the next writes.
    pub(crate) fn fail_next_writes(&self, faults: impl IntoIterator<Item = Fault>) {
        self.kept().faults.extend(faults);
    }

    /// Forbids a method on a plural.
    pub(crate) fn forbid(&self, plural: &'static str, method: Method) {
        self.kept().forbidden = Some((plural, method));
    }

    /// How often what is forbidden was asked for.
    pub(crate) fn forbidden(&self) -> usize {
        self.kept().told
    }

    /// Answers nothing to a method on a plural.
    pub(crate) fn hang(&self, plural: &'static str, method: Method) {
        self.kept().hanging = Some((plural, method));
    }

    /// Ends all watches.
    pub(crate) fn cut_watches(&self) {
        self.news.send_modify(|(_, cuts)| *cuts += 1);
    }

    /// Forgets what happened until now: a watch from before is told `410 Gone`.
    pub(crate) fn compact(&self) {
        let mut kept = self.kept();
        kept.forgotten = kept.version;
    }

    fn write(&self, method: &Method, target: &Target, body: &Value) -> Answer {
        let mut kept = self.kept();
        let name =
            target.name.clone().or_else(|| Some(body["metadata"]["name"].as_str()?.to_owned())).unwrap();
        let key = (target.collection.clone(), name);
        let existing = kept.objects.get(&key).cloned();
        let expected = match *method {
            Method::DELETE => &body["preconditions"]["resourceVersion"],
            _ => &body["metadata"]["resourceVersion"],
        };
        match (method, &existing) {
            (&Method::POST, Some(_)) => return Err((409, "AlreadyExists", "already exists".to_owned())),
            (&Method::POST, None) => {}
            (_, None) => return Err((404, "NotFound", "not found".to_owned())),
            (_, Some(existing))
                if *expected != existing["metadata"]["resourceVersion"] && !expected.is_null() =>
            {
                return Err((409, "Conflict", "the object has been modified".to_owned()));
            }
            _ => {}
        }
        kept.version += 1;
        let version = kept.version;
        let mut object = if *method == Method::DELETE { existing.unwrap() } else { body.clone() };
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let event = match *method {
            Method::POST => "ADDED",
            Method::PUT => "MODIFIED",
            _ => "DELETED",
        };
        if event == "DELETED" {
            kept.objects.remove(&key);
        } else {
            kept.objects.insert(key, object.clone());
        }
        let logged = json!({ "type": event, "object": object });
        kept.events.push((version, target.collection.clone(), logged));
        drop(kept);
        self.news.send_modify(|(last, _)| *last = version);
        Ok(object)
    }

    fn list(&self, target: &Target, query: &BTreeMap<String, String>) -> Value {
        let kept = self.kept();
        let is_selected = |object: &Value| {
            query.get("labelSelector").is_none_or(|selector| {
                let (label, value) = selector.split_once('=').unwrap();
                object["metadata"]["labels"][label] == value
            }) && query.get("fieldSelector").is_none_or(|selector| {
                let (field, value) = selector.split_once('=').unwrap();
                object[field] == value
            })
        };
        let after = query.get("continue").map(String::as_str).unwrap_or_default();
        let limit = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let mut found: Vec<(&String, &Value)> = kept
            .objects
            .iter()
            .filter(|((collection, name), _)| *collection == target.collection && name.as_str() > after)
            .map(|((_, name), object)| (name, object))
            .filter(|(_, object)| is_selected(object))
            .take(limit.saturating_add(1))
            .collect();
        let more = found.len() > limit;
        found.truncate(limit);
        let next = if more { found.last().map(|(name, _)| (*name).clone()) } else { None };
        let items: Vec<&Value> = found.into_iter().map(|(_, object)| object).collect();
        json!({ "kind": "List", "apiVersion": "v1", "items": items,
            "metadata": { "resourceVersion": kept.version.to_string(), "continue": next.unwrap_or_default() } })
    }

    /// The events of a collection after a version, for as long as watches are not cut.
    fn watch(&self, target: &Target, query: &BTreeMap<String, String>) -> Response {
        let after: u64 = query["resourceVersion"].parse().unwrap();
        if after < self.kept().forgotten {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 410,
                "status": "Failure", "reason": "Expired", "message": "too old resource version" });
            return Body::from(format!("{}\n", json!({ "type": "ERROR", "object": status }))).into_response();
        }
        let (server, collection, mut news) = (self.clone(), target.collection.clone(), self.news.subscribe());
        let cuts = news.borrow().1;
        let (lines, received) = tokio::sync::mpsc::channel::<Result<Bytes, Infallible>>(1);
        tokio::spawn(async move {
            let mut after = after;
            loop {
                let mut text = String::new();
                for (version, of, event) in &server.kept().events {
                    if *version > after && *of == collection {
                        text.extend([event.to_string(), "\n".to_owned()]);
                    }
                }
                after = news.borrow_and_update().0.max(after);
                if !text.is_empty() && lines.send(Ok(text.into())).await.is_err() {
                    return;
                }
                let moved = tokio::select! {
                    moved = news.wait_for(|(last, now)| *last > after || *now != cuts) => moved.unwrap().1 != cuts,
                    () = lines.closed() => true,
                };
                if moved {
                    return;
                }
            }
        });
        let stream = futures::stream::unfold(received, |mut received| async {
            received.recv().await.map(|line| (line, received))
        });
        Body::from_stream(stream).into_response()
    }

    fn check(&self, target: &Target, body: &Value) -> Result<(), String> {
        let decoded = |value: &Value| {
            let decoded = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or("?"));
            decoded.map(drop).map_err(|error| error.to_string())
        };
        match target.plural.as_str() {
            "secrets" => {
                body["data"].as_object().into_iter().flatten().try_for_each(|(_, value)| decoded(value))
            }
            "leases" => Ok(()),
            plural => self.definitions.check(plural, body),
        }
    }
}

async fn answer(
    State(server): State<ApiServer>,
    method: Method,
    uri: Uri,
    RawQuery(query): RawQuery,
    body: Bytes,
) -> Response {
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
    let Some(target) = Target::of(&uri) else { return StatusCode::NOT_FOUND.into_response() };
    let known = ["apps", "builds", "releases", "users", "secrets", "leases"];
    if !known.contains(&target.plural.as_str()) {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let is_it = |(plural, m): &(&str, Method)| *plural == target.plural && *m == method;
    if server.kept().hanging.as_ref().is_some_and(is_it) {
        std::future::pending::<()>().await;
    }
    if server.kept().forbidden.as_ref().is_some_and(is_it) {
        server.kept().told += 1;
        return target.refusal(403, "Forbidden", "User \"hephy\" cannot do that");
    }
    let answer = match (&method, &target.name) {
        (&Method::GET, None) if query.contains_key("watch") => return server.watch(&target, &query),
        (&Method::GET, None) => Ok(server.list(&target, &query)),
        (&Method::GET, Some(name)) => {
            let found = server.kept().objects.get(&(target.collection.clone(), name.clone())).cloned();
            found.ok_or((404, "NotFound", format!("{name} not found")))
        }
        _ => {
            let fault = server.kept().faults.pop_front();
            if let Some(Fault::Refuse(code)) = fault {
                return target.refusal(code, "InternalError", "try again");
            }
            let body: Value = serde_json::from_slice(&body).unwrap();
            if method != Method::DELETE
                && let Err(wrong) = server.check(&target, &body)
            {
                return target.refusal(422, "Invalid", &wrong);
            }
            let answer = server.write(&method, &target, &body);
            if fault == Some(Fault::LoseAnswer) {
                return target.refusal(500, "InternalError", "who knows");
            }
            answer
        }
    };
    match answer {
        Ok(object) => axum::Json(object).into_response(),
        Err((code, reason, message)) => target.refusal(code, reason, &message),
    }
}
