//! From a Host header to an app.

/// Whose host a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// The router's own domain.
    Domain,
    /// One label under the domain: an app, if there is one of this name.
    App(String),
    /// Anything else.
    Other,
}

/// Reads the Host header's value `host`: any case, with or without a port and a trailing dot.
pub(super) fn of(host: &str, domain: &str) -> Host {
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if name == domain {
        return Host::Domain;
    }
    match name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')) {
        Some(label) if !label.is_empty() && !label.contains('.') => Host::App(label.to_owned()),
        _ => Host::Other,
    }
}

/// The port of a Host header's value, with its colon; empty where it has none.
pub(super) fn port(host: &str) -> &str {
    host.get(without_port(host).len()..).unwrap_or_default()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_one_label_under_the_domain_in_any_case_with_port_and_trailing_dot() {
        for host in ["hello.localhost", "HELLO.localhost:8080", "hello.LocalHost.", "hello.localhost.:80"] {
            assert_eq!(of(host, "localhost"), Host::App("hello".to_owned()), "{host}");
        }
        assert_eq!(of("a.apps.example.org", "apps.example.org"), Host::App("a".to_owned()));
    }

    #[test]
    fn the_domain_itself_is_no_app() {
        for host in ["localhost", "LOCALHOST:8080", "localhost."] {
            assert_eq!(of(host, "localhost"), Host::Domain, "{host}");
        }
    }

    #[test]
    fn what_is_not_under_the_domain_is_no_app() {
        for host in [
            "",
            ".",
            ".localhost",
            "a.b.localhost",
            "alocalhost",
            "127.0.0.1:80",
            "[::1]:80",
            "::1",
            "a.localhost.evil",
        ] {
            assert_eq!(of(host, "localhost"), Host::Other, "{host}");
        }
    }

    #[test]
    fn a_port_is_read_with_its_colon() {
        assert_eq!(port("a.localhost:8080"), ":8080");
        assert_eq!(port("a.localhost"), "");
        assert_eq!(port("[::1]:81"), ":81");
    }
}
