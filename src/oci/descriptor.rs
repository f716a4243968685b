//! Content descriptors (OCI image-spec, `descriptor.md`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Digest, MediaType, Platform};

/// What a document says of another: its type, digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The type of the content.
    pub media_type: MediaType,
    /// The digest of the content.
    pub digest: Digest,
    /// The size of the content in bytes.
    pub size: u64,
    /// Places outside the registry where the content may be had; hephy does not fetch from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub urls: Vec<String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
    /// The content itself, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The type of the artifact that the content is a manifest of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<MediaType>,
    /// The platform of the image; a foreign value that is not one counts as absent.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "platform_object")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor with nothing optional in it.
    #[must_use]
    pub const fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            artifact_type: None,
            platform: None,
        }
    }

    /// The descriptor of `bytes`.
    #[must_use]
    pub fn of(media_type: MediaType, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }
}

/// Go writes `null` for an empty slice or map.
pub(super) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The object form of a platform: `{"architecture":"arm","os":"linux","variant":"v7"}`.
mod platform_object {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Platform;

    #[derive(Serialize, Deserialize)]
    struct Parts {
        #[serde(default)]
        architecture: String,
        #[serde(default)]
        os: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        variant: Option<String>,
    }

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub(super) fn serialize<S: Serializer>(platform: &Option<Platform>, to: S) -> Result<S::Ok, S::Error> {
        let parts = platform.as_ref().map(|platform| Parts {
            architecture: platform.architecture().to_owned(),
            os: platform.os().to_owned(),
            variant: platform.variant().map(str::to_owned),
        });
        parts.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Platform>, D::Error> {
        let parts = Option::<Parts>::deserialize(from)?;
        Ok(parts.and_then(|p| Platform::new(&p.os, &p.architecture, p.variant.as_deref()).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_written_in_one_order_with_nothing_empty() {
        let mut descriptor = Descriptor::of(MediaType::ImageManifest, b"{}");
        descriptor.platform = "linux/arm".parse().ok();
        let expected = format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":2,"platform":{{"architecture":"arm","os":"linux","variant":"v7"}}}}"#,
            Digest::of("{}"),
        );
        assert_eq!(serde_json::to_string(&descriptor).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Descriptor>(&expected).unwrap(), descriptor);
    }

    #[test]
    fn nulls_and_platforms_that_are_none_are_read_as_absent() {
        let text = format!(
            r#"{{"mediaType":"x","digest":"{}","size":0,"urls":null,"annotations":null,"platform":{{"os":"","architecture":""}}}}"#,
            Digest::of(""),
        );
        let descriptor: Descriptor = serde_json::from_str(&text).unwrap();
        assert_eq!(descriptor.platform, None);
        assert!(serde_json::from_str::<Descriptor>(&text.replace("\"size\":0", "\"size\":-1")).is_err());
    }
}
