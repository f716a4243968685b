//! Image indexes: building one, and choosing from one (OCI image-spec, `image-index.md`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::descriptor::null_as_default;
use super::{Descriptor, MediaType, Platform};

/// A list of manifests, usually of one image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The type of this document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// What kind of artifact this is, if it is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<MediaType>,
    /// The manifests; the first that matches is the one that readers take.
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

/// Why an index cannot be made, or has nothing to choose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// An index of nothing.
    #[error("an index needs at least one platform")]
    Empty,
    /// Two children for one platform.
    #[error("two images for `{0}`: an index has one image per platform")]
    Duplicate(Platform),
    /// A child that is an index itself, or no manifest at all.
    #[error("the image for `{platform}` has media type `{media_type}`: an index is made of image manifests")]
    Child {
        /// The platform it was given for.
        platform: Platform,
        /// What it is.
        media_type: MediaType,
    },
    /// No child runs on the platform.
    #[error("the image has no variant for `{wanted}`; it has {}", list(.available))]
    NoMatch {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none that names its platform".to_owned();
    }
    platforms.iter().map(|platform| format!("`{platform}`")).collect::<Vec<_>>().join(", ")
}

impl Index {
    /// An OCI index of these images.
    ///
    /// The order is canonical, linux/amd64 first since some readers take the first entry whatever it is, so the same
    /// images always make the same bytes.
    pub fn of_platforms(children: Vec<(Platform, Descriptor)>) -> Result<Self, IndexError> {
        let mut manifests = BTreeMap::new();
        for (platform, mut child) in children {
            if !child.media_type.is_image_manifest() {
                return Err(IndexError::Child { platform, media_type: child.media_type });
            }
            child.platform = Some(platform.clone());
            let first = Platform::new("linux", "amd64", None).is_ok_and(|first| first == platform);
            if manifests.insert((!first, platform.clone()), child).is_some() {
                return Err(IndexError::Duplicate(platform));
            }
        }
        if manifests.is_empty() {
            return Err(IndexError::Empty);
        }
        Ok(Self {
            schema_version: 2,
            media_type: Some(MediaType::ImageIndex),
            artifact_type: None,
            manifests: manifests.into_values().collect(),
            subject: None,
            annotations: BTreeMap::new(),
        })
    }

    /// The entry for images that run on `wanted`: an exact match, else the best variant that such a machine runs.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor, IndexError> {
        let mut best: Option<(u32, &Descriptor)> = None;
        for child in &self.manifests {
            let rank = child.platform.as_ref().and_then(|offered| rank(wanted, offered));
            if let Some(rank) = rank
                && best.is_none_or(|(other, _)| rank < other)
            {
                best = Some((rank, child));
            }
        }
        best.map(|(_, child)| child).ok_or_else(|| IndexError::NoMatch {
            wanted: wanted.clone(),
            available: self
                .manifests
                .iter()
                .filter_map(|child| child.platform.clone())
                .filter(is_image)
                .collect(),
        })
    }
}

/// Attestations stand in indexes as `unknown/unknown`.
fn is_image(platform: &Platform) -> bool {
    platform.os() != "unknown"
}

/// How well a machine of platform `wanted` runs an image for `offered`: 0 is best, `None` is not at all.
fn rank(wanted: &Platform, offered: &Platform) -> Option<u32> {
    if wanted == offered {
        return Some(0);
    }
    if wanted.os() != offered.os() || wanted.architecture() != offered.architecture() {
        return None;
    }
    let (wanted, offered) = (level(wanted)?, level(offered)?);
    wanted.checked_sub(offered)
}

/// The level of a variant where levels are a ladder: arm v5 to v8, amd64 v1 to v4, arm64 v8 to v9.
fn level(platform: &Platform) -> Option<u32> {
    let baseline = match platform.architecture() {
        "arm" => "v7",
        "amd64" => "v1",
        "arm64" => "v8",
        _ => return None,
    };
    let (major, minor) = {
        let text = platform.variant().unwrap_or(baseline).strip_prefix('v')?;
        text.split_once('.').unwrap_or((text, "0"))
    };
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    (major < 100 && minor < 100).then_some(major * 100 + minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(platform: &str) -> (Platform, Descriptor) {
        (platform.parse().unwrap(), Descriptor::of(MediaType::ImageManifest, platform.as_bytes()))
    }

    #[test]
    fn the_same_images_in_any_order_make_the_same_index() {
        let index = |names: [&str; 3]| Index::of_platforms(names.map(child).to_vec()).unwrap();
        let one = index(["linux/arm64", "linux/amd64", "linux/arm/v6"]);
        assert_eq!(one, index(["linux/arm/v6", "linux/arm64", "linux/amd64"]));
        let order: Vec<_> = one.manifests.iter().map(|m| m.platform.as_ref().unwrap().to_string()).collect();
        assert_eq!(order, ["linux/amd64", "linux/arm/v6", "linux/arm64"]);
    }

    #[test]
    fn two_spellings_of_one_platform_are_a_duplicate() {
        let twice = Index::of_platforms(vec![child("linux/arm64"), child("linux/arm64/v8")]);
        assert_eq!(twice, Err(IndexError::Duplicate("linux/arm64".parse().unwrap())));
        assert_eq!(Index::of_platforms(vec![]), Err(IndexError::Empty));
        let (platform, mut nested) = child("linux/amd64");
        nested.media_type = MediaType::ImageIndex;
        assert!(matches!(Index::of_platforms(vec![(platform, nested)]), Err(IndexError::Child { .. })));
    }

    #[test]
    fn a_machine_takes_the_best_variant_that_it_runs() {
        let index = Index::of_platforms(
            ["linux/arm/v5", "linux/arm/v6", "linux/amd64", "linux/arm64"].map(child).to_vec(),
        )
        .unwrap();
        let chosen = |wanted: &str| {
            index.choose(&wanted.parse().unwrap()).map(|d| d.platform.as_ref().unwrap().to_string()).ok()
        };
        assert_eq!(chosen("linux/arm/v7").as_deref(), Some("linux/arm/v6"));
        assert_eq!(chosen("linux/arm/v5").as_deref(), Some("linux/arm/v5"));
        assert_eq!(chosen("linux/amd64/v3").as_deref(), Some("linux/amd64"));
        assert_eq!(chosen("linux/arm64/v9").as_deref(), Some("linux/arm64"));
        assert_eq!(chosen("linux/riscv64"), None);
        assert_eq!(chosen("windows/amd64"), None);
    }

    #[test]
    fn a_machine_is_not_given_a_variant_above_its_own() {
        let index = Index::of_platforms(["linux/arm/v7", "linux/amd64/v3"].map(child).to_vec()).unwrap();
        let error = index.choose(&"linux/arm/v6".parse().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image has no variant for `linux/arm/v6`; it has `linux/amd64/v3`, `linux/arm/v7`"
        );
        assert!(index.choose(&"linux/amd64".parse().unwrap()).is_err());
    }
}
