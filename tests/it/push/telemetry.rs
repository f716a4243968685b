//! What whoever operates `hephy up` learns of pushes: traces, metrics, the log.

use std::net::TcpListener;
use std::process::Stdio;

use crate::collector::{Collector, Span};
use crate::machine::{BUSYBOX, Machine, eventually};

/// The spans of all traces, once one of them has a root of that result.
fn ended(collector: &Collector, result: &str) -> Vec<Span> {
    let is_root = |span: &Span| span.parent.is_none() && span.attributes["hephy.result"] == result;
    eventually("the collector has the whole trace", || collector.spans().iter().any(is_root));
    collector.spans()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name}: {spans:#?}");
    found[0]
}

/// Every span but the root has its parent, and all are of one trace.
fn assert_whole(spans: &[Span]) {
    for span in spans {
        assert_eq!(span.trace, spans[0].trace, "{spans:#?}");
        let has_parent = span.parent.as_ref().is_none_or(|id| spans.iter().any(|other| other.id == *id));
        assert!(has_parent, "{span:#?} is below nothing in {spans:#?}");
        assert!(span.nanoseconds.0 <= span.nanoseconds.1, "{span:#?}");
    }
}

fn page(machine: &Machine, path: &str) -> String {
    String::from_utf8(answer(&machine.address("health"), path)).unwrap()
}

/// Head and body, as they came.
fn answer(address: &str, path: &str) -> Vec<u8> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
    answer
}

/// The metrics have these lines, or soon do: a push is told its end before its server has tidied up.
fn assert_counts(machine: &Machine, lines: &[&str]) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    for line in lines {
        loop {
            let metrics = page(machine, "/metrics");
            if metrics.lines().any(|found| found == *line) {
                break;
            }
            assert!(std::time::Instant::now() < until, "`{line}` is not in {metrics}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

#[test]
fn a_push_is_a_trace_with_a_span_for_each_stage_platform_and_step() {
    let collector = Collector::start();
    let machine = Machine::with_environment(
        &["--otlp-endpoint", &collector.url, "--health", "127.0.0.1:0"],
        &[
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=smiths"),
            ("HEPHY_LOG_FORMAT", "json"),
            ("HEPHY_LOG", "warn"),
        ],
    );
    assert!(page(&machine, "/readyz").starts_with("HTTP/1.0 200"));
    let web = machine.web("traced", "page");
    web.push().succeeded();
    let spans = ended(&collector, "succeeded");
    assert_whole(&spans);
    let root = named(&spans, "push");
    let commit = web.git(&["rev-parse", "HEAD"]).stdout;
    for (key, value) in [
        ("hephy.app", "traced"),
        ("hephy.build", "1"),
        ("hephy.release", "v1"),
        ("vcs.ref.head.revision", commit.trim()),
    ] {
        assert_eq!(root.attributes[key], value, "{key}");
    }
    let mut before = root.nanoseconds.0;
    for stage in ["detect", "plan", "build", "publish", "release", "rollout"] {
        let span = named(&spans, stage);
        assert_eq!((span.parent.as_ref(), span.status), (Some(&root.id), 1), "{stage}");
        // One after the other.
        assert!(before <= span.nanoseconds.0 && span.nanoseconds.1 <= root.nanoseconds.1, "{spans:#?}");
        before = span.nanoseconds.1;
    }
    let platform = named(&spans, "platform");
    assert_eq!(platform.parent.as_ref(), Some(&named(&spans, "build").id));
    assert!(platform.attributes["hephy.platform"].starts_with("linux/"));
    let run = named(&spans, "RUN");
    assert_eq!(run.parent.as_ref(), Some(&platform.id));
    assert_eq!((&*run.attributes["hephy.step.line"], &*run.attributes["hephy.step.cached"]), ("3", "false"));
    assert_eq!(spans.iter().filter(|span| span.name == "COPY").count(), 2);
    assert_eq!(collector.header("x-team").iter().collect::<std::collections::BTreeSet<_>>().len(), 1);
    assert_counts(
        &machine,
        &[
            "hephy_pushes_total{result=\"succeeded\"} 1",
            "hephy_stage_duration_seconds_count{stage=\"rollout\"} 1",
            "hephy_builds_running 0",
            "hephy_trace_spans_dropped_total 0",
        ],
    );
    let platform = &platform.attributes["hephy.platform"];
    assert_counts(
        &machine,
        &[
            &format!("hephy_platform_builds_total{{platform=\"{platform}\",result=\"succeeded\"}} 1"),
            &format!("hephy_platform_builds_running{{platform=\"{platform}\"}} 0"),
        ],
    );
}

#[test]
fn a_push_that_fails_says_where_in_its_trace_in_the_metrics_and_in_the_log() {
    let collector = Collector::start();
    let machine = Machine::with_environment(
        &["--health", "127.0.0.1:0"],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)],
    );
    let dockerfile = format!("{BUSYBOX}RUN echo fine\nRUN exit 3\nCMD [\"sh\"]\n");
    let app = machine.repository("broken", &[("Dockerfile", &dockerfile)]);
    app.add_busybox();
    app.push().failed_with(&["Dockerfile:5"]);
    let spans = ended(&collector, "failed");
    assert_whole(&spans);
    let run = spans.iter().find(|span| span.status == 2 && span.name == "RUN").unwrap();
    assert_eq!(run.attributes["process.exit.code"], "3");
    assert_eq!(run.attributes["hephy.step.line"], "5");
    for name in ["push", "build", "platform"] {
        assert_eq!(named(&spans, name).status, 2, "{name}");
    }
    assert!(!spans.iter().any(|span| span.name == "publish"));
    // The steps before it were run, too; that of FROM is never anything but known.
    let steps = spans.iter().filter(|span| span.attributes.contains_key("hephy.step.cached"));
    let (cached, run): (Vec<_>, Vec<_>) =
        steps.partition(|step| step.attributes["hephy.step.cached"] == "true");
    assert_counts(
        &machine,
        &[
            "hephy_pushes_total{result=\"failed\"} 1",
            "hephy_stage_duration_seconds_count{stage=\"build\"} 1",
            &format!("hephy_steps_total{{cache=\"hit\"}} {}", cached.len()),
            &format!("hephy_steps_total{{cache=\"miss\"}} {}", run.len()),
        ],
    );
}

#[test]
fn a_collector_that_is_away_costs_a_push_nothing_and_what_is_lost_is_counted() {
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{gone}");
    let machine = Machine::with_flags(&["--otlp-endpoint", &url, "--health", "127.0.0.1:0"]);
    machine.web("alone", "page").push().succeeded();
    assert_eq!(machine.get("alone", "/").unwrap(), (200, "page".to_owned()));
    eventually("the lost spans are counted", || {
        let metrics = page(&machine, "/metrics");
        let dropped = metrics.lines().find_map(|line| line.strip_prefix("hephy_trace_spans_dropped_total "));
        dropped.unwrap().parse::<u64>().unwrap() > 0
    });
    assert_counts(&machine, &["hephy_trace_spans_sent_total 0"]);
    assert!(machine.printed().contains("traces cannot be sent"), "{}", machine.printed());
}

#[test]
fn a_build_that_outlives_its_server_goes_on_with_its_trace() {
    let collector = Collector::start();
    let machine = Machine::with_flags(&["--otlp-endpoint", &collector.url]);
    let dockerfile = format!(
        "{BUSYBOX}COPY gate /gate\nRUN echo building; sleep $(cat /gate)\nEXPOSE 8000\nCMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/\"]\n"
    );
    let app = machine.repository("adopted", &[("Dockerfile", &dockerfile), ("gate", "4")]);
    app.add_busybox();
    let push = app.command(&["push", "deis", "main"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let plan = |spans: &[Span]| spans.iter().any(|span| span.name == "plan");
    eventually("the first server has told its first stages", || plan(&collector.spans()));
    eventually("the build runs", || {
        machine.verb("builds log 1 -a adopted --no-follow").stdout.contains("    building")
    });
    machine.kill();
    drop(push.unwrap().wait());
    machine.up();
    let spans = ended(&collector, "succeeded");
    assert_whole(&spans);
    for name in ["push", "detect", "plan", "build", "platform", "publish", "release", "rollout"] {
        named(&spans, name);
    }
    // The step began under one server and ended under the other: its times are those of who built.
    let sleep = spans
        .iter()
        .find(|span| span.attributes.get("hephy.step.text").is_some_and(|text| text.contains("sleep")));
    let (start, end) = sleep.unwrap().nanoseconds;
    assert!(end - start >= 4_000_000_000, "{sleep:#?}");
}

#[test]
fn whoever_is_on_the_machine_may_ask_where_the_server_spends_its_time() {
    let machine = Machine::with_flags(&["--pprof", "127.0.0.1:0"]);
    let address = machine.address("pprof");
    let said = |path: &str| String::from_utf8_lossy(&answer(&address, path)).into_owned();
    assert!(said("/debug/pprof/profile?seconds=61").contains("seconds is from 1 to 60"));
    assert!(said("/debug/pprof/profile?minutes=1").starts_with("HTTP/1.0 400"));
    let profile = std::thread::scope(|scope| {
        let taken = scope.spawn(|| answer(&address, "/debug/pprof/profile?seconds=3"));
        // While it has something to do.
        machine.web("profiled", "page").push().succeeded();
        taken.join().unwrap()
    });
    let end = profile.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let (head, body) = profile.split_at(end + 4);
    assert!(head.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(head));
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(body), &mut read).unwrap();
    let names = String::from_utf8_lossy(&read);
    assert!(names.contains("nanoseconds") && names.contains("::"), "{names}");
    // An app does not reach it, and neither does anybody else's machine.
    assert!(!machine.hephy(&["up", "--pprof", "0.0.0.0:6060"]).ok);
}

#[test]
fn what_is_logged_of_a_push_says_of_which() {
    let machine =
        Machine::with_environment(&[], &[("HEPHY_LOG_FORMAT", "json"), ("HEPHY_LOG", "hephy=info")]);
    let dockerfile = "FROM 127.0.0.1:1/nothing\n";
    let app = machine.repository("logged", &[("Dockerfile", dockerfile)]);
    app.push().failed_with(&["rejected"]);
    let printed = machine.printed();
    let lines = printed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let of_push: Vec<_> = lines.filter(|line| line["span"]["name"] == "push").collect();
    assert!(!of_push.is_empty(), "{printed}");
    let commit = app.git(&["rev-parse", "HEAD"]).stdout;
    for line in of_push {
        let span = &line["span"];
        assert_eq!((&span["app"], &span["build"]), (&"logged".into(), &"#1".into()), "{line}");
        assert_eq!(span["commit"], commit.trim(), "{line}");
        assert_eq!(span["push_id"].as_str().unwrap().len(), 32, "{line}");
    }
}
