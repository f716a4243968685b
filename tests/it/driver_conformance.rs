//! What every [`Driver`] does: one suite, run for each of them by [`suite`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hephy::build::{
    BuildEvent, BuildFailure, BuildLimits, BuildRequest, CacheUse, Compression, Driver, NetworkMode,
};
use hephy::model::PlatformImage;
use hephy::oci::Platform;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::build::{EPOCH, Place, base, runs};

/// A driver, and a place where it builds.
pub(crate) trait Bench {
    type Driver: Driver + Clone + 'static;
    fn driver(&self) -> Self::Driver;
    fn place(&self) -> &Place;
    /// A request as this driver can do it.
    fn adjust(&self, request: BuildRequest) -> BuildRequest {
        request
    }
    /// Puts away what the bench has made elsewhere.
    async fn end(self)
    where
        Self: Sized,
    {
    }
}

/// Makes the suite's tests for one bench.
macro_rules! suite {
    ($bench:expr $(, #[$attribute:meta])?) => {
        #[tokio::test]
        $(#[$attribute])?
        async fn an_image_is_built_and_told_step_by_step() {
            let bench = $bench;
            crate::driver_conformance::builds(&bench).await;
            crate::driver_conformance::Bench::end(bench).await;
        }
        #[tokio::test]
        $(#[$attribute])?
        async fn a_finished_build_is_replayed() {
            let bench = $bench;
            crate::driver_conformance::replays(&bench).await;
            crate::driver_conformance::Bench::end(bench).await;
        }
        #[tokio::test]
        $(#[$attribute])?
        async fn a_failure_says_whose_fault_it_is() {
            let bench = $bench;
            crate::driver_conformance::fails(&bench).await;
            crate::driver_conformance::Bench::end(bench).await;
        }
        #[tokio::test]
        $(#[$attribute])?
        async fn a_cancelled_build_ends_with_its_processes() {
            let bench = $bench;
            crate::driver_conformance::cancels(&bench).await;
            crate::driver_conformance::Bench::end(bench).await;
        }
        #[tokio::test]
        $(#[$attribute])?
        async fn a_build_at_work_is_adopted() {
            let bench = $bench;
            crate::driver_conformance::adopts(&bench).await;
            crate::driver_conformance::Bench::end(bench).await;
        }
    };
}
pub(crate) use suite;

pub(crate) fn request(bench: &impl Bench, dockerfile: &str) -> BuildRequest {
    let place = bench.place();
    place.file("Dockerfile", dockerfile);
    bench.adjust(BuildRequest {
        name: "conformance--1".to_owned(),
        directory: place.path("driven"),
        context: place.path("context"),
        dockerfile: PathBuf::from("Dockerfile"),
        platform: Platform::native(),
        target: None,
        build_args: vec![("GIVEN".to_owned(), Some("given".to_owned()))],
        labels: vec![("a".to_owned(), "b".to_owned())],
        destinations: Vec::new(),
        mirrors: vec![format!("oci:{}", base::layout().display())],
        insecure_registries: Vec::new(),
        docker_config: Some("{\"auths\":{}}".to_owned()),
        source_date_epoch: EPOCH.parse().ok(),
        cache: CacheUse::Read,
        network: NetworkMode::Host,
        limits: BuildLimits::default(),
        compression: Compression::Gzip,
        machine: None,
        flags: Vec::new(),
    })
}

struct Run {
    outcome: Result<PlatformImage, BuildFailure>,
    lines: Vec<String>,
    /// Whether nothing was told of it before.
    begun: bool,
}

async fn run(driver: &impl Driver, request: &BuildRequest) -> Run {
    let (sender, mut receiver) = mpsc::channel::<BuildEvent>(16);
    let collect = async {
        let (mut lines, mut begun) = (Vec::new(), false);
        while let Some(event) = receiver.recv().await {
            lines.extend(event.lines());
            begun |= event == BuildEvent::Begun;
        }
        (lines, begun)
    };
    let (outcome, (lines, begun)) =
        tokio::join!(driver.build(request, sender, CancellationToken::new()), collect);
    Run { outcome, lines, begun }
}

pub(crate) async fn builds(bench: &impl Bench) {
    let driver = bench.driver();
    assert!(driver.platforms().await.unwrap().contains(&Platform::native()));
    let request = request(bench, "FROM busybox:1\nARG GIVEN\nRUN echo $GIVEN > /x; cat /x\n");
    let run = run(&driver, &request).await;
    let image = run.outcome.unwrap();
    assert_eq!((image.platform, image.layers, image.new_layers), (Platform::native(), 2, 1));
    assert_eq!(image.steps.iter().map(|step| step.cached).collect::<Vec<_>>(), [true, false]);
    assert!(run.lines.iter().any(|line| line == "    given"), "{:?}", run.lines);
}

pub(crate) async fn replays(bench: &impl Bench) {
    let request = request(bench, "FROM busybox:1\nRUN echo once > /x; echo told\n");
    let first = run(&bench.driver(), &request).await;
    let again = run(&bench.driver(), &request).await;
    assert_eq!(first.outcome.unwrap(), again.outcome.unwrap());
    assert_eq!((first.begun, again.begun), (true, false));
    // How long it waited for its place is not the build's.
    let told = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|line| !line.starts_with("waiting: ")).collect()
    };
    assert_eq!(told(first.lines), told(again.lines));
}

pub(crate) async fn fails(bench: &impl Bench) {
    let failing = run(&bench.driver(), &request(bench, "FROM busybox:1\nRUN exit 4\n")).await;
    let Err(BuildFailure::App(step)) = failing.outcome else { panic!("{:?}", failing.outcome) };
    assert_eq!((step.exit_status, step.at.unwrap().line), (Some(4), 2));
}

pub(crate) async fn cancels(bench: &impl Bench) {
    let word = "16180339";
    let request = request(bench, &format!("FROM busybox:1\nRUN echo begun; sleep {word}\n"));
    let (sender, mut receiver) = mpsc::channel(16);
    let cancel = CancellationToken::new();
    let (driver, token) = (bench.driver(), cancel.clone());
    let building = tokio::spawn(async move { driver.build(&request, sender, token).await });
    wait_for_line(&mut receiver, "begun").await;
    let clock = Instant::now();
    cancel.cancel();
    tokio::spawn(async move { while receiver.recv().await.is_some() {} });
    assert_eq!(building.await.unwrap(), Err(BuildFailure::Cancelled));
    assert!(clock.elapsed() < Duration::from_secs(2), "{:?}", clock.elapsed());
    assert!(!runs(word));
}

pub(crate) async fn adopts(bench: &impl Bench) {
    // The build waits for a line in a pipe that the second follower's test writes.
    let request = request(bench, "FROM busybox:1\nRUN echo begun; sleep 2; echo over\n");
    let (sender, mut receiver) = mpsc::channel(16);
    let (driver, first_request) = (bench.driver(), request.clone());
    let building =
        tokio::spawn(async move { driver.build(&first_request, sender, CancellationToken::new()).await });
    wait_for_line(&mut receiver, "begun").await;
    building.abort();
    drop(building.await);
    let adopted = run(&bench.driver(), &request).await;
    adopted.outcome.unwrap();
    assert!(!adopted.begun);
    let begun = adopted.lines.iter().filter(|line| line.contains("    begun")).count();
    assert_eq!(begun, 1, "{:?}", adopted.lines);
}

async fn wait_for_line(receiver: &mut mpsc::Receiver<BuildEvent>, word: &str) {
    while let Some(event) = receiver.recv().await {
        if event.lines().iter().any(|line| line.trim() == word) {
            return;
        }
    }
    panic!("the build ended without `{word}`");
}
