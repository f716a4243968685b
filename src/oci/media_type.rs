//! Media types of manifests, configs and layers.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A media type; those that hephy treats specially have a name of their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum MediaType {
    /// An OCI image manifest.
    ImageManifest,
    /// An OCI image index.
    ImageIndex,
    /// An OCI image config.
    ImageConfig,
    /// An OCI layer, not compressed.
    LayerTar,
    /// An OCI layer, gzip.
    LayerTarGzip,
    /// An OCI layer, zstd.
    LayerTarZstd,
    /// The empty JSON object, where an artifact has no config.
    Empty,
    /// Docker's image manifest, version 2 schema 2.
    DockerManifest,
    /// Docker's manifest list.
    DockerManifestList,
    /// Docker's image config.
    DockerConfig,
    /// Docker's layer, not compressed.
    DockerLayer,
    /// Docker's layer, gzip.
    DockerLayerGzip,
    /// Docker's layer, zstd: not in the standard, written by others all the same.
    DockerLayerZstd,
    /// Anything else.
    Other(String),
}

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerCompression {
    /// A plain tar.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard.
    Zstd,
}

const NAMED: [(MediaType, &str); 13] = [
    (MediaType::ImageManifest, "application/vnd.oci.image.manifest.v1+json"),
    (MediaType::ImageIndex, "application/vnd.oci.image.index.v1+json"),
    (MediaType::ImageConfig, "application/vnd.oci.image.config.v1+json"),
    (MediaType::LayerTar, "application/vnd.oci.image.layer.v1.tar"),
    (MediaType::LayerTarGzip, "application/vnd.oci.image.layer.v1.tar+gzip"),
    (MediaType::LayerTarZstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
    (MediaType::Empty, "application/vnd.oci.empty.v1+json"),
    (MediaType::DockerManifest, "application/vnd.docker.distribution.manifest.v2+json"),
    (MediaType::DockerManifestList, "application/vnd.docker.distribution.manifest.list.v2+json"),
    (MediaType::DockerConfig, "application/vnd.docker.container.image.v1+json"),
    (MediaType::DockerLayer, "application/vnd.docker.image.rootfs.diff.tar"),
    (MediaType::DockerLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    (MediaType::DockerLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd"),
];

impl MediaType {
    /// The media type as it stands in a document or header.
    #[must_use]
    pub fn as_str(&self) -> &str {
        if let Self::Other(text) = self {
            return text;
        }
        NAMED.iter().find(|(known, _)| known == self).map_or("", |(_, text)| text)
    }

    /// Whether this names a list of manifests.
    #[must_use]
    pub const fn is_index(&self) -> bool {
        matches!(self, Self::ImageIndex | Self::DockerManifestList)
    }

    /// Whether this names the manifest of one image (or artifact).
    #[must_use]
    pub const fn is_image_manifest(&self) -> bool {
        matches!(self, Self::ImageManifest | Self::DockerManifest)
    }

    /// Whether this names a document that a registry serves under `/manifests/`.
    #[must_use]
    pub const fn is_manifest(&self) -> bool {
        self.is_index() || self.is_image_manifest()
    }

    /// Whether this names an image config.
    #[must_use]
    pub const fn is_image_config(&self) -> bool {
        matches!(self, Self::ImageConfig | Self::DockerConfig)
    }

    /// How a layer of this type is compressed; `None` if it is not a layer's type.
    ///
    /// The deprecated types of layers that registries may not distribute count as layers too.
    #[must_use]
    pub fn compression(&self) -> Option<LayerCompression> {
        match self {
            Self::LayerTar | Self::DockerLayer => Some(LayerCompression::None),
            Self::LayerTarGzip | Self::DockerLayerGzip => Some(LayerCompression::Gzip),
            Self::LayerTarZstd | Self::DockerLayerZstd => Some(LayerCompression::Zstd),
            Self::Other(text) => match text.as_str() {
                "application/vnd.oci.image.layer.nondistributable.v1.tar" => Some(LayerCompression::None),
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(LayerCompression::Gzip),
                "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => {
                    Some(LayerCompression::Zstd)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

impl From<String> for MediaType {
    fn from(text: String) -> Self {
        NAMED
            .iter()
            .find(|(_, known)| *known == text)
            .map_or_else(|| Self::Other(text.clone()), |(known, _)| known.clone())
    }
}

impl From<&str> for MediaType {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl FromStr for MediaType {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::from(text))
    }
}

impl From<MediaType> for String {
    fn from(media_type: MediaType) -> Self {
        media_type.as_str().to_owned()
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_type_reads_back_as_itself_and_a_foreign_one_is_kept() {
        for (known, text) in NAMED {
            assert_eq!(MediaType::from(text), known);
            assert_eq!(known.as_str(), text);
        }
        let wasm = MediaType::from("application/wasm");
        assert_eq!(wasm, MediaType::Other("application/wasm".to_owned()));
        assert_eq!(wasm.compression(), None);
    }
}
