//! Why images are not published.

use crate::oci::{Digest, IndexError, NameError, Platform};
use crate::registry::client::ClientError;

/// Why images are not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The registry did not do its part.
    #[error("the registry failed")]
    Registry(#[source] Box<ClientError>),
    /// A build reported an image that is not there.
    #[error("the image for `{platform}`, `{manifest}`, is not in the registry: build again")]
    Missing {
        /// The platform.
        platform: Platform,
        /// The digest that was reported.
        manifest: Digest,
    },
    /// A build reported an index, or an artifact.
    #[error("`{manifest}`, reported for `{platform}`, is not an image")]
    NotAnImage {
        /// The platform.
        platform: Platform,
        /// The digest that was reported.
        manifest: Digest,
    },
    /// A digest is of an index, or of an artifact.
    #[error("`{manifest}` is not the image of one platform")]
    NotOneImage {
        /// The digest.
        manifest: Digest,
    },
    /// An image does not say what it is for.
    #[error("the image `{manifest}` does not say which platform it is for")]
    UnknownPlatform {
        /// The digest.
        manifest: Digest,
    },
    /// Config and manifest do not fit together.
    #[error("the image for `{platform}` has {layers} layers, and its config names {diff_ids}")]
    Layers {
        /// The platform.
        platform: Platform,
        /// Of the manifest.
        layers: usize,
        /// Of the config.
        diff_ids: usize,
    },
    /// The config names another platform.
    #[error(
        "the image for `{platform}` says that it is for `{config}`: does a FROM of the Dockerfile have a fixed `--platform`?"
    )]
    ConfigPlatform {
        /// The platform that it was built for.
        platform: Platform,
        /// The platform that its config names.
        config: String,
    },
    /// The program that would be started is for another machine.
    #[error(
        "`{program}` in the image for `{platform}` is a program for {machine}: compile it for the target, which `ARG TARGETARCH` names, or copy the right one"
    )]
    Machine {
        /// The platform.
        platform: Platform,
        /// The program's path.
        program: String,
        /// What it is for.
        machine: String,
    },
    /// Two images for one platform.
    #[error("there are two images for `{0}`")]
    Duplicate(Platform),
    /// No index can be made of these.
    #[error("no index can be made of the images")]
    Index(#[from] IndexError),
    /// The app has no repository.
    #[error(transparent)]
    Repository(#[from] NameError),
}

impl From<ClientError> for PublishError {
    fn from(error: ClientError) -> Self {
        Self::Registry(Box::new(error))
    }
}

impl PublishError {
    /// Whether the pusher can put it right.
    #[must_use]
    pub const fn is_app(&self) -> bool {
        matches!(self, Self::ConfigPlatform { .. } | Self::Machine { .. })
    }
}
