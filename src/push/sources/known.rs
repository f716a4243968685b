//! What the repositories on this disk have of what is kept.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SourcesError;
use super::kept::Kept;
use crate::model::CommitId;
use crate::oci::Digest;

/// The file that says which packs a repository has, or had before it was collected.
const FILE: &str = "hephy.packs";

/// What a repository on disk has of what is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Known {
    /// Whose: an app of the same name may have been there before.
    pub(super) created_at: Option<jiff::Timestamp>,
    /// The list of which all is here.
    pub(super) manifest: Option<Digest>,
    pub(super) packs: BTreeSet<(String, u32)>,
    /// Where history was cut off when this was noted.
    #[serde(default)]
    pub(super) shallow: BTreeSet<CommitId>,
}

impl Known {
    /// What is known; a file that is damaged is one that says nothing, since what is here is looked at anyway.
    pub(super) async fn read(repository: &Path) -> Result<Self, SourcesError> {
        let path = repository.join(FILE);
        match tokio::fs::read(&path).await {
            Ok(json) => Ok(serde_json::from_slice(&json).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(SourcesError::File { doing: "read", path, source }),
        }
    }

    /// The repository was collected: what these packs brought may be gone, and is fetched again by whoever opens it next.
    pub(super) fn lose(&mut self, packs: &[Kept]) {
        if !packs.is_empty() {
            self.manifest = None;
            self.packs.retain(|known| packs.iter().all(|lost| lost.key() != *known));
        }
    }

    pub(super) async fn write(&self, repository: &Path) -> Result<(), SourcesError> {
        let path: PathBuf = repository.join(FILE);
        let failed = |source| SourcesError::File { doing: "write", path: path.clone(), source };
        let json = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let aside = path.with_extension("aside");
        tokio::fs::write(&aside, json).await.map_err(failed)?;
        tokio::fs::rename(&aside, &path).await.map_err(failed)
    }
}

/// Removes a repository; whoever has it open finds it empty, and nobody finds half of it.
pub(super) fn remove_aside(path: &Path) -> Result<(), SourcesError> {
    let failed = |source| SourcesError::File { doing: "remove", path: path.to_owned(), source };
    let parent = path.parent().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let aside = tempfile::Builder::new().prefix("removed-").tempdir_in(parent).map_err(failed)?;
    std::fs::rename(path, aside.path().join("git")).map_err(failed)?;
    aside.close().map_err(failed)
}
