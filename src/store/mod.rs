//! Where objects are kept: implementations of [`crate::model::Store`].

mod directory;
pub mod kubernetes;

pub use directory::{DirectoryStore, OpenError};
pub use kubernetes::KubernetesStore;
