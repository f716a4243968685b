//! Builds: what a push has become so far.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    AppName, BuildNumber, CommitId, Kind, Object, ObjectName, Plan, PlatformImage, PublishedIndex, Recipe,
    RefName, ReleaseNumber, Source, UserName,
};

/// One attempt to turn a commit into a running release.
///
/// The value reached is written before the next step begins, so that whoever finds the build can go on from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// The version of this object's format.
    pub format: u32,
    /// Whose build.
    pub app: AppName,
    /// The number, `#17`.
    pub number: BuildNumber,
    /// The commit that is built.
    pub commit: CommitId,
    /// The refs that move when the rollout succeeds; none for a deploy of what is there.
    pub moves: Vec<RefMove>,
    /// Who pushed.
    pub by: UserName,
    /// When.
    pub created_at: Timestamp,
    /// What the pusher asked for.
    pub options: PushOptions,
    /// The value reached.
    pub state: BuildState,
    /// Somebody wants it stopped.
    pub cancel: Option<Cancel>,
    /// How it ended, once it has.
    pub outcome: Option<Outcome>,
}

/// A ref that moves from one object to another, or appears, or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefMove {
    /// Which.
    pub name: RefName,
    /// What it named when the push was received.
    pub old: Option<CommitId>,
    /// What it is to name.
    pub new: Option<CommitId>,
}

/// What `git push -o …` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PushOptions {
    /// Answer once the source is stored, and go on alone.
    pub detach: bool,
    /// Queue behind a running build.
    pub wait: bool,
    /// Cancel a running build.
    pub supersede: bool,
    /// Leave the cache aside.
    pub no_cache: bool,
    /// Let the other platforms finish when one fails, for their steps and digests.
    pub keep_going: bool,
}

/// The value that a build has reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BuildState {
    /// The commit is stored.
    Received(Source),
    /// It is known how to build it.
    Detected(Recipe),
    /// Everything that the build needs is there.
    Planned(Plan),
    /// There is an image for every platform.
    Built {
        /// What was to be built.
        plan: Plan,
        /// The images, in the order of the plan's platforms.
        images: Vec<PlatformImage>,
    },
    /// The index is in the registry.
    Published {
        /// What was to be built.
        plan: Plan,
        /// The index.
        index: PublishedIndex,
    },
    /// The release is made.
    Released {
        /// What was to be built.
        plan: Plan,
        /// The release's number.
        release: ReleaseNumber,
    },
}

/// That a build is to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// Why.
    pub reason: CancelReason,
    /// Who said so.
    pub by: UserName,
}

/// Why a build is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// A newer push took its place.
    Superseded,
    /// The pusher closed the connection.
    ClientGone,
    /// It took longer than it may.
    Timeout,
    /// Somebody asked for it.
    Requested,
}

impl CancelReason {
    /// The reason as the end of "build #7 was cancelled: …".
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Superseded => "a newer push took its place",
            Self::ClientGone => "the pusher closed the connection",
            Self::Timeout => "it took longer than it may",
            Self::Requested => "somebody asked for it",
        }
    }
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// The release runs.
    Succeeded {
        /// When.
        at: Timestamp,
        /// Which.
        release: ReleaseNumber,
    },
    /// It does not.
    Failed {
        /// When.
        at: Timestamp,
        /// Whose fault.
        fault: Fault,
        /// One line that fits git's `! [remote rejected]`.
        reason: String,
    },
    /// It was stopped.
    Cancelled {
        /// When.
        at: Timestamp,
        /// Why.
        reason: CancelReason,
    },
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The pusher can mend it in the source or the config.
    App,
    /// The operator has to look; the pusher can try again.
    Platform,
}

impl BuildState {
    /// The plan, once there is one.
    #[must_use]
    pub const fn plan(&self) -> Option<&Plan> {
        match self {
            Self::Received(_) | Self::Detected(_) => None,
            Self::Planned(plan)
            | Self::Built { plan, .. }
            | Self::Published { plan, .. }
            | Self::Released { plan, .. } => Some(plan),
        }
    }
}

impl Build {
    /// The name of a build's object.
    #[must_use]
    pub fn object_name(app: &AppName, number: BuildNumber) -> ObjectName {
        ObjectName::joined(app, &number.0)
    }
}

impl Object for Build {
    const KIND: Kind = Kind::Build;

    fn name(&self) -> ObjectName {
        Self::object_name(&self.app, self.number)
    }
}
