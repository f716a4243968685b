//! Several stages: at the same time, and only as much of them as the image needs.

use std::process::Command;

use hephy::build::{BuildEvent, StepState};
use hephy::layers::Stored;

use super::{Built, Place, runs};

/// The RUN steps as they began and ended.
fn runs_of(built: &Built) -> Vec<(String, bool)> {
    let moment = |event: &BuildEvent| match event {
        BuildEvent::Step { stage: Some(stage), text, state, .. } if text.starts_with("RUN") => match state {
            StepState::Started => Some((stage.clone(), true)),
            _ => Some((stage.clone(), false)),
        },
        _ => None,
    };
    built.events.iter().filter_map(moment).collect()
}

#[test]
fn stages_that_do_not_need_each_other_run_at_the_same_time() {
    let dockerfile = "FROM busybox:1 AS one\nRUN sleep 2; echo 1 > /one\n\
        FROM busybox:1 AS two\nRUN sleep 2; echo 2 > /two\n\
        FROM scratch AS last\nCOPY --from=one /one /\nCOPY --from=two /two /\n";
    let built = Place::new().build(dockerfile).ok();
    let moments = runs_of(&built);
    assert!(moments[0].1 && moments[1].1, "both begin before either ends: {moments:?}");
    assert_ne!(moments[0].0, moments[1].0);
    assert_eq!((built.layer(1)[0].content.as_str(), built.layer(0)[0].content.as_str()), ("1\n", "2\n"));
    let numbers: Vec<u32> = built
        .events
        .iter()
        .filter_map(|event| match event {
            BuildEvent::Step { number, of: 7, state, .. } if *state != StepState::Started => Some(*number),
            _ => None,
        })
        .collect();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        [1, 2, 3, 4, 5, 6, 7],
        "each step has the number of its place in the file: {numbers:?}"
    );
}

#[test]
fn an_equal_layer_of_another_image_brings_nothing_of_that_along() {
    let place = Place::new();
    // A step that opens a file to write, and writes nothing, has a copy of it above its image.
    let one = place.build("FROM busybox:1\nRUN : >> /etc/passwd; echo x > /x\n").ok().layer_paths(0);
    let other =
        "FROM busybox:1\nRUN rm /etc/passwd\nRUN echo x > /x\nRUN test -e /x && test ! -e /etc/passwd\n";
    let other = place.build(other).ok();
    assert_eq!((one, other.layer_paths(0)), (vec!["x".to_owned()], vec!["x".to_owned()]));
}

#[test]
fn a_layer_of_a_directory_made_anew_hides_in_another_image_what_it_says_alone() {
    let place = Place::new();
    // Both end with one layer: without a name, with another.
    let one = "FROM busybox:1\nRUN mkdir /d && : > /d/a\nRUN rm -r /d && mkdir /d && echo x > /d/f\n";
    let one = place.build(one).ok().manifest().layers;
    let other = "FROM busybox:1\nRUN mkdir /d && : > /d/a && : > /d/b\nRUN rm /d/a && echo x > /d/f\n\
        RUN test -e /d/b && test ! -e /d/a && test -e /d/f\n";
    let other = place.build(other).ok();
    assert_eq!(one.last(), other.manifest().layers.last());
}

#[test]
fn a_stage_that_fails_ends_the_others() {
    let dockerfile = "FROM busybox:1 AS one\nRUN exec sleep 86417\n\
        FROM busybox:1 AS two\nRUN sleep 1; exit 3\n\
        FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n";
    let built = Place::new().build(dockerfile);
    let failure = built.app_failure();
    assert_eq!((failure.exit_status, failure.at.as_ref().unwrap().line), (Some(3), 4));
    assert!(!runs("86417"));
}

fn stored(place: &Place) -> Stored {
    let mut command = Command::new(crate::ordinary_user::executable());
    command.args(["cache", "show", "--format", "json", "--data"]).arg(place.path("data"));
    serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
}

const TWO_STAGES: &str = "FROM busybox:1 AS builder\nRUN mkdir /out && head -c 100000 /dev/zero > /out/big && ln -s big /out/link\n\
    RUN chown 7:8 /out/big && chmod 4755 /out/big && rm /etc/group\n\
    FROM scratch\nCOPY --from=builder /out /out\n";

#[test]
fn what_is_only_copied_from_is_not_compressed_and_can_be_an_image_later() {
    let place = Place::new();
    let last = place.build(TWO_STAGES).ok();
    let blobs = stored(&place);
    assert_eq!(blobs.trees, 4, "{blobs:?}");
    // The base's, which the layout had, and the image's one layer.
    assert_eq!(blobs.blobs, 2, "{blobs:?}");
    assert_eq!(place.build(TWO_STAGES).ok().steps(), ["cached"; 5]);

    let builder = place.build_with(TWO_STAGES, &["--target", "builder"]).ok();
    assert_eq!(builder.steps(), ["cached"; 3]);
    let alone = Place::new().build_with(TWO_STAGES, &["--target", "builder"]).ok();
    assert_eq!(builder.digest(), alone.digest());
    assert_eq!(alone.steps(), ["cached", "done", "done"]);
    drop(last);
}
