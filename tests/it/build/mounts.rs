//! `RUN --mount`: what a step sees, and what of it is left behind.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::Place;

#[test]
fn files_of_the_context_are_seen_and_not_kept() {
    let place = Place::new();
    place
        .file("src/a", "one\n")
        .file("src/sub/b", "two\n")
        .file("hidden", "no")
        .file(".dockerignore", "hidden\n");
    let dockerfile = "FROM busybox:1\nWORKDIR /app\nRUN --mount=type=bind,source=src,target=src --mount=target=/all \\\n  cat src/a src/sub/b /all/src/a; ls /all; (echo x > src/a) 2>&1; stat -c '%u:%g %a' src/a; touch kept\nRUN ls -A /app /all 2>&1; true\n";
    let built = place.build(dockerfile).ok();
    assert_eq!(
        built.lines(),
        [
            "one",
            "two",
            "one",
            "Dockerfile",
            "src",
            "/bin/sh: can't create src/a: Read-only file system",
            "0:0 644",
            "ls: /all: No such file or directory",
            "/app:",
            "kept",
        ]
    );
    assert_eq!(
        built.layer_paths(0),
        ["app", "app/kept"].map(|path| if path == "app" { "app/" } else { path })
    );
    assert_eq!(place.left_over(), [""; 0]);
}

#[test]
fn what_is_written_to_a_bind_is_thrown_away() {
    let place = Place::new();
    place.file("dir/f", "mine\n");
    let dockerfile = "FROM busybox:1 AS one\nRUN mkdir /d && echo stage > /d/f\nFROM busybox:1\n\
        RUN --mount=source=dir,target=/c,rw --mount=from=one,source=/d,target=/s,rw --mount=from=busybox:1,source=/etc/passwd,target=/p,rw \\\n\
          echo changed | tee /c/f /c/new /s/f /p > /dev/null; cat /c/f /s/f /p\n\
        RUN --mount=source=dir,target=/c --mount=from=one,source=d,target=/s --mount=from=busybox:1,source=/etc/passwd,target=/p cat /c/f /s/f; head -n 1 /p; ls /c\n";
    let built = place.build(dockerfile).ok();
    assert_eq!(
        built.lines(),
        ["changed", "changed", "changed", "mine", "stage", "root:x:0:0::/root:/bin/sh", "f"]
    );
    assert_eq!(fs::read_to_string(place.path("context/dir/f")).unwrap(), "mine\n");
    assert!(!place.path("context/dir/new").exists());
    assert_eq!(built.manifest().layers.len(), 1, "nothing is in a layer");
}

#[test]
fn binds_are_known_by_what_is_in_them() {
    let place = Place::new();
    place.file("a/f", "1").file("b", "1");
    let dockerfile = |text: &str| {
        format!(
            "FROM busybox:1 AS one\nRUN echo {text} > /other; echo same > /f\nFROM busybox:1\nRUN --mount=source=a,target=/a cat /a/f > /out\nRUN --mount=from=one,source=/f,target=/f cat /f > /out2\n"
        )
    };
    let first = place.build(&dockerfile("x")).ok();
    assert_eq!(place.build(&dockerfile("x")).ok().steps(), ["cached"; 5]);
    // What no mount sees is no reason; another stage with the same file is none either.
    place.file("b", "2");
    let second = place.build(&dockerfile("y")).ok();
    assert_eq!(second.steps(), ["cached", "done", "cached", "cached", "cached"]);
    assert_eq!(first.digest(), second.digest());
    place.file("a/f", "2");
    assert_eq!(place.build(&dockerfile("y")).ok().steps(), ["cached", "cached", "cached", "done", "done"]);
}

#[test]
fn a_context_that_only_its_owner_reads_is_mounted_all_the_same() {
    let place = Place::new();
    place.file("dir/secret", "s3");
    fs::set_permissions(place.path("context/dir/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let built = place.build("FROM busybox:1\nRUN --mount=source=dir,target=/m,rw cat /m/secret; echo x > /m/secret\nCOPY dir /d\nRUN cat /d/secret\n").ok();
    assert_eq!(built.lines(), ["s3", "s3"]);
}

#[test]
fn a_tmpfs_is_empty_bounded_and_gone() {
    let built = Place::new()
        .build("FROM busybox:1\nRUN mkdir /t && echo below > /t/f\nRUN --mount=type=tmpfs,target=/t,size=1m ls -A /t; stat -c %a /t; head -c 2000000 /dev/zero > /t/f 2>/dev/null || echo full\nRUN cat /t/f\n")
        .ok();
    assert_eq!(built.lines(), ["1777", "full", "below"]);
    assert_eq!(built.manifest().layers.len(), 2);
}

#[test]
fn mounts_inside_mounts_are_seen_and_the_inner_one_may_be_written() {
    let place = Place::new();
    place.file("src/f", "f\n");
    let dockerfile = "FROM busybox:1\nRUN --mount=source=src,target=/app --mount=type=cache,target=/app/target --mount=type=tmpfs,target=/app/tmp \\\n  echo kept > /app/target/k; echo t > /app/tmp/t; cat /app/f; (echo x > /app/new) 2>&1; true\nRUN --mount=type=cache,target=/app/target cat /app/target/k; ls -A /app\n";
    let built = place.build(dockerfile).ok();
    assert_eq!(
        built.lines(),
        ["f", "/bin/sh: can't create /app/new: Read-only file system", "kept", "target"]
    );
    assert!(!place.path("context/src/target").exists());
    assert_eq!(built.manifest().layers.len(), 1);
}

#[test]
fn targets_and_sources_follow_links_and_never_out() {
    let place = Place::new();
    place.file("in/f", "inside\n");
    fs::write(place.path("outside"), "secret").unwrap();
    symlink("../outside", place.path("context/out")).unwrap();
    symlink(place.path("outside"), place.path("context/absolute")).unwrap();
    for source in ["out", "absolute", "../outside", "../../../../../../../etc/hostname", "nope"] {
        let built = place.build(&format!("FROM busybox:1\nRUN --mount=source={source},target=/m cat /m\n"));
        let failure = built.app_failure();
        let why = if ["out", "absolute"].contains(&source) { "leads out" } else { "is not there" };
        assert!(failure.heading.contains(why), "{source}: {failure:?}");
        assert_eq!(failure.at.as_ref().unwrap().line, 2);
    }
    let target = place.directory.path().display();
    let dockerfile = format!(
        "FROM busybox:1\nRUN mkdir -p /real/d && ln -s /real /var && ln -s {target} /out && ln -s /etc/shadow /l && ln -s d /real/e\n\
         RUN --mount=source=in,target=/var/e --mount=source=in,target=/out/x --mount=source=in,target=../../../../up \\\n  cat /real/d/f {target}/x/f /up/f\n\
         RUN --mount=from=busybox:1,source=/bin/../../../etc/../etc/passwd,target=/m head -n 1 /m\n\
         RUN find / -name up -maxdepth 1; ls {target}\n"
    );
    let built = place.build(&dockerfile);
    assert_eq!(built.lines()[..4], ["inside", "inside", "inside", "root:x:0:0::/root:/bin/sh"]);
    assert!(!place.path("x").exists(), "the mount point is in the image, not on the machine");
    assert!(built.lines()[4].contains("No such file"), "{:?}", built.lines());
}

#[test]
fn a_mount_where_something_else_is_is_told_with_its_line() {
    let place = Place::new();
    for mount in ["type=tmpfs,target=/etc/passwd", "source=Dockerfile,target=/etc"] {
        let built = place.build(&format!("FROM busybox:1\n\nRUN --mount={mount} true\n"));
        assert_eq!(built.app_failure().at.as_ref().unwrap().line, 3, "{mount}");
    }
    let root = place.build("FROM busybox:1\nRUN --mount=target=../ true\n");
    assert!(root.app_failure().heading.contains("may not be `/`"), "{:?}", root.app_failure());
}

#[test]
fn an_insecure_step_has_every_capability_of_the_sandbox_if_the_caller_says_so() {
    let place = Place::new();
    let dockerfile = "FROM busybox:1\nRUN mkdir /m; mount -t tmpfs t /m 2> /dev/null && echo mounted; true\nRUN --security=insecure mount -t tmpfs t /m && echo mounted; (echo x > /proc/sys/kernel/core_pattern) 2> /dev/null || echo refused\n";
    let refused = place.build(dockerfile);
    let failure = refused.app_failure();
    assert!(failure.heading.contains("--allow security.insecure"), "{failure:?}");
    let built = place.build_with(dockerfile, &["--allow", "security.insecure"]).ok();
    assert_eq!(built.lines(), ["mounted", "refused"]);
}
