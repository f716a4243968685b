//! App processes: held, reached, restarted, stopped.

use std::path::Path;
use std::time::{Duration, Instant};

use hephy::sandbox::app::{self, AppSpec, AppState, Control, ControlError, Restart, log};
use hephy::sandbox::{Limits, Outcome};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::bench::{base_layer, executable, ids, readable_directory, shell_step};

/// Answers each connection on port 80 with what it is sent, ends at `crash`, and takes a second over SIGTERM.
/// It runs as a child of a shell, which passes no signal on.
const SERVER: &str = r#"
perl -e '
use IO::Socket;
$| = 1;
$SIG{TERM} = sub { print "draining\n"; select(undef, undef, undef, 0.3); print "drained\n"; exit 0 };
my $open = IO::Socket::INET->new(LocalAddr => "0.0.0.0", LocalPort => 80, Listen => 9, ReuseAddr => 1) or die $!;
my $own = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 81, Listen => 9) or die $!;
print "listening as $ENV{NAME}\n";
while (1) {
  my $client = $open->accept or next;
  sysread $client, my $text, 100;
  if ($text eq "crash") { print STDERR "crashing\n"; exit 3 }
  print $client "echo $text"; close $client;
}'
exit $?
"#;

fn spec(directory: &TempDir, script: &str, restart: Restart) -> AppSpec {
    let path = directory.path();
    let mut step = shell_step(script);
    step.environment.push(("NAME".to_owned(), "web".to_owned()));
    AppSpec {
        // Longer than a socket's name may be.
        directory: path.join("r".repeat(120)).join("app"),
        layers: path.join("layers"),
        lowers: vec![base_layer(path)],
        scratch: "tmp/app".into(),
        step,
        ids: ids(path),
        limits: Some(Limits { memory_bytes: Some(256 << 20), cpu_millis: None, processes: Some(64) }),
        stop_signal: 15,
        restart,
        log_max_bytes: 1 << 20,
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Asks again until it is so. The app says nothing we could wait for, as no app does.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn talk(control: &Control, text: &str) -> Result<String, ControlError> {
    let mut stream = control.connect(80).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn texts(directory: &Path) -> Vec<String> {
    log::read(directory, 0, 1000).unwrap().into_iter().map(|line| line.text).collect()
}

#[test]
fn an_app_is_held_reached_and_stopped() {
    let directory = readable_directory();
    let spec = spec(&directory, SERVER, Restart::WithBackoff);
    let control = app::launch(&executable(), &spec).unwrap();
    block_on(async {
        let listening = until("the app listens", async || {
            control.listening().await.ok().filter(|listeners| listeners.len() >= 2)
        });
        let listening = listening.await;
        let ports: Vec<_> =
            listening.iter().map(|listener| (listener.address.to_string(), listener.port)).collect();
        assert!(ports.contains(&("0.0.0.0".to_owned(), 80)), "{ports:?}");
        assert!(ports.contains(&("127.0.0.1".to_owned(), 81)), "{ports:?}");
        assert_eq!(talk(&control, "hello").await.unwrap(), "echo hello");
        // Bound to the namespace's loopback: seen, but not reached.
        assert!(matches!(control.connect(81).await, Err(ControlError::Refused { port: 81 })));
        assert!(app::launch(&executable(), &spec).is_err(), "one holder is enough");

        assert_eq!(talk(&control, "crash").await.unwrap(), "");
        let status = until("the app is started again", async || {
            let status = control.status().await.unwrap();
            (status.restarts == 1 && status.state == AppState::Running).then_some(status)
        });
        assert!(status.await.started_at.is_some());
        until("the app answers again", async || talk(&control, "x").await.ok()).await;

        control.stop(Duration::from_secs(20)).await.unwrap();
        assert!(matches!(control.status().await, Err(ControlError::Gone { .. })));
    });
    let texts = texts(&spec.directory);
    for wanted in ["listening as web", "crashing", "drained"] {
        assert!(texts.iter().any(|text| text == wanted), "{wanted}: {texts:?}");
    }
    assert!(texts.iter().any(|text| text.contains("status 3; it is started again in 1 s")), "{texts:?}");
    let left = std::fs::read_dir(spec.layers.join("tmp")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "what the app wrote is removed");
}

#[test]
fn an_app_that_does_not_end_is_killed_after_its_grace() {
    let directory = readable_directory();
    let spec = spec(&directory, "trap '' TERM; echo up; while :; do sleep 1; done", Restart::WithBackoff);
    let control = app::launch(&executable(), &spec).unwrap();
    block_on(async {
        until("the app is up", async || texts(&spec.directory).contains(&"up".to_owned()).then_some(()))
            .await;
        let begun = Instant::now();
        control.stop(Duration::from_millis(300)).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(300) && begun.elapsed() < Duration::from_secs(10));
    });
    assert!(texts(&spec.directory).iter().any(|text| text.contains("is killed")));
}

#[test]
fn an_app_that_is_not_restarted_tells_how_it_ended() {
    let directory = readable_directory();
    let spec = spec(&directory, "echo one; exit 4", Restart::Never);
    let control = app::launch(&executable(), &spec).unwrap();
    block_on(async {
        let last = until("the app has ended", async || match control.status().await.unwrap().state {
            AppState::Ended { last } => Some(last),
            _ => None,
        });
        assert_eq!(last.await, Outcome::Exited(4));
        assert!(matches!(control.connect(80).await, Err(ControlError::Refused { .. })));
        control.stop(Duration::from_secs(1)).await.unwrap();
    });
    assert_eq!(texts(&spec.directory), ["one", "exited with status 4"]);
}

#[test]
fn a_directory_without_a_holder_is_said_to_be_so() {
    let directory = readable_directory();
    let control = Control::at(directory.path());
    assert!(matches!(block_on(control.status()), Err(ControlError::Gone { .. })));
}
