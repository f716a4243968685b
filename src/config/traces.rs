//! Where traces go: a setting of ours, and OpenTelemetry's standard variables
//! (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

/// How long a request may take, unless a variable says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time that a variable may give a request.
const MAX_TIMEOUT_MILLIS: u64 = 600_000;

/// What is below an endpoint that is for all kinds of telemetry.
const TRACES_PATH: &str = "v1/traces";

/// Where a collector is by default.
const LOCAL: &str = "http://localhost:4318";

/// The address of a collector: `http://collector:4318`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

/// Where traces are sent, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceSettings {
    /// The URL of every request.
    pub url: Url,
    /// Sent with every request; the values are marked as sensitive.
    pub headers: HeaderMap,
    /// How long a request may take.
    pub timeout: Duration,
    /// Authorities beside the system's, a PEM file.
    pub certificate: Option<PathBuf>,
    /// What program the spans are of.
    pub resource: Vec<(String, String)>,
}

/// Why it cannot be known where traces go.
#[derive(Debug, thiserror::Error)]
pub enum TraceSettingsError {
    /// An address.
    #[error("{variable}: {reason}")]
    Endpoint {
        /// What says it.
        variable: &'static str,
        /// Why not.
        reason: String,
    },
    /// Another exporter.
    #[error("OTEL_TRACES_EXPORTER: `{0}` is none that hephy has: use `otlp` or `none`")]
    Exporter(String),
    /// Another protocol.
    #[error(
        "{variable}: hephy does not speak `{protocol}`: use `http/json`, and the collector's port for HTTP (4318)"
    )]
    Protocol {
        /// What says it.
        variable: &'static str,
        /// Which.
        protocol: String,
    },
    /// A list. What is in it may be secret and is not repeated.
    #[error("{variable}: entry {entry} is not KEY=VALUE with percent-encoded characters")]
    List {
        /// What says it.
        variable: &'static str,
        /// From 1.
        entry: usize,
    },
    /// A number.
    #[error("{variable}: `{text}` is not a number of milliseconds up to {MAX_TIMEOUT_MILLIS}")]
    Timeout {
        /// What says it.
        variable: &'static str,
        /// What it says.
        text: String,
    },
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // What is not understood is not repeated: there may be a password in it.
        let error = |why: &str| format!("{why}: give a URL such as `{LOCAL}`");
        let url: Url = text.parse().map_err(|why: url::ParseError| error(&why.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(error("a collector is reached by http or https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(error("a password in a URL is in every log: put it into OTEL_EXPORTER_OTLP_HEADERS"));
        }
        Ok(Self(url))
    }
}

impl<'de> serde::Deserialize<'de> for Endpoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Endpoint {
    /// The URL for traces below one for all kinds of telemetry.
    fn for_traces(mut self) -> Url {
        let path = format!("{}/{TRACES_PATH}", self.0.path().trim_end_matches('/'));
        self.0.set_path(&path);
        self.0
    }
}

impl TraceSettings {
    /// What is said by `given`, a setting of ours, and by the environment, which `variable` reads; `None`: nobody asked
    /// for traces. `instance` tells this process from others of its kind.
    pub fn read(
        given: Option<&Endpoint>,
        instance: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TraceSettingsError> {
        // An empty variable is as good as none, says the specification.
        let variable = |name: &str| variable(name).filter(|text| !text.trim().is_empty());
        let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let exporter = variable("OTEL_TRACES_EXPORTER");
        match exporter.as_deref() {
            _ if is_disabled => return Ok(None),
            Some("none") => return Ok(None),
            Some("otlp") | None => {}
            Some(other) => return Err(TraceSettingsError::Exporter(other.to_owned())),
        }
        let Some(url) = url(given, exporter.is_some(), variable)? else { return Ok(None) };
        check_protocol(variable)?;
        Ok(Some(Self {
            url,
            headers: headers(variable)?,
            timeout: timeout(variable)?,
            certificate: either(variable, CERTIFICATE).map(|(_, path)| path.into()),
            resource: resource(instance, variable)?,
        }))
    }
}

/// A variable for traces alone, and the one for all kinds of telemetry.
type Pair = (&'static str, &'static str);
const CERTIFICATE: Pair = ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE");
const HEADERS: Pair = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS");
const PROTOCOL: Pair = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL");
const TIMEOUTS: Pair = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT");
const ENDPOINTS: Pair = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");

fn either(variable: impl Fn(&str) -> Option<String>, (own, shared): Pair) -> Option<(&'static str, String)> {
    let read = |name| variable(name).map(|text| (name, text));
    read(own).or_else(|| read(shared))
}

fn url(
    given: Option<&Endpoint>,
    is_asked_for: bool,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Url>, TraceSettingsError> {
    if let Some(given) = given {
        return Ok(Some(given.clone().for_traces()));
    }
    let parsed = |variable, text: String| {
        text.parse::<Endpoint>().map_err(|reason| TraceSettingsError::Endpoint { variable, reason })
    };
    Ok(match either(variable, ENDPOINTS) {
        // That for traces alone is taken as it is.
        Some((name, text)) if name == ENDPOINTS.0 => Some(parsed(name, text)?.0),
        Some((name, text)) => Some(parsed(name, text)?.for_traces()),
        None if is_asked_for => Some(parsed("OTEL_TRACES_EXPORTER", LOCAL.to_owned())?.for_traces()),
        None => None,
    })
}

fn check_protocol(variable: impl Fn(&str) -> Option<String>) -> Result<(), TraceSettingsError> {
    match either(variable, PROTOCOL) {
        None => Ok(()),
        Some((_, protocol)) if protocol == "http/json" => Ok(()),
        // A collector takes both at the same port and path; what sets the variable for all programs means that port.
        Some((_, protocol)) if protocol == "http/protobuf" => Ok(()),
        Some((variable, protocol)) => Err(TraceSettingsError::Protocol { variable, protocol }),
    }
}

fn headers(variable: impl Fn(&str) -> Option<String>) -> Result<HeaderMap, TraceSettingsError> {
    let mut headers = HeaderMap::new();
    let Some((variable, text)) = either(variable, HEADERS) else { return Ok(headers) };
    for (entry, pair) in (1..).zip(list(variable, &text)?) {
        let wrong = || TraceSettingsError::List { variable, entry };
        let name = HeaderName::from_bytes(pair.0.as_bytes()).map_err(|_| wrong())?;
        let mut value = HeaderValue::from_str(&pair.1).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

fn timeout(variable: impl Fn(&str) -> Option<String>) -> Result<Duration, TraceSettingsError> {
    let Some((variable, text)) = either(variable, TIMEOUTS) else { return Ok(TIMEOUT) };
    let millis = text.trim().parse().ok().filter(|millis| (1..=MAX_TIMEOUT_MILLIS).contains(millis));
    millis.map(Duration::from_millis).ok_or(TraceSettingsError::Timeout { variable, text })
}

fn resource(
    instance: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, TraceSettingsError> {
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let mut resource: Vec<(String, String)> = [
        ("service.name", "hephy"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance),
    ]
    .map(|(key, text)| (key.to_owned(), text.to_owned()))
    .into();
    let given = variable(ATTRIBUTES).map(|text| list(ATTRIBUTES, &text)).transpose()?.unwrap_or_default();
    let name = variable("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name));
    for (key, value) in given.into_iter().chain(name) {
        match resource.iter_mut().find(|(known, _)| *known == key) {
            Some(known) => known.1 = value,
            None => resource.push((key, value)),
        }
    }
    Ok(resource)
}

/// `key=value,key=value`, with percent-encoded values
/// (<https://www.w3.org/TR/baggage/#header-content>, without properties).
fn list(variable: &'static str, text: &str) -> Result<Vec<(String, String)>, TraceSettingsError> {
    let entries = (1..).zip(text.split(',')).filter(|(_, pair)| !pair.trim().is_empty());
    entries
        .map(|(entry, pair)| {
            let wrong = || TraceSettingsError::List { variable, entry };
            let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
            let value = decoded(value.trim()).ok_or_else(wrong)?;
            match key.trim() {
                "" => Err(wrong()),
                key => Ok((key.to_owned(), value)),
            }
        })
        .collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.as_bytes().split_at_checked(2)?;
        bytes.extend(hex::decode(digits).ok()?);
        bytes.extend(rest);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<TraceSettings>, String> {
        let given = given.map(|text| text.parse().unwrap());
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        };
        TraceSettings::read(given.as_ref(), "one", variable).map_err(|error| error.to_string())
    }

    fn url(given: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        read(given, variables).unwrap().map(|settings| settings.url.to_string())
    }

    #[test]
    fn traces_are_off_until_somebody_says_where_they_go() {
        assert_eq!(url(None, &[]), None);
        assert_eq!(url(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None);
        let here = Some("http://collector:4318");
        assert_eq!(url(here, &[]).unwrap(), "http://collector:4318/v1/traces");
        assert_eq!(url(here, &[("OTEL_SDK_DISABLED", "True")]), None);
        assert_eq!(url(here, &[("OTEL_TRACES_EXPORTER", "none")]), None);
        assert_eq!(
            url(None, &[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap(),
            "http://localhost:4318/v1/traces"
        );
    }

    #[test]
    fn our_setting_wins_over_the_variable_for_traces_and_that_over_the_one_for_all() {
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a.test/otlp/");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://b.test/as/it/is");
        assert_eq!(url(None, &[all]).unwrap(), "https://a.test/otlp/v1/traces");
        assert_eq!(url(None, &[all, own]).unwrap(), "https://b.test/as/it/is");
        assert_eq!(url(Some("http://c.test"), &[all, own]).unwrap(), "http://c.test/v1/traces");
    }

    #[test]
    fn headers_are_decoded_and_never_shown() {
        let variables =
            [("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20top-secret, x-team = a%2Cb ,")];
        let settings = read(Some("http://c.test"), &variables).unwrap().unwrap();
        assert_eq!(settings.headers["authorization"], "Bearer top-secret");
        assert_eq!(settings.headers["x-team"], "a,b");
        assert!(!format!("{settings:?}").contains("secret"), "{settings:?}");
        for wrong in ["top-secret", "a=%zztop-secret", "=top-secret", "a b=top-secret", "a=top-secret%0A"] {
            let error = read(Some("http://c.test"), &[("OTEL_EXPORTER_OTLP_HEADERS", wrong)]).unwrap_err();
            assert!(error.contains("entry 1") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_what_can() {
        let here = Some("http://c.test");
        for (name, text, said) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "use `http/json`"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "use `otlp` or `none`"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "milliseconds"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team", "entry 1 is not KEY=VALUE"),
        ] {
            let error = read(here, &[(name, text)]).unwrap_err();
            assert!(error.contains(said) && error.contains(name), "{error}");
        }
        for text in ["collector:4318", "unix:///x", "http://u:top-secret@c.test", "http//top-secret"] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.contains("http://localhost:4318") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_resource_is_ours_unless_variables_say_otherwise() {
        let variables = [
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=x,deployment.environment.name=test"),
            ("OTEL_SERVICE_NAME", "deploys"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ];
        let settings = read(Some("http://c.test"), &variables).unwrap().unwrap();
        assert_eq!(settings.timeout, Duration::from_millis(2500));
        let pairs: Vec<(&str, &str)> = settings.resource.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(
            pairs,
            [
                ("service.name", "deploys"),
                ("service.version", env!("CARGO_PKG_VERSION")),
                ("service.instance.id", "one"),
                ("deployment.environment.name", "test"),
            ]
        );
    }
}
