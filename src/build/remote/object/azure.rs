//! Blob Storage: a GET with a token, or signed with the key of the account.
//!
//! <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key>

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;
use url::Url;

use super::{Asker, Question, headers};
use crate::model::Secret;
use crate::registry::identity::azure::{For, Sovereign, token};
use crate::registry::identity::{Http, IdentityError, Variables};

/// The newest that all stores speak which take tokens.
const VERSION: &str = "2020-10-02";

/// Whether a URL is of a blob that is asked for as somebody: one that says itself who may read it is a file like others.
pub(super) fn is_blob(url: &Url) -> bool {
    let is_store = url.host_str().is_some_and(|host| Sovereign::of_storage(host).is_some());
    let parts = url.path_segments().into_iter().flatten().filter(|part| !part.is_empty()).count();
    url.scheme() == "https"
        && url.port().is_none()
        && is_store
        && parts >= 2
        && url.fragment().is_none()
        && !url.query_pairs().any(|(name, _)| name == "sig")
}

pub(super) async fn question(
    variables: &Variables,
    http: &Http,
    asker: Asker,
    url: &Url,
) -> Result<Question, IdentityError> {
    let host = url.host_str().unwrap_or_default();
    let account = host.split('.').next().unwrap_or_default();
    let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let own = [("x-ms-date", date), ("x-ms-version", VERSION.to_owned())];
    if asker == Asker::Anybody {
        return Ok(Question { url: url.clone(), headers: headers(own)?, who: "anybody".to_owned() });
    }
    if let Some(key) = variables.secret("AZURE_STORAGE_ACCESS_KEY") {
        let signature = sign(&key, account, url, &own)?;
        let proof = ("authorization", format!("SharedKey {account}:{signature}"));
        let who = format!("the key of the account `{account}` (`$AZURE_STORAGE_ACCESS_KEY`)");
        return Ok(Question { url: url.clone(), headers: headers(own.into_iter().chain([proof]))?, who });
    }
    let cloud = Sovereign::of_storage(host).unwrap_or(Sovereign::Public);
    let (proof, who) = match token(variables, http, cloud, For::Storage).await? {
        Some(token) => (Some(("authorization", format!("Bearer {}", token.value.reveal()))), token.origin),
        None => {
            let who = "anybody, since Azure knows nobody here (AZURE_STORAGE_ACCESS_KEY, AZURE_CLIENT_ID, a managed identity)";
            (None, who.to_owned())
        }
    };
    Ok(Question { url: url.clone(), headers: headers(own.into_iter().chain(proof))?, who })
}

/// The signature of a GET without a body.
pub(super) fn sign(
    key: &Secret<String>,
    account: &str,
    url: &Url,
    own: &[(&str, String)],
) -> Result<String, IdentityError> {
    let wrong = |problem: &str| IdentityError::Unusable {
        what: "`$AZURE_STORAGE_ACCESS_KEY`".to_owned(),
        problem: problem.to_owned(),
    };
    let key = STANDARD.decode(key.reveal().trim()).map_err(|_| wrong("it is not base64"))?;
    // Eleven headers that a GET of a whole blob does not have.
    let mut text = format!("GET{}", "\n".repeat(12));
    text.extend(own.iter().map(|(name, value)| format!("{name}:{value}\n")));
    text.extend(["/", account, url.path()]);
    let mut query: Vec<(String, String)> =
        url.query_pairs().map(|(name, value)| (name.to_lowercase(), value.into_owned())).collect();
    query.sort_unstable();
    text.extend(query.iter().map(|(name, value)| format!("\n{name}:{value}")));
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).map_err(|_| wrong("it is no key"))?;
    mac.update(text.as_bytes());
    Ok(STANDARD.encode(mac.finalize().into_bytes()))
}
