//! COPY and ADD by their flags, in whole builds.

use super::{Built, Place};

/// The entries of the last layer, as `path content`, directories with a slash.
fn entries(built: &Built) -> Vec<String> {
    let line = |entry: super::Entry| format!("{} {}", entry.path, entry.content).trim_end().to_owned();
    built.layer(0).into_iter().map(line).collect()
}

fn place() -> Place {
    let place = Place::new();
    place.file("a/b/c.txt", "c").file("a/b/d.log", "d").file("a/e.txt", "e").file("f.txt", "f");
    place.file(".dockerignore", "f.txt\n");
    place
}

#[test]
fn parents_copies_with_the_path_from_the_context_a_stage_and_an_image() {
    let expected = ["out/", "out/a/", "out/a/b/", "out/a/b/c.txt c"];
    let built = place().build("FROM scratch\nCOPY --parents a/**/c.txt /out/\n").ok();
    assert_eq!(entries(&built), expected);
    let built = place()
        .build(
            "FROM scratch AS one\nCOPY a /x/a\nFROM scratch\nCOPY --from=one --parents /x/./a/b/*.txt /out\n",
        )
        .ok();
    assert_eq!(entries(&built), expected);
    let built = place().build("FROM scratch\nCOPY --from=busybox:1 --parents etc/gro* /out/\n").ok();
    assert_eq!(built.layer_paths(0), ["out/", "out/etc/", "out/etc/group"]);
}

#[test]
fn parents_of_an_ignored_file_is_an_error() {
    let built = place().build("FROM scratch\nCOPY --parents f.txt /\n");
    assert!(built.app_failure().heading.contains("excluded by the ignore file"), "{:?}", built.app_failure());
}

#[test]
fn exclude_leaves_out_by_the_matcher_of_the_ignore_file() {
    let built = place().build("FROM scratch\nCOPY --exclude=**/*.log --exclude=e* a /out/\n").ok();
    assert_eq!(entries(&built), ["out/", "out/b/", "out/b/c.txt c"]);
    let built = place().build("FROM scratch\nADD --exclude=* --exclude=!b/d.log a /out/\n").ok();
    assert_eq!(entries(&built), ["out/", "out/b/", "out/b/d.log d"]);
    let stages = "FROM scratch AS one\nCOPY a /a\nFROM scratch\nCOPY --from=one --exclude=b a /out/\n";
    assert_eq!(entries(&place().build(stages).ok()), ["out/", "out/e.txt e"]);
    let built = place().build("FROM scratch\nCOPY --exclude=[ a /out/\n");
    assert!(built.app_failure().heading.contains("`--exclude`"), "{:?}", built.app_failure());
}

#[test]
fn a_change_of_what_is_excluded_is_none_and_another_flag_is_another_step() {
    let place = place();
    let copy = |flags: &str| format!("FROM scratch\nCOPY {flags} a /out/\n");
    place.build(&copy("--exclude=b")).ok();
    place.file("a/b/d.log", "changed");
    assert_eq!(place.build(&copy("--exclude=b")).ok().steps(), ["cached", "cached"]);
    assert_ne!(place.build(&copy("--exclude=b/*.log")).ok().steps()[1], "cached");
    assert_ne!(place.build(&copy("--parents")).ok().steps()[1], "cached");
}

#[test]
fn a_linked_copy_does_not_see_and_does_not_depend_on_what_is_below() {
    let place = place();
    let dockerfile = |below: &str| {
        format!(
            "FROM busybox:1\nRUN mkdir /real && ln -s real /link && echo {below} > /below\nCOPY --link a/e.txt /link/\n"
        )
    };
    let first = place.build(&dockerfile("1")).ok();
    assert_eq!(first.layer_paths(0), ["link/", "link/e.txt"], "a directory instead of the symlink");
    let layer = first.manifest().layers[2].digest;
    let second = place.build(&dockerfile("2")).ok();
    assert_eq!(second.steps(), ["cached", "done", "cached"]);
    assert_eq!(second.manifest().layers[2].digest, layer);
    let plain = place.build(&dockerfile("1").replace("--link ", "--link --chmod=600 ")).ok();
    assert_eq!(plain.layer_paths(0), ["real/", "real/e.txt"], "with --chmod as without --link");
    let seen =
        place.build(&format!("{}RUN cat /link/e.txt; test ! -L /link && ls /real\n", dockerfile("1"))).ok();
    assert_eq!(seen.lines(), ["e"]);
}

#[test]
fn a_linked_copy_knows_no_accounts() {
    let built = place().build("FROM busybox:1\nCOPY --link --chown=app a /a\n");
    assert!(built.app_failure().heading.contains("give numbers"), "{:?}", built.app_failure());
    let built = place().build("FROM busybox:1\nCOPY --link --chown=1000:50 f* a/e.txt /\n").ok();
    assert_eq!(built.layer(0)[0].owner, (1000, 50));
}
