//! `RUN --mount`: what a step sees besides its image, and what of it is in no layer, key or record.
//!
//! `plan` (engine) says what each mount is and what of it belongs to the step's key. `materials` (engine) fetches, when the
//! step is really to run, what only the engine has: secrets, agents, the context. `provide` (worker) turns what it is told
//! (`request`) into [`sandbox::Mount`](crate::sandbox::Mount)s, and takes it away again when the step has ended. `saved` keeps
//! cache mounts in a registry. `trust` is what RUN trusts beside its image.

mod agent;
mod materials;
mod options;
mod plan;
mod provide;
mod request;
mod saved;
mod trust;

pub use options::{Entitlement, MountOptions, SecretSource};
pub(super) use plan::RunMounts;
pub(super) use provide::{Provided, Sockets, listen, restore_cache, save_cache};
pub(super) use request::{AgentSocket, CacheRequest, MountRequest};
pub(super) use saved::{Saving, UsedCaches};
pub use trust::certificates;
pub(super) use trust::{Laid, variables};
