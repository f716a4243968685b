//! Contexts that are elsewhere: tars, standard input, git repositories, the web.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use hephy::build::BuildResult;

use super::web::Web;
use super::{Built, Place, base};
use crate::registry::tls::certificate;

/// Builds a context that is named, with something on standard input.
fn build(
    place: &Place,
    context: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
    input: &[u8],
) -> Built {
    let layout = place.path("layout");
    for path in [&layout, &place.path("build")] {
        drop(fs::remove_dir_all(path));
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_hephy"));
    command.args(["build", "--context", context, "--source-date-epoch", super::EPOCH]).args(arguments);
    command.arg("--data").arg(place.path("data")).arg("--build-directory").arg(place.path("build"));
    command.arg("--oci-layout-path").arg(&layout).envs(environment.iter().copied());
    command.arg("--mirror").arg(format!("oci:{}", base::layout().display()));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Who does not read is not written to.
    drop(child.stdin.take().unwrap().write_all(input));
    let output = child.wait_with_output().unwrap();
    let result = BuildResult::read(&place.path("build/result.json")).unwrap();
    let result = result.unwrap_or_else(|| panic!("no result: {output:?}"));
    Built { output, result, events: place.events(), layout, _place: Arc::clone(&place.directory) }
}

const DOCKERFILE: &str = "FROM scratch\nCOPY a /\n";

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn copied(built: Built) -> String {
    built.ok().layer(0)[0].content.clone()
}

/// Nothing that was fetched is left.
fn nothing_left(place: &Place) -> bool {
    fs::read_dir(place.path("data/contexts")).is_ok_and(|entries| entries.count() == 0)
}

#[test]
fn a_tar_is_a_context_from_a_file_from_standard_input_and_from_the_web() {
    let place = Place::new();
    let context = tar(&[
        ("Dockerfile", DOCKERFILE),
        ("a", "from a tar"),
        ("sub/Dockerfile", DOCKERFILE),
        ("sub/a", "below"),
    ]);
    let file = place.path("context.tar.gz");
    fs::write(&file, &context).unwrap();
    let file = format!("tar://{}", file.display());
    assert_eq!(copied(build(&place, &file, &[], &[], b"")), "from a tar");
    assert_eq!(copied(build(&place, &file, &["--context-sub-path", "sub"], &[], b"")), "below");
    for name in ["-", "tar://stdin"] {
        assert_eq!(copied(build(&place, name, &[], &[], &context)), "from a tar");
    }
    let web = Web::new();
    web.page("/context.tar.gz", context);
    assert_eq!(copied(build(&place, &web.url("/context.tar.gz"), &[], &[], b"")), "from a tar");
    assert!(nothing_left(&place));
}

#[test]
fn what_is_fetched_is_believed_by_the_bundle_that_was_given() {
    let web = Web::with_tls();
    let context = tar(&[("Dockerfile", DOCKERFILE), ("a", "by TLS")]);
    web.page("/context.tar.gz", context.clone()).page("/bucket/key", context);
    web.page("/file", "added");
    web.commit("r.git", &[("Dockerfile", DOCKERFILE), ("a", "by TLS")]);
    let bundle = certificate("authority.pem");
    let trusting = ["--ca-bundle", bundle.to_str().unwrap()];
    let store = [
        ("S3_ENDPOINT", web.base.as_str()),
        ("S3_FORCE_PATH_STYLE", "true"),
        ("AWS_ACCESS_KEY_ID", "AKIA1"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    for context in [&web.url("/context.tar.gz"), "s3://bucket/key", &web.url("/r.git")] {
        let place = Place::new();
        let without = build(&place, context, &[], &store, b"");
        without.app_failure();
        assert_eq!(copied(build(&place, context, &trusting, &store, b"")), "by TLS", "{context}");
        assert!(nothing_left(&place));
    }
    let place = Place::new();
    let of_file = format!("FROM scratch\nADD {} /a\n", web.url("/file"));
    let of_repository = format!("FROM scratch\nADD {} /\n", web.url("/r.git"));
    for dockerfile in [of_file, of_repository] {
        place.build(&dockerfile).app_failure();
        place.build_with(&dockerfile, &trusting).ok();
    }
    assert_eq!(place.left_over(), [""; 0]);
}

#[test]
fn a_hostile_tar_stays_where_it_is_unpacked() {
    let place = Place::new();
    let context =
        tar(&[("Dockerfile", "FROM scratch\nCOPY . /\n"), ("../escaped", "x"), ("a/../../escaped", "x")]);
    let built = build(&place, "-", &[], &[], &context);
    drop(built);
    for path in ["data/contexts/escaped", "data/escaped", "escaped"] {
        assert!(!place.path(path).exists(), "{path}");
    }
    let built = build(&place, "-", &[], &[], b"no tar at all");
    assert!(built.app_failure().heading.contains("standard input"), "{:?}", built.app_failure());
    let good = tar(&[("Dockerfile", DOCKERFILE), ("a", "x")]);
    let built = build(&place, "-", &["--context-sub-path", "../.."], &[], &good);
    assert_eq!(copied(built), "x", "above the context is the context");
    let built = build(&place, "-", &["--context-sub-path", "none"], &[], &good);
    assert!(built.app_failure().heading.contains("no directory `none`"), "{:?}", built.app_failure());
    assert!(nothing_left(&place));
}

#[test]
fn a_repository_is_a_context_by_branch_commit_and_directory() {
    let place = Place::new();
    let web = Web::new();
    let first = web.commit(
        "r.git",
        &[("Dockerfile", DOCKERFILE), ("a", "first"), ("sub/Dockerfile", DOCKERFILE), ("sub/a", "below")],
    );
    web.git("r.git", &["branch", "old"]);
    web.commit("r.git", &[("a", "second")]);
    let repository = web.url("/r.git");
    let kaniko = repository.replace("http://", "git://");
    let http = [("GIT_PULL_METHOD", "http")];
    let of = |context: &str, arguments: &[&str]| copied(build(&place, context, arguments, &http, b""));
    assert_eq!(of(&repository, &[]), "second");
    assert_eq!(of(&format!("{repository}#old"), &[]), "first");
    assert_eq!(of(&format!("{repository}#main:sub"), &[]), "below");
    assert_eq!(of(&kaniko, &["--git", "branch=old,single-branch=true"]), "first");
    assert_eq!(of(&format!("{kaniko}#refs/heads/main"), &["--context-sub-path", "sub"]), "below");
    assert_eq!(of(&format!("{kaniko}#refs/heads/main#{first}"), &[]), "first");
    assert!(nothing_left(&place));
}

#[test]
fn a_private_repository_takes_a_token_that_nobody_sees() {
    let place = Place::new();
    let web = Web::with_password(Some("x-access-token:t0psecret"));
    web.commit("r.git", &[("Dockerfile", DOCKERFILE), ("a", "private")]);
    let without = build(&place, &web.url("/r.git"), &[], &[], b"");
    assert!(
        without.app_failure().heading.contains("failed to list the references"),
        "{:?}",
        without.app_failure()
    );
    let wrong = build(&place, &web.url("/r.git"), &[], &[("GIT_TOKEN", "wr0ng")], b"");
    assert!(!format!("{:?}{:?}", wrong.result, wrong.output).contains("wr0ng"));
    let right = build(&place, &web.url("/r.git"), &[], &[("GIT_TOKEN", "t0psecret")], b"").ok();
    let told = format!("{:?}{:?}{:?}", right.events, right.output, right.config());
    assert!(!told.contains("t0psecret"), "{told}");
    let in_address = web.url("/r.git").replace("http://", "http://x-access-token:t0psecret@");
    assert_eq!(copied(build(&place, &in_address, &[], &[], b"")), "private");
}

#[test]
fn a_named_directory_is_what_from_and_copy_find_under_its_name() {
    let place = Place::new();
    let named = place.path("named");
    fs::create_dir_all(named.join("d")).unwrap();
    fs::write(named.join("d/f"), "named").unwrap();
    fs::write(named.join("left"), "out").unwrap();
    fs::write(named.join(".dockerignore"), "left\n.dockerignore\n").unwrap();
    let argument = format!("Files={}", named.display());
    let arguments = ["--build-context", argument.as_str()];
    let built = place.build_with("FROM scratch\nCOPY --from=files d/f /one\n", &arguments).ok();
    assert_eq!((built.layer_paths(0), built.layer(0)[0].content.as_str()), (vec!["one".to_owned()], "named"));
    let built = place.build_with("FROM files\nCOPY Dockerfile /\n", &arguments).ok();
    assert_eq!(built.layer_paths(1), ["d/", "d/f"]);
    let overridden = "FROM nowhere.invalid/x AS files\nRUN false\nFROM scratch\nCOPY --from=files / /\n";
    assert_eq!(place.build_with(overridden, &arguments).ok().layer_paths(0), ["d/", "d/f"]);
    assert_eq!(
        place
            .build_with("FROM scratch\nCOPY --from=files d/f /one\n", &arguments)
            .ok()
            .steps()
            .last()
            .unwrap(),
        "cached"
    );
    fs::write(named.join("d/f"), "changed").unwrap();
    let built = place.build_with("FROM scratch\nCOPY --from=files d/f /one\n", &arguments).ok();
    assert_eq!(built.layer(0)[0].content, "changed");
    // Readable by its owner alone.
    fs::set_permissions(named.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    let built =
        place.build_with("FROM scratch\nCOPY Dockerfile /\nCOPY --from=files d/f /one\n", &arguments).ok();
    assert_eq!((built.layer(0)[0].mode & 0o7777, built.layer(0)[0].content.as_str()), (0o600, "changed"));
}

#[test]
fn a_named_image_takes_the_place_of_a_base_however_it_is_written() {
    let place = Place::new();
    let layout = place.path("other");
    base::write(&layout, "other:1", &base::rootfs(), &["RUN echo from the other"]);
    let by_layout = format!("docker.io/library/alpine=oci-layout://{}:1", layout.display());
    let lines = |arguments: &[&str]| {
        let arguments = [arguments, &["--no-cache"]].concat();
        let built = place.build_with("FROM alpine:latest\nRUN echo own\n", &arguments).ok();
        built.lines().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&["--build-context", &by_layout]), ["from the other", "own"]);
    assert_eq!(lines(&["--build-context", "alpine=docker-image://busybox:1"]), ["own"]);
    let copy = "FROM scratch\nCOPY --from=tools /bin/busybox /b\n";
    let built = place.build_with(copy, &["--build-context", "tools=docker-image://busybox:1"]).ok();
    assert_eq!(built.layer_paths(0), ["b"]);
    let none = format!("alpine=oci-layout://{}:2", layout.display());
    let built = place.build_with("FROM alpine\n", &["--build-context", &none]);
    assert!(built.app_failure().heading.contains("no such image"), "{:?}", built.app_failure());
}

#[test]
fn a_dockerfile_cannot_name_a_place_of_the_machine() {
    let place = Place::new();
    let layout = place.path("other");
    base::write(&layout, "other:1", &base::rootfs(), &["RUN echo from the other"]);
    let name = format!("oci-layout://{}:1", layout.display());
    for dockerfile in [
        format!("FROM {name}\n"),
        format!("FROM scratch\nCOPY --from={name} /bin/busybox /b\n"),
        format!("FROM scratch\nRUN --mount=type=bind,from={name},target=/m true\n"),
    ] {
        let built = place.build_with(&dockerfile, &[]);
        let heading = &built.app_failure().heading;
        assert!(heading.contains("`--build-context NAME=oci-layout://"), "{heading}");
    }
}

#[test]
fn a_named_repository_is_fetched() {
    let place = Place::new();
    let web = Web::new();
    web.commit("r.git", &[("sub/a", "from git")]);
    let argument = format!("src={}", web.url("/r.git#main:sub"));
    let built = place.build_with("FROM scratch\nCOPY --from=src a /\n", &["--build-context", &argument]).ok();
    assert_eq!(built.layer(0)[0].content, "from git");
    assert!(nothing_left(&place));
}
