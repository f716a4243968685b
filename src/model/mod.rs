//! What hephy keeps: apps, builds, releases, users, their names and numbers, and the seam that keeps them.
//!
//! Everything here is plain data with the rules that keep it valid. The values of a push
//! (`Source → Recipe → Plan → PlatformImage → PublishedIndex → Release`) are here because a [`Build`] stores
//! the last one it reached, and resumes from it.

mod app;
mod build;
mod chain;
mod config;
mod event;
mod key;
mod names;
mod nearest;
mod push;
mod refs;
mod release;
mod secret;
pub mod store;
mod user;

pub use app::{App, Claim, Holder};
pub use build::{Build, BuildState, Cancel, CancelReason, Fault, Outcome, PushOptions, RefMove};
pub use chain::Chain;
pub use config::{Config, EnvName, EnvNameError};
pub use event::{LogLine, PushEvent};
pub use key::{Fingerprint, FingerprintError, KeyError, PublicKey};
pub use names::{AppName, BuildNumber, CommitId, NameError, ProcessType, ReleaseNumber, UserName};
pub use nearest::nearest;
pub use push::{Method, Plan, PlatformImage, PublishedIndex, Recipe, Source, Step};
pub use refs::{RefName, RefNameError};
pub use release::{Release, ReleaseState};
pub use secret::Secret;
pub use store::{Kind, Object, ObjectName, Store, StoreError, Version, Versioned};
pub use user::{User, UserKey};

/// The version of the stored objects' format. An older program refuses newer objects by name.
pub const FORMAT: u32 = 1;
