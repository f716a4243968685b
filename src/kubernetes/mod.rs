//! A Kubernetes cluster: how it is reached, and what its pods say of their end.
//!
//! The parts of hephy that use a cluster (the store of objects, the driver of builds, the runtime of apps) share
//! what is here and nothing else.

mod cluster;
mod labels;
mod trouble;

pub use cluster::{Cluster, ConnectError};
pub use labels::{API_GROUP, API_VERSION, Label, MANAGER, Namespaces, managed_by};
pub use trouble::{PodTrouble, trouble};
