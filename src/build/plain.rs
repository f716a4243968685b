//! Roots for in-place isolation: plain directories with the layers of an image laid into them, kept from step to step.
//!
//! On an overlay a root costs nothing and is made anew for each step. Here making one means copying every file, so the
//! root that a step leaves is the one that the next step finds. A step that only reads or adds files gets a root of hard
//! links, which costs no copying.

use std::path::Path;

use crate::build::worker::WorkerError;
use crate::layers::{LaidFiles, PlainRoot, Root, Staged};
use crate::oci::Digest;

/// How many roots are kept for later steps; the longest unused go first.
const MAX_KEPT: usize = 4;

/// A directory that holds what these layers show together.
pub(super) struct Plain {
    /// Its place on the disk; it goes when this does.
    pub(super) staged: Staged,
    pub(super) root: PlainRoot,
    /// Base first.
    pub(super) layers: Vec<Digest>,
}

/// Roots that no step uses at the moment.
#[derive(Default)]
pub(super) struct Kept {
    roots: Vec<Plain>,
}

impl Kept {
    /// The best root to begin with for `layers`: one that holds them, or as many of them from the base on as any does.
    pub(super) fn take(&mut self, layers: &[Digest], files: LaidFiles) -> Option<Plain> {
        let serves = |plain: &Plain| {
            // Files of one's own can be read too, but what is laid over them had better be a step's that writes; and who
            // reads is to see which names are one file.
            let exact = plain.layers == layers && plain.root.keeps_links();
            layers.starts_with(&plain.layers)
                && (plain.root.files() == files || (exact && files == LaidFiles::Linked))
        };
        let best = self
            .roots
            .iter()
            .enumerate()
            .filter(|(_, plain)| serves(plain))
            .max_by_key(|(_, plain)| plain.layers.len())?
            .0;
        Some(self.roots.remove(best))
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Keeps a root that is exactly its layers.
    pub(super) fn put(&mut self, plain: Plain) {
        if self.roots.len() == MAX_KEPT {
            drop(self.roots.remove(0));
        }
        self.roots.push(plain);
    }
}

impl Plain {
    /// An empty root.
    pub(super) fn empty(staged: Staged, files: LaidFiles) -> Result<Self, WorkerError> {
        let root = PlainRoot::new(Root::open(staged.tree())?, files);
        Ok(Self { staged, root, layers: Vec::new() })
    }

    /// Lays the trees of `layers` over what is there.
    pub(super) fn lay(&mut self, layers: &[(Digest, &Path)]) -> Result<(), WorkerError> {
        for (layer, tree) in layers {
            self.root.lay(&Root::open(tree)?).map_err(WorkerError::Prepare)?;
            self.layers.push(*layer);
        }
        Ok(())
    }
}
