//! Every example is pushed, onto a base that is made from Debian's packages.

use std::process::Command;

use crate::machine::{Machine, eventually};

/// What each example answers.
const ANSWERS: [(&str, &str); 3] = [
    ("hello-dockerfile", "Hello from hephy: v1 on "),
    ("multi-stage", "Hello, tiny\n"),
    ("web-and-worker", "Hello from web\n"),
];

#[test]
fn every_example_runs() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut there: Vec<String> = std::fs::read_dir(&examples)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(there, ANSWERS.map(|(name, _)| name), "an example without an answer here");

    let machine = Machine::start();
    machine.hephy(&["base", "debian:12"]).succeeded().says(&["FROM debian:12"]);
    for (name, answer) in ANSWERS {
        let app = machine.repository(name, &[]);
        let copied =
            Command::new("cp").arg("-r").arg(examples.join(name).join(".")).arg(&app.path).status().unwrap();
        assert!(copied.success());
        app.commit(&[]);
        app.push().succeeded();
        let (status, body) = machine.get(name, "/").unwrap();
        assert_eq!((status, body.starts_with(answer)), (200, true), "{name}: {body}");
    }
    machine.verb("config set GREETING=Hi -a hello-dockerfile").succeeded();
    let (_, body) = machine.get("hello-dockerfile", "/").unwrap();
    assert!(body.starts_with("Hi: v2"), "{body}");
    machine.verb("ps scale worker=1 -a web-and-worker").succeeded();
    eventually("the worker works", || {
        machine.verb("logs -a web-and-worker -t worker").stdout.contains("worked 2 times")
    });
}
