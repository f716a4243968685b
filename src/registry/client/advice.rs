//! What an error of a registry says: whose fault it is, and what to do.

use std::fmt;
use std::time::Duration;

use reqwest::Url;

use super::ClientError;
use super::host::RETRY_AFTER_LIMIT;
use super::tls;
use crate::oci::Host;

pub(super) fn asks(retry_after: Option<Duration>) -> String {
    let long = retry_after.filter(|asked| *asked > RETRY_AFTER_LIMIT);
    long.map_or_else(String::new, |asked| format!("; it asks to wait {}", humantime::format_duration(asked)))
}

/// What credentials a registry was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// None, since there are none for it; perhaps for a reason.
    Nothing {
        /// What may be amiss.
        note: Option<String>,
    },
    /// It did not ask for any.
    NotAsked,
    /// None, since it is another host than the registry's.
    Elsewhere,
    /// Those from here.
    Credentials {
        /// The file or program.
        origin: String,
    },
}

impl Given {
    pub(super) fn sentence(&self, host: &Host) -> String {
        match self {
            Self::Nothing { note: None } => {
                format!(
                    "it got no credentials, since there are none for it: log in with `docker login {host}`"
                )
            }
            Self::Nothing { note: Some(note) } => {
                format!("it got no credentials, since {note}: log in with `docker login {host}`")
            }
            Self::NotAsked => "it did not ask for credentials".to_owned(),
            Self::Elsewhere => format!("it is not `{host}`, whose credentials it is not given"),
            Self::Credentials { origin } => {
                format!("the credentials of {origin} for `{host}` do not allow it")
            }
        }
    }
}

/// What is wrong with a certificate, or with how TLS is spoken.
#[derive(Debug)]
pub struct CertificateProblem(rustls::Error);

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use rustls::CertificateError as Problem;
        use rustls::Error::InvalidCertificate as Invalid;
        f.write_str(match &self.0 {
            Invalid(Problem::UnknownIssuer) => "no authority that is known here has signed it",
            Invalid(Problem::Expired | Problem::ExpiredContext { .. }) => "it has expired",
            Invalid(Problem::NotValidYet | Problem::NotValidYetContext { .. }) => "it is not valid yet",
            Invalid(Problem::NotValidForName | Problem::NotValidForNameContext { .. }) => {
                "it is for another name"
            }
            Invalid(Problem::Other(other)) if other.to_string().contains("CaUsedAsEndEntity") => {
                "no authority that is known here has signed it, but itself"
            }
            other => return other.fmt(f),
        })
    }
}

/// ` at the token server's`, if that is not the registry itself.
pub(super) fn elsewhere(host: &Host, at: &str) -> String {
    if at == host.as_str() || *host == Host::docker_hub() && at == "registry-1.docker.io" {
        String::new()
    } else {
        format!(" (at `{at}`)")
    }
}

impl ClientError {
    /// Why there is no connection to `url`.
    pub(super) fn unreachable(host: &Host, url: &Url, source: reqwest::Error) -> Self {
        use rustls::Error as Tls;
        let name = url.host_str().unwrap_or_default();
        let at = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        let host = host.clone();
        match tls::failure(&source).cloned() {
            Some(Tls::InvalidMessage(_)) => Self::NotTls { host, at },
            Some(error) => Self::Certificate { host, at, problem: CertificateProblem(error) },
            None => Self::Unreachable { host, at, source: source.without_url() },
        }
    }

    /// What to do about it, as a command or a flag of `hephy build`.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        use rustls::CertificateError as Problem;
        match self {
            Self::NotTls { host, .. } => Some(format!(
                "If `{host}` is meant to speak plain HTTP, say so: `--insecure-registry {host}`."
            )),
            Self::Certificate { host, problem, .. } => Some(match &problem.0 {
                rustls::Error::InvalidCertificate(Problem::UnknownIssuer | Problem::Other(_)) => format!(
                    "If `{host}` has a certificate of its own or of a private authority, name its file: `--registry-certificate {host}=FILE`.\n\
                     (`--skip-tls-verify-registry {host}` trusts whoever answers.)"
                ),
                rustls::Error::AlertReceived(_) => format!(
                    "If `{host}` wants a certificate of ours, name it and its key: `--registry-client-cert {host}=CERTIFICATE,KEY`."
                ),
                _ => format!("Whoever runs `{host}` has to renew or correct its certificate."),
            }),
            Self::Denied { repository, given, .. } => {
                let host = &repository.host;
                Some(match given {
                    Given::Credentials { .. } => {
                        format!("Log in as somebody who may: `docker login {host}`.")
                    }
                    Given::Elsewhere => return None,
                    Given::NotAsked | Given::Nothing { .. } => {
                        format!("Log in with `docker login {host}`, which `hephy build` reads.")
                    }
                })
            }
            Self::Status { status, repository, .. } if status.as_u16() == 429 => {
                let host = &repository.host;
                Some(format!(
                    "`{host}` limits how often one may ask; it lets those who log in ask more often (`docker login {host}`), and a mirror need not ask it (`--registry-map {host}=MIRROR`)."
                ))
            }
            Self::Status { status, repository, .. } if status.is_server_error() => {
                let host = &repository.host;
                Some(format!(
                    "`{host}` has failed, and goes on to; whoever runs it finds the reason in its log."
                ))
            }
            Self::Status { status, repository, doing, .. }
                if status.as_u16() == 404 && doing.starts_with("uploading") =>
            {
                Some(format!(
                    "Some registries do not make repositories by themselves: create `{}` at `{}`.",
                    repository.name, repository.host
                ))
            }
            _ => None,
        }
    }
}
