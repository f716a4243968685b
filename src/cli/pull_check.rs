//! `hephy pull-check`: the last step of an installation, which fails where the nodes' kubelets cannot pull.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use url::Url;

use super::problem;
use crate::config::server::Span;
use crate::serve::pulls::{Pull, Pulls};

/// How often the server is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// `pull-check`.
#[derive(Debug, Args)]
pub(super) struct PullCheckArguments {
    /// Where the server says how the pulls went
    #[arg(long, value_name = "URL")]
    url: Url,
    /// How long the server may take to answer
    #[arg(long, value_name = "DURATION", default_value = "3m")]
    server_limit: Span,
    /// How long a node may fail before it counts: what it pulls through may just be starting
    #[arg(long, value_name = "DURATION", default_value = "90s")]
    pull_limit: Span,
    /// What to do where the server does not answer
    #[arg(long, value_name = "TEXT")]
    server_advice: String,
    /// What to do where a node cannot pull
    #[arg(long, value_name = "TEXT")]
    pull_advice: String,
}

pub(super) fn run(arguments: &PullCheckArguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(check(arguments)),
        Err(error) => Err(format!("cannot start: {error}")),
    };
    match ended {
        Ok(lines) => {
            for line in lines {
                super::line(&line);
            }
            ExitCode::SUCCESS
        }
        Err(text) => {
            // For whoever installs, not for a collector of logs.
            problem(&text);
            ExitCode::FAILURE
        }
    }
}

/// Asks until it is known; what there is to tell, or why the installation is not whole.
async fn check(arguments: &PullCheckArguments) -> Result<Vec<String>, String> {
    // Inside of the cluster, by plain HTTP, and by no proxy.
    // Each time anew: a connection from before the node knew the Service may lead elsewhere.
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
    let client = client.timeout(Duration::from_secs(10)).build();
    let client = client.map_err(|error| format!("cannot start: {error}"))?;
    let (began, mut answered, mut said) = (Instant::now(), None, String::new());
    loop {
        match asked(&client, &arguments.url).await {
            Ok(pulls) if pulls.is_settled() => return Ok(lines(&pulls)),
            Ok(pulls) => {
                let since = *answered.get_or_insert_with(Instant::now);
                if since.elapsed() > arguments.pull_limit.0 {
                    return Err(failure(&pulls, &arguments.pull_advice));
                }
            }
            Err(error) => said = error,
        }
        if answered.is_none() && began.elapsed() > arguments.server_limit.0 {
            let limit = humantime::format_duration(arguments.server_limit.0);
            let advice = &arguments.server_advice;
            return Err(format!("the server did not answer within {limit} ({said}): {advice}"));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn asked(client: &reqwest::Client, url: &Url) -> Result<Pulls, String> {
    let answer = client.get(url.clone()).send().await.and_then(reqwest::Response::error_for_status);
    let answer = answer.map_err(|error| super::chain(&error))?;
    let body = answer.bytes().await.map_err(|error| super::chain(&error))?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// What is known of each platform.
fn lines(pulls: &Pulls) -> Vec<String> {
    let untried = pulls.untried.iter().map(|why| format!("no pull was tried: {why}"));
    let each = pulls.platforms.iter().map(|(platform, pull)| match pull {
        Pull::Awaited => format!("{platform}: no node has answered yet"),
        Pull::Pulled { node } => format!("{platform}: node {node} pulls"),
        Pull::Failing { node, why } => format!("{platform}: node {node} cannot pull: {why}"),
        Pull::Nowhere { why } => format!("{platform}: no node takes apps: {why}"),
    });
    untried.chain(each).collect()
}

fn failure(pulls: &Pulls, advice: &str) -> String {
    let lines = lines(pulls).join("\n");
    if pulls.is_failing() {
        format!("the nodes cannot pull the apps' images: {advice}\n{lines}")
    } else {
        format!(
            "no node has pulled yet, and none has said why not: look at the pods `hephy-pull-check-…`\n{lines}"
        )
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, routing::get};

    use super::*;

    async fn told(pulls: Pulls) -> Result<Vec<String>, String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/pulls", listener.local_addr().unwrap()).parse().unwrap();
        let answer = Router::new().route("/pulls", get(move || async move { Json(pulls) }));
        tokio::spawn(async move { axum::serve(listener, answer).await });
        check(&arguments(url)).await
    }

    fn arguments(url: Url) -> PullCheckArguments {
        drop(rustls::crypto::ring::default_provider().install_default());
        PullCheckArguments {
            url,
            server_limit: Span(Duration::ZERO),
            pull_limit: Span(Duration::ZERO),
            server_advice: "look at the claim".to_owned(),
            pull_advice: "set registry.embedded.loopback=true".to_owned(),
        }
    }

    fn of(pull: Pull) -> Pulls {
        Pulls { platforms: [("linux/arm64".parse().unwrap(), pull)].into(), untried: None }
    }

    #[tokio::test]
    async fn an_installation_whose_nodes_pull_ends_well_and_another_says_what_to_set() {
        let node = || "n2".to_owned();
        let pulled = told(of(Pull::Pulled { node: node() })).await.unwrap();
        assert_eq!(pulled, ["linux/arm64: node n2 pulls"]);
        let failing = of(Pull::Failing { node: node(), why: "ErrImagePull: refused".to_owned() });
        assert_eq!(
            told(failing).await.unwrap_err(),
            "the nodes cannot pull the apps' images: set registry.embedded.loopback=true\n\
             linux/arm64: node n2 cannot pull: ErrImagePull: refused"
        );
        let silent = told(of(Pull::Awaited)).await.unwrap_err();
        assert!(silent.contains("no node has pulled yet"), "{silent}");
        let untried =
            told(Pulls { untried: Some("no rights".to_owned()), ..Pulls::default() }).await.unwrap();
        assert_eq!(untried, ["no pull was tried: no rights"]);
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_named_with_what_to_look_at() {
        let said = check(&arguments("http://127.0.0.1:1/pulls".parse().unwrap())).await.unwrap_err();
        assert!(
            said.starts_with("the server did not answer") && said.ends_with("look at the claim"),
            "{said}"
        );
    }
}
