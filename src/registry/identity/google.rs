//! Who we are at Google: the file of application default credentials, else the metadata service.
//!
//! <https://cloud.google.com/docs/authentication/application-default-credentials>

mod file;
mod jwt;

use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::variables::read_if_there;
use super::{Http, IdentityError, Token, Variables};
use crate::model::Secret;

/// What a registry of Google's wants: it has no narrower one for writing.
pub(crate) const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
/// What reads an object.
pub(crate) const READ_STORAGE: &str = "https://www.googleapis.com/auth/devstorage.read_only";

/// Where a machine is told what it is.
const MACHINE: &str = "169.254.169.254";
/// How long a token is good if nothing is said.
const LIFE: Duration = Duration::from_mins(5);

/// How Google gives a token.
#[derive(Deserialize)]
struct Given {
    access_token: Secret<String>,
    expires_in: Option<u64>,
}

impl Given {
    fn token(self, origin: String) -> Token {
        let valid = self.expires_in.map_or(LIFE, Duration::from_secs);
        Token { value: self.access_token, valid, origin }
    }
}

/// A token of this machine's for `scope`.
pub(crate) async fn token(
    variables: &Variables,
    http: &Http,
    scope: &str,
) -> Result<Option<Token>, IdentityError> {
    if let Some(path) = variables.get("GOOGLE_APPLICATION_CREDENTIALS") {
        let text = super::variables::read(path.as_ref(), "`$GOOGLE_APPLICATION_CREDENTIALS`")?;
        return file::token(http, &path, &text, scope).await.map(Some);
    }
    let directory = variables.get("CLOUDSDK_CONFIG").map(Into::into);
    let directory = directory.or_else(|| variables.in_home(".config/gcloud"));
    if let Some(path) = directory.map(|directory| directory.join("application_default_credentials.json"))
        && let Some(text) = read_if_there(&path, "`gcloud auth application-default login`")?
    {
        return file::token(http, &path.display().to_string(), &text, scope).await.map(Some);
    }
    of_machine(variables, http, scope).await
}

async fn of_machine(variables: &Variables, http: &Http, scope: &str) -> Result<Option<Token>, IdentityError> {
    const SERVICE: &str = "Google's metadata service";
    const ORIGIN: &str = "the service account of this machine";
    let host = variables.get("GCE_METADATA_HOST").unwrap_or_else(|| MACHINE.to_owned());
    let text = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
    let mut url = Url::parse(&text).map_err(|error| IdentityError::Unusable {
        what: "`$GCE_METADATA_HOST`".to_owned(),
        problem: error.to_string(),
    })?;
    url.query_pairs_mut().append_pair("scopes", scope);
    let asked =
        http.ask_near(SERVICE, |client| client.get(url.clone()).header("metadata-flavor", "Google")).await?;
    // Another cloud has another service at this address.
    let is_googles = |answer: &super::http::Answer| {
        answer.headers.get("metadata-flavor").is_some_and(|flavour| flavour == "Google")
    };
    let Some(answer) = asked.filter(is_googles).filter(|answer| answer.status.as_u16() != 404) else {
        return Ok(None);
    };
    let given: Given = answer.granted(SERVICE, ORIGIN)?.json(SERVICE, "a token")?;
    Ok(Some(given.token(ORIGIN.to_owned())))
}
