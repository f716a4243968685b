//! Where objects are kept: implementations of [`crate::model::Store`].

mod directory;

pub use directory::{DirectoryStore, OpenError};
