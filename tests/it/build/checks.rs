//! `hephy build --check`, and what a build tells of the same.

use hephy::build::BuildEvent;

use super::{Built, Place};

fn run(place: &Place, dockerfile: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = place.command(dockerfile, &[&["--check"], arguments].concat()).output().unwrap();
    assert!(!place.path("build/result.json").exists(), "nothing was built");
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn notes(built: &Built) -> Vec<&str> {
    fn note(event: &BuildEvent) -> Option<&str> {
        if let BuildEvent::Note { text } = event { Some(text) } else { None }
    }
    built.events.iter().filter_map(note).collect()
}

#[test]
fn findings_are_printed_as_buildkit_prints_them() {
    let place = Place::new();
    assert_eq!(
        run(&place, "FROM scratch\nCMD [\"a\"]\n", &[]),
        (Some(0), "Check complete, no warnings found.\n".to_owned())
    );
    let (code, text) = run(&place, "FROM scratch\n\nCMD a\n", &[]);
    let expected = "Check complete, 1 warning has been found!

WARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/
JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
Dockerfile:3
--------------------
   1 |     FROM scratch
   2 |
   3 | >>> CMD a
--------------------
";
    assert_eq!((code, text.as_str()), (Some(1), expected));
    let (code, text) = run(&place, "FROM scratch\nRUM a\n", &[]);
    assert!(
        code == Some(1) && text.contains("unknown instruction `RUM`") && text.contains("   2 | >>> RUM a"),
        "{text}"
    );
}

#[test]
fn findings_are_json_for_programs() {
    let place = Place::new();
    place.file("x", "").file(".dockerignore", "x\n");
    let (code, text) = run(&place, "FROM scratch AS B\nCOPY x /\n", &["--format", "json"]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let names: Vec<_> =
        value["warnings"].as_array().unwrap().iter().map(|one| one["ruleName"].as_str().unwrap()).collect();
    assert_eq!((code, names.as_slice()), (Some(1), &["StageNameCasing", "CopyIgnoredFile"][..]));
    assert_eq!(value["warnings"][1]["location"]["ranges"][0]["start"]["line"], 2);
    let (code, text) = run(&place, "RUN a\n", &["--format", "json"]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(code == Some(1) && value["buildError"]["message"].is_string(), "{text}");
}

#[test]
fn what_a_base_sets_is_known_and_a_base_that_is_nowhere_is_not_blamed() {
    let place = Place::new();
    let undefined = |base: &str| run(&place, &format!("FROM {base}\nENV X=$NONE PATH=$PATH\n"), &[]).1;
    assert!(undefined("busybox:1").contains("Usage of undefined variable '$NONE'"));
    assert!(undefined("nowhere.invalid/x").contains("no warnings"));
}

#[test]
fn a_build_tells_what_the_checks_find_and_fails_only_if_that_is_asked_for() {
    let place = Place::new();
    let built = place.build("FROM busybox:1\nENTRYPOINT a\n").ok();
    let expected = "Dockerfile:2: JSONArgsRecommended: JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals";
    assert_eq!(notes(&built), [expected]);
    let quiet = place.build("# check=skip=all\nFROM busybox:1\nENTRYPOINT a\n").ok();
    assert_eq!(notes(&quiet), [""; 0]);
    let strict = place.build("# check=error=true\nFROM busybox:1\nENTRYPOINT a\n");
    assert!(strict.app_failure().heading.contains("JSONArgsRecommended"), "{:?}", strict.app_failure());
    assert_eq!(strict.steps(), [""; 0], "before anything is done");
}
