//! Cloud Storage: a GET with a token.

use super::{Asker, Question, endpoint, headers};
use crate::registry::identity::sigv4::encoded;
use crate::registry::identity::{Http, IdentityError, Variables, google};

const STORE: &str = "https://storage.googleapis.com";

pub(super) async fn question(
    variables: &Variables,
    http: &Http,
    asker: Asker,
    bucket: &str,
    object: &str,
) -> Result<Question, IdentityError> {
    let emulator = variables.get("STORAGE_EMULATOR_HOST");
    let base = match &emulator {
        Some(host) if host.contains("://") => host.clone(),
        Some(host) => format!("http://{host}"),
        None => STORE.to_owned(),
    };
    let mut url = endpoint("STORAGE_EMULATOR_HOST", &base)?;
    // Set as it is: a slash of a name is no slash of a path here.
    url.set_path(&format!("/storage/v1/b/{bucket}/o/{}", encoded(object, false)));
    url.set_query(Some("alt=media"));
    // An emulator knows nobody, and what others know is not for it.
    let token = match (asker, emulator) {
        (Asker::Anybody, _) | (_, Some(_)) => None,
        (Asker::Machine, None) => google::token(variables, http, google::READ_STORAGE).await?,
    };
    Ok(match token {
        Some(token) => {
            let bearer = format!("Bearer {}", token.value.reveal());
            Question { url, headers: headers([("authorization", bearer)])?, who: token.origin }
        }
        None => {
            let who =
                "anybody, since Google knows nobody here (GOOGLE_APPLICATION_CREDENTIALS, a service account)";
            Question { url, headers: headers([])?, who: who.to_owned() }
        }
    })
}
