//! One object of a store: S3 and what speaks its protocol, Google's Cloud Storage, Azure's Blob Storage.
//!
//! Asked for as whom the cloud knows this machine (`registry::identity`), or as anybody where it knows nobody or gives that one
//! nothing: an identity that a machine happens to have is no reason not to read what is public. The variables that move a
//! store elsewhere are kaniko's, which are those of the clouds' own libraries.

mod azure;
mod google;
mod s3;

use std::fmt;
use std::path::Path;

use backon::Retryable as _;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode};
use url::Url;

use super::http::{backoff, may_pass};
use super::{Download, MAX_DOWNLOAD_BYTES, RemoteError, Web, shown};
use crate::registry::client::certificates_of;
use crate::registry::identity::{Http, IdentityError, Variables, element};

/// The object that a bucket alone means.
const USUAL: &str = "context.tar.gz";
/// The most that is read of what a store says of an error.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Object {
    /// `s3://bucket/key`.
    S3 { bucket: String, key: String },
    /// `gs://bucket/object`.
    Google { bucket: String, object: String },
    /// `https://account.blob.core.windows.net/container/blob`.
    Azure(Url),
}

impl Object {
    /// The object that a text names; `None` if it is something else.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, String> {
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, key) = in_bucket(text, rest)?;
            return Ok(Some(Self::S3 { bucket, key }));
        }
        if let Some(rest) = text.strip_prefix("gs://") {
            let (bucket, object) = in_bucket(text, rest)?;
            return Ok(Some(Self::Google { bucket, object }));
        }
        let Ok(url) = Url::parse(text) else { return Ok(None) };
        Ok(azure::is_blob(&url).then_some(Self::Azure(url)))
    }
}

/// Bucket and name; the usual one if there is none.
fn in_bucket(text: &str, rest: &str) -> Result<(String, String), String> {
    let (bucket, name) = rest.split_once('/').unwrap_or((rest, ""));
    let is_bucket = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if bucket.is_empty() || !bucket.bytes().all(is_bucket) {
        return Err(format!("`{text}` names no bucket: it is `s3://BUCKET/KEY` or `gs://BUCKET/OBJECT`"));
    }
    // A URL has no such parts, and a signature is for what is sent.
    if name.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(format!("`{text}` has a part `.` or `..`, which no address can"));
    }
    let name = if name.is_empty() { USUAL } else { name };
    Ok((bucket.to_owned(), name.to_owned()))
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            Self::Google { bucket, object } => write!(f, "gs://{bucket}/{object}"),
            Self::Azure(url) => f.write_str(&shown(url)),
        }
    }
}

/// Fetches objects.
pub(crate) struct Objects {
    variables: Variables,
    http: Http,
    web: Web,
}

/// As whom a store is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// As whom its cloud knows this machine, if it knows it.
    Machine,
    /// With nothing that proves anything.
    Anybody,
}

/// A question to a store, and who asks.
struct Question {
    url: Url,
    headers: HeaderMap,
    who: String,
}

impl Objects {
    /// As this process's environment has it, believing the system's authorities and the certificates of `trusted` (PEM).
    pub(crate) fn from_environment(trusted: Option<&str>) -> Result<Self, RemoteError> {
        Self::new(Variables::from_environment(), MAX_DOWNLOAD_BYTES, trusted)
    }

    fn new(variables: Variables, max_bytes: u64, trusted: Option<&str>) -> Result<Self, RemoteError> {
        let http = Http::new(trusted.map(certificates_of).unwrap_or_default());
        Ok(Self { variables, http, web: Web::direct(max_bytes, trusted)? })
    }

    /// Fetches an object into an unnamed file in `spool`.
    pub(crate) async fn get(&self, object: &Object, spool: &Path) -> Result<Download, RemoteError> {
        (|| self.get_once(object, spool)).retry(backoff()).when(may_pass).await
    }

    async fn get_once(&self, object: &Object, spool: &Path) -> Result<Download, RemoteError> {
        match self.get_as(Asker::Machine, object, spool).await {
            Err(error) if is_of_identity(&error) => {
                self.get_as(Asker::Anybody, object, spool).await.or(Err(error))
            }
            got => got,
        }
    }

    async fn get_as(&self, asker: Asker, object: &Object, spool: &Path) -> Result<Download, RemoteError> {
        let question = self.question(asker, object, None).await?;
        let answer = self.web.ask(&question.url, question.headers.clone()).await?;
        if answer.status() == StatusCode::OK {
            return self.web.read(&question.url, answer, spool).await;
        }
        // A bucket of another region says which.
        let region = answer.headers().get("x-amz-bucket-region").and_then(|value| value.to_str().ok());
        if let (Object::S3 { .. }, 301 | 307 | 400, Some(region)) =
            (object, answer.status().as_u16(), region.filter(|region| s3::is_region(region)))
        {
            let again = self.question(asker, object, Some(region)).await?;
            let answer = self.web.ask(&again.url, again.headers.clone()).await?;
            if answer.status() == StatusCode::OK {
                return self.web.read(&again.url, answer, spool).await;
            }
            return Err(refused(object, again.who, answer).await);
        }
        Err(refused(object, question.who, answer).await)
    }

    async fn question(
        &self,
        asker: Asker,
        object: &Object,
        region: Option<&str>,
    ) -> Result<Question, RemoteError> {
        let (variables, http) = (&self.variables, &self.http);
        let question = match object {
            Object::S3 { bucket, key } => s3::question(variables, http, asker, (bucket, key), region).await,
            Object::Google { bucket, object } => {
                google::question(variables, http, asker, bucket, object).await
            }
            Object::Azure(url) => azure::question(variables, http, asker, url).await,
        };
        question.map_err(|source| RemoteError::Identity { address: object.to_string(), source })
    }
}

/// Whether an object is not given because of who asks.
fn is_of_identity(error: &RemoteError) -> bool {
    match error {
        RemoteError::Identity { .. } => true,
        // S3 answers 400 to a token that has expired.
        RemoteError::Object { status, .. } => matches!(status.as_u16(), 400 | 401 | 403),
        _ => false,
    }
}

/// What a store says of why it does not give an object.
async fn refused(object: &Object, who: String, mut answer: Response) -> RemoteError {
    let status = answer.status();
    let mut body = Vec::new();
    while let Ok(Some(part)) = answer.chunk().await {
        if body.len() + part.len() > MAX_MESSAGE_BYTES {
            break;
        }
        body.extend_from_slice(&part);
    }
    let text = String::from_utf8_lossy(&body);
    let of_json = || -> Option<String> {
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(value.get("error")?.get("message")?.as_str()?.to_owned())
    };
    let message = element(&text, "Message").or_else(of_json).unwrap_or_default();
    // Azure adds lines with an id and a time.
    let message = message.lines().next().unwrap_or_default().chars().take(300).collect();
    RemoteError::Object { address: object.to_string(), status, who, message }
}

/// Headers, of which those that prove something are never shown.
fn headers<'a>(given: impl IntoIterator<Item = (&'a str, String)>) -> Result<HeaderMap, IdentityError> {
    let wrong = || IdentityError::Unusable {
        what: "what proves who this machine is".to_owned(),
        problem: "it is not what a header may hold".to_owned(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name = HeaderName::try_from(name).map_err(|_| wrong())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// A URL of a store that a variable names.
fn endpoint(name: &'static str, text: &str) -> Result<Url, IdentityError> {
    let url = Url::parse(text).ok().filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| IdentityError::Unusable {
        what: format!("`${name}`"),
        problem: format!("`{text}` is not a URL of http or https"),
    })
}

#[cfg(test)]
mod tests;
