//! Base images brought into a layout before a build wants them: what kaniko calls warming.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::build::base::{Bases, Finder};
use crate::build::driver::BuildFailure;
use crate::build::error::EngineError;
use crate::build::image::with_default_tag;
use crate::build::layout;
use crate::build::mirror::Mirrors;
use crate::build::process::open_store;
use crate::oci::{Descriptor, Digest, Platform, Reference};
use crate::registry::client::Client;
use crate::sandbox::IdMap;

/// What is brought where.
#[derive(Clone)]
pub struct WarmOptions {
    /// Speaks to registries.
    pub client: Client,
    /// Places that are asked before an image's own registry.
    pub mirrors: Mirrors,
    /// The images.
    pub images: Vec<Reference>,
    /// For these platforms.
    pub platforms: Vec<Platform>,
    /// The layout, which is made if it is not there.
    pub directory: PathBuf,
}

/// An image that is in the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warmed {
    /// As it was asked for.
    pub image: Reference,
    /// For this platform.
    pub platform: Platform,
    /// The digest of its manifest.
    pub manifest: Digest,
}

/// Brings images into a layout, each with all its layers.
///
/// # Cancel safety
/// What is in the layout is whole at any time; dropping the future leaves nothing else behind.
pub async fn warm(options: &WarmOptions) -> Result<Vec<Warmed>, BuildFailure> {
    warmed(options).await.map_err(|error| error.into_failure(None))
}

async fn warmed(options: &WarmOptions) -> Result<Vec<Warmed>, EngineError> {
    let directory = &options.directory;
    let error = EngineError::io(format!("write to `{}`", directory.display()));
    let scratch = std::fs::create_dir_all(directory)
        .and_then(|()| tempfile::Builder::new().prefix(".warm-").tempdir_in(directory));
    let scratch = scratch.map_err(error)?;
    // Of the blobs alone: no tree is made, and nobody's ids are needed.
    let (store, _) = open_store(&scratch.path().join("layers"), &IdMap::in_force())?;
    let bases = Bases {
        finder: Finder {
            client: options.client.clone(),
            mirrors: options.mirrors.clone(),
            layouts: BTreeSet::new(),
        },
        warmed: Some(directory.clone()),
        store,
    };
    let mut warmed = Vec::new();
    for image in options.images.iter().cloned().map(with_default_tag) {
        for platform in &options.platforms {
            let whole = bases.whole(&image, platform).await?;
            let mut entry = Descriptor { platform: Some(platform.clone()), ..whole.manifest.descriptor() };
            entry.annotations.insert(layout::REF_NAME.to_owned(), image.familiar());
            layout::add(directory, &whole.layers, &[&whole.config, whole.manifest.bytes()], vec![entry])?;
            let manifest = whole.manifest.digest();
            warmed.push(Warmed { image: image.clone(), platform: platform.clone(), manifest });
        }
    }
    Ok(warmed)
}
