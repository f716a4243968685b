//! The definitions of the custom resources: a cluster takes them, and they take what the program writes.

use std::collections::{BTreeMap, BTreeSet};

use hephy::model::{
    App, Build, BuildNumber, BuildState, Cancel, CancelReason, Claim, FORMAT, Fault, Holder, Method, Object,
    Outcome, Plan, PlatformImage, ProcessType, PublishedIndex, PushOptions, Recipe, RefMove, RefName,
    Release, ReleaseNumber, ReleaseState, Source, Step, User, UserKey,
};
use hephy::oci::Digest;
use hephy::store::kubernetes::DEFINITIONS;
use jiff::Timestamp;
use regex::Regex;
use serde_json::{Value, json};

/// The schemas by plural.
pub(crate) struct Definitions(BTreeMap<String, Value>);

impl Definitions {
    pub(crate) fn load() -> Self {
        let documents: Vec<Value> = serde_saphyr::from_multiple(DEFINITIONS).unwrap();
        let schema = |document: Value| {
            let plural = document["spec"]["names"]["plural"].as_str().unwrap().to_owned();
            (plural, document["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
        };
        Self(documents.into_iter().map(schema).collect())
    }

    /// What an API server with strict field validation would say to an object; nothing to say is `Ok`.
    pub(crate) fn check(&self, plural: &str, object: &Value) -> Result<(), String> {
        check(&self.0[plural], object, "")
    }
}

/// Checks `value` against a structural schema.
#[expect(clippy::panic_in_result_fn, reason = "a keyword that is not known here is a fault of the test")]
fn check(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    let wrong = |why: String| Err(format!("{path}: {why}"));
    if value.is_null() && schema["nullable"] == true {
        return Ok(());
    }
    let kind = schema["type"].as_str().unwrap_or_else(|| panic!("{path}: a schema without a type"));
    let fits = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("{path}: type {other}"),
    };
    if !fits {
        return wrong(format!("{value} is no {kind}"));
    }
    let size = match value {
        Value::Object(fields) => fields.len(),
        Value::Array(items) => items.len(),
        Value::String(text) => text.chars().count(),
        _ => 0,
    };
    for (keyword, rule) in schema.as_object().unwrap() {
        let number = rule.as_i64();
        let holds = match keyword.as_str() {
            "minProperties" | "minItems" | "minLength" => size >= usize::try_from(number.unwrap()).unwrap(),
            "maxProperties" | "maxItems" | "maxLength" => size <= usize::try_from(number.unwrap()).unwrap(),
            "minimum" => value.as_i64().unwrap() >= number.unwrap(),
            "maximum" => value.as_i64().unwrap() <= number.unwrap(),
            "pattern" => Regex::new(rule.as_str().unwrap()).unwrap().is_match(value.as_str().unwrap()),
            "enum" => rule.as_array().unwrap().contains(value),
            "format" => match rule.as_str().unwrap() {
                "date-time" => value.as_str().unwrap().parse::<Timestamp>().is_ok(),
                "int64" => value.is_i64(),
                other => panic!("{path}: format {other}"),
            },
            "required" => {
                rule.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some())
            }
            "type"
            | "description"
            | "nullable"
            | "properties"
            | "additionalProperties"
            | "items"
            | "x-kubernetes-map-type" => true,
            other => panic!("{path}: keyword {other}"),
        };
        if !holds {
            return wrong(format!("{value} breaks {keyword}: {rule}"));
        }
    }
    check_inside(schema, value, path)
}

fn check_inside(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    for item in value.as_array().into_iter().flatten() {
        check(&schema["items"], item, &format!("{path}[]"))?;
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            // The API server knows what metadata is.
            _ if path == ".metadata" => {}
            (None, Value::Null) => return Err(format!("{path}: unknown field")),
            (Some(schema), _) | (None, schema) => check(schema, field, &path)?,
        }
    }
    Ok(())
}

fn at() -> Timestamp {
    "2026-11-21T21:25:41.123456789Z".parse().unwrap()
}

fn source() -> Source {
    let commit = "3f2a1c93f2a1c93f2a1c93f2a1c93f2a1c93f2a1".parse().unwrap();
    Source { app: "hello".parse().unwrap(), build: BuildNumber(7), commit, committed_at: at() }
}

fn plan() -> Plan {
    let recipe = Recipe {
        source: source(),
        method: Method::Dockerfile {
            path: "Dockerfile".to_owned(),
            context: ".".to_owned(),
            target: Some("web".to_owned()),
            args: vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), String::new())],
        },
        reason: "Dockerfile found".to_owned(),
        processes: BTreeMap::from([(ProcessType::web(), "run".to_owned())]),
        platforms: vec!["linux/arm/v7".parse().unwrap()],
        build_timeout_seconds: Some(600),
        ready_timeout_seconds: None,
        require_native_nodes: false,
    };
    let platform = |text: &str| text.parse().unwrap();
    Plan {
        recipe,
        platforms: vec![platform("linux/amd64"), platform("linux/arm64")],
        machines: BTreeMap::from([(platform("linux/arm64"), platform("linux/amd64"))]),
        no_cache: true,
    }
}

fn images() -> Vec<PlatformImage> {
    let steps = vec![Step { text: "COPY . /app".to_owned(), line: 3, cached: false, milliseconds: 120 }];
    vec![PlatformImage {
        platform: "linux/amd64".parse().unwrap(),
        manifest: Digest::of(b"manifest"),
        size_bytes: 5_000_000_000,
        layers: 3,
        new_layers: 1,
        steps,
    }]
}

fn index() -> PublishedIndex {
    PublishedIndex { digest: Digest::of(b"index"), repository: "hello".to_owned(), images: images() }
}

/// The state that every build begins with.
pub(crate) fn build_state() -> BuildState {
    BuildState::Received(source())
}

pub(crate) fn build(state: BuildState) -> Build {
    Build {
        format: FORMAT,
        app: "hello".parse().unwrap(),
        number: BuildNumber(7),
        commit: source().commit,
        moves: Vec::new(),
        by: "ada".parse().unwrap(),
        created_at: at(),
        options: PushOptions::default(),
        state,
        cancel: None,
        outcome: None,
    }
}

fn builds() -> Vec<Build> {
    let minimal_recipe = Recipe {
        method: Method::Dockerfile {
            path: "Dockerfile".to_owned(),
            context: ".".to_owned(),
            target: None,
            args: Vec::new(),
        },
        processes: BTreeMap::new(),
        platforms: Vec::new(),
        build_timeout_seconds: None,
        ..plan().recipe
    };
    let early = Source { committed_at: Timestamp::MIN, ..source() };
    let mut builds: Vec<Build> = [
        BuildState::Received(source()),
        BuildState::Received(early),
        BuildState::Detected(minimal_recipe),
        BuildState::Planned(plan()),
        BuildState::Built { plan: plan(), images: images() },
        BuildState::Published { plan: plan(), index: index() },
        BuildState::Released { plan: plan(), release: ReleaseNumber(4) },
    ]
    .map(build)
    .into();
    let old = Some(source().commit);
    let moved = RefMove { name: RefName::branch("main").unwrap(), old, new: None };
    let outcomes = [
        Outcome::Succeeded { at: at(), release: ReleaseNumber(4) },
        Outcome::Failed { at: at(), fault: Fault::App, reason: "exit status 2".to_owned() },
        Outcome::Failed { at: at(), fault: Fault::Platform, reason: String::new() },
    ];
    let reasons =
        [CancelReason::Superseded, CancelReason::ClientGone, CancelReason::Timeout, CancelReason::Requested];
    let cancelled = reasons.map(|reason| Outcome::Cancelled { at: at(), reason });
    for outcome in outcomes.into_iter().chain(cancelled) {
        let cancel = match &outcome {
            Outcome::Cancelled { reason, .. } => Some(Cancel { reason: *reason, by: "ada".parse().unwrap() }),
            _ => None,
        };
        let last = build(BuildState::Released { plan: plan(), release: ReleaseNumber(4) });
        builds.push(Build { moves: vec![moved.clone()], cancel, outcome: Some(outcome), ..last });
    }
    builds
}

fn apps() -> Vec<App> {
    let minimal = App::new("a".parse().unwrap(), "ada".parse().unwrap(), at());
    let holder = |claim| Some(Holder { claim, by: "ada".parse().unwrap(), since: at() });
    let full = App {
        name: "a".repeat(30).parse().unwrap(),
        collaborators: BTreeSet::from(["bob".parse().unwrap()]),
        refs: BTreeMap::from([(RefName::branch("main").unwrap(), source().commit)]),
        shallow: BTreeSet::from([source().commit]),
        packs: Some(Digest::of(b"packs")),
        current: Some(ReleaseNumber(4)),
        last_build: 7,
        last_release: 5,
        holder: holder(Claim::Build(BuildNumber(7))),
        scale: BTreeMap::from([(ProcessType::web(), u32::MAX)]),
        ..minimal.clone()
    };
    let changing = App { holder: holder(Claim::Change(ReleaseNumber(6))), ..full.clone() };
    vec![minimal, full, changing]
}

fn releases() -> Vec<Release> {
    let states = [
        ReleaseState::Pending,
        ReleaseState::Live { at: at() },
        ReleaseState::Failed { reason: "exit status 1".to_owned() },
    ];
    let release = |state| Release {
        format: FORMAT,
        app: "hello".parse().unwrap(),
        number: ReleaseNumber(4),
        created_at: at(),
        by: "ada".parse().unwrap(),
        summary: "ada deployed 3f2a1c9".to_owned(),
        build: BuildNumber(7),
        commit: source().commit,
        index: index(),
        processes: BTreeMap::from([(ProcessType::web(), None), (ProcessType::run(), Some("x".to_owned()))]),
        ready_timeout_seconds: Some(5),
        state,
    };
    states.map(release).into()
}

fn users() -> Vec<User> {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1bRCnNY0TBFVaPOhJ0ZwPFTDZwN0ZxTs0cYm7S7l4p";
    let user = User {
        format: FORMAT,
        name: "ada".parse().unwrap(),
        admin: true,
        created_at: at(),
        keys: vec![UserKey { name: "ada@home".to_owned(), key: key.parse().unwrap(), added_at: at() }],
    };
    vec![User { keys: Vec::new(), admin: false, ..user.clone() }, user]
}

/// The object that holds a document, as far as a schema sees it.
fn resource(spec: &impl Object) -> Value {
    json!({ "apiVersion": "hephy.dev/v1alpha1", "kind": "x", "metadata": { "name": "x" }, "spec": spec })
}

/// Every kind of object in every state.
pub(crate) fn resources() -> Vec<(&'static str, Value)> {
    let mut all = Vec::new();
    all.extend(apps().iter().map(|object| ("apps", resource(object))));
    all.extend(builds().iter().map(|object| ("builds", resource(object))));
    all.extend(releases().iter().map(|object| ("releases", resource(object))));
    all.extend(users().iter().map(|object| ("users", resource(object))));
    all
}

#[test]
fn every_object_that_the_program_writes_is_allowed() {
    let definitions = Definitions::load();
    for (plural, object) in resources() {
        definitions.check(plural, &object).unwrap_or_else(|wrong| panic!("{plural}: {wrong} in {object:#}"));
    }
}

#[test]
fn what_the_program_would_refuse_is_refused() {
    let definitions = Definitions::load();
    let refused = |plural: &str, pointer: &str, value: Value| {
        let object = resources().into_iter().rfind(|(kind, _)| *kind == plural).unwrap().1;
        let mut changed = object.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = changed.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Value::Null => parent.remove(field),
            value => parent.insert(field.to_owned(), value),
        };
        assert_ne!(changed, object);
        assert!(definitions.check(plural, &changed).is_err(), "{plural} with {pointer}: {changed}");
        let spec = changed["spec"].to_string();
        let parsed = match plural {
            "apps" => serde_json::from_str::<App>(&spec).map(drop),
            "builds" => serde_json::from_str::<Build>(&spec).map(drop),
            "releases" => serde_json::from_str::<Release>(&spec).map(drop),
            _ => serde_json::from_str::<User>(&spec).map(drop),
        };
        assert!(parsed.is_err(), "the program takes {plural} with {pointer}");
    };
    refused("apps", "/spec/name", json!("a--b"));
    refused("apps", "/spec/owner", Value::Null);
    refused("apps", "/spec/future", json!(1));
    refused("apps", "/spec/refs/refs~1heads~1main", json!("main"));
    refused("apps", "/spec/holder", json!({ "claim": {}, "by": "ada", "since": at() }));
    refused("builds", "/spec/state", json!("received"));
    refused("builds", "/spec/cancel", json!({ "reason": "whim", "by": "ada" }));
    refused("releases", "/spec/state", json!("pending"));
    refused("releases", "/spec/commit", json!("3F2A1C9"));
    refused("users", "/spec/name", json!("Ada"));
    refused("users", "/spec/admin", json!("yes"));
}

#[test]
fn definitions_are_kept_when_the_chart_is_removed_and_found_by_short_names() {
    let documents: Vec<Value> = serde_saphyr::from_multiple(DEFINITIONS).unwrap();
    let kinds: Vec<&str> = documents.iter().map(|d| d["spec"]["names"]["plural"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["apps", "builds", "releases", "users"]);
    for document in documents {
        assert_eq!(document["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        assert_eq!(document["spec"]["names"]["categories"], json!(["hephy"]));
        assert!(!document["spec"]["names"]["shortNames"].as_array().unwrap().is_empty());
        let versions = document["spec"]["versions"].as_array().unwrap();
        assert_eq!((versions.len(), &versions[0]["name"]), (1, &json!("v1alpha1")));
        // The status is written together with the spec.
        assert_eq!(versions[0]["subresources"], Value::Null);
        assert_eq!(
            versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-map-type"],
            "atomic"
        );
    }
}
