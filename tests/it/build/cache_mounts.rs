//! Cache mounts: what they keep, for whom, and what keeps them small.

use std::fs;
use std::path::PathBuf;

use super::Place;
use super::failures::wait_for;

fn caches(place: &Place) -> Vec<PathBuf> {
    let maps = fs::read_dir(place.path("data/layers/caches")).unwrap().map(|map| map.unwrap().path());
    let inside = maps.flat_map(|map| fs::read_dir(map).unwrap().map(|entry| entry.unwrap().path()));
    inside.filter(|path| path.is_dir()).collect()
}

/// A step that appends to a cache and shows it.
fn step(mount: &str, word: &str) -> String {
    format!("RUN --mount=type=cache,{mount} echo {word} >> /c/f; tr '\\n' ' ' < /c/f; echo\n")
}

#[test]
fn a_cache_lives_from_step_to_step_and_from_build_to_build() {
    let place = Place::new();
    let dockerfile =
        |word: &str| format!("FROM busybox:1\n{}{}", step("target=/c", word), step("id=/c,target=/c", word));
    let first = place.build(&dockerfile("a")).ok();
    assert_eq!(first.lines(), ["a ", "a a "]);
    assert_eq!(first.manifest().layers.len(), 1, "neither the cache nor its mount point is in a layer");
    assert_eq!(place.build(&dockerfile("b")).ok().lines(), ["a a b ", "a a b b "]);
    // Not what is in a cache but its id is in the key.
    assert_eq!(place.build(&dockerfile("b")).ok().steps(), ["cached"; 3]);
    assert_eq!(place.build_with(&dockerfile("b"), &["--no-cache"]).ok().lines().len(), 2);
    assert_eq!(place.left_over(), [""; 0]);
}

#[test]
fn ids_owners_and_scopes_tell_caches_apart() {
    let place = Place::new();
    let dockerfile = format!(
        "FROM busybox:1\n{}{}RUN --mount=type=cache,id=one,target=/c,uid=1000,mode=0750 stat -c '%u %a' /c; ls /c\n",
        step("id=one,target=/c", "x"),
        step("id=two,target=/c", "y")
    );
    assert_eq!(place.build(&dockerfile).ok().lines(), ["x ", "y ", "1000 750"]);
    let other = place.build_with(&dockerfile, &["--no-cache", "--cache-mount-scope", "other"]).ok();
    assert_eq!(other.lines()[0], "x ");
    let namespace = "BUILDKIT_CACHE_MOUNT_NS=n";
    let other = place.build_with(&dockerfile, &["--no-cache", "--build-arg", namespace]).ok();
    assert_eq!(other.lines()[0], "x ");
    assert_eq!(place.build_with(&dockerfile, &["--no-cache"]).ok().lines()[0], "x x ");
}

#[test]
fn a_cache_begins_with_what_it_is_told_to() {
    let place = Place::new();
    place.file("ctx/f", "context\n");
    let dockerfile = "FROM busybox:1 AS one\nRUN mkdir /d && echo seed > /d/f && chown 7:8 /d/f\nFROM busybox:1\n\
        RUN --mount=type=cache,target=/c,from=one,source=/d cat /c/f; stat -c %u:%g /c/f; echo more >> /c/f\n\
        RUN --mount=type=cache,target=/c,from=one,source=/d cat /c/f\n\
        RUN --mount=type=cache,target=/c,from=one,source=/d,ro (echo x > /c/f) 2>&1; true\n";
    let built = place.build(dockerfile).ok();
    assert_eq!(
        built.lines(),
        ["seed", "7:8", "seed", "more", "/bin/sh: can't create /c/f: Read-only file system"]
    );
}

#[test]
fn an_id_is_no_path() {
    let place = Place::new();
    for id in ["../../../escaped", "/../../escaped", "..", "a/../../b", "."] {
        place
            .build(&format!("FROM busybox:1\nRUN --mount=type=cache,id={id},target=/c touch /c/evil\n"))
            .ok();
    }
    assert_eq!(caches(&place).len(), 5);
    for path in caches(&place) {
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.len() == 66 && name.ends_with("-0"), "{name}");
    }
    for path in ["escaped", "data/escaped", "data/layers/escaped", "data/layers/evil"] {
        assert!(!place.path(path).exists(), "{path}");
    }
}

#[test]
fn locked_caches_are_waited_for_and_private_ones_are_not_shared() {
    let place = Place::new();
    let other = Place { directory: place.directory.clone() };
    // The first holds both until it is told; the fifo is in a shared cache, which nobody waits for.
    let first = "FROM busybox:1\nRUN --mount=type=cache,id=l,target=/l,sharing=locked --mount=type=cache,id=p,target=/p,sharing=private --mount=type=cache,id=s,target=/s \\\n  touch /l/first /p/first; mkfifo /s/go; echo begun; cat /s/go\n";
    fs::create_dir_all(place.path("one")).unwrap();
    let mut command = place.command(first, &["--no-push"]);
    let mut engine = command.spawn().unwrap();
    wait_for(|| place.events().iter().any(|event| event.lines().iter().any(|line| line.contains("begun"))));
    let second = "FROM busybox:1\nRUN --mount=type=cache,id=p,target=/p,sharing=private --mount=type=cache,id=s,target=/s ls /p; ls /s; echo went > /s/go\nRUN --mount=type=cache,id=l,target=/l,sharing=locked ls /l\n";
    fs::rename(place.path("build"), place.path("build-of-first")).unwrap();
    let built = other.build(second).ok();
    assert_eq!(built.lines(), ["go", "first"]);
    assert!(engine.wait().unwrap().success());
}

#[test]
fn one_step_may_mount_a_cache_twice() {
    let place = Place::new();
    let built = place.build("FROM busybox:1\nRUN --mount=type=cache,id=x,target=/a,sharing=locked --mount=type=cache,id=x,target=/b,sharing=locked touch /a/f; ls /b\n").ok();
    assert_eq!(built.lines(), ["f"]);
}

#[test]
fn caches_are_bounded_and_the_longest_unused_goes_first() {
    let place = Place::new();
    let fill =
        |id: &str| format!("RUN --mount=type=cache,id={id},target=/c head -c 3000000 /dev/zero > /c/f\n");
    place.build(&format!("FROM busybox:1\n{}", fill("old"))).ok();
    let limit = ["--cache-mount-limit", "5000000"];
    place.build_with(&format!("FROM busybox:1\n{}", fill("new")), &limit).ok();
    let left = place.build("FROM busybox:1\nRUN --mount=type=cache,id=old,target=/old --mount=type=cache,id=new,target=/new ls /old /new\n").ok();
    assert_eq!(left.lines(), ["/new:", "f", "", "/old:"]);
}
