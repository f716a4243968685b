//! The chart, rendered with the values that it is used with: what `helm lint` and a real API server say to it, and what
//! the program makes of the flags that come out.

use clap::{Args as _, FromArgMatches as _};
use hephy::config::cluster::ClusterSettings;
use serde_json::Value;

use super::{chart, helm, kubectl};
use crate::machine::Ran;

/// Values that somebody has.
const SETS: &[(&str, &[&str])] = &[
    ("the defaults", &[]),
    (
        "a registry of one's own",
        &["registry.url=registry.example/team", "registry.secret=credentials", "replicas=2"],
    ),
    ("a plain registry", &["registry.url=10.0.0.1:5000", "registry.insecure=true"]),
    ("a domain", &["domain=apps.example.org"]),
    (
        "a router with a certificate",
        &["domain=apps.example.org", "router.tlsSecret=wildcard", "router.replicas=2"],
    ),
    (
        "load balancers",
        &["router.service.type=LoadBalancer", "ssh.service.type=LoadBalancer", "domain=a.example"],
    ),
    (
        "ports that the cluster chooses",
        &[
            "router.service.type=LoadBalancer",
            "router.service.nodePort=null",
            "ssh.service.nodePort=null",
            "ssh.address=[fd00::1]:22",
        ],
    ),
    (
        "an ingress",
        &[
            "domain=apps.example.org",
            "ingress.enabled=true",
            "ingress.className=nginx",
            "ingress.tlsSecret=wildcard",
            r"ingress.annotations.example\.org/snippet=a: b #c",
            "router.enabled=false",
        ],
    ),
    (
        "a gateway",
        &[
            "domain=a.example",
            "httpRoute.enabled=true",
            "httpRoute.gateway=public",
            "httpRoute.gatewayNamespace=gateways",
        ],
    ),
    ("the registry on every node's loopback", &["registry.embedded.loopback=true"]),
    ("users of each pod's own", &["build.hostUsers=false", "build.scratchSizeLimit=20Gi"]),
    (
        "defaults that are taken away",
        &[
            "build.resources=null",
            "build.tolerations=null",
            "build.nodeSelector=null",
            "apps.resources=null",
            "server.resources=null",
            "router.resources=null",
            "image.pullSecrets=null",
        ],
    ),
    (
        "certificates of a company",
        &["build.caBundle=-----BEGIN CERTIFICATE-----", "registry.pullCheck=false"],
    ),
    (
        "the same in a ConfigMap",
        &["build.caBundleConfigMap.name=company", "registry.embedded.pullHost=a.b:80"],
    ),
    ("no policy", &["networkPolicy.enabled=false", "crds.install=false", "logFormat=text"]),
    (
        "traces and profiles",
        &[
            "tracing.otlpEndpoint=https://collector.example:4318",
            "tracing.headersSecret=collector",
            "server.profiling=true",
        ],
    ),
    ("no class of storage", &["registry.embedded.storage.existingClaim=mine", "build.isolation=in-place"]),
];

/// Values that cannot be, and what is said of them.
const REFUSED: &[(&[&str], &str)] = &[
    (&["replicas=2"], "set registry.url"),
    (&["adminKeys=-----BEGIN OPENSSH PRIVATE KEY-----"], "the file that ends in .pub"),
    (&["tracing.headersSecret=collector"], "set tracing.otlpEndpoint"),
    (&["tracing.otlpEndpoint=https://user:password@collector.example"], "otlpEndpoint"),
    (&["namespaces.builds=same", "namespaces.apps=same"], "set namespaces.builds and namespaces.apps"),
    (&["namespaces.apps="], "namespaces"),
    (&["ingress.enabled=true"], "set domain"),
    (&["router.enabled=false"], "set domain"),
    (&["ingress.enabled=true", "httpRoute.enabled=true", "domain=a.example"], "by one of them"),
    (&["httpRoute.enabled=true", "domain=a.example"], "httpRoute.gateway"),
    (&["registry.embedded.nodePort=null"], "registry.embedded.nodePort"),
    (
        &["registry.embedded.loopback=true", "registry.embedded.pullHost=r.example:80"],
        "registry.embedded.pullHost",
    ),
    (&["ssh.service.nodePort=null"], "ssh.address"),
    (&["router.service.nodePort=null"], "router.service.nodePort"),
    (&["router.tlsSecret=t", "router.service.port=443"], "a port each"),
    (&["build.hostUsers=false", "namespaces.podSecurity.builds=baseline"], "SYS_ADMIN"),
    (&["networkPolicy.blocked={0.0.0.0/0}"], "blocked"),
    (&["build.caBundle=company.pem"], "--set-file build.caBundle=FILE"),
    (
        &["build.caBundle=-----BEGIN CERTIFICATE-----", "build.caBundleConfigMap.name=company"],
        "build.caBundleConfigMap.name",
    ),
];

/// Values, and where the program then says that the app `hello` is.
const URLS: &[(&[&str], &str)] = &[
    (&[], "curl -H 'Host: hello.hephy.local' http://127.0.0.1:30080/"),
    (&["router.address=10.0.0.1:80"], "curl -H 'Host: hello.hephy.local' http://10.0.0.1:80/"),
    (&["domain=a.example"], "http://hello.a.example:30080"),
    (&["domain=a.example", "router.tlsSecret=t"], "https://hello.a.example:30443"),
    (
        &["domain=a.example", "router.tlsSecret=t", "router.service.type=LoadBalancer"],
        "https://hello.a.example",
    ),
    (
        &["domain=a.example", "router.service.type=LoadBalancer", "router.service.port=8080"],
        "http://hello.a.example:8080",
    ),
    (&["domain=a.example", "ingress.enabled=true"], "http://hello.a.example"),
    (&["domain=a.example", "ingress.enabled=true", "ingress.tlsSecret=t"], "https://hello.a.example"),
    (&["domain=a.example", "ingress.enabled=true", "router.tlsSecret=t"], "http://hello.a.example"),
    (
        &["domain=a.example", "httpRoute.enabled=true", "httpRoute.gateway=g", "httpRoute.tls=true"],
        "https://hello.a.example",
    ),
    (&["domain=a.example", "router.enabled=false", "router.tlsSecret=t"], "http://hello.a.example"),
];

fn with_values(verb: &str, words: &[&str], values: &[&str]) -> Ran {
    let chart = chart();
    let mut all = vec![verb];
    all.extend(words);
    all.extend([chart.to_str().unwrap(), "--set", "image.repository=registry.example/hephy"]);
    for value in values {
        all.extend(["--set", value]);
    }
    helm(&all)
}

pub(super) fn template(namespace: &str, values: &[&str]) -> Ran {
    with_values("template", &["hephy", "-n", namespace, "--kube-version", "1.33"], values)
}

pub(super) fn documents(rendered: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(rendered).unwrap();
    all.into_iter().filter(|document| !document.is_null()).collect()
}

/// The flags of the server, as the program reads them.
fn settings(rendered: &str) -> ClusterSettings {
    let documents = documents(rendered);
    let server =
        documents.iter().find(|found| found["kind"] == "Deployment" && found["metadata"]["name"] == "hephy");
    let arguments =
        server.unwrap()["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().clone();
    let words =
        arguments.iter().map(|word| word.as_str().unwrap_or_else(|| panic!("{word} is no text")).to_owned());
    let matches = ClusterSettings::augment_args(clap::Command::new("serve")).try_get_matches_from(words);
    ClusterSettings::from_arg_matches(&matches.unwrap_or_else(|error| panic!("{error}"))).unwrap()
}

#[test]
#[ignore = "needs helm: scripts/test-cluster"]
fn what_cannot_be_is_refused_with_the_value_to_change() {
    for (values, wanted) in REFUSED {
        template("hephy", values).failed_with(&[wanted]);
    }
}

#[test]
#[ignore = "needs helm: scripts/test-cluster"]
fn a_push_ends_in_the_url_that_the_values_lead_to() {
    for (values, wanted) in URLS {
        let settings = settings(&template("hephy", values).succeeded().stdout);
        assert_eq!(settings.addresses().app_url(&"hello".parse().unwrap()), *wanted, "{values:?}");
    }
}

#[test]
#[ignore = "needs helm: scripts/test-cluster"]
fn flags_keep_what_yaml_would_read_otherwise() {
    let values = [
        "domain=a.example",
        "ingress.enabled=true",
        r"ingress.annotations.x/y=a: b #c",
        "ssh.address=[fd00::1]:22",
    ];
    let settings = settings(&template("hephy", &values).succeeded().stdout);
    assert_eq!(settings.ingress_annotation, [("x/y".to_owned(), "a: b #c".to_owned())]);
    assert_eq!(settings.public_ssh.to_string(), "[fd00::1]:22");
}

#[test]
#[ignore = "needs a cluster: scripts/test-cluster"]
fn every_set_of_values_is_linted_and_taken_by_an_api_server() {
    let name = format!("hephy-chart-{:08x}", rand::random::<u32>());
    let namespaces = [name.clone(), format!("{name}-builds"), format!("{name}-apps")];
    // What is in a namespace is looked at only if the namespace is there.
    for namespace in &namespaces {
        kubectl(&["create", "namespace", namespace]).succeeded();
    }
    let own = [
        format!("namespaces.builds={name}-builds"),
        format!("namespaces.apps={name}-apps"),
        // Others may have the chart's own.
        "ssh.service.nodePort=32022".to_owned(),
        "router.service.nodePort=32080".to_owned(),
        "router.service.httpsNodePort=32443".to_owned(),
        "registry.embedded.nodePort=32500".to_owned(),
    ];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rendered.yaml");
    let mut refused = Vec::new();
    for (title, values) in SETS {
        let values: Vec<&str> = own.iter().map(String::as_str).chain(values.iter().copied()).collect();
        with_values("lint", &["--strict"], &values).succeeded();
        let rendered = template(&name, &values).succeeded().stdout;
        drop(settings(&rendered));
        std::fs::write(&file, rendered).unwrap();
        let words =
            ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f"];
        let applied = kubectl(&[&words[..], &[file.to_str().unwrap()]].concat());
        if !applied.ok {
            refused.push(format!("{title}: {}", applied.stderr));
        }
    }
    for namespace in &namespaces {
        kubectl(&["delete", "namespace", namespace, "--wait=false"]).succeeded();
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
