//! S3: a GET that is signed.

use jiff::Timestamp;
use url::{Host, Url};

use super::{Asker, Question, endpoint, headers};
use crate::registry::identity::sigv4::{Scope, Signed, encoded, sign};
use crate::registry::identity::{Http, IdentityError, Variables, aws};

/// Where a bucket is of which nothing is said.
const REGION: &str = "us-east-1";

pub(super) async fn question(
    variables: &Variables,
    http: &Http,
    asker: Asker,
    (bucket, key): (&str, &str),
    region: Option<&str>,
) -> Result<Question, IdentityError> {
    let region = region.map(str::to_owned).or_else(|| aws::region(variables));
    let region = region.unwrap_or_else(|| REGION.to_owned());
    let url = url(variables, &region, bucket, key)?;
    let found = match asker {
        Asker::Machine => aws::keys(variables, http, &region).await?,
        Asker::Anybody => None,
    };
    let Some(found) = found else {
        let who = "anybody, since AWS knows nobody here (AWS_ACCESS_KEY_ID, a role)".to_owned();
        return Ok(Question { url, headers: headers([])?, who });
    };
    let request = Signed { method: "GET", url: &url, headers: &[], body: b"" };
    let signed = sign(request, &found.keys, Scope { region: &region, service: "s3" }, Timestamp::now());
    Ok(Question { headers: headers(signed)?, url, who: found.origin })
}

/// Whether a text may be a region, and so a part of a host's name.
pub(super) fn is_region(text: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= 40 && text.bytes().all(is_known)
}

fn url(variables: &Variables, region: &str, bucket: &str, key: &str) -> Result<Url, IdentityError> {
    let named = variables.get("S3_ENDPOINT");
    let base = match &named {
        Some(text) => endpoint("S3_ENDPOINT", text)?,
        None => {
            if !is_region(region) {
                let problem = format!("`{}` is no region", region.escape_debug());
                return Err(IdentityError::Unusable { what: "`$AWS_REGION`".to_owned(), problem });
            }
            aws::endpoint(variables, "S3", &format!("https://s3.{region}.{}", aws::domain(region)))?
        }
    };
    let name = match base.host() {
        // A certificate for all buckets is for none with a dot, and an address has none below it.
        Some(Host::Domain(name)) if !bucket.contains('.') && !variables.is_true("S3_FORCE_PATH_STYLE") => {
            Some(format!("{bucket}.{name}")).filter(|_| name != "localhost")
        }
        _ => None,
    };
    let mut url = base;
    let within = url.path().trim_end_matches('/').to_owned();
    let path = match name {
        Some(name) => {
            url.set_host(Some(&name)).map_err(|error| IdentityError::Unusable {
                what: format!("the bucket `{bucket}`"),
                problem: error.to_string(),
            })?;
            format!("{within}/{}", encoded(key, true))
        }
        None => format!("{within}/{bucket}/{}", encoded(key, true)),
    };
    url.set_path(&path);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(given: &[(&str, &str)], region: &str, bucket: &str, key: &str) -> String {
        url(&Variables::of(given), region, bucket, key).unwrap().to_string()
    }

    #[test]
    fn a_bucket_is_a_host_where_that_can_be_and_a_path_elsewhere() {
        assert_eq!(at(&[], "eu-west-1", "b", "a/k.tar"), "https://b.s3.eu-west-1.amazonaws.com/a/k.tar");
        assert_eq!(at(&[], "cn-north-1", "b", "k"), "https://b.s3.cn-north-1.amazonaws.com.cn/k");
        assert_eq!(at(&[], "eu-west-1", "b.c", "k"), "https://s3.eu-west-1.amazonaws.com/b.c/k");
        let path = [("S3_FORCE_PATH_STYLE", "true")];
        assert_eq!(at(&path, "eu-west-1", "b", "k"), "https://s3.eu-west-1.amazonaws.com/b/k");
        let minio = [("S3_ENDPOINT", "http://127.0.0.1:9000")];
        assert_eq!(at(&minio, "us-east-1", "b", "k"), "http://127.0.0.1:9000/b/k");
        let store = [("S3_ENDPOINT", "https://store.test/base/")];
        assert_eq!(at(&store, "us-east-1", "b", "k"), "https://b.store.test/base/k");
        assert_eq!(at(&minio, "x", "b", "a b/ü+~%"), "http://127.0.0.1:9000/b/a%20b/%C3%BC%2B~%25");
        let wrong = Variables::of(&[("S3_ENDPOINT", "store.test:9000")]);
        assert!(url(&wrong, "us-east-1", "b", "k").is_err());
        assert!(url(&Variables::of(&[]), "evil.test/", "b", "k").is_err());
    }
}
