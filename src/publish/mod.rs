//! `PlatformImage`s → `PublishedIndex`: the children are looked at, the index is written by digest, tags come last.
//!
//! Nothing that a build says of its image is taken on trust: an index that names the wrong child starts on the
//! wrong machine, and only there. Every step can be repeated: the same images give the same index.

mod base;
mod error;
mod facts;
mod index;
mod place;
mod program;
mod verify;

use std::collections::BTreeMap;

pub use base::{BaseImage, BaseImageError, PublishedBase, base_image, pack_layout, push_base, write_layout};
pub use error::PublishError;
pub use index::{IndexForm, IndexKind};
pub use place::{Access, Place};

use crate::model::{AppName, CommitId, PlatformImage, PublishedIndex, ReleaseNumber};
use crate::oci::{Platform, Repository, RepositoryName, Tag, Target};
use crate::registry::client::Client;
use facts::FactsCache;

/// Publishes to one registry. Keep one: it remembers the layers it has looked into.
#[derive(Debug)]
pub struct Publisher {
    client: Client,
    place: Place,
    facts: FactsCache,
}

impl Publisher {
    /// A publisher that writes to `place` as `client` may.
    #[must_use]
    pub fn new(client: Client, place: Place) -> Self {
        Self { client, place, facts: FactsCache::default() }
    }

    /// Checks the images of an app and writes their index by its digest; no tag is moved.
    ///
    /// Cancel safe, and the same again for the same images.
    pub async fn publish(
        &self,
        app: &AppName,
        images: &[PlatformImage],
    ) -> Result<PublishedIndex, PublishError> {
        let repository = self.repository(app)?;
        let mut by_platform: BTreeMap<&Platform, &PlatformImage> = BTreeMap::new();
        for image in images {
            if by_platform.insert(&image.platform, image).is_some() {
                return Err(PublishError::Duplicate(image.platform.clone()));
            }
        }
        let written = self.publish_in(&repository, images, &IndexForm::default()).await?;
        let entries = written.as_index().map(|index| index.manifests.as_slice()).unwrap_or_default();
        let images =
            entries.iter().filter_map(|entry| by_platform.get(entry.platform.as_ref()?).copied().cloned());
        let (images, digest) = (images.collect(), written.digest());
        Ok(PublishedIndex { digest, repository: repository.name.to_string(), images })
    }

    /// Moves tags to a published index, in this order; those that are there already are left alone.
    pub async fn tag(&self, published: &PublishedIndex, tags: &[Tag]) -> Result<(), PublishError> {
        let name = published.repository.parse::<RepositoryName>()?;
        let repository = Repository { host: self.place.host.clone(), name };
        let index = self.client.manifest(&repository, &Target::Digest(published.digest)).await?;
        for tag in tags {
            self.client.push_manifest(&repository, &Target::Tag(tag.clone()), &index).await?;
        }
        Ok(())
    }

    /// Whether the registry has a published index. One that cannot be asked has none.
    pub async fn has(&self, published: &PublishedIndex) -> bool {
        let Ok(name) = published.repository.parse::<RepositoryName>() else { return false };
        let repository = Repository { host: self.place.host.clone(), name };
        matches!(self.client.head_manifest(&repository, &Target::Digest(published.digest)).await, Ok(Some(_)))
    }

    fn repository(&self, app: &AppName) -> Result<Repository, PublishError> {
        Ok(self.place.repository(app)?)
    }
}

/// The tags of a release, in the order they are written: `v4`, the commit, and `latest` last, so that who sees `latest` move
/// finds the others there.
#[must_use]
pub fn release_tags(release: ReleaseNumber, commit: Option<CommitId>) -> Vec<Tag> {
    let names = [Some(release.to_string()), commit.map(|commit| commit.to_string())];
    let tags = names.into_iter().flatten().filter_map(|name| name.parse().ok());
    tags.chain([Tag::latest()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_the_last_tag() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let tags =
            |commit| release_tags(ReleaseNumber(4), commit).into_iter().map(String::from).collect::<Vec<_>>();
        assert_eq!(tags(Some(commit.parse().unwrap())), ["v4", commit, "latest"]);
        assert_eq!(tags(None), ["v4", "latest"]);
    }
}
