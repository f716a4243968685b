//! The format of docker's `config.json` and podman's `auth.json`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::helper::{Asked, Helpers};
use super::{Credential, CredentialsError, Found, Identity, longest};
use crate::model::Secret;
use crate::oci::{Host, Repository};

/// The largest file that is read.
const MAX_BYTES: u64 = 1024 * 1024;
/// What stands for a user where the password is an identity token.
const TOKEN_USER: &str = "<token>";

/// One file's (or variable's) credentials.
#[derive(Debug)]
pub(super) struct Source {
    /// What an error calls it.
    origin: String,
    by_prefix: BTreeMap<String, Credential>,
    /// Helpers by the host that they are for.
    helpers: BTreeMap<String, String>,
    /// The helper for all other hosts.
    store: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    auth: Secret<String>,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: Secret<String>,
    #[serde(default)]
    identitytoken: Secret<String>,
    #[serde(default)]
    registrytoken: Secret<String>,
}

impl Source {
    /// Reads a file, if there is one.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CredentialsError> {
        let error = |source| CredentialsError::Read { path: path.to_owned(), source };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(source) if is_absent(&source) => return Ok(None),
            Err(source) => return Err(error(source)),
        };
        let mut text = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(error)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(CredentialsError::Size(path.to_owned()));
        }
        Self::parse(&text, &format!("`{}`", path.display())).map(Some)
    }

    /// What a job of GitLab's CI has for the registry of its project.
    pub(super) fn gitlab(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<Self> {
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let host: Host = text("CI_REGISTRY")?.parse().ok()?;
        let (username, password) = match (text("CI_REGISTRY_USER"), text("CI_REGISTRY_PASSWORD")) {
            (Some(username), Some(password)) => (username, password),
            _ => ("gitlab-ci-token".to_owned(), text("CI_JOB_TOKEN")?),
        };
        let credential = Credential::Basic { username, password: Secret::new(password) };
        let by_prefix = std::iter::once((host.to_string(), credential)).collect();
        let origin = "`$CI_REGISTRY_USER`".to_owned();
        Some(Self { origin, by_prefix, helpers: BTreeMap::new(), store: None })
    }

    pub(super) fn parse(text: &str, origin: &str) -> Result<Self, CredentialsError> {
        let origin = origin.to_owned();
        // Podman writes an empty file before the first login.
        let text = if text.trim().is_empty() { "{}" } else { text };
        let config: DockerConfig = serde_json::from_str(text).map_err(|error| CredentialsError::Json {
            origin: origin.clone(),
            line: error.line(),
            column: error.column(),
        })?;
        let mut by_prefix = BTreeMap::new();
        for (key, auth) in config.auths {
            let credential = auth.credential();
            let credential = credential
                .map_err(|()| CredentialsError::Entry { origin: origin.clone(), key: key.clone() })?;
            if let Some(credential) = credential {
                by_prefix.insert(registry_key(&key), credential);
            }
        }
        let store = config.creds_store.filter(|store| !store.is_empty());
        let used = config.cred_helpers.into_iter().filter(|(_, helper)| !helper.is_empty());
        let helpers: BTreeMap<String, String> =
            used.map(|(key, helper)| (registry_key(&key), helper)).collect();
        if let Some(helper) = helpers.values().chain(&store).find(|name| !is_program_name(name)) {
            let helper = helper.escape_debug().take(100).collect();
            return Err(CredentialsError::HelperName { origin, helper });
        }
        Ok(Self { origin, by_prefix, helpers, store })
    }

    pub(super) async fn find(
        &self,
        repository: &Repository,
        helpers: &Helpers,
    ) -> Result<Identity, CredentialsError> {
        let host = &repository.host;
        let mut note = None;
        let own = self.helpers.get(host.as_str());
        if let Some(helper) = own.or(self.store.as_ref()) {
            match helpers.ask(helper, &server_name(host)).await {
                Asked::Credential(credential) => {
                    let origin = format!("credential helper `docker-credential-{helper}`");
                    let found = Found { credential, origin, prefix: host.to_string() };
                    return Ok(Identity::Known(Box::new(found)));
                }
                Asked::Nothing => {}
                // A store for all hosts is often that of another machine whose file was copied: it is missed
                // where somebody wants credentials.
                Asked::Missing if own.is_none() => {
                    let of = &self.origin;
                    note = Some(format!(
                        "credential store `docker-credential-{helper}`, which {of} names, is not in PATH"
                    ));
                }
                Asked::Missing => {
                    let (origin, helper) = (self.origin.clone(), helper.clone());
                    return Err(CredentialsError::HelperMissing { origin, helper, host: host.clone() });
                }
                Asked::Failed(problem) => {
                    let (origin, helper, host) = (self.origin.clone(), helper.clone(), host.clone());
                    return Err(CredentialsError::Helper { origin, helper, host, problem });
                }
            }
        }
        Ok(match longest(&self.by_prefix, repository) {
            Some((prefix, credential)) => Identity::Known(Box::new(Found {
                credential: credential.clone(),
                origin: self.origin.clone(),
                prefix: prefix.to_owned(),
            })),
            None => Identity::Anonymous { note },
        })
    }
}

impl DockerAuth {
    fn credential(self) -> Result<Option<Credential>, ()> {
        let given = |secret: Secret<String>| (!secret.reveal().is_empty()).then_some(secret);
        if let Some(token) = given(self.registrytoken) {
            return Ok(Some(Credential::RegistryToken(token)));
        }
        if let Some(token) = given(self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        let Some(auth) = given(self.auth) else {
            return Ok(named(self.username, self.password));
        };
        let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let decoded = GeneralPurpose::new(&STANDARD, lenient).decode(auth.reveal().trim()).map_err(|_| ())?;
        let text = String::from_utf8(decoded).map_err(|_| ())?;
        let (username, password) = text.split_once(':').ok_or(())?;
        let password = Secret::new(password.trim_end_matches('\0').to_owned());
        Ok(named(username.to_owned(), password))
    }
}

/// The credential of a user, if there is one.
pub(super) fn named(username: String, password: Secret<String>) -> Option<Credential> {
    match username.as_str() {
        "" => None,
        TOKEN_USER => Some(Credential::IdentityToken(password)),
        _ => Some(Credential::Basic { username, password }),
    }
}

/// What a key of a docker config names, a registry with or without a path: `https://index.docker.io/v1/` is `docker.io`.
#[must_use]
pub fn registry_key(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key.split_once('/') {
        Some(("index.docker.io" | "registry-1.docker.io", path)) => format!("docker.io/{path}"),
        None if matches!(key, "index.docker.io" | "registry-1.docker.io") => "docker.io".to_owned(),
        _ => key.to_owned(),
    }
}

/// What `docker login` called the registry when it stored the credential.
fn server_name(host: &Host) -> String {
    if *host == Host::docker_hub() { "https://index.docker.io/v1/".to_owned() } else { host.to_string() }
}

fn is_program_name(name: &str) -> bool {
    name.len() <= 100 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD as BASE64;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: Secret::new(password.to_owned()) }
    }

    fn find(source: &Source, repository: &str) -> Option<Credential> {
        longest(&source.by_prefix, &repository.parse().unwrap()).map(|(_, credential)| credential.clone())
    }

    #[test]
    fn the_most_specific_entry_wins_and_docker_hub_has_its_old_name() {
        let text = format!(
            r#"{{"credsStore":"","auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"quay.io":{{"auth":"{}"}},
                "quay.io/org":{{"username":"o","password":"p"}},"empty.io":{{}},"t.io":{{"registrytoken":"t"}},"http://i.io/v2/":{{"auth":"eDp5","identitytoken":"i"}},
                "p.io":{{"auth":"eDp5eg"}},"u.io":{{"username":"<token>","password":"i"}}}}}}"#,
            BASE64.encode("ada:s:ecret\0\0"),
            BASE64.encode("q:1"),
        );
        let source = Source::parse(&text, "x").unwrap();
        let find = |repository: &str| find(&source, repository);
        let identity = || Some(Credential::IdentityToken(Secret::new("i".to_owned())));
        assert_eq!(find("debian"), Some(basic("ada", "s:ecret")));
        assert_eq!(find("quay.io/other/x"), Some(basic("q", "1")));
        assert_eq!(find("quay.io/org/x"), Some(basic("o", "p")));
        assert_eq!(find("quay.io/organisation/x"), Some(basic("q", "1")));
        assert_eq!(find("quay.io:443/org/x"), None);
        assert_eq!(find("empty.io/x"), None);
        assert_eq!(find("t.io/x"), Some(Credential::RegistryToken(Secret::new("t".to_owned()))));
        assert_eq!(find("i.io/x"), identity());
        assert_eq!(find("u.io/x"), identity());
        assert_eq!(find("p.io/x"), Some(basic("x", "yz")));
    }

    #[test]
    fn an_error_does_not_repeat_a_secret() {
        for text in [
            r#"{"auths":{"a.io":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"a.io":{"auth":"secret"#,
            r#"{"auths":"secret"}"#,
            r#"{"auths":{"a.io":{"password":{"secret":1}}}}"#,
        ] {
            let error = Source::parse(text, "`x`").unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
        assert!(!format!("{:?}", basic("ada", "secret")).contains("secret"));
    }

    #[test]
    fn a_helper_is_a_program_of_path_and_nothing_else() {
        for name in ["../../tmp/x", "a b", "x;y", "a\\nb"] {
            let text = format!(r#"{{"credHelpers":{{"a.io":"{name}"}}}}"#);
            let error = Source::parse(&text, "`x`").unwrap_err();
            assert!(matches!(error, CredentialsError::HelperName { .. }), "{error}");
        }
    }
}
