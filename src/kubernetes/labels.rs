//! How our objects are named and marked: <https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/>.

use std::collections::BTreeMap;

/// The group of our own kinds.
pub const API_GROUP: &str = "hephy.dev";

/// The version of our own kinds.
pub const API_VERSION: &str = "v1alpha1";

/// The field manager of what is applied, and the value of `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "hephy";

/// The labels that say what an object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// The app.
    App,
    /// The process type.
    ProcessType,
    /// The release, `v4`.
    Release,
    /// The build's number.
    Build,
    /// The architecture a Job builds for.
    Architecture,
    /// The architecture of the node that a Job runs on: another where nothing of the image is executed.
    Machine,
}

impl Label {
    /// The label's key.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::App => "hephy.dev/app",
            Self::ProcessType => "hephy.dev/process-type",
            Self::Release => "hephy.dev/release",
            Self::Build => "hephy.dev/build",
            Self::Architecture => "hephy.dev/architecture",
            Self::Machine => "hephy.dev/machine",
        }
    }

    /// A selector for objects with this label and value.
    #[must_use]
    pub fn is(self, value: &str) -> String {
        format!("{}={value}", self.key())
    }
}

/// `app.kubernetes.io/managed-by: hephy`, and the labels given.
#[must_use]
pub fn managed_by(labels: &[(Label, &str)]) -> BTreeMap<String, String> {
    let ours = [("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned())];
    let given = labels.iter().map(|(label, value)| (label.key().to_owned(), (*value).to_owned()));
    ours.into_iter().chain(given).collect()
}

/// Where hephy keeps what, so that each may have its own rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces {
    /// The server's own: receivers, host key, Leases.
    pub server: String,
    /// The Jobs of builds.
    pub builds: String,
    /// The apps, and the records of apps, builds, releases and users, which outlive an uninstall.
    pub apps: String,
}
