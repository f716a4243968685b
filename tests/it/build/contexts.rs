//! The context: what of it is seen, and by whom.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::Place;

const COPY_ALL: &str = "FROM scratch\nCOPY . /\n";

#[test]
fn ignored_files_are_not_copied() {
    let place = Place::new();
    place
        .file("a.log", "")
        .file("keep.log", "")
        .file("dir/b.log", "")
        .file("dir/c", "")
        .file("node/x", "")
        .file("node/keep", "");
    place.file(".dockerignore", "**/*.log\n!keep.log\nnode\n!node/keep\nDockerfile\n.dockerignore\n");
    let paths = place.build(COPY_ALL).ok().layer_paths(0);
    let paths: Vec<&str> = paths.iter().map(|path| path.trim_end_matches('/')).collect();
    assert_eq!(paths, ["dir", "dir/c", "keep.log", "node", "node/keep"]);
}

#[test]
fn the_ignore_file_beside_the_dockerfile_counts_alone() {
    let place = Place::new();
    place
        .file("a", "")
        .file("b", "")
        .file(".dockerignore", "a\n")
        .file("Dockerfile.dockerignore", "b\nDocker*\n.docker*\n");
    assert_eq!(place.build(COPY_ALL).ok().layer_paths(0), ["a"]);
}

#[test]
fn files_that_only_their_owner_may_read_are_copied_all_the_same() {
    let place = Place::new();
    place.file("secret", "s3").file("dir/f", "f").file(".dockerignore", "Dockerfile\n.dockerignore\n");
    symlink("secret", place.path("context/link")).unwrap();
    fs::set_permissions(place.path("context/secret"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(place.path("context/dir"), Permissions::from_mode(0o700)).unwrap();
    let layer = place.build(COPY_ALL).ok().layer(0);
    let seen: Vec<(&str, u32, &str)> =
        layer.iter().map(|e| (e.path.trim_end_matches('/'), e.mode & 0o7777, e.content.as_str())).collect();
    assert_eq!(
        seen,
        [("dir", 0o700, ""), ("dir/f", 0o644, "f"), ("link", 0o777, "secret"), ("secret", 0o600, "s3")]
    );
}

#[test]
fn times_and_the_owner_of_the_context_do_not_matter() {
    let place = Place::new();
    place.file("f", "f");
    let first = place.build(COPY_ALL).ok();
    std::fs::File::options()
        .write(true)
        .open(place.path("context/f"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    let second = place.build(COPY_ALL).ok();
    assert_eq!(second.steps(), ["cached", "cached"]);
    assert_eq!(first.digest(), second.digest());
    fs::set_permissions(place.path("context/f"), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(place.build(COPY_ALL).ok().steps(), ["cached", "changed: f"]);
}

#[test]
fn a_missing_source_is_named_with_its_line() {
    let built = Place::new().build("FROM scratch\n\nCOPY nope /\n");
    let failure = built.app_failure();
    assert_eq!(failure.at.as_ref().unwrap().to_string(), "Dockerfile:3");
    assert!(failure.heading.contains("`nope` is not there"), "{failure:?}");
}
