//! Who we are, at which registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::model::Secret;
use crate::oci::{Host, Repository};

/// The largest `config.json` that is read.
const MAX_BYTES: u64 = 1024 * 1024;

/// What proves who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password (or token used as one).
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret<String>,
    },
    /// A refresh token, which the token server exchanges.
    IdentityToken(Secret<String>),
    /// A token that the registry itself takes.
    RegistryToken(Secret<String>),
}

/// Credentials by registry, or by a part of one (`quay.io/org`); the most specific wins.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    by_prefix: BTreeMap<String, Credential>,
}

/// Why a `config.json` gives no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read.
    #[error("cannot read registry credentials from `{}`", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is too large to be one.
    #[error("`{}` is too large for a file of registry credentials", .0.display())]
    Size(PathBuf),
    /// It is not JSON. What it holds is secret, so it is not repeated.
    #[error("registry credentials are not valid JSON (line {line}, column {column})")]
    Json {
        /// The line of the mistake.
        line: usize,
        /// The column of the mistake.
        column: usize,
    },
    /// An entry does not decode.
    #[error("registry credentials for `{0}` are not base64 of `user:password`")]
    Entry(String),
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl Credentials {
    /// Nobody, anywhere.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds or replaces those for `host`.
    #[must_use]
    pub fn with(mut self, host: &Host, credential: Credential) -> Self {
        self.by_prefix.insert(host.to_string(), credential);
        self
    }

    /// Reads the `auths` of the text of a docker `config.json`.
    pub fn docker_config_json(text: &str) -> Result<Self, CredentialsError> {
        let config: DockerConfig = serde_json::from_str(text)
            .map_err(|error| CredentialsError::Json { line: error.line(), column: error.column() })?;
        let mut by_prefix = BTreeMap::new();
        for (key, auth) in config.auths {
            if let Some(credential) = auth.credential().map_err(|()| CredentialsError::Entry(key.clone()))? {
                by_prefix.insert(normal_key(&key), credential);
            }
        }
        Ok(Self { by_prefix })
    }

    /// Reads a docker `config.json`; a missing one has no credentials.
    pub fn docker_config_file(path: &Path) -> Result<Self, CredentialsError> {
        let error = |source| CredentialsError::Read { path: path.to_owned(), source };
        let text = match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                return Err(CredentialsError::Size(path.to_owned()));
            }
            Ok(_) => std::fs::read_to_string(path).map_err(error)?,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Self::none()),
            Err(source) => return Err(error(source)),
        };
        Self::docker_config_json(&text)
    }

    /// Reads the `config.json` of `$DOCKER_CONFIG`, or of `$HOME/.docker`.
    pub fn from_environment() -> Result<Self, CredentialsError> {
        let directory = std::env::var_os("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")));
        directory.map_or_else(|| Ok(Self::none()), |dir| Self::docker_config_file(&dir.join("config.json")))
    }

    /// The credential for `repository`.
    #[must_use]
    pub fn find(&self, repository: &Repository) -> Option<&Credential> {
        let whole = repository.to_string();
        let mut prefix = whole.as_str();
        loop {
            if let Some(credential) = self.by_prefix.get(prefix) {
                return Some(credential);
            }
            prefix = prefix.rsplit_once('/')?.0;
        }
    }
}

impl DockerAuth {
    fn credential(self) -> Result<Option<Credential>, ()> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::RegistryToken(Secret::new(self.registrytoken))));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(Secret::new(self.identitytoken))));
        }
        if self.auth.is_empty() {
            let basic = Credential::Basic { username: self.username, password: Secret::new(self.password) };
            let named = !matches!(&basic, Credential::Basic { username, .. } if username.is_empty());
            return Ok(named.then_some(basic));
        }
        let decoded = STANDARD.decode(self.auth.trim()).map_err(|_| ())?;
        let text = String::from_utf8(decoded).map_err(|_| ())?;
        let (username, password) = text.split_once(':').ok_or(())?;
        let password = Secret::new(password.trim_end_matches('\0').to_owned());
        Ok(Some(Credential::Basic { username: username.to_owned(), password }))
    }
}

/// `https://index.docker.io/v1/` is `docker.io`.
fn normal_key(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key.split_once('/') {
        Some(("index.docker.io" | "registry-1.docker.io", path)) => format!("docker.io/{path}"),
        None if matches!(key, "index.docker.io" | "registry-1.docker.io") => "docker.io".to_owned(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: Secret::new(password.to_owned()) }
    }

    #[test]
    fn the_most_specific_entry_wins_and_docker_hub_has_its_old_name() {
        let text = format!(
            r#"{{"credsStore":"x","auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"quay.io":{{"auth":"{}"}},
                "quay.io/org":{{"username":"o","password":"p"}},"empty.io":{{}},"t.io":{{"registrytoken":"t"}},"http://i.io/v2/":{{"auth":"eDp5","identitytoken":"i"}}}}}}"#,
            STANDARD.encode("ada:s:ecret\0\0"),
            STANDARD.encode("q:1"),
        );
        let credentials = Credentials::docker_config_json(&text).unwrap();
        let find = |text: &str| credentials.find(&text.parse().unwrap()).cloned();
        assert_eq!(find("debian"), Some(basic("ada", "s:ecret")));
        assert_eq!(find("quay.io/other/x"), Some(basic("q", "1")));
        assert_eq!(find("quay.io/org/x"), Some(basic("o", "p")));
        assert_eq!(find("quay.io/organisation/x"), Some(basic("q", "1")));
        assert_eq!(find("quay.io:443/org/x"), None);
        assert_eq!(find("empty.io/x"), None);
        assert_eq!(find("t.io/x"), Some(Credential::RegistryToken(Secret::new("t".to_owned()))));
        assert_eq!(find("i.io/x"), Some(Credential::IdentityToken(Secret::new("i".to_owned()))));
    }

    #[test]
    fn an_error_does_not_repeat_a_secret() {
        for text in [
            r#"{"auths":{"a.io":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"a.io":{"auth":"secret"#,
            r#"{"auths":"secret"}"#,
        ] {
            let error = Credentials::docker_config_json(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
        assert!(!format!("{:?}", basic("ada", "secret")).contains("secret"));
    }
}
