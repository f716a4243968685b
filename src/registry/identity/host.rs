//! Which registries are a cloud's own. Exactly theirs: what a cloud gives is not sent to a name that looks like one.

use super::azure::Sovereign;
use crate::oci::Host;

/// Whose identities we have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon's.
    Aws,
    /// Google's.
    Google,
    /// Microsoft's.
    Azure,
}

/// A registry of a cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Registry {
    Ecr(Ecr),
    Google,
    Azure(Sovereign),
}

/// A registry of Amazon's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ecr {
    /// One account's, in one region.
    Private { region: String, domain: &'static str, is_fips: bool },
    /// Everybody's.
    Public,
}

impl Registry {
    /// The registry that a host is, if it is a cloud's.
    pub(super) fn of(host: &Host) -> Option<Self> {
        let host = host.as_str();
        if let Some(ecr) = ecr(host) {
            return Some(Self::Ecr(ecr));
        }
        if host == "gcr.io" || below(host, ".gcr.io").is_some() {
            return Some(Self::Google);
        }
        if below(host, ".pkg.dev").is_some_and(|name| name.ends_with("-docker")) {
            return Some(Self::Google);
        }
        let sovereign = Sovereign::ALL.into_iter().find(|it| below(host, it.registries()).is_some());
        sovereign.map(Self::Azure)
    }

    pub(super) const fn cloud(&self) -> Cloud {
        match self {
            Self::Ecr(_) => Cloud::Aws,
            Self::Google => Cloud::Google,
            Self::Azure(_) => Cloud::Azure,
        }
    }
}

/// The one label before a domain, if that is all there is.
fn below<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    host.strip_suffix(domain).filter(|name| is_label(name))
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// What follows an account, and whether it is validated by FIPS 140. The second pair has IPv6, too; tokens are had at the first.
const NAMES: [(&str, bool); 4] =
    [("dkr.ecr.", false), ("dkr.ecr-fips.", true), ("dkr-ecr.", false), ("dkr-ecr-fips.", true)];
/// What follows a region, and the domain that answers for it.
const DOMAINS: [(&str, &str); 5] = [
    (".amazonaws.com", "amazonaws.com"),
    (".amazonaws.com.cn", "amazonaws.com.cn"),
    (".amazonaws.eu", "amazonaws.eu"),
    (".on.aws", "amazonaws.com"),
    (".on.amazonwebservices.com.cn", "amazonaws.com.cn"),
];

fn ecr(host: &str) -> Option<Ecr> {
    if matches!(host, "public.ecr.aws" | "ecr-public.aws.com") {
        return Some(Ecr::Public);
    }
    let (account, rest) = host.split_once('.')?;
    if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (rest, is_fips) =
        NAMES.iter().find_map(|(name, is_fips)| Some((rest.strip_prefix(name)?, *is_fips)))?;
    DOMAINS.iter().find_map(|(suffix, domain)| {
        let region = below(rest, suffix)?.to_owned();
        Some(Ecr::Private { region, domain, is_fips })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str) -> Option<Registry> {
        Registry::of(&host.parse().unwrap())
    }

    #[test]
    fn registries_of_clouds_are_known_by_their_names() {
        let private = |region: &str, domain: &'static str, is_fips| {
            Some(Registry::Ecr(Ecr::Private { region: region.to_owned(), domain, is_fips }))
        };
        assert_eq!(
            of("123456789012.dkr.ecr.eu-west-1.amazonaws.com"),
            private("eu-west-1", "amazonaws.com", false)
        );
        assert_eq!(
            of("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"),
            private("cn-north-1", "amazonaws.com.cn", false)
        );
        assert_eq!(
            of("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com"),
            private("us-gov-west-1", "amazonaws.com", true)
        );
        assert_eq!(of("123456789012.dkr-ecr.us-east-1.on.aws"), private("us-east-1", "amazonaws.com", false));
        assert_eq!(of("public.ecr.aws"), Some(Registry::Ecr(Ecr::Public)));
        for host in ["gcr.io", "eu.gcr.io", "europe-west1-docker.pkg.dev"] {
            assert_eq!(of(host), Some(Registry::Google), "{host}");
        }
        assert_eq!(of("acme.azurecr.io"), Some(Registry::Azure(Sovereign::Public)));
        assert_eq!(of("acme.azurecr.cn"), Some(Registry::Azure(Sovereign::China)));
        assert_eq!(of("acme.azurecr.us"), Some(Registry::Azure(Sovereign::Government)));
    }

    #[test]
    fn names_that_only_look_like_a_clouds_are_not() {
        for host in [
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.test",
            "123456789012.dkr.ecr.evil.test",
            "12345.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.a.b.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:5000",
            "evilgcr.io",
            "a.b.gcr.io",
            "gcr.io.evil.test",
            "docker.pkg.dev",
            "europe-npm.pkg.dev",
            "azurecr.io",
            "acme.azurecr.io.evil.test",
            "acme.azurecr.io:443",
            "evilazurecr.io",
            "registry.example",
        ] {
            assert_eq!(of(host), None, "{host}");
        }
    }
}
