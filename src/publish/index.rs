//! An index in any repository: for builds that are nobody's push.

use std::collections::BTreeMap;

use futures::future::try_join_all;

use super::{PublishError, Publisher};
use crate::model::PlatformImage;
use crate::oci::{Digest, Index, MediaType, Platform, RawManifest, Repository, Target};
use crate::registry::client::ClientError;

/// How an index is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexForm {
    /// As what.
    pub kind: IndexKind,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What an index is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IndexKind {
    /// An OCI image index.
    #[default]
    Oci,
    /// Docker's manifest list.
    DockerList,
    /// An OCI image index, and Docker's list where the registry takes none.
    Either,
}

impl Publisher {
    /// Checks the images in a repository and writes their index by its digest; no tag is moved.
    ///
    /// Cancel safe, and the same again for the same images.
    pub async fn publish_in(
        &self,
        repository: &Repository,
        images: &[PlatformImage],
        form: &IndexForm,
    ) -> Result<RawManifest, PublishError> {
        let children = images.iter().map(|image| self.verify(repository, image));
        let mut index = Index::of_platforms(try_join_all(children).await?)?;
        index.annotations.clone_from(&form.annotations);
        if form.kind == IndexKind::DockerList {
            return self.write(repository, as_list(index)).await;
        }
        match self.write(repository, index.clone()).await {
            Err(PublishError::Registry(error)) if form.kind == IndexKind::Either && is_refusal(&error) => {
                self.write(repository, as_list(index)).await
            }
            written => written,
        }
    }

    async fn write(&self, repository: &Repository, index: Index) -> Result<RawManifest, PublishError> {
        let index = RawManifest::index(&index);
        self.client.push_manifest(repository, &Target::Digest(index.digest()), &index).await?;
        Ok(index)
    }

    /// The image of this digest, as it says of itself; its steps are not known.
    pub async fn image_in(
        &self,
        repository: &Repository,
        manifest: Digest,
    ) -> Result<PlatformImage, PublishError> {
        let raw = self.client.manifest(repository, &Target::Digest(manifest)).await?;
        let Some(image) = raw.as_image().filter(|image| image.config.media_type.is_image_config()) else {
            return Err(PublishError::NotOneImage { manifest });
        };
        let (config, _) = self.client.image_config(repository, image).await?;
        let unknown = |_| PublishError::UnknownPlatform { manifest };
        let platform: Platform = config.platform().map_err(unknown)?;
        let layers = u32::try_from(image.layers.len()).unwrap_or(u32::MAX);
        let size_bytes = image.layers.iter().map(|layer| layer.size).sum();
        Ok(PlatformImage { platform, manifest, size_bytes, layers, new_layers: 0, steps: Vec::new() })
    }
}

/// Docker's list has no annotations.
fn as_list(mut index: Index) -> Index {
    index.media_type = Some(MediaType::DockerManifestList);
    index.annotations.clear();
    index
}

/// Whether the registry has understood, and does not want it.
fn is_refusal(error: &ClientError) -> bool {
    matches!(error, ClientError::Status { status, .. } if matches!(status.as_u16(), 400 | 405 | 406 | 415 | 422))
}
