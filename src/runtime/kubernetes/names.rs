//! What our objects are called, and what they are marked with.

use std::collections::BTreeMap;

use crate::kubernetes::{Label, managed_by};
use crate::model::{AppName, ProcessType, ReleaseNumber};

/// On a Deployment: its release; on a Service: the release that is current.
pub(super) const RELEASE: &str = "hephy.dev/release";
/// Which process of which server changed the object last, or is at work on the app.
pub(super) const CHANGED_BY: &str = "hephy.dev/changed-by";
/// Until when no other server takes what this one does for what a dead one left behind, unless it says so again.
pub(super) const CHANGING_UNTIL: &str = "hephy.dev/changing-until";
/// The type of the Secrets that hold the environment of a release.
pub(super) const ENVIRONMENT_TYPE: &str = "hephy.dev/environment";
/// The one container of a pod, and the port of it that takes requests.
pub(super) const CONTAINER: &str = "app";
pub(super) const PORT: &str = "http";

/// `hello--web`: a Deployment and its budget.
pub(super) fn deployment(app: &AppName, process_type: &ProcessType) -> String {
    format!("{app}--{process_type}")
}

/// `hello--web`: the Service, Ingress and HTTPRoute of an app.
pub(super) fn service(app: &AppName) -> String {
    deployment(app, &ProcessType::web())
}

/// `hello--v4--env`: no name of another of hephy's Secrets ends so.
pub(super) fn environment(app: &AppName, release: ReleaseNumber) -> String {
    format!("{app}--{release}--env")
}

/// The labels of whatever belongs to a process type of an app.
pub(super) fn labels(app: &AppName, process_type: &ProcessType) -> BTreeMap<String, String> {
    managed_by(&[(Label::App, app.as_str()), (Label::ProcessType, process_type.as_str())])
}

/// Finds what is ours, of one app or of all.
pub(super) fn selector(app: Option<&AppName>) -> String {
    let ours = format!("app.kubernetes.io/managed-by={}", crate::kubernetes::MANAGER);
    match app {
        Some(app) => format!("{ours},{}", Label::App.is(app.as_str())),
        None => format!("{ours},{}", Label::App.key()),
    }
}
