//! The credentials of a cloud's registry: what that cloud gives this server, as a Docker configuration that is renewed
//! before it ends. Builds and kubelets have no identity there; they are handed what is good at the registry.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{Chain, Secret};
use crate::oci::Host;
use crate::registry::client::{CredentialsError, DockerConfig};
use crate::registry::identity::{Identities, IdentityError, Issued};

/// The least between two renewals, however short a life is said to be: a clock that is wrong makes all lives short.
const LEAST_PAUSE: Duration = Duration::from_secs(2);
/// How long after a failure it is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(20);

/// Why a cloud's registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// The cloud does not give anything.
    #[error("the registry `{host}` cannot be used as this server")]
    Identity {
        /// The registry.
        host: Host,
        /// Why.
        #[source]
        source: Arc<IdentityError>,
    },
    /// Nobody says who this server is there.
    #[error(
        "this server has no identity at the cloud of the registry `{0}`: give its service account one (serviceAccount.annotations), or a Secret (registry.secret)"
    )]
    Nobody(Host),
    /// There is nothing to be asked.
    #[error(
        "the registry `{0}` is none of Amazon's, Google's or Azure's, which alone know this server: give a Secret (registry.secret)"
    )]
    Foreign(Host),
    /// What is given is no password.
    #[error("what the cloud gives for its registry cannot be used")]
    Unusable(#[from] CredentialsError),
}

/// The credentials of a registry, and who renews them.
pub(super) struct CloudCredentials {
    identities: Identities,
    host: Host,
    config: DockerConfig,
}

impl CloudCredentials {
    /// Asks for the first.
    pub(super) async fn begin(identities: Identities, host: &Host) -> Result<Self, CloudError> {
        let issued = ask(&identities, host).await?;
        let config = DockerConfig::for_now(issued.docker_config(host), issued.valid)?;
        tracing::info!(registry = %host, identity = issued.origin, "the registry knows this server");
        Ok(Self { identities, host: host.clone(), config })
    }

    /// They as they are at any time.
    pub(super) fn config(&self) -> DockerConfig {
        self.config.clone()
    }

    /// Renews them when half of their time is over, for as long as it runs, and tells `changed`.
    pub(super) async fn keep(self, changed: impl AsyncFn(Secret<String>)) {
        loop {
            let left = self.config.valid().unwrap_or_default();
            tokio::time::sleep((left / 2).max(LEAST_PAUSE)).await;
            match self.renew().await {
                Ok(text) => changed(text).await,
                Err(error) => {
                    tracing::error!(registry = %self.host, error = %Chain(&error), "the registry's credentials are not renewed");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }

    async fn renew(&self) -> Result<Secret<String>, CloudError> {
        let issued = ask(&self.identities, &self.host).await?;
        let text = issued.docker_config(&self.host);
        self.config.replace(text.clone(), Some(issued.valid))?;
        Ok(text)
    }
}

async fn ask(identities: &Identities, host: &Host) -> Result<Issued, CloudError> {
    if !Identities::know(host) {
        return Err(CloudError::Foreign(host.clone()));
    }
    let asked = identities.renew(host).await;
    let issued = asked.map_err(|source| CloudError::Identity { host: host.clone(), source })?;
    issued.ok_or_else(|| CloudError::Nobody(host.clone()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::routing::get;
    use tokio::sync::mpsc;

    use super::*;
    use crate::registry::identity::Variables;

    /// A metadata service of Google's that gives another token each time, good for a second.
    async fn metadata() -> String {
        drop(rustls::crypto::ring::default_provider().install_default());
        let given = Arc::new(AtomicUsize::new(0));
        let token = move || {
            let number = given.fetch_add(1, Ordering::Relaxed);
            async move {
                let body = format!(r#"{{"access_token":"token-{number}","expires_in":1}}"#);
                ([("metadata-flavor", "Google")], body)
            }
        };
        let path = "/computeMetadata/v1/instance/service-accounts/default/token";
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = Router::new().route(path, get(token));
        drop(tokio::spawn(async move { axum::serve(listener, router).await }));
        address
    }

    fn password(config: &Secret<String>, host: &Host) -> String {
        use base64::Engine as _;
        let config: serde_json::Value = serde_json::from_str(config.reveal()).unwrap();
        let auth = config["auths"][host.as_str()]["auth"].as_str().unwrap();
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(auth).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn credentials_are_renewed_before_they_end_and_whoever_holds_them_has_the_new_ones() {
        let metadata = metadata().await;
        let identities = Identities::new(Variables::of(&[("GCE_METADATA_HOST", &metadata)]));
        let host: Host = "europe-docker.pkg.dev".parse().unwrap();
        let cloud = CloudCredentials::begin(identities, &host).await.unwrap();
        let held = cloud.config();
        assert_eq!(password(&held.text(), &host), "oauth2accesstoken:token-0");
        let (told, mut changes) = mpsc::unbounded_channel();
        let kept = tokio::spawn(cloud.keep(async move |text| told.send(text).unwrap()));
        for number in 1..=2 {
            let told = changes.recv().await.unwrap();
            assert_eq!(password(&told, &host), format!("oauth2accesstoken:token-{number}"));
        }
        assert_ne!(password(&held.text(), &host), "oauth2accesstoken:token-0");
        kept.abort();
    }

    #[tokio::test]
    async fn a_registry_that_no_cloud_has_and_a_server_that_nobody_knows_are_told() {
        let nobody = Identities::new(Variables::of(&[("GCE_METADATA_HOST", "127.0.0.1:1")]));
        let begin = async |host: &str| {
            let begun = CloudCredentials::begin(nobody.clone(), &host.parse().unwrap()).await;
            begun.err().unwrap()
        };
        assert!(matches!(begin("registry.example").await, CloudError::Foreign(_)));
        drop(rustls::crypto::ring::default_provider().install_default());
        assert!(matches!(begin("gcr.io").await, CloudError::Nobody(_)));
    }
}
