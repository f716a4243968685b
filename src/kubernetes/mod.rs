//! A Kubernetes cluster: how it is reached, and what its pods say of their end.
//!
//! The parts of hephy that use a cluster (the store of objects, the driver of builds, the runtime of apps) share
//! what is here and nothing else.

mod call;
mod cluster;
mod labels;
mod lease;
mod trouble;

pub use call::{Caller, Refusal, may_pass, once, patiently};
pub use cluster::{Cluster, ConnectError};
pub use labels::{API_GROUP, API_VERSION, Label, MANAGER, Namespaces, managed_by};
pub use lease::{Held, LeaseError, Leases};
pub use trouble::{PodTrouble, trouble};
