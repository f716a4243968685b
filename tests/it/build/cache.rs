//! `hephy cache`: what is kept can be seen, and removed without harm.

use std::process::Command;

use hephy::layers::{Pruned, Stored};
use serde::de::DeserializeOwned;

use super::Place;

const DOCKERFILE: &str =
    "FROM busybox:1\nRUN mkdir -m 700 /private && echo a > /private/file && chown -R 7:7 /private\n";

fn cache<T: DeserializeOwned>(place: &Place, arguments: &[&str]) -> T {
    let mut command = Command::new(crate::ordinary_user::executable());
    command.args(["cache", "--data"]).arg(place.path("data")).args(arguments).args(["--format", "json"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_builds_left_is_shown_and_pruned_and_the_next_build_makes_it_again() {
    let place = Place::new();
    let first = place.build(DOCKERFILE).ok();
    let stored: Stored = cache(&place, &["show"]);
    assert_eq!((stored.trees, stored.blobs), (2, 2), "{stored:?}");

    let nothing: Pruned = cache(&place, &["prune", "--keep-for", "1h"]);
    assert_eq!(nothing, Pruned::default());
    let pruned: Pruned = cache(&place, &["prune"]);
    assert_eq!((pruned.trees, pruned.blobs), (2, 2));
    assert_eq!(cache::<Stored>(&place, &["show"]), Stored::default());
    assert_eq!(place.left_over(), [""; 0], "also what belongs to other ids of the sandbox");

    let second = place.build(DOCKERFILE).ok();
    assert_eq!(second.digest(), first.digest());
    assert_eq!(second.steps(), ["cached", "done"]);
}

#[test]
fn what_a_running_build_uses_stays() {
    let place = Place::new();
    let waits = "FROM busybox:1\nRUN echo a > /a\nRUN echo ready && sleep 1000\n";
    let mut build = place.command(waits, &["--no-push"]).spawn().unwrap();
    while !place.events().iter().any(|event| format!("{event:?}").contains("\"ready\"")) {
        assert!(build.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    let before: Stored = cache(&place, &["show"]);
    let pruned: Pruned = cache(&place, &["prune"]);
    assert_eq!(pruned.trees, 0, "{before:?}");
    assert_eq!(cache::<Stored>(&place, &["show"]).trees, before.trees);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(build.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(build.wait().unwrap().code(), Some(130));
}

#[test]
fn cache_mounts_are_shown_and_go_only_when_that_is_asked() {
    let place = Place::new();
    let fill = "FROM busybox:1\nRUN --mount=type=cache,target=/c head -c 300000 /dev/zero > /c/f\n";
    place.build(fill).ok();
    let stored: Stored = cache(&place, &["show"]);
    assert!(stored.mounts == 1 && stored.mount_bytes >= 300_000, "{stored:?}");
    let kept: Pruned = cache(&place, &["prune"]);
    assert_eq!(kept.mount_bytes, 0);
    assert_eq!(cache::<Stored>(&place, &["show"]).mounts, 1);
    let young: Pruned = cache(&place, &["prune", "--mounts", "--keep-for", "1h"]);
    assert_eq!(young.mount_bytes, 0);
    let pruned: Pruned = cache(&place, &["prune", "--mounts"]);
    assert_eq!(pruned.mount_bytes, stored.mount_bytes);
    assert_eq!(cache::<Stored>(&place, &["show"]).mounts, 0);
}
