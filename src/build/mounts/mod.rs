//! `RUN --mount`: what a step sees besides its image, and what of it is in no layer, key or record.
//!
//! `plan` (engine) says what each mount is and what of it belongs to the step's key. `materials` (engine) fetches, when the
//! step is really to run, what only the engine has: secrets, agents, the context. `provide` (worker) turns what it is told
//! (`request`) into [`sandbox::Mount`](crate::sandbox::Mount)s, and takes it away again when the step has ended. `trust` is
//! what RUN trusts beside its image.

mod agent;
mod materials;
mod options;
mod plan;
mod provide;
mod request;
mod trust;

pub use options::{Entitlement, MountOptions, SecretSource};
pub(super) use plan::RunMounts;
pub(super) use provide::{Provided, Sockets, listen};
pub(super) use request::{AgentSocket, MountRequest};
pub use trust::certificates;
pub(super) use trust::{Laid, variables};
