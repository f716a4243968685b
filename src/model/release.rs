//! Releases: what ran, exactly.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    AppName, BuildNumber, CommitId, Kind, Object, ObjectName, ProcessType, PublishedIndex, ReleaseNumber,
    UserName,
};

/// An index, a config and process types under one number; only its state ever changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The version of this object's format.
    pub format: u32,
    /// Whose release.
    pub app: AppName,
    /// The number, `v4`.
    pub number: ReleaseNumber,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub by: UserName,
    /// What changed, for people: `ada deployed 3f2a1c9`.
    pub summary: String,
    /// The build it came from.
    pub build: BuildNumber,
    /// The commit that was built.
    pub commit: CommitId,
    /// The published image index.
    pub index: PublishedIndex,
    /// Process type to command; `None` runs the image's own command.
    pub processes: BTreeMap<ProcessType, Option<String>>,
    /// How long it may take to become ready, in seconds, where the app says.
    pub ready_timeout_seconds: Option<u64>,
    /// How it went.
    pub state: ReleaseState,
}

/// How a release went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ReleaseState {
    /// Made, and not yet seen to be ready.
    #[serde(serialize_with = "nothing", deserialize_with = "empty")]
    Pending,
    /// It became ready, and was the current one from then on.
    Live {
        /// Since when.
        at: Timestamp,
    },
    /// It never became ready.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Nothing, as an object without fields: every state is an object with one key, which a schema can say.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

fn nothing<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    Empty {}.serialize(serializer)
}

fn empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    Empty::deserialize(deserializer).map(|Empty {}| ())
}

impl Release {
    /// The name of a release's object.
    #[must_use]
    pub fn object_name(app: &AppName, number: ReleaseNumber) -> ObjectName {
        ObjectName::joined(app, &number)
    }
}

impl Object for Release {
    const KIND: Kind = Kind::Release;

    fn name(&self) -> ObjectName {
        Self::object_name(&self.app, self.number)
    }
}
