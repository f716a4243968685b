//! The registry of a platform: its name, where an app's repository is in it, and who may write there.

use std::time::Duration;

use crate::model::AppName;
use crate::oci::{Host, Repository, RepositoryName};
use crate::registry::client::{
    Client, ClientConfig, Credential, Credentials, CredentialsError, DockerConfig, Reach,
};
use crate::registry::server::{TokenIssuer, docker_config};

/// Where a platform keeps what it publishes.
#[derive(Debug, Clone)]
pub struct Place {
    /// The registry, as this process and the engines reach it.
    pub host: Host,
    /// What every repository is below; nothing in a registry of our own.
    pub prefix: Option<RepositoryName>,
    /// It speaks plain HTTP.
    pub is_plain: bool,
    /// Who may write.
    pub access: Access,
    /// How registries are reached by this process: whose certificates it believes.
    pub reach: Reach,
}

/// Who may write to a registry.
#[derive(Debug, Clone)]
pub enum Access {
    /// Who has a token of ours: the registry is our own.
    Tokens(TokenIssuer),
    /// Who has what this Docker configuration says: the registry is somebody else's.
    DockerConfig(DockerConfig),
    /// Everybody.
    Open,
}

impl Place {
    /// A registry of our own, which speaks plain HTTP to this machine or this cluster.
    #[must_use]
    pub fn own(host: Host, tokens: TokenIssuer) -> Self {
        let access = Access::Tokens(tokens);
        Self { host, prefix: None, is_plain: true, access, reach: Reach::default() }
    }

    /// The repository of an app.
    pub fn repository(&self, app: &AppName) -> Result<Repository, crate::oci::NameError> {
        self.named(app.as_str())
    }

    /// A repository by its name below the prefix.
    pub fn named(&self, name: &str) -> Result<Repository, crate::oci::NameError> {
        let name = match &self.prefix {
            Some(prefix) => format!("{prefix}/{name}").parse()?,
            None => name.parse()?,
        };
        Ok(Repository { host: self.host.clone(), name })
    }

    /// The namespaces where a base is looked for before its own registry.
    #[must_use]
    pub fn mirrors(&self) -> Vec<String> {
        match &self.prefix {
            Some(prefix) => vec![format!("{}/{prefix}/mirror", self.host)],
            None => vec![format!("{}/mirror", self.host)],
        }
    }

    /// What a build of `app` may do, as a Docker configuration: in a registry of our own write to its own repositories and
    /// read the others, for `valid`.
    #[must_use]
    pub fn docker_config(&self, app: &AppName, valid: Duration) -> Option<String> {
        match &self.access {
            Access::Tokens(tokens) => Some(docker_config(&self.host, &tokens.for_build(app, valid))),
            Access::DockerConfig(config) => Some(config.text().reveal().clone()),
            Access::Open => None,
        }
    }

    /// How long what [`docker_config`](Self::docker_config) says now is good, if it ends whatever is asked for.
    #[must_use]
    pub fn valid(&self) -> Option<Duration> {
        match &self.access {
            Access::DockerConfig(config) => config.valid(),
            Access::Tokens(_) | Access::Open => None,
        }
    }

    /// A client that may do everything that the platform may.
    pub fn client(&self, valid: Duration) -> Result<Client, CredentialsError> {
        let credentials = match &self.access {
            Access::Tokens(tokens) => {
                let token = tokens.for_server(valid);
                let credential = Credential::Basic { username: "hephy".to_owned(), password: token };
                Credentials::none().with(&self.host, credential)
            }
            Access::DockerConfig(config) => Credentials::live(config.clone()),
            Access::Open => Credentials::none(),
        };
        let mut reach = self.reach.clone();
        reach.plain.extend(self.is_plain.then(|| self.host.clone()));
        Ok(Client::new(ClientConfig { credentials, reach, ..ClientConfig::default() }))
    }
}
