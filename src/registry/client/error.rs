//! What can go wrong between us and a registry.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;

use super::advice::{CertificateProblem, Given, asks, elsewhere};
use super::credentials::CredentialsError;
use super::host::RETRY_AFTER_LIMIT;
use super::tls::TlsError;
use crate::oci::{ConfigError, Digest, Host, IndexError, ManifestError, Repository};

/// Why a registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The host's name does not resolve, or nothing answers there.
    #[error("registry `{host}` cannot be reached{}: check its name and the network", elsewhere(.host, .at))]
    Unreachable {
        /// The registry.
        host: Host,
        /// Where we were.
        at: String,
        /// What failed.
        #[source]
        source: reqwest::Error,
    },
    /// A connection is there, and no answer.
    #[error("registry `{host}` does not answer")]
    Silent {
        /// The registry.
        host: Host,
    },
    /// TLS could not be set up on our side.
    #[error("TLS for registry `{host}` cannot be set up")]
    Tls {
        /// The registry.
        host: Host,
        /// What failed.
        #[source]
        source: TlsError,
    },
    /// Who answers has no certificate that is believed.
    #[error("the certificate of registry `{host}`{} is not trusted: {}", elsewhere(.host, .at), .problem)]
    Certificate {
        /// The registry.
        host: Host,
        /// Where we were.
        at: String,
        /// What is wrong with it.
        problem: CertificateProblem,
    },
    /// Who answers does not speak TLS.
    #[error("registry `{host}`{} does not speak TLS", elsewhere(.host, .at))]
    NotTls {
        /// The registry.
        host: Host,
        /// Where we were.
        at: String,
    },
    /// The connection broke.
    #[error("{doing} in `{repository}`: the connection broke")]
    Broken {
        /// The repository.
        repository: Repository,
        /// What was being done.
        doing: String,
        /// What failed.
        #[source]
        source: reqwest::Error,
    },
    /// Nothing came or went for too long.
    #[error("{doing} in `{repository}`: nothing moved for {}", humantime::format_duration(*.limit))]
    Stalled {
        /// The repository.
        repository: Repository,
        /// What was being done.
        doing: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The registry wants credentials, or others than it got.
    #[error("registry `{}` refuses {doing} in `{}`: {message}; {}", .repository.host, .repository.name, .given.sentence(&.repository.host))]
    Denied {
        /// The repository.
        repository: Repository,
        /// What was being done.
        doing: String,
        /// What the registry says.
        message: String,
        /// What credentials it was given.
        given: Given,
    },
    /// There should be credentials, and they cannot be had.
    #[error("no credentials for registry `{host}`")]
    Credentials {
        /// The registry.
        host: Host,
        /// Why.
        #[source]
        source: CredentialsError,
    },
    /// There is no such thing.
    #[error("registry `{}` has no {what} in `{}`", .repository.host, .repository.name)]
    NotFound {
        /// The repository.
        repository: Repository,
        /// What was asked for.
        what: String,
    },
    /// The registry answered something else.
    #[error("registry `{}` answers {doing} in `{}` with {status}: {message}{}", .repository.host, .repository.name, asks(*.retry_after))]
    Status {
        /// The repository.
        repository: Repository,
        /// What was being done.
        doing: String,
        /// The status.
        status: StatusCode,
        /// What the registry says.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The registry breaks the protocol.
    #[error("registry `{}` breaks the protocol at {doing} in `{}`: {what}", .repository.host, .repository.name)]
    Protocol {
        /// The repository.
        repository: Repository,
        /// What was being done.
        doing: String,
        /// How.
        what: String,
    },
    /// The token server that the registry names is not one that gets our credentials.
    #[error("registry `{host}` sends credentials to `{realm}`: {reason}, refused")]
    Realm {
        /// The registry.
        host: Host,
        /// The token server.
        realm: String,
        /// Why not.
        reason: &'static str,
    },
    /// The content is not what its digest says.
    #[error("{what} in `{repository}` has digest `{actual}` and not `{expected}`")]
    Digest {
        /// The repository.
        repository: Repository,
        /// What it is.
        what: String,
        /// The digest asked for.
        expected: Box<Digest>,
        /// The digest of what came.
        actual: Box<Digest>,
    },
    /// The content is not as long as said.
    #[error("{what} in `{repository}` is not {expected} bytes long")]
    Size {
        /// The repository.
        repository: Repository,
        /// What it is.
        what: String,
        /// The size asked for.
        expected: u64,
    },
    /// The content is longer than allowed.
    #[error("{what} in `{repository}` is larger than {max_bytes} bytes")]
    TooLarge {
        /// The repository.
        repository: Repository,
        /// What it is.
        what: String,
        /// The limit.
        max_bytes: u64,
    },
    /// A manifest that is none.
    #[error("manifest `{what}` in `{repository}` cannot be used")]
    Manifest {
        /// The repository.
        repository: Repository,
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// An index without the platform.
    #[error("image `{what}` in `{repository}` cannot be used")]
    Index {
        /// The repository.
        repository: Repository,
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: Box<IndexError>,
    },
    /// A config that is none.
    #[error("image config `{digest}` in `{repository}` cannot be used")]
    Config {
        /// The repository.
        repository: Repository,
        /// Which.
        digest: Digest,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// A file to upload could not be read.
    #[error("cannot read `{}` to upload it", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was pulled could not be written.
    #[error("cannot write {what} from `{repository}`")]
    Sink {
        /// The repository.
        repository: Repository,
        /// What it is.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ClientError {
    /// Whether the registry says that there is no such thing, or (as some do) that it shows it to nobody.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the registry lets no tag be moved (each has its own words for it, and one in common).
    #[must_use]
    pub fn is_immutable_tag(&self) -> bool {
        matches!(self, Self::Status { status, message, .. }
            if status.is_client_error() && message.to_ascii_lowercase().contains("immutab"))
    }

    /// Whether the registry wants (other) credentials.
    #[must_use]
    pub const fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. })
    }

    /// Whether the registry cannot be reached at all.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Silent { .. } | Self::Certificate { .. } | Self::NotTls { .. }
        )
    }

    /// Whether the same request may succeed a little later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Stalled { .. } => true,
            // A name that does not resolve stays so; a refused connection may be a restart.
            Self::Unreachable { source, .. } => !source.is_dns(),
            // One that asks for hours is not waited for.
            Self::Status { status, retry_after, .. } => {
                matches!(status.as_u16(), 408 | 429 | 499 | 500 | 502 | 503 | 504 | 522)
                    && retry_after.is_none_or(|asked| asked <= RETRY_AFTER_LIMIT)
            }
            Self::Tls { .. }
            | Self::Silent { .. }
            | Self::Certificate { .. }
            | Self::NotTls { .. }
            | Self::Denied { .. }
            | Self::Credentials { .. }
            | Self::NotFound { .. }
            | Self::Protocol { .. }
            | Self::Realm { .. }
            | Self::Digest { .. }
            | Self::Size { .. }
            | Self::TooLarge { .. }
            | Self::Manifest { .. }
            | Self::Index { .. }
            | Self::Config { .. }
            | Self::File { .. }
            | Self::Sink { .. } => false,
        }
    }

    /// How long the registry asks to wait.
    pub(super) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
