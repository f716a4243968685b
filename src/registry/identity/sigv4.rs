//! AWS Signature Version 4: what proves to Amazon, and to stores that speak its protocol, that a request is ours.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html>

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::aws::Keys;

/// What a signature is good for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
}

/// What is signed of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signed<'a> {
    pub(crate) method: &'a str,
    /// With its path encoded as it is sent.
    pub(crate) url: &'a Url,
    /// Names in lower case.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
}

/// The headers that a request has besides, its signature among them.
pub(crate) fn sign(
    request: Signed<'_>,
    keys: &Keys,
    scope: Scope<'_>,
    at: Timestamp,
) -> Vec<(&'static str, String)> {
    let body = hex::encode(Sha256::digest(request.body));
    let time = at.strftime("%Y%m%dT%H%M%SZ").to_string();
    let date = time.get(..8).unwrap_or_default();
    let mut added = vec![("x-amz-date", time.clone())];
    if scope.service == "s3" {
        added.push(("x-amz-content-sha256", body.clone()));
    }
    if let Some(token) = &keys.session_token {
        added.push(("x-amz-security-token", token.reveal().clone()));
    }
    let host = authority(request.url);
    let mut headers: Vec<(&str, &str)> = vec![("host", &host)];
    headers.extend(request.headers);
    headers.extend(added.iter().map(|(name, value)| (*name, value.as_str())));
    headers.sort_unstable();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let canonical_headers: String =
        headers.iter().map(|(name, value)| format!("{name}:{}\n", squeezed(value))).collect();
    let canonical = [
        request.method,
        request.url.path(),
        &canonical_query(request.url),
        &canonical_headers,
        &names,
        &body,
    ]
    .join("\n");
    let within = format!("{date}/{}/{}/aws4_request", scope.region, scope.service);
    let hash = hex::encode(Sha256::digest(canonical.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{within}\n{hash}");
    let secret = format!("AWS4{}", keys.secret_key.reveal());
    let parts = [date, scope.region, scope.service, "aws4_request"];
    let key = parts.iter().fold(secret.into_bytes(), |key, part| hmac(&key, part.as_bytes()));
    let signature = hex::encode(hmac(&key, text.as_bytes()));
    let credential = format!("{}/{within}", keys.access_key);
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}");
    added.push(("authorization", authorization));
    added
}

/// Text as Amazon encodes it in a URL: all but letters, digits and `-._~`, and the slashes of a path.
pub(crate) fn encoded(text: &str, is_path: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b'/' if is_path => out.push('/'),
            _ => out.extend(['%'].into_iter().chain(format!("{byte:02X}").chars())),
        }
    }
    out
}

fn canonical_query(url: &Url) -> String {
    let mut pairs: Vec<(String, String)> =
        url.query_pairs().map(|(key, value)| (encoded(&key, false), encoded(&value, false))).collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join("&")
}

/// The host as the header has it: with a port that is not the scheme's.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn squeezed(value: &str) -> String {
    value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "HMAC has keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Secret;

    fn keys(access_key: &str, secret_key: &str) -> Keys {
        let secret_key = Secret::new(secret_key.to_owned());
        Keys { access_key: access_key.to_owned(), secret_key, session_token: None, valid: None }
    }

    fn signature(request: Signed<'_>, keys: &Keys, scope: Scope<'_>, at: &str) -> String {
        let headers = sign(request, keys, scope, at.parse().unwrap());
        let (_, authorization) = headers.last().unwrap();
        authorization.rsplit_once('=').unwrap().1.to_owned()
    }

    /// Of the test suite that Amazon publishes with the description of the signature.
    #[test]
    fn signatures_are_those_of_amazons_test_suite() {
        let keys = keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let scope = Scope { region: "us-east-1", service: "service" };
        let form = [("content-type", "application/x-www-form-urlencoded")];
        for (method, url, headers, body, expected) in [
            (
                "GET",
                "https://example.amazonaws.com/",
                &[][..],
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "GET",
                "https://example.amazonaws.com/?Param2=value2&Param1=value1",
                &[],
                "",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "POST",
                "https://example.amazonaws.com/",
                &form[..],
                "Param1=value1",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
        ] {
            let url = url.parse().unwrap();
            let request = Signed { method, url: &url, headers, body: body.as_bytes() };
            assert_eq!(signature(request, &keys, scope, "2015-08-30T12:36:00Z"), expected, "{method} {url}");
        }
    }

    /// Of the examples in Amazon's documentation of S3.
    #[test]
    fn an_object_of_s3_is_asked_for_as_its_documentation_shows() {
        let keys = keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let url = "https://examplebucket.s3.amazonaws.com/test.txt".parse().unwrap();
        let request = Signed { method: "GET", url: &url, headers: &[("range", "bytes=0-9")], body: b"" };
        let scope = Scope { region: "us-east-1", service: "s3" };
        assert_eq!(
            signature(request, &keys, scope, "2013-05-24T00:00:00Z"),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    #[test]
    fn a_session_token_is_signed_too() {
        let mut keys = keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        keys.session_token = Some(Secret::new("t".to_owned()));
        let url = "https://example.amazonaws.com/".parse().unwrap();
        let request = Signed { method: "GET", url: &url, headers: &[], body: b"" };
        let scope = Scope { region: "us-east-1", service: "service" };
        let headers = sign(request, &keys, scope, "2015-08-30T12:36:00Z".parse().unwrap());
        assert!(headers.contains(&("x-amz-security-token", "t".to_owned())));
        assert!(headers.last().unwrap().1.contains("SignedHeaders=host;x-amz-date;x-amz-security-token,"));
    }
}
