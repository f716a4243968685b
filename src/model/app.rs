//! Apps: the object that the commit point of a push swaps.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    AppName, BuildNumber, CommitId, Kind, Object, ObjectName, ProcessType, RefMove, RefName, ReleaseNumber,
    UserName,
};
use crate::oci::Digest;

/// An app: its people, its refs, its current release and who is working on it.
///
/// The refs that git sees and the current release are in one object, so that one compare-and-swap moves both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// The version of this object's format.
    pub format: u32,
    /// The name.
    pub name: AppName,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it, and may do everything to it.
    pub owner: UserName,
    /// Who else may push to it.
    pub collaborators: BTreeSet<UserName>,
    /// The refs that git sees: commits, or tag objects.
    pub refs: BTreeMap<RefName, CommitId>,
    /// The commits whose parents the repository does not have (`git help shallow`).
    pub shallow: BTreeSet<CommitId>,
    /// The manifest in the registry that lists the packs of its repository, where these are kept there. Whatever a ref or
    /// a build names is in them: it is written before those are.
    pub packs: Option<Digest>,
    /// The release that serves.
    pub current: Option<ReleaseNumber>,
    /// The number of the last build made.
    pub last_build: u64,
    /// The number of the last release made.
    pub last_release: u64,
    /// The build that is at work, one at a time.
    pub holder: Option<Holder>,
    /// How many instances of each process type are to run.
    pub scale: BTreeMap<ProcessType, u32>,
}

/// Who works on an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// What is being done.
    pub claim: Claim,
    /// Who began it.
    pub by: UserName,
    /// Since when.
    pub since: Timestamp,
}

/// What an app is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Claim {
    /// A build, until its rollout has ended.
    Build(BuildNumber),
    /// A change of config, scale or release without a build.
    Change(ReleaseNumber),
}

impl App {
    /// A new app without a commit.
    #[must_use]
    pub const fn new(name: AppName, owner: UserName, created_at: Timestamp) -> Self {
        Self {
            format: super::FORMAT,
            name,
            created_at,
            owner,
            collaborators: BTreeSet::new(),
            refs: BTreeMap::new(),
            shallow: BTreeSet::new(),
            packs: None,
            current: None,
            last_build: 0,
            last_release: 0,
            holder: None,
            scale: BTreeMap::new(),
        }
    }

    /// Whether `user`, who is no admin, may push to the app and fetch from it: an exact match.
    #[must_use]
    pub fn may_push(&self, user: &UserName) -> bool {
        self.owner == *user || self.collaborators.contains(user)
    }

    /// Moves `refs`, each from what it named when it was received; on `Err`, which has another value now, none moved.
    pub fn move_refs(&mut self, refs: &[RefMove]) -> Result<(), RefName> {
        if let Some(stale) = refs.iter().find(|r| self.refs.get(&r.name).copied() != r.old) {
            return Err(stale.name.clone());
        }
        for RefMove { name, new, .. } in refs {
            match new {
                Some(new) => self.refs.insert(name.clone(), *new),
                None => self.refs.remove(name),
            };
        }
        Ok(())
    }

    /// Claims the next build number.
    #[must_use]
    pub const fn next_build(&mut self) -> BuildNumber {
        self.last_build += 1;
        BuildNumber(self.last_build)
    }

    /// Claims the next release number.
    #[must_use]
    pub const fn next_release(&mut self) -> ReleaseNumber {
        self.last_release += 1;
        ReleaseNumber(self.last_release)
    }
}

impl Object for App {
    const KIND: Kind = Kind::App;

    fn name(&self) -> ObjectName {
        ObjectName::of(&self.name)
    }
}
