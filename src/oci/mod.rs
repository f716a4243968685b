//! OCI formats: pure, synchronous, no IO.

mod digest;
mod platform;

pub use digest::{Digest, DigestError};
pub use platform::{Platform, PlatformError};
