//! What Amazon's registries take: a password for twelve hours, for an account's registries in a region.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;

use super::aws::{self, Found, endpoint};
use super::host::Ecr;
use super::sigv4::{Scope, Signed, sign};
use super::{Http, IdentityError, Issued, Variables};
use crate::model::Secret;

const SERVICE: &str = "Amazon's registry (ecr:GetAuthorizationToken)";
const EXPECTED: &str = "a token for the registry";
/// How long a token is good if nothing is said.
const LIFE: Duration = Duration::from_hours(12);
/// The one region that answers for everybody's registry.
const PUBLIC_REGION: &str = "us-east-1";

/// One, or a list of one, as the two registries answer.
#[derive(Deserialize)]
struct Private {
    #[serde(rename = "authorizationData")]
    data: Vec<Authorization>,
}

#[derive(Deserialize)]
struct Public {
    #[serde(rename = "authorizationData")]
    data: Authorization,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_token: Secret<String>,
    /// Seconds since 1970, with a fraction.
    expires_at: Option<f64>,
}

/// What a request for a token is made of.
struct Api<'a> {
    url: url::Url,
    target: &'static str,
    scope: Scope<'a>,
}

pub(super) async fn token(
    variables: &Variables,
    http: &Http,
    registry: &Ecr,
) -> Result<Option<Issued>, IdentityError> {
    let region = match registry {
        Ecr::Private { region, .. } => region.as_str(),
        Ecr::Public => PUBLIC_REGION,
    };
    let Some(found) = aws::keys(variables, http, region).await? else { return Ok(None) };
    let api = api(variables, registry, region)?;
    let body = "{}";
    let answer = http.ask(SERVICE, |client| {
        let own = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", api.target)];
        let request = Signed { method: "POST", url: &api.url, headers: &own, body: body.as_bytes() };
        // Signed for each try: a signature is good for minutes.
        let signed = sign(request, &found.keys, api.scope, Timestamp::now());
        let mut request = client.post(api.url.clone()).body(body);
        for (name, value) in own.iter().map(|(name, value)| (*name, (*value).to_owned())).chain(signed) {
            request = request.header(name, value);
        }
        request
    });
    let answer = answer.await?.granted(SERVICE, &found.origin)?;
    let data = match registry {
        Ecr::Private { .. } => answer.json::<Private>(SERVICE, EXPECTED)?.data.into_iter().next(),
        Ecr::Public => Some(answer.json::<Public>(SERVICE, EXPECTED)?.data),
    };
    data.and_then(|data| issued(&data, found))
        .map(Some)
        .ok_or_else(|| IdentityError::Answer { service: SERVICE.to_owned(), expected: EXPECTED })
}

fn api<'a>(variables: &Variables, registry: &Ecr, region: &'a str) -> Result<Api<'a>, IdentityError> {
    Ok(match registry {
        Ecr::Private { domain, is_fips, .. } => {
            let name = if *is_fips { "ecr-fips" } else { "api.ecr" };
            Api {
                url: endpoint(variables, "ECR", &format!("https://{name}.{region}.{domain}"))?,
                target: "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
                scope: Scope { region, service: "ecr" },
            }
        }
        Ecr::Public => Api {
            url: endpoint(
                variables,
                "ECR_PUBLIC",
                &format!("https://api.ecr-public.{region}.amazonaws.com"),
            )?,
            target: "SpencerFrontendService.GetAuthorizationToken",
            scope: Scope { region, service: "ecr-public" },
        },
    })
}

fn issued(data: &Authorization, found: Found) -> Option<Issued> {
    let decoded = STANDARD.decode(data.authorization_token.reveal()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (username, password) = decoded.split_once(':')?;
    #[expect(clippy::cast_possible_truncation, reason = "a float of seconds fits, and saturates if not")]
    let valid = data.expires_at.map_or(LIFE, |at| aws::left(at as i64));
    // No token outlives the keys that it was had with.
    let valid = found.keys.valid.map_or(valid, |keys| valid.min(keys));
    let password = Secret::new(password.to_owned());
    Some(Issued { username: username.to_owned(), password, valid, origin: found.origin })
}
