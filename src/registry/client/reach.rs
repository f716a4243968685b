//! How registries are reached that are not reached in the usual way: by TLS, with a certificate of an authority that the
//! system knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::oci::Host;

/// The largest file of certificates that is read.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Some registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    /// These.
    These(BTreeSet<Host>),
    /// All but these.
    AllBut(BTreeSet<Host>),
}

/// What differs from the usual way.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Registries of which it is known that they speak plain HTTP; loopback does, unless something here says how its TLS is.
    pub plain: BTreeSet<Host>,
    /// Registries that are spoken to in plain HTTP if they do not speak TLS.
    pub insecure: Hosts,
    /// Registries whose certificates are not looked at.
    pub unverified: Hosts,
    authorities: BTreeMap<Host, Vec<CertificateDer<'static>>>,
    everywhere: Vec<CertificateDer<'static>>,
    identities: BTreeMap<Host, Arc<ClientCertificate>>,
}

/// A certificate of ours and its key.
pub(super) struct ClientCertificate {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Why a file of certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// It cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is none in it.
    #[error("`{}` has no {what} in PEM format (`-----BEGIN …`)", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
    },
}

impl Hosts {
    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, host: &Host) -> bool {
        match self {
            Self::These(hosts) => hosts.contains(host),
            Self::AllBut(hosts) => !hosts.contains(host),
        }
    }

    /// Whether it is named as one of them.
    fn names(&self, host: &Host) -> bool {
        matches!(self, Self::These(hosts) if hosts.contains(host))
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl FromIterator<Host> for Hosts {
    fn from_iter<T: IntoIterator<Item = Host>>(hosts: T) -> Self {
        Self::These(hosts.into_iter().collect())
    }
}

impl Reach {
    /// The usual way, but for one registry that speaks plain HTTP.
    #[must_use]
    pub fn plain(host: Host) -> Self {
        Self { plain: std::iter::once(host).collect(), ..Self::default() }
    }

    /// Trusts the certificates in a PEM file, of authorities or of the registry itself: those of `host`, or everywhere.
    ///
    /// They are trusted beside the system's.
    pub fn trust(&mut self, host: Option<Host>, file: &Path) -> Result<(), ReachError> {
        let certificates = certificates(file)?;
        match host {
            Some(host) => self.authorities.entry(host).or_default().extend(certificates),
            None => self.everywhere.extend(certificates),
        }
        Ok(())
    }

    /// The same everywhere, of certificates that are here already.
    #[must_use]
    pub fn trusting(mut self, pem: &str) -> Self {
        self.everywhere.extend(super::certificates_of(pem));
        self
    }

    /// Shows a certificate of ours to `host`, and to no other.
    pub fn identify(&mut self, host: Host, certificate: &Path, key: &Path) -> Result<(), ReachError> {
        let chain = certificates(certificate)?;
        let empty = |_| ReachError::Empty { path: key.to_owned(), what: "private key" };
        let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(empty)?;
        self.identities.insert(host, Arc::new(ClientCertificate { chain, key }));
        Ok(())
    }

    /// Whether something is said about the TLS of this very registry.
    pub(super) fn is_special(&self, host: &Host) -> bool {
        self.unverified.contains(host)
            || self.authorities.contains_key(host)
            || self.identities.contains_key(host)
    }

    /// Whether a registry that would be spoken to in plain HTTP speaks TLS.
    pub(super) fn names_tls(&self, host: &Host) -> bool {
        self.unverified.names(host)
            || self.authorities.contains_key(host)
            || self.identities.contains_key(host)
    }

    /// The certificates that are trusted beside the system's.
    pub(super) fn authorities(&self, host: &Host) -> Vec<CertificateDer<'static>> {
        let own = self.authorities.get(host).map_or(&[][..], Vec::as_slice);
        own.iter().chain(&self.everywhere).cloned().collect()
    }

    /// The certificates that are trusted everywhere.
    pub(in crate::registry) fn authorities_everywhere(&self) -> Vec<CertificateDer<'static>> {
        self.everywhere.clone()
    }

    pub(super) fn identity(&self, host: &Host) -> Option<&ClientCertificate> {
        self.identities.get(host).map(AsRef::as_ref)
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").finish_non_exhaustive()
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ReachError> {
    let pem = read(file)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).flatten().collect();
    if found.is_empty() {
        return Err(ReachError::Empty { path: file.to_owned(), what: "certificate" });
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, ReachError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|source| ReachError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}
