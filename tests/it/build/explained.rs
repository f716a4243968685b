//! What a build says of itself: why a step was run, what it lacked, where the time went, where the image is.

use hephy::build::{BuildEvent, StepState};

use super::{Built, Place};

/// Why steps were run, of those of which it is told.
fn reasons(built: &Built) -> Vec<String> {
    let reason = |event: &BuildEvent| match event {
        BuildEvent::Step { number, state: StepState::Done { why: Some(why), .. }, .. } => {
            Some(format!("{number}: {why}"))
        }
        _ => None,
    };
    built.events.iter().filter_map(reason).collect()
}

fn notes(built: &Built) -> Vec<&str> {
    fn note(event: &BuildEvent) -> Option<&str> {
        if let BuildEvent::Note { text } = event { Some(text) } else { None }
    }
    built.events.iter().filter_map(note).collect()
}

const DOCKERFILE: &str =
    "FROM busybox:1\nARG V=1\nWORKDIR /app\nCOPY . .\nRUN echo $V > v\nENV A=1\nRUN echo $A > a\n";

#[test]
fn a_build_says_what_changed_and_with_explain_why_everything_after_it_ran_too() {
    let place = Place::new();
    place.file("a.py", "1").file("b.py", "1").file("c.py", "1").file("d.py", "1").file("e.py", "1");
    assert_eq!(reasons(&place.build(DOCKERFILE).ok()), [""; 0], "nothing was known of it");
    for name in ["b.py", "c.py", "d.py"] {
        place.file(name, "2");
    }
    std::fs::remove_file(place.path("context/e.py")).unwrap();
    assert_eq!(
        reasons(&place.build(DOCKERFILE).ok()),
        ["3: changed: b.py, c.py, d.py and 1 more"],
        "what follows from it goes without saying"
    );
    place.file("f.py", "1");
    assert_eq!(
        reasons(&place.build_with(DOCKERFILE, &["--explain"]).ok()),
        ["3: changed: f.py (new)", "4: a step before it changed", "5: a step before it changed"]
    );
    assert_eq!(reasons(&place.build_with(DOCKERFILE, &["--explain"]).ok()), [""; 0], "all is known");
}

#[test]
fn commands_variables_and_bases_are_named() {
    let place = Place::new();
    place.file("a.py", "1").file(".dockerignore", "Dockerfile");
    place.build(DOCKERFILE).ok();
    let why = |dockerfile: &str, flags: &[&str]| reasons(&place.build_with(dockerfile, flags).ok());
    assert_eq!(why(DOCKERFILE, &["--build-arg", "V=2"]), ["4: the variable `V` changed"]);
    let commanded = DOCKERFILE.replace("echo $V > v", "echo $V > w");
    assert_eq!(why(&commanded, &["--build-arg", "V=2"]), ["4: the command changed"]);
    let added = commanded.replace("ENV A=1", "RUN echo new > n\nENV A=1");
    assert_eq!(why(&added, &["--build-arg", "V=2"]), ["5: a new instruction"]);
    let staged = |word: &str| {
        let below = format!("FROM busybox:1 AS below\nRUN echo {word} > /x\nFROM below");
        why(&DOCKERFILE.replace("FROM busybox:1", &below), &[])
    };
    assert_eq!(staged("x"), [""; 0]);
    assert_eq!(staged("y"), ["2: the command changed", "4: the base changed"]);
}

#[test]
fn a_shell_that_the_image_lacks_is_named_with_the_way_around_it() {
    let place = Place::new();
    let built = place.build("FROM scratch\nRUN echo hello\n");
    let failure = built.app_failure();
    assert!(failure.heading.contains("has no `/bin/sh`"), "{failure:?}");
    assert!(failure.hint.as_ref().unwrap().contains("RUN [\"/program\""), "{failure:?}");
    let built = place.build("FROM scratch\nRUN [\"/nowhere\", \"x\"]\n");
    assert!(built.app_failure().heading.ends_with("has no `/nowhere`"), "{:?}", built.app_failure());
    let built = place.build("FROM busybox:1\nRUN nosuchcommand\n");
    assert_eq!(built.app_failure().exit_status, Some(127), "the shell is there, and says more itself");
}

#[test]
fn a_link_out_of_the_context_is_told_from_a_file_that_is_not_there() {
    let place = Place::new();
    place.file("deep/file", "x");
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, place.path("context").join(name)).unwrap();
    };
    link("../../outside", "deep/out");
    link("/outside", "absolute");
    link("nowhere", "dangling");
    link("deep/out", "indirect");
    for (source, word) in [
        ("deep/out", "`deep/out` is a link to `../../outside`, which leads out"),
        ("absolute", "`absolute` is a link to `/outside`, which leads out"),
        ("deep/out/below", "`deep/out` is a link to `../../outside`, which leads out"),
        ("dangling", "`dangling` is not there"),
        ("nothing", "`nothing` is not there"),
    ] {
        let built = place.build(&format!("FROM scratch\nCOPY {source} /x\n"));
        assert!(built.app_failure().heading.contains(word), "{source}: {:?}", built.app_failure());
    }
    // Nothing leads out of a stage.
    let built =
        place.build("FROM busybox:1 AS a\nRUN ln -s /nowhere /l\nFROM scratch\nCOPY --from=a /l /x\n");
    assert!(built.app_failure().heading.contains("is not there"), "{:?}", built.app_failure());
}

#[test]
fn a_secret_that_was_not_given_is_told_once() {
    let place = Place::new();
    let dockerfile = "FROM busybox:1\nRUN --mount=type=secret,id=token ls /run/secrets; true\n";
    let built = place.build(dockerfile).ok();
    let told: Vec<_> = notes(&built).into_iter().filter(|note| note.contains("token")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("`--secret`") && told[0].contains("/run/secrets/token"), "{told:?}");
    assert!(!notes(&place.build(dockerfile).ok()).iter().any(|note| note.contains("token")), "nothing ran");
}

#[test]
fn an_id_that_no_sandbox_has_is_an_error_that_names_it() {
    let place = Place::new();
    place.file("f", "x");
    for (dockerfile, line) in [
        ("FROM busybox:1\nUSER 70000\nRUN true\n", 3),
        ("FROM busybox:1\nCOPY --chown=70000 f /f\nUSER 7:70000\nRUN true\n", 4),
    ] {
        let built = place.build(dockerfile);
        let failure = built.app_failure();
        assert!(failure.heading.contains("is the id 70000"), "{failure:?}");
        assert!(failure.heading.contains("65536 ids") && failure.heading.contains("after the last RUN"));
        assert_eq!(failure.at.as_ref().map(|at| at.line), Some(line), "{failure:?}");
    }
}

#[test]
fn a_dockerfile_comes_from_standard_input() {
    use std::io::Write as _;
    let place = Place::new();
    place.file("kept", "x").file("ignored", "x").file(".dockerignore", "ignored\nDockerfile\n.dockerignore");
    let build = |text: &str| {
        let mut command = place.command("FROM nowhere.invalid/not-this-one\n", &["-f", "-", "--no-push"]);
        let mut engine = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        engine.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        place.built(engine.wait_with_output().unwrap())
    };
    let built = build("FROM busybox:1\nCOPY . /d\nRUN ls /d\n").ok();
    assert_eq!(built.lines(), ["kept"]);
    let failed = build("FROM busybox:1\nRUN exit 3\n");
    assert_eq!(failed.app_failure().at.as_ref().unwrap().to_string(), "<stdin>:2");
    let both = place.build_with("FROM scratch\n", &["-f", "-", "--docker-config-stdin"]);
    assert_eq!(both.output.status.code(), Some(2));
}
