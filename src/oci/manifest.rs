//! Image manifests, and any manifest with the bytes it came in (OCI image-spec, `manifest.md`).

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::descriptor::null_as_default;
use super::{Descriptor, Digest, Index, MediaType};

/// The largest manifest that is read or accepted, as the distribution-spec suggests.
pub const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;

/// The manifest of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The type of this document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// What kind of artifact this is, if it is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<MediaType>,
    /// The image config.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest that this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// The OCI manifest of an image.
    #[must_use]
    pub const fn image(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(MediaType::ImageManifest),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MAX_MANIFEST_BYTES`].
    #[error("manifest of {0} bytes is larger than {MAX_MANIFEST_BYTES}")]
    Size(usize),
    /// Not JSON, or not of the form.
    #[error("manifest is not a valid image manifest or index")]
    Json(#[source] serde_json::Error),
    /// Docker's schema 1, or nothing known.
    #[error("manifest has schema version {0}: only 2 is supported, push the image again with a current tool")]
    Schema(u32),
    /// The type is neither that of a manifest nor of an index.
    #[error("media type `{0}` is not that of an image manifest or index")]
    MediaType(MediaType),
    /// The document and the header, or its own parts, say different types.
    #[error("manifest says it is `{document}` but was given as `{given}`")]
    TypeMismatch {
        /// What the document says.
        document: MediaType,
        /// What the header says.
        given: MediaType,
    },
    /// It has both `manifests` and `layers` or `config`, which readers have taken for either.
    #[error("manifest has both `manifests` and `config` or `layers`")]
    Ambiguous,
}

/// What a manifest is.
#[expect(clippy::large_enum_variant, reason = "a few live at a time")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestContent {
    /// One image or artifact.
    Image(Manifest),
    /// A list of manifests.
    Index(Index),
}

/// A manifest with the bytes that it came in, which are what its digest is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawManifest {
    bytes: Bytes,
    digest: Digest,
    media_type: MediaType,
    content: ManifestContent,
}

/// The fields that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<MediaType>,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

impl RawManifest {
    /// Reads a manifest that came with this `Content-Type`, if it came with one.
    pub fn parse(bytes: impl Into<Bytes>, content_type: Option<&str>) -> Result<Self, ManifestError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::Size(bytes.len()));
        }
        let probe: Probe = serde_json::from_slice(&bytes).map_err(ManifestError::Json)?;
        if probe.schema_version != 2 {
            return Err(ManifestError::Schema(probe.schema_version));
        }
        let media_type = media_type_of(&probe, content_type)?;
        let content = if media_type.is_index() {
            serde_json::from_slice(&bytes).map(ManifestContent::Index)
        } else {
            serde_json::from_slice(&bytes).map(ManifestContent::Image)
        }
        .map_err(ManifestError::Json)?;
        Ok(Self { digest: Digest::of(&bytes), bytes, media_type, content })
    }

    /// Writes a manifest that we made.
    #[must_use]
    pub fn image(manifest: &Manifest) -> Self {
        let media_type = manifest.media_type.clone().unwrap_or(MediaType::ImageManifest);
        Self::written(to_json(manifest), media_type, ManifestContent::Image(manifest.clone()))
    }

    /// Writes an index that we made.
    #[must_use]
    pub fn index(index: &Index) -> Self {
        let media_type = index.media_type.clone().unwrap_or(MediaType::ImageIndex);
        Self::written(to_json(index), media_type, ManifestContent::Index(index.clone()))
    }

    fn written(bytes: Bytes, media_type: MediaType, content: ManifestContent) -> Self {
        Self { digest: Digest::of(&bytes), bytes, media_type, content }
    }

    /// The bytes as received or written.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The digest of the bytes.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The type of the document.
    #[must_use]
    pub const fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    /// What others write of this manifest.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.media_type.clone(), self.digest, self.bytes.len() as u64)
    }

    /// The document.
    #[must_use]
    pub const fn content(&self) -> &ManifestContent {
        &self.content
    }

    /// The document, if it is of one image.
    #[must_use]
    pub const fn as_image(&self) -> Option<&Manifest> {
        match &self.content {
            ManifestContent::Image(manifest) => Some(manifest),
            ManifestContent::Index(_) => None,
        }
    }

    /// The document, if it is an index.
    #[must_use]
    pub const fn as_index(&self) -> Option<&Index> {
        match &self.content {
            ManifestContent::Index(index) => Some(index),
            ManifestContent::Image(_) => None,
        }
    }

    /// The manifest that this one refers to.
    #[must_use]
    pub const fn subject(&self) -> Option<&Descriptor> {
        match &self.content {
            ManifestContent::Image(manifest) => manifest.subject.as_ref(),
            ManifestContent::Index(index) => index.subject.as_ref(),
        }
    }
}

/// JSON of a value of ours, which has string keys and no value that JSON lacks.
pub(super) fn to_json(value: &impl Serialize) -> Bytes {
    #[expect(clippy::expect_used, reason = "only maps with other keys and failing writers fail")]
    let bytes = serde_json::to_vec(value).expect("plain structs are JSON");
    bytes.into()
}

/// Header and document must agree on one type: the same bytes may not mean two things to two readers (CVE-2021-41190).
fn media_type_of(probe: &Probe, content_type: Option<&str>) -> Result<MediaType, ManifestError> {
    let given = content_type
        .map(|text| text.split(';').next().unwrap_or_default().trim())
        .filter(|text| !matches!(*text, "" | "application/json" | "application/octet-stream" | "text/plain"))
        .map(MediaType::from);
    if let (Some(document), Some(given)) = (&probe.media_type, &given)
        && document != given
    {
        return Err(ManifestError::TypeMismatch { document: document.clone(), given: given.clone() });
    }
    let shape_is_index = probe.manifests.is_some();
    let shape_is_image = probe.config.is_some() || probe.layers.is_some();
    if shape_is_index && shape_is_image {
        return Err(ManifestError::Ambiguous);
    }
    let by_shape = if shape_is_index { MediaType::ImageIndex } else { MediaType::ImageManifest };
    let media_type = probe.media_type.clone().or(given).unwrap_or(by_shape.clone());
    if !media_type.is_manifest() {
        return Err(ManifestError::MediaType(media_type));
    }
    if (shape_is_index && !media_type.is_index()) || (shape_is_image && media_type.is_index()) {
        return Err(ManifestError::TypeMismatch { document: by_shape, given: media_type });
    }
    Ok(media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Manifest {
        let layer = Descriptor::of(MediaType::LayerTarGzip, b"layer");
        Manifest::image(Descriptor::of(MediaType::ImageConfig, b"{}"), vec![layer])
    }

    #[test]
    fn foreign_bytes_are_kept_as_they_are() {
        let ours = RawManifest::image(&image());
        let spaced = String::from_utf8(ours.bytes().to_vec()).unwrap().replace(":{", ": {") + "\n";
        let foreign = RawManifest::parse(spaced.clone(), None).unwrap();
        assert_eq!(foreign.bytes(), spaced.as_bytes());
        assert_eq!(foreign.digest(), Digest::of(&spaced));
        assert_eq!(foreign.as_image(), Some(&image()));
        assert_eq!(RawManifest::parse(ours.bytes().clone(), Some("application/json")).unwrap(), ours);
    }

    #[test]
    fn a_document_that_two_readers_take_for_two_things_is_refused() {
        let text = String::from_utf8(RawManifest::image(&image()).bytes().to_vec()).unwrap();
        let index = MediaType::ImageIndex;
        assert!(matches!(
            RawManifest::parse(text.clone(), Some(index.as_str())),
            Err(ManifestError::TypeMismatch { .. })
        ));
        let both = text.replacen('{', r#"{"manifests":[],"#, 1);
        assert!(matches!(RawManifest::parse(both, None), Err(ManifestError::Ambiguous)));
        let lying = text.replace(MediaType::ImageManifest.as_str(), index.as_str());
        assert!(matches!(RawManifest::parse(lying, None), Err(ManifestError::TypeMismatch { .. })));
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        assert!(matches!(RawManifest::parse("[]", None), Err(ManifestError::Json(_))));
        assert!(matches!(RawManifest::parse("{}", None), Err(ManifestError::Schema(0))));
        assert!(matches!(RawManifest::parse(r#"{"schemaVersion":1}"#, None), Err(ManifestError::Schema(1))));
        assert!(matches!(RawManifest::parse(r#"{"schemaVersion":2}"#, None), Err(ManifestError::Json(_))));
        let wasm = Some("application/wasm");
        let other = RawManifest::parse(r#"{"schemaVersion":2}"#, wasm);
        assert!(matches!(other, Err(ManifestError::MediaType(_))));
        assert!(matches!(
            RawManifest::parse(vec![b' '; MAX_MANIFEST_BYTES + 1], None),
            Err(ManifestError::Size(_))
        ));
        let deep = "[".repeat(100_000);
        assert!(matches!(RawManifest::parse(deep, None), Err(ManifestError::Json(_))));
    }
}
