//! The result of a build as a file: complete or absent, never half.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::build::driver::{BuildFailure, BuiltLayer};
use crate::model::PlatformImage;
use crate::oci::Digest;

/// What an engine leaves when it ends. A build without one ended by a failure of the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildResult {
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took.
    pub milliseconds: u64,
    /// How many steps came from the cache.
    pub cache_hits: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// An image.
    Built {
        /// It.
        image: PlatformImage,
        /// Its configuration.
        config: Digest,
        /// Its layers, from the base upward.
        layers: Vec<BuiltLayer>,
        /// Where it was pushed.
        destinations: Vec<String>,
    },
    /// None.
    Failed(BuildFailure),
}

impl BuildResult {
    /// Writes the result beside its final name, and renames it there.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        serde_json::to_writer(&mut file, self)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    /// Reads a result; none if there is none.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
