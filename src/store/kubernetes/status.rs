//! What `kubectl get` shows of an object: derived from its document, read by people alone.

use serde_json::{Map, Value};

use crate::model::{
    App, Build, BuildState, Claim, Kind, Outcome, Plan, PublishedIndex, RefName, Release, ReleaseState, User,
};
use crate::oci::Platform;

/// The longest reason that is shown, in bytes.
const MAX_REASON_BYTES: usize = 300;

/// The status of a document; none where it is not one that this program knows.
pub(super) fn of(kind: Kind, document: &[u8]) -> Option<Value> {
    let fields = match kind {
        Kind::App => app(&serde_json::from_slice(document).ok()?),
        Kind::Build => build(&serde_json::from_slice(document).ok()?),
        Kind::Release => release(&serde_json::from_slice(document).ok()?),
        Kind::User => user(&serde_json::from_slice(document).ok()?),
        Kind::Config => return None,
    };
    let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Some(Value::Object(given.collect::<Map<_, _>>()))
}

type Fields = Vec<(&'static str, Option<Value>)>;

fn text(text: impl Into<String>) -> Value {
    Value::String(text.into())
}

fn app(app: &App) -> Fields {
    let phase = match (app.holder.as_ref().map(|holder| holder.claim), app.current) {
        (Some(Claim::Build(_)), _) => "Building",
        (Some(Claim::Change(_)), _) => "Changing",
        (None, Some(_)) => "Live",
        (None, None) => "New",
    };
    let branch = |name: &str| RefName::branch(name).ok().and_then(|name| app.refs.get(&name));
    let work = app.holder.as_ref().map(|holder| match holder.claim {
        Claim::Build(number) => format!("build {number} by {}", holder.by),
        Claim::Change(release) => format!("{release} by {}", holder.by),
    });
    vec![
        ("phase", Some(text(phase))),
        ("release", app.current.map(|release| text(release.to_string()))),
        ("commit", branch("main").or_else(|| branch("master")).map(|commit| text(commit.short()))),
        ("work", work.map(text)),
    ]
}

fn build(build: &Build) -> Fields {
    let phase = match (&build.outcome, &build.state) {
        (Some(Outcome::Succeeded { .. }), _) => "Succeeded",
        (Some(Outcome::Failed { .. }), _) => "Failed",
        (Some(Outcome::Cancelled { .. }), _) => "Cancelled",
        (None, BuildState::Received(_)) => "Received",
        (None, BuildState::Detected(_)) => "Detected",
        (None, BuildState::Planned(_)) => "Building",
        (None, BuildState::Built { .. }) => "Publishing",
        (None, BuildState::Published { .. }) => "Releasing",
        (None, BuildState::Released { .. }) => "RollingOut",
    };
    let reason = match &build.outcome {
        Some(Outcome::Failed { reason, .. }) => Some(reason.as_str()),
        Some(Outcome::Cancelled { reason, .. }) => Some(reason.sentence()),
        Some(Outcome::Succeeded { .. }) | None => {
            build.cancel.as_ref().map(|cancel| cancel.reason.sentence())
        }
    };
    let release = match (&build.outcome, &build.state) {
        (Some(Outcome::Succeeded { release, .. }), _) | (_, BuildState::Released { release, .. }) => {
            Some(release)
        }
        _ => None,
    };
    vec![
        ("phase", Some(text(phase))),
        ("commit", Some(text(build.commit.short()))),
        ("release", release.map(|release| text(release.to_string()))),
        ("platforms", build.state.plan().map(|plan: &Plan| platforms(plan.platforms.iter()))),
        ("reason", reason.map(|reason| text(cut(reason)))),
    ]
}

fn release(release: &Release) -> Fields {
    let (phase, reason) = match &release.state {
        ReleaseState::Pending => ("Pending", None),
        ReleaseState::Live { .. } => ("Released", None),
        ReleaseState::Failed { reason } => ("Failed", Some(reason)),
    };
    let PublishedIndex { digest, repository, images } = &release.index;
    vec![
        ("phase", Some(text(phase))),
        ("commit", Some(text(release.commit.short()))),
        ("platforms", Some(platforms(images.iter().map(|image| &image.platform)))),
        ("image", Some(text(format!("{repository}@{digest}")))),
        ("reason", reason.map(|reason| text(cut(reason)))),
    ]
}

fn user(user: &User) -> Fields {
    vec![("keys", Some(Value::from(user.keys.len())))]
}

fn platforms<'a>(platforms: impl Iterator<Item = &'a Platform>) -> Value {
    text(platforms.map(ToString::to_string).collect::<Vec<_>>().join(","))
}

fn cut(reason: &str) -> &str {
    let line = reason.lines().next().unwrap_or_default();
    line.get(..line.floor_char_boundary(MAX_REASON_BYTES)).unwrap_or(line)
}
