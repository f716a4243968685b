//! An engine that has nothing but a registry and a ticket, as in the container of a Job; and the index of what others built.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use hephy::build::{
    BuildEvent, BuildFailure, NumberedEvent, Outcome, SourceOptions, find_report, push_source,
};
use hephy::oci::{MediaType, Platform, Reference, Target};

use super::{EPOCH, Place, base};
use crate::registry::Registry;

/// Who hands out what the ticket is good for.
async fn receiver(config: String) -> String {
    let answer = move |headers: axum::http::HeaderMap| async move {
        if headers["authorization"] == "Bearer the-ticket" { config } else { "{}".to_owned() }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/tickets", post(answer))).await });
    format!("http://{address}/tickets")
}

struct Elsewhere {
    registry: Registry,
    place: Place,
    tickets: String,
}

impl Elsewhere {
    async fn new() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let registry = Registry::start().await;
        let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
        let tickets = receiver(hephy::registry::server::docker_config(&registry.host(), &token)).await;
        Self { registry, place: Place::new(), tickets }
    }

    fn report(&self) -> Reference {
        format!("{}/hello:hello--1--amd64.0", self.registry.address).parse().unwrap()
    }

    /// Builds the context from the registry, with another directory for everything.
    async fn build(&self, dockerfile: &str) -> Output {
        self.place.file("Dockerfile", dockerfile);
        let context = self.place.path("context");
        let repository = self.registry.repository("hello");
        let from = (context.as_path(), Path::new("Dockerfile"));
        let client = self.registry.client();
        let options = SourceOptions { epoch: EPOCH.parse().ok(), ..SourceOptions::default() };
        let source = push_source(&client, &repository, from, &options).await.unwrap();
        let address = &self.registry.address;
        let mut command = std::process::Command::new(crate::ordinary_user::executable());
        command.arg("build").arg(format!("--context=oci:{address}/hello@{}", source.digest));
        command.arg("--build-directory").arg(self.place.path("build"));
        command.arg("--data").arg(self.place.path("data"));
        command.arg("--mirror").arg(format!("oci:{}", base::layout().display()));
        command.arg("--destination").arg(format!("{address}/hello")).arg("--push-by-digest");
        command.arg("--progress=events").arg(format!("--report={}", self.report()));
        command.arg(format!("--ticket-url={}", self.tickets)).env("HEPHY_TICKET", "the-ticket");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}

fn numbered(output: &Output) -> Vec<BuildEvent> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<NumberedEvent>(line).unwrap());
    let lines: Vec<NumberedEvent> = lines.collect();
    let numbers: Vec<u64> = lines.iter().map(|line| line.number).collect();
    assert_eq!(numbers, (1..=lines.len() as u64).collect::<Vec<_>>());
    lines.into_iter().map(|line| line.event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_a_ticket_leaves_its_result_and_its_log_in_the_repository() {
    let elsewhere = Elsewhere::new().await;
    elsewhere.place.file("file", "from afar\n");
    let output = elsewhere.build("FROM busybox:1\nCOPY file /file\nRUN cat /file; env\n").await;
    assert!(output.status.success(), "{output:?}");
    let client = elsewhere.registry.client();
    let report = find_report(&client, &elsewhere.report()).await.unwrap().unwrap();
    let Outcome::Built { image, .. } = &report.result.outcome else { panic!("{report:?}") };
    let repository = elsewhere.registry.repository("hello");
    client.manifest(&repository, &Target::Digest(image.manifest)).await.unwrap();
    let events = report.events(&client).await.unwrap();
    assert_eq!(events, numbered(&output));
    let lines: Vec<String> = events.iter().flat_map(BuildEvent::lines).collect();
    assert!(lines.iter().any(|line| line == "    from afar"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("TICKET")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_reported_too() {
    let elsewhere = Elsewhere::new().await;
    let output = elsewhere.build("FROM busybox:1\nRUN exit 4\n").await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = find_report(&elsewhere.registry.client(), &elsewhere.report()).await.unwrap().unwrap();
    let Outcome::Failed(BuildFailure::App(step)) = report.result.outcome else { panic!() };
    assert_eq!((step.exit_status, step.at.unwrap().to_string()), (Some(4), "Dockerfile:2".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_in_files_become_an_index_of_the_platforms_that_the_images_name() {
    let elsewhere = Elsewhere::new().await;
    let output = elsewhere.build("FROM busybox:1\nENV A=1\n").await;
    assert!(output.status.success(), "{output:?}");
    let client = elsewhere.registry.client();
    let report = find_report(&client, &elsewhere.report()).await.unwrap().unwrap();
    let Outcome::Built { image, .. } = report.result.outcome else { panic!() };
    let digests = elsewhere.place.path("digests");
    std::fs::create_dir(&digests).unwrap();
    std::fs::write(digests.join("one"), image.manifest.to_string()).unwrap();
    let token =
        elsewhere.registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    let config = hephy::registry::server::docker_config(&elsewhere.registry.host(), &token);
    std::fs::write(elsewhere.place.path("config.json"), config).unwrap();
    let native = Platform::native();
    let run = |more: &[String]| {
        let mut command = std::process::Command::new(crate::ordinary_user::executable());
        command.args(["build", "--driver=ci", "--publish-index=true", "--oci-mode=oci"]);
        command.arg(format!("--digests-from={}", digests.display()));
        command.arg(format!("--destination={}/hello:1.0", elsewhere.registry.address));
        command.args(["--index-annotations=a=b,c=d", "--index-annotations=e=f"]).args(more);
        command.env("DOCKER_CONFIG", elsewhere.place.directory.path());
        let mut command = command;
        tokio::task::block_in_place(move || command.output().unwrap())
    };
    let missing = run(&["--multi-platform=linux/s390x".to_owned()]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && said.contains("is for linux/s390x"), "{said}");
    let published = run(&[format!("--multi-platform={native}")]);
    assert!(published.status.success(), "{published:?}");
    let repository = elsewhere.registry.repository("hello");
    let index = client.manifest(&repository, &Target::Tag("1.0".parse().unwrap())).await.unwrap();
    assert_eq!(String::from_utf8(published.stdout).unwrap().trim(), index.digest().to_string());
    assert_eq!(index.media_type(), &MediaType::ImageIndex);
    let document = index.as_index().unwrap();
    assert_eq!(document.manifests[0].platform.as_ref(), Some(&native));
    assert_eq!(document.annotations.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "c", "e"]);
}
