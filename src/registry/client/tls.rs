//! Whom we believe to be the registry: rustls configurations.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::reach::ClientCertificate;

/// Where systems keep the certificates of all authorities.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// There is no authority to believe.
    #[error(
        "no certificates of authorities are installed: install the package `ca-certificates`, or name a file in `SSL_CERT_FILE`"
    )]
    NoAuthorities,
    /// A certificate or key is not usable.
    #[error("a certificate or key that was given cannot be used")]
    Unusable(#[source] Error),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made")]
    Http(#[source] reqwest::Error),
}

/// Whose certificates are believed.
pub(crate) enum Trust {
    /// Those of authorities that the system knows, and these.
    Authorities(Vec<CertificateDer<'static>>),
    /// Anybody's.
    Anybody,
    /// Nobody's: there is no TLS.
    Nobody,
}

/// A configuration for these authorities, with our own certificate if there is one.
pub(super) fn configuration(
    trust: Trust,
    own: Option<&ClientCertificate>,
) -> Result<rustls::ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Anybody => Arc::new(Unverified(provider.signature_verification_algorithms)),
        Trust::Nobody => Arc::new(Nobody),
        Trust::Authorities(extra) => authorities(extra, &provider)?,
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match own {
        Some(own) => {
            builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key()).map_err(TlsError::Unusable)
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

/// A configuration for these authorities, to ask somebody else than a registry.
pub(crate) fn tls_configuration(trust: Trust) -> Result<rustls::ClientConfig, TlsError> {
    configuration(trust, None)
}

fn authorities(
    extra: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(error = %error, "certificates of authorities cannot be read");
    }
    roots.add_parsable_certificates(loaded.certs);
    // A file that somebody names comes beside the system's: so it is with OpenSSL, whose directory is still looked into.
    let is_named = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_named("SSL_CERT_FILE") && !is_named("SSL_CERT_DIR") {
        roots.add_parsable_certificates(system_bundle());
    }
    roots.add_parsable_certificates(extra.iter().cloned());
    if roots.is_empty() {
        return Err(TlsError::NoAuthorities);
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let inner = inner.map_err(|_| TlsError::NoAuthorities)?;
    Ok(Arc::new(Verifier { inner, pinned: extra }))
}

fn system_bundle() -> Vec<CertificateDer<'static>> {
    let read = system_bundle_file().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    CertificateDer::pem_slice_iter(&read).flatten().collect()
}

/// The file in which this system keeps the certificates of all authorities.
pub(crate) fn system_bundle_file() -> Option<&'static Path> {
    BUNDLES.iter().map(Path::new).find(|path| path.exists())
}

/// The certificates in a PEM text.
pub(crate) fn certificates_of(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().collect()
}

/// Believes authorities, and certificates that were given as such.
///
/// A registry's own certificate, signed by itself, says mostly that it is an authority's (`openssl req -x509` makes it
/// so), which WebPKI refuses as a server's.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let is_given = || self.pinned.iter().any(|pinned| pinned.as_ref() == end_entity.as_ref());
        match verified {
            Err(Error::InvalidCertificate(problem)) if !is_final(&problem) && is_given() => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whether a certificate is also refused if it is the very one that was given: it is over, or another's.
const fn is_final(problem: &CertificateError) -> bool {
    matches!(
        problem,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
            | CertificateError::BadEncoding
            | CertificateError::Revoked
    )
}

/// Believes anybody who has the key of what he shows.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Believes nobody, for connections without TLS.
#[derive(Debug)]
struct Nobody;

impl ServerCertVerifier for Nobody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// The TLS failure inside an error of a connection.
pub(super) fn failure(error: &reqwest::Error) -> Option<&Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(found) = inner.downcast_ref::<Error>() {
            return Some(found);
        }
        // What an `io::Error` wraps is not its source but its source's.
        cause = match inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => inner.source(),
        };
    }
    None
}
