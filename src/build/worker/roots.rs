//! The roots that steps work in: opened over the trees of layers, closed with what changed in them or without.

use std::path::{Path, PathBuf};

use super::{Body, WorkerError};
use crate::build::mounts::Laid;
use crate::build::plain::Plain;
use crate::build::protocol::{Made, Response};
use crate::layers::{self, LaidFiles, Look, Owners, Staged};
use crate::oci::Digest;
use crate::sandbox::{Changes, Isolation, Root, RootSpec};

/// What a step changed, before it is a layer.
pub(super) struct Changed {
    /// The changes, as an upper directory.
    pub(super) staged: Staged,
    pub(super) lowers: Vec<Digest>,
    /// The root with the changes in it, if it can serve another step.
    pub(super) plain: Option<Plain>,
}

/// An open root and what it stands on.
pub(in crate::build) struct OpenRoot {
    pub(super) root: Root,
    /// The directory that is the root, where there is no overlay; none if the upper is.
    plain: Option<Plain>,
    /// Certificates that are in its bundles.
    pub(super) laid: Option<Laid>,
}

impl OpenRoot {
    pub(in crate::build) fn path(&self) -> &Path {
        self.root.path()
    }
}

impl Body {
    /// Opens the merged tree of `lowers`, whose changes go to `staged`. `files`: whether existing files are written to.
    pub(in crate::build) fn open_root(
        &mut self,
        staged: &Staged,
        lowers: &[Digest],
        files: LaidFiles,
    ) -> Result<OpenRoot, WorkerError> {
        layers::match_root(&layers::Root::open(staged.tree())?, &self.roots(lowers)?, Owners::Keep)?;
        let mut spec = RootSpec {
            lowers: self.trees(lowers)?,
            upper: staged.tree().to_owned(),
            work: staged.work().to_owned(),
            mount_point: staged.work().with_file_name("merged"),
        };
        let mut plain = None;
        if self.sandbox.isolation() == Isolation::InPlace {
            // On nothing, what is changed is all there is.
            let own = if lowers.is_empty() && files == LaidFiles::Linked {
                None
            } else {
                Some(self.plain(lowers, files)?)
            };
            let directory = own.as_ref().map_or(staged, |plain| &plain.staged);
            directory.tree().clone_into(&mut spec.mount_point);
            directory.work().clone_into(&mut spec.work);
            plain = own;
        }
        Ok(OpenRoot { root: self.sandbox.open(&spec)?, plain, laid: None })
    }

    /// A directory with these layers in it, made of the one that has most of them.
    fn plain(&mut self, layers: &[Digest], files: LaidFiles) -> Result<Plain, WorkerError> {
        let mut plain = match self.kept.take(layers, files) {
            Some(plain) => plain,
            None => Plain::empty(self.stage()?, files)?,
        };
        let trees = self.trees(layers)?;
        let rest: Vec<_> =
            layers.iter().copied().zip(trees.iter().map(PathBuf::as_path)).skip(plain.layers.len()).collect();
        plain.lay(&rest)?;
        Ok(plain)
    }

    /// Closes a root that was only read.
    pub(in crate::build) fn close_unchanged(&mut self, open: OpenRoot) -> Result<(), WorkerError> {
        self.sandbox.close(open.root)?;
        if let Some(plain) = open.plain {
            self.kept.put(plain);
        }
        Ok(())
    }

    /// Closes a root whose changes nobody wants; a plain one is not what its layers are any more.
    pub(super) fn close_spoilt(&mut self, open: OpenRoot) -> Result<(), WorkerError> {
        Ok(self.sandbox.close(open.root)?)
    }

    /// Closes a root and keeps what changed in it.
    pub(super) fn close_changed(
        &mut self,
        mut open: OpenRoot,
        look: Look,
        staged: Staged,
        lowers: Vec<Digest>,
    ) -> Result<Made, WorkerError> {
        // Removes the mount points that a step needed, so that they are in no layer.
        let changes = self.sandbox.changes(&mut open.root);
        let taken_back =
            open.laid.take().map_or(Ok(()), |laid| laid.take_back(&layers::Root::open(open.root.path())?));
        self.sandbox.close(open.root)?;
        taken_back?;
        if let (Changes::Scan { since }, Some(plain)) = (changes?, &mut open.plain) {
            let upper = layers::Root::open(staged.tree())?;
            plain.root.gather(since, look, &self.roots(&lowers)?, &upper).map_err(WorkerError::Prepare)?;
        }
        self.next += 1;
        let made = Made(self.next);
        self.made.insert(made, Changed { staged, lowers, plain: open.plain });
        Ok(made)
    }

    /// Lets `change` write into the merged tree of `lowers`, and keeps what it changed.
    pub(super) fn in_root(
        &mut self,
        lowers: Vec<Digest>,
        change: impl FnOnce(&layers::Root) -> Result<(), WorkerError>,
    ) -> Result<Response, WorkerError> {
        let staged = self.stage()?;
        let open = self.open_root(&staged, &lowers, LaidFiles::Linked)?;
        let changed =
            layers::Root::open(open.path()).map_err(WorkerError::from).and_then(|root| change(&root));
        match changed {
            // Nothing here writes to a file that was there: it is replaced.
            Ok(()) => {
                let made = self.close_changed(open, Look::WhereNamesChanged, staged, lowers)?;
                Ok(Response::Changed(made))
            }
            Err(error) => self.close_spoilt(open).and(Err(error)),
        }
    }
}
