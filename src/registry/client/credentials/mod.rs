//! Who we are, at which registry: from docker's and podman's files, from credential helpers, and as whom a cloud knows us.

mod file;
mod helper;
mod places;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;

pub use file::registry_key;
pub(in crate::registry) use helper::shown;

use file::Source;
use helper::Helpers;

use super::advice::Given;
use crate::model::{Chain, Secret};
use crate::oci::{Host, Repository};
use crate::registry::identity::{Identities, IdentityError};

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

/// Credentials by registry, or by a part of one (`quay.io/org`).
///
/// Sources are asked in order and the first that has one is believed; within a source a credential helper for the host comes before
/// the store for all hosts, that before the file's own entries, and of these the most specific wins. Where nothing has one, a
/// cloud's registry is met as whom that cloud knows this machine, if identities are given.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    given: BTreeMap<String, Credential>,
    live: Option<DockerConfig>,
    sources: Vec<Arc<Source>>,
    helpers: Arc<Helpers>,
    identities: Option<Identities>,
}

/// A docker `config.json` that may be replaced while clients use it: registries' passwords change.
#[derive(Debug, Clone)]
pub struct DockerConfig(Arc<RwLock<Current>>);

#[derive(Debug)]
struct Current {
    text: Secret<String>,
    source: Arc<Source>,
    /// When what is in it ends, if it does.
    ends: Option<Instant>,
}

impl Current {
    fn parse(text: Secret<String>, valid: Option<Duration>) -> Result<Self, CredentialsError> {
        let source = Arc::new(Source::parse(text.reveal(), "the given configuration")?);
        Ok(Self { text, source, ends: valid.and_then(|valid| Instant::now().checked_add(valid)) })
    }
}

impl DockerConfig {
    /// Reads the text, of credentials that have no end.
    pub fn parse(text: Secret<String>) -> Result<Self, CredentialsError> {
        Ok(Self(Arc::new(RwLock::new(Current::parse(text, None)?))))
    }

    /// Reads the text, of credentials that are good for `valid` from now.
    pub fn for_now(text: Secret<String>, valid: Duration) -> Result<Self, CredentialsError> {
        Ok(Self(Arc::new(RwLock::new(Current::parse(text, Some(valid))?))))
    }

    /// Has all clients use another from now on; one that cannot be read leaves the one before.
    pub fn replace(&self, text: Secret<String>, valid: Option<Duration>) -> Result<(), CredentialsError> {
        let current = Current::parse(text, valid)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// The text as it is now.
    #[must_use]
    pub fn text(&self) -> Secret<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).text.clone()
    }

    /// How long it is good yet, if it ends.
    #[must_use]
    pub fn valid(&self) -> Option<Duration> {
        let ends = self.0.read().unwrap_or_else(PoisonError::into_inner).ends?;
        Some(ends.saturating_duration_since(Instant::now()))
    }

    fn source(&self) -> Arc<Source> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).source)
    }
}

/// Why there are no credentials where there should be some.
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
    #[error("registry credentials in {origin} are not valid JSON (line {line}, column {column})")]
    Json {
        /// The file or variable.
        origin: String,
        /// The line of the mistake.
        line: usize,
        /// The column of the mistake.
        column: usize,
    },
    /// An entry does not decode.
    #[error("registry credentials for `{key}` in {origin} are not base64 of `user:password`")]
    Entry {
        /// The file or variable.
        origin: String,
        /// The entry.
        key: String,
    },
    /// A helper's name would leave the directories of programs.
    #[error(
        "`{helper}` in {origin} is not the name of a credential helper: letters, digits, `.`, `_` and `-`"
    )]
    HelperName {
        /// The file or variable.
        origin: String,
        /// The name.
        helper: String,
    },
    /// The helper for this host is not there.
    #[error(
        "credential helper `docker-credential-{helper}`, which {origin} names for `{host}`, is not in PATH: install it, or remove the entry from `credHelpers`"
    )]
    HelperMissing {
        /// The file or variable.
        origin: String,
        /// The helper's name.
        helper: String,
        /// The registry.
        host: Host,
    },
    /// The helper fails.
    #[error(
        "credential helper `docker-credential-{helper}`, which {origin} names, gives no credentials for `{host}`: {problem}"
    )]
    Helper {
        /// The file or variable.
        origin: String,
        /// The helper's name.
        helper: String,
        /// The registry.
        host: Host,
        /// What it says, without secrets.
        problem: String,
    },
}

/// A credential, and where it is from.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) credential: Credential,
    /// The file or program, for an error.
    pub(super) origin: String,
    /// The part of a registry that it is for.
    pub(super) prefix: String,
}

/// What is known of us at a registry.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    Known(Box<Found>),
    /// Nothing; perhaps because of something that should be told if it does not suffice.
    Anonymous {
        note: Option<String>,
    },
}

impl Identity {
    /// What a registry is given that asks.
    pub(super) fn given(&self) -> Given {
        match self {
            Self::Known(found) => Given::Credentials { origin: found.origin.clone() },
            Self::Anonymous { note } => Given::Nothing { note: note.clone() },
        }
    }

    pub(super) fn credential(&self) -> Option<&Credential> {
        match self {
            Self::Known(found) => Some(&found.credential),
            Self::Anonymous { .. } => None,
        }
    }
}

impl Credentials {
    /// Nobody, anywhere.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds or replaces those for `host`, which come before all others.
    #[must_use]
    pub fn with(mut self, host: &Host, credential: Credential) -> Self {
        self.given.insert(host.to_string(), credential);
        self
    }

    /// What a configuration says at the time of each request.
    #[must_use]
    pub fn live(config: DockerConfig) -> Self {
        Self { live: Some(config), ..Self::default() }
    }

    /// Reads the text of a docker `config.json`.
    pub fn docker_config_json(text: &str) -> Result<Self, CredentialsError> {
        let source = Source::parse(text, "the given configuration")?;
        Ok(Self { sources: vec![Arc::new(source)], ..Self::default() })
    }

    /// Reads a docker `config.json`; a missing one has no credentials.
    pub fn docker_config_file(path: &Path) -> Result<Self, CredentialsError> {
        let sources = Source::read(path)?.map(Arc::new).into_iter().collect();
        Ok(Self { sources, ..Self::default() })
    }

    /// Reads what this process's environment and home have: `$DOCKER_AUTH_CONFIG`, docker's and podman's files, kaniko's, and what
    /// a job of GitLab's CI is given for its registry.
    pub fn from_environment() -> Result<Self, CredentialsError> {
        let found = Self::from_variables(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))?;
        Ok(found.or(Identities::from_environment()))
    }

    /// The same, and these identities where nothing else is known.
    #[must_use]
    pub fn or(self, identities: Identities) -> Self {
        Self { identities: Some(identities), ..self }
    }

    /// The same, whose identities trust these authorities too.
    pub(super) fn trusting(self, authorities: Vec<CertificateDer<'static>>) -> Self {
        let identities = self.identities.map(|identities| identities.trusting(authorities));
        Self { identities, ..self }
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, CredentialsError> {
        let mut sources = Vec::new();
        if let Some(text) = variable("DOCKER_AUTH_CONFIG") {
            let text = text.to_string_lossy();
            sources.push(Arc::new(Source::parse(&text, "`$DOCKER_AUTH_CONFIG`")?));
        }
        for path in places::files(variable, rustix::process::getuid().as_raw()) {
            sources.extend(Source::read(&path)?.map(Arc::new));
        }
        sources.extend(Source::gitlab(variable).map(Arc::new));
        let helpers = Arc::new(Helpers::new(variable("PATH")));
        Ok(Self { sources, helpers, ..Self::default() })
    }

    /// Who we are for `repository`.
    pub(super) async fn find(&self, repository: &Repository) -> Result<Identity, CredentialsError> {
        if let Some((prefix, credential)) = longest(&self.given, repository) {
            let (credential, prefix) = (credential.clone(), prefix.to_owned());
            return Ok(Identity::Known(Box::new(Found { credential, origin: "hephy".to_owned(), prefix })));
        }
        let mut note = None;
        let live = self.live.as_ref().map(DockerConfig::source);
        for source in live.iter().chain(&self.sources) {
            match source.find(repository, &self.helpers).await? {
                Identity::Anonymous { note: other } => note = note.or(other),
                known @ Identity::Known(_) => return Ok(known),
            }
        }
        match self.by_identity(repository).await {
            Ok(Some(found)) => Ok(Identity::Known(Box::new(found))),
            Ok(None) => Ok(Identity::Anonymous { note }),
            // Much is read by anybody: it is told if it is not.
            Err(error) => {
                let why = format!("this machine's identity is of no use there: {}", Chain(&*error));
                Ok(Identity::Anonymous { note: note.or(Some(why)) })
            }
        }
    }

    /// As whom a cloud knows us, at its registry.
    async fn by_identity(&self, repository: &Repository) -> Result<Option<Found>, Arc<IdentityError>> {
        let Some(identities) = &self.identities else { return Ok(None) };
        // Seldom asked, and large: it is not part of every request's future.
        let Some(issued) = Box::pin(identities.find(&repository.host)).await? else { return Ok(None) };
        let credential = Credential::Basic { username: issued.username, password: issued.password };
        Ok(Some(Found { credential, origin: issued.origin, prefix: repository.host.to_string() }))
    }
}

/// The entry for the longest part of `host/path` there is: `quay.io/org` before `quay.io`.
fn longest<'a, T>(entries: &'a BTreeMap<String, T>, repository: &Repository) -> Option<(&'a str, &'a T)> {
    let whole = repository.to_string();
    let mut prefix = whole.as_str();
    loop {
        if let Some((key, entry)) = entries.get_key_value(prefix) {
            return Some((key, entry));
        }
        prefix = prefix.rsplit_once('/')?.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_files(files: &[(&str, &str)], variables: &[(&str, &str)]) -> Option<String> {
        let home = tempfile::tempdir().unwrap();
        for (name, host) in files {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = format!(r#"{{"auths":{{"{host}":{{"username":"{name}","password":"p"}}}}}}"#);
            std::fs::write(path, text).unwrap();
        }
        let value = |name: &str| match name {
            "HOME" => Some(home.path().as_os_str().to_owned()),
            _ => {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(value.replace('~', home.path().to_str().unwrap()).into())
            }
        };
        let credentials = Credentials::from_variables(&value).unwrap();
        let find = credentials.find(&"a.test/org/app".parse().unwrap()).into_inner_now();
        match find.unwrap() {
            Identity::Known(found) => match found.credential {
                Credential::Basic { username, .. } => Some(username),
                other => panic!("{other:?}"),
            },
            Identity::Anonymous { .. } => None,
        }
    }

    /// A future that is ready at once.
    trait Now: Future + Sized {
        fn into_inner_now(self) -> Self::Output {
            futures::FutureExt::now_or_never(self).unwrap()
        }
    }

    impl<F: Future> Now for F {}

    #[test]
    fn the_first_place_that_knows_the_registry_is_believed() {
        let docker = (".docker/config.json", "a.test");
        let podman = (".config/containers/auth.json", "a.test/org");
        let run = ("run/containers/auth.json", "a.test/org");
        let named = ("named.json", "a.test");
        let elsewhere = ("docker/config.json", "a.test");
        assert_eq!(with_files(&[docker, podman], &[]).as_deref(), Some(docker.0));
        assert_eq!(with_files(&[podman], &[]).as_deref(), Some(podman.0));
        let runtime = ("XDG_RUNTIME_DIR", "~/run");
        assert_eq!(with_files(&[podman, run], &[runtime]).as_deref(), Some(run.0));
        let file = ("REGISTRY_AUTH_FILE", "~/named.json");
        assert_eq!(with_files(&[docker, named], &[file]).as_deref(), Some(named.0));
        let directory = ("DOCKER_CONFIG", "~/docker");
        assert_eq!(with_files(&[docker, named, elsewhere], &[file, directory]).as_deref(), Some(elsewhere.0));
        // Who names a directory does not mean the one in the home.
        assert_eq!(with_files(&[docker], &[directory]), None);
        let text = r#"{"auths":{"a.test":{"auth":"dmFyaWFibGU6cA=="}}}"#;
        let variable = ("DOCKER_AUTH_CONFIG", text);
        assert_eq!(with_files(&[docker], &[variable]).as_deref(), Some("variable"));
        let ci = [("CI_REGISTRY", "a.test"), ("CI_REGISTRY_USER", "ci"), ("CI_REGISTRY_PASSWORD", "p")];
        assert_eq!(with_files(&[], &ci).as_deref(), Some("ci"));
        assert_eq!(with_files(&[docker], &ci).as_deref(), Some(docker.0));
        assert_eq!(with_files(&[], &[("CI_REGISTRY", "b.test"), ci[1], ci[2]]), None);
        let job = [ci[0], ("CI_JOB_TOKEN", "t")];
        assert_eq!(with_files(&[], &job).as_deref(), Some("gitlab-ci-token"));
        // One that does not know the registry does not hide the next.
        let other = (".docker/config.json", "a.test/organisation");
        assert_eq!(with_files(&[other, podman], &[]).as_deref(), Some(podman.0));
    }
}
