//! Who we are at Amazon: keys from where its own programs look for them, in their order.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html>

mod profile;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use url::{Host, Url};

use super::http::element;
use super::variables::read;
use super::{Http, IdentityError, Variables};
use crate::model::Secret;

/// Where a container is told its keys (ECS).
const CONTAINER: &str = "http://169.254.170.2";
/// Who else may be asked for a container's keys without TLS: agents on the link of the pod.
const CONTAINER_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
/// Where a machine is told what it is.
const MACHINE: &str = "http://169.254.169.254";
const MACHINE_IPV6: &str = "http://[fd00:ec2::254]";
/// How long keys are taken to be good whose end cannot be read: the shortest session that can be had.
const UNREADABLE: Duration = Duration::from_mins(15);

/// What signs requests.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    pub(crate) access_key: String,
    pub(crate) secret_key: Secret<String>,
    pub(crate) session_token: Option<Secret<String>>,
    /// How long they are good from when they were given; keys of a user have no end.
    pub(crate) valid: Option<Duration>,
}

/// Keys, and what gave them.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) keys: Keys,
    pub(crate) origin: String,
}

/// A role that a token of somebody else's (a cluster's, a forge's) is exchanged for.
pub(super) struct WebIdentity {
    pub(super) role: String,
    pub(super) session: Option<String>,
    pub(super) token_file: String,
}

/// The keys of this machine; `region` is where a token service is asked that is not named.
pub(crate) async fn keys(
    variables: &Variables,
    http: &Http,
    region: &str,
) -> Result<Option<Found>, IdentityError> {
    let static_keys = (variables.get("AWS_ACCESS_KEY_ID"), variables.secret("AWS_SECRET_ACCESS_KEY"));
    if let (Some(access_key), Some(secret_key)) = static_keys {
        let session_token = variables.secret("AWS_SESSION_TOKEN");
        let keys = Keys { access_key, secret_key, session_token, valid: None };
        return Ok(Some(Found { keys, origin: "`$AWS_ACCESS_KEY_ID`".to_owned() }));
    }
    let named = (variables.get("AWS_ROLE_ARN"), variables.get("AWS_WEB_IDENTITY_TOKEN_FILE"));
    if let (Some(role), Some(token_file)) = named {
        let session = variables.get("AWS_ROLE_SESSION_NAME");
        let identity = WebIdentity { role, session, token_file };
        return assume(variables, http, region, &identity).await.map(Some);
    }
    match profile::read(variables)? {
        Some(profile::Profile::Keys(found)) => return Ok(Some(found)),
        Some(profile::Profile::WebIdentity(identity)) => {
            return assume(variables, http, region, &identity).await.map(Some);
        }
        None => {}
    }
    if let Some(found) = of_container(variables, http).await? {
        return Ok(Some(found));
    }
    of_machine(variables, http).await
}

/// The region that is set, if one is.
pub(crate) fn region(variables: &Variables) -> Option<String> {
    let given = variables.get("AWS_REGION").or_else(|| variables.get("AWS_DEFAULT_REGION"));
    given.or_else(|| profile::region(variables))
}

/// Where a service is asked: what its variable or that of all services says, else `usual`.
pub(crate) fn endpoint(variables: &Variables, service: &str, usual: &str) -> Result<Url, IdentityError> {
    let ignored = variables.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
    let of_service = format!("AWS_ENDPOINT_URL_{service}");
    let named = if ignored { Vec::new() } else { vec![of_service.as_str(), "AWS_ENDPOINT_URL"] };
    let found = named.into_iter().find_map(|name| Some((name, variables.get(name)?)));
    let (name, text) = match &found {
        Some((name, text)) => (*name, text.as_str()),
        None => ("the region", usual),
    };
    let url = Url::parse(text).ok().filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| IdentityError::Unusable {
        what: format!("`${name}`"),
        problem: format!("`{text}` is not a URL of http or https"),
    })
}

/// The domain of Amazon's services in a region.
pub(crate) fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else if region.starts_with("eusc-") {
        "amazonaws.eu"
    } else {
        "amazonaws.com"
    }
}

/// Exchanges a token for the keys of a role.
async fn assume(
    variables: &Variables,
    http: &Http,
    region_asked: &str,
    identity: &WebIdentity,
) -> Result<Found, IdentityError> {
    const SERVICE: &str = "Amazon's token service (STS)";
    const EXPECTED: &str = "the keys of a role";
    let token = read(Path::new(&identity.token_file), "`$AWS_WEB_IDENTITY_TOKEN_FILE`")?;
    let region = region(variables).unwrap_or_else(|| region_asked.to_owned());
    let url = endpoint(variables, "STS", &format!("https://sts.{region}.{}", domain(&region)))?;
    let form = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs([
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", identity.role.as_str()),
            ("RoleSessionName", identity.session.as_deref().unwrap_or("hephy")),
            ("WebIdentityToken", token.reveal().trim()),
        ])
        .finish();
    let origin = format!("the role `{}` of this machine", identity.role);
    let answer = http.ask(SERVICE, |client| {
        let form_type = "application/x-www-form-urlencoded";
        client.post(url.clone()).header("content-type", form_type).body(form.clone())
    });
    let answer = answer.await?.granted(SERVICE, &origin)?;
    let xml = answer.text();
    let field = |name: &str| {
        let wrong = || IdentityError::Answer { service: SERVICE.to_owned(), expected: EXPECTED };
        element(xml.reveal(), name).filter(|text| !text.is_empty()).ok_or_else(wrong)
    };
    let keys = Keys {
        access_key: field("AccessKeyId")?,
        secret_key: Secret::new(field("SecretAccessKey")?),
        session_token: Some(Secret::new(field("SessionToken")?)),
        valid: Some(until(&field("Expiration")?)),
    };
    Ok(Found { keys, origin })
}

/// How a container's agent and a machine's service give keys.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Given {
    access_key_id: String,
    secret_access_key: Secret<String>,
    token: Option<Secret<String>>,
    expiration: Option<String>,
}

impl Given {
    fn found(self, origin: &str) -> Found {
        let keys = Keys {
            access_key: self.access_key_id,
            secret_key: self.secret_access_key,
            session_token: self.token,
            valid: self.expiration.as_deref().map(until),
        };
        Found { keys, origin: origin.to_owned() }
    }
}

/// What the agent of a container gives: ECS's tasks and EKS's Pod Identity.
async fn of_container(variables: &Variables, http: &Http) -> Result<Option<Found>, IdentityError> {
    const SERVICE: &str = "the agent with this container's keys";
    const ORIGIN: &str = "the role of this container";
    let unusable =
        |name: &str, problem: String| IdentityError::Unusable { what: format!("`${name}`"), problem };
    let (name, text) = if let Some(path) = variables.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", format!("{CONTAINER}{path}"))
    } else if let Some(url) = variables.get("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
    } else {
        return Ok(None);
    };
    let url = Url::parse(&text).map_err(|error| unusable(name, error.to_string()))?;
    if url.scheme() != "https" && !is_near(&url) {
        let problem = "without TLS it names neither this machine nor Amazon's agents".to_owned();
        return Err(unusable(name, problem));
    }
    let token = match variables.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        // Anew each time: it is renewed.
        Some(file) => Some(read(Path::new(&file), "`$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`")?),
        None => variables.secret("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
    };
    let request = |client: &reqwest::Client| {
        let request = client.get(url.clone()).header("accept", "application/json");
        match &token {
            Some(token) => request.header("authorization", token.reveal().trim()),
            None => request,
        }
    };
    let answer = if url.scheme() == "https" {
        http.ask(SERVICE, request).await?
    } else {
        let answer = http.ask_near(SERVICE, request).await?;
        answer.ok_or_else(|| unusable(name, "nobody answers there".to_owned()))?
    };
    let given: Given = answer.granted(SERVICE, ORIGIN)?.json(SERVICE, "keys")?;
    Ok(Some(given.found(ORIGIN)))
}

/// Whether an address is this machine's own, or one where Amazon's agents are.
fn is_near(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback() || CONTAINER_HOSTS.contains(&ip.to_string().as_str()),
        Some(Host::Ipv6(ip)) => ip.is_loopback() || CONTAINER_HOSTS.contains(&ip.to_string().as_str()),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// What a machine of EC2 is told of its role (version 2: with a session).
async fn of_machine(variables: &Variables, http: &Http) -> Result<Option<Found>, IdentityError> {
    const SERVICE: &str = "EC2's metadata service";
    const ORIGIN: &str = "the role of this machine";
    const ROLES: &str = "latest/meta-data/iam/security-credentials/";
    if variables.is_true("AWS_EC2_METADATA_DISABLED") {
        return Ok(None);
    }
    let is_ipv6 = variables
        .get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE")
        .is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
    let usual = if is_ipv6 { MACHINE_IPV6 } else { MACHINE };
    let base = variables.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| usual.to_owned());
    let url = |path: &str| {
        Url::parse(&format!("{}/{path}", base.trim_end_matches('/'))).map_err(|error| {
            IdentityError::Unusable {
                what: "`$AWS_EC2_METADATA_SERVICE_ENDPOINT`".to_owned(),
                problem: error.to_string(),
            }
        })
    };
    let session = url("latest/api/token")?;
    let asked = http.ask_near(SERVICE, |client| {
        client.put(session.clone()).header("x-aws-ec2-metadata-token-ttl-seconds", "300")
    });
    // Another cloud has another service at this address.
    let Some(answer) = asked.await?.filter(|answer| answer.status.is_success()) else { return Ok(None) };
    let session = answer.text();
    let ask = async |url: Url| {
        let asked = http.ask_near(SERVICE, |client| {
            client.get(url.clone()).header("x-aws-ec2-metadata-token", session.reveal().trim())
        });
        Ok::<_, IdentityError>(asked.await?.filter(|answer| answer.status.as_u16() != 404))
    };
    let Some(answer) = ask(url(ROLES)?).await? else { return Ok(None) };
    let roles = answer.granted(SERVICE, "this machine")?.text();
    let Some(role) = roles.reveal().lines().next().map(str::trim).filter(|role| !role.is_empty()) else {
        return Ok(None);
    };
    let Some(answer) = ask(url(&format!("{ROLES}{role}"))?).await? else { return Ok(None) };
    let given: Given = answer.granted(SERVICE, ORIGIN)?.json(SERVICE, "keys")?;
    Ok(Some(given.found(&format!("{ORIGIN} (`{role}`)"))))
}

/// How long it is until a time. What nobody can read is not taken to be late.
fn until(text: &str) -> Duration {
    text.parse::<Timestamp>().map_or(UNREADABLE, |at| left(at.as_second()))
}

/// How long it is until a second since 1970.
pub(super) fn left(seconds: i64) -> Duration {
    let left = seconds.saturating_sub(Timestamp::now().as_second());
    Duration::from_secs(u64::try_from(left).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_whose_end_cannot_be_read_are_not_endless() {
        let given = |expiration: Option<&str>| {
            let given = Given {
                access_key_id: "a".to_owned(),
                secret_access_key: Secret::new("s".to_owned()),
                token: None,
                expiration: expiration.map(str::to_owned),
            };
            given.found("a test").keys.valid
        };
        assert_eq!(given(Some("tomorrow")), Some(UNREADABLE));
        assert_eq!(given(Some("2001-01-01T00:00:00Z")), Some(Duration::ZERO));
        assert!(given(Some("2201-01-01T00:00:00Z")) > Some(Duration::from_hours(24)));
        assert_eq!(given(None), None);
    }
}
