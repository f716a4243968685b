//! OCI formats: pure, synchronous, no IO.
//!
//! What others wrote is kept as the bytes they wrote ([`RawManifest`]); what we write is serialised here, always
//! in the same order. Unknown fields of foreign documents are ignored, unknown media types are kept.

mod config;
mod descriptor;
mod digest;
mod index;
mod manifest;
mod media_type;
mod name;
mod platform;
mod reference;

pub use config::{ConfigError, Healthcheck, History, ImageConfig, RootFs, RunConfig};
pub use descriptor::Descriptor;
pub use digest::{Digest, DigestError};
pub use index::{Index, IndexError};
pub use manifest::{MAX_MANIFEST_BYTES, Manifest, ManifestContent, ManifestError, RawManifest};
pub use media_type::{LayerCompression, MediaType};
pub use name::{Host, NameError, RepositoryName, Tag};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError, Repository, Target};
