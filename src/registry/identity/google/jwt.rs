//! What a service account asserts of itself: a JSON web token, signed with its key (RFC 7515, RFC 7523).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use crate::model::Secret;

/// How long an assertion is good, in seconds; Google takes no longer one.
const LIFE: i64 = 3600;

pub(super) struct Claims<'a> {
    pub(super) issuer: &'a str,
    pub(super) scope: &'a str,
    pub(super) audience: &'a str,
    /// In seconds since 1970.
    pub(super) issued_at: i64,
}

/// The assertion; an error says what the key is not.
pub(super) fn sign(
    key: &Secret<String>,
    key_id: Option<&str>,
    claims: &Claims<'_>,
) -> Result<Secret<String>, &'static str> {
    let key =
        PrivateKeyDer::from_pem_slice(key.reveal().as_bytes()).map_err(|_| "is no private key in PEM")?;
    let key = any_supported_type(&key).map_err(|_| "is of no kind that can sign")?;
    let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).ok_or("is not RSA's")?;
    let mut header = json!({"alg": "RS256", "typ": "JWT"});
    if let Some(key_id) = key_id {
        header["kid"] = key_id.into();
    }
    let claims = json!({
        "iss": claims.issuer,
        "scope": claims.scope,
        "aud": claims.audience,
        "iat": claims.issued_at,
        "exp": claims.issued_at + LIFE,
    });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = signer.sign(signed.as_bytes()).map_err(|_| "does not sign")?;
    Ok(Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
}
