//! What hephy keeps: apps, builds, releases, users, and the names and numbers they go by.

mod names;

pub use names::{AppName, BuildNumber, CommitId, NameError, ProcessType, ReleaseNumber, UserName};
