//! `hephy router`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{chain, line, logs_json, operators_problem};
use crate::config::server::Domain;
use crate::serve::router::{Listening, RouterSettings, route};

/// `router`.
#[derive(Debug, Args)]
pub(super) struct RouterArguments {
    /// Apps answer at APP.DOMAIN
    #[arg(long, env = "HEPHY_DOMAIN", default_value = "localhost")]
    domain: Domain,
    /// The namespace of the apps [default: the pod's own, or that of the kubeconfig]
    #[arg(long, env = "HEPHY_APPS_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// The cluster, outside of it [default: $KUBECONFIG]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where HTTP is answered
    #[arg(long, env = "HEPHY_HTTP", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    http: SocketAddr,
    /// Where TLS is answered, with a certificate
    #[arg(long, env = "HEPHY_HTTPS", value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    https: SocketAddr,
    /// The certificate chain in PEM; read again when it is renewed
    #[arg(long, env = "HEPHY_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate in PEM
    #[arg(long, env = "HEPHY_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Where /healthz and /readyz are answered
    #[arg(long, env = "HEPHY_HEALTH", value_name = "ADDRESS", default_value = "0.0.0.0:8081")]
    health: SocketAddr,
    /// How long connections are still taken after SIGTERM, while others learn of it
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    linger: Duration,
    /// How long requests in flight may take to end
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    drain: Duration,
    /// Believe the X-Forwarded-* headers of clients, all of which are proxies
    #[arg(long, env = "HEPHY_TRUST_FORWARDED")]
    trust_forwarded: bool,
}

pub(super) fn run(arguments: RouterArguments) -> ExitCode {
    let settings = RouterSettings {
        kubeconfig: arguments.kubeconfig,
        namespace: arguments.namespace,
        domain: arguments.domain,
        http: arguments.http,
        https: arguments.https,
        certificate: arguments.tls_cert.zip(arguments.tls_key),
        health: arguments.health,
        linger: arguments.linger,
        drain: arguments.drain,
        trust_forwarded: arguments.trust_forwarded,
    };
    let domain = settings.domain.as_str().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).min(8))
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime
            .block_on(route(settings, |listening| show(&domain, listening)))
            .map_err(|error| chain(&error)),
        Err(error) => Err(format!("cannot start: {error}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            operators_problem(&text);
            ExitCode::FAILURE
        }
    }
}

fn show(domain: &str, listening: &Listening) {
    let Listening { namespace, http, https, health } = listening;
    if logs_json() {
        let https = https.map(tracing::field::display);
        return tracing::info!(domain, namespace, %http, https, %health, "hephy routes");
    }
    line(&format!("-----> Routing APP.{domain} to the apps of the namespace {namespace}"));
    line(&format!("       HTTP    {http}"));
    if let Some(https) = https {
        line(&format!("       TLS     {https}"));
    }
    line(&format!("       health  {health}"));
}
