//! What Dockerfiles become.

use std::fs;

use super::{EPOCH, Entry, Place, base};

#[test]
fn steps_run_once_and_come_from_the_cache_after_that() {
    let place = Place::new();
    place.file("app.txt", "hello\n");
    let dockerfile = "FROM busybox:1\nENV A=1\nARG B=2\nWORKDIR /srv/app\nCOPY app.txt .\nRUN cat app.txt > out; echo $A $B $HOME; pwd; umask; hostname\nUSER app\nRUN id; echo $HOME\nCMD cat out\n";
    let first = place.build(dockerfile).ok();
    assert_eq!(first.steps(), ["cached", "done", "done", "done", "done"]);
    assert_eq!(first.lines()[..4], ["1 2 /root", "/srv/app", "0022", "hephy-build"]);
    assert_eq!(first.lines()[4..], ["uid=1000(app) gid=1000(app) groups=50(staff),1000(app)", "/home/app"]);
    let second = place.build(dockerfile).ok();
    assert_eq!(second.steps(), ["cached"; 5]);
    assert_eq!(second.digest(), first.digest());
    assert_eq!(second.result.cache_hits, 5);
    place.file("app.txt", "other\n");
    let third = place.build(dockerfile).ok();
    assert_eq!(third.steps(), ["cached", "cached", "changed: app.txt", "done", "done"]);
    assert_eq!(place.left_over(), [""; 0]);
    let config = third.config().config;
    assert_eq!(config.env, ["PATH=/bin", "A=1"]);
    assert_eq!(config.cmd, Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), "cat out".to_owned()]));
    assert_eq!((config.user.as_deref(), config.working_dir.as_deref()), (Some("app"), Some("/srv/app")));
}

#[test]
fn the_same_source_gives_the_same_digest_in_another_store() {
    let dockerfile = "FROM busybox:1\nCOPY . /app\nRUN mkdir /made && date > /dev/null && ln -s /app /made/link && cp -p /etc/passwd /made/\n";
    let build = || {
        let place = Place::new();
        place.file("b/c", "c").file("a", "a");
        place.build(dockerfile).ok()
    };
    let (one, other) = (build(), build());
    assert_eq!(one.digest(), other.digest());
    let epoch = EPOCH.parse().unwrap();
    assert!(one.layer(0).iter().all(|entry| entry.mtime <= epoch), "{:?}", one.layer(0));
    assert_eq!(one.config().created.unwrap().as_second().to_string(), EPOCH);
}

#[test]
fn a_layer_holds_what_changed_and_nothing_else() {
    let place = Place::new();
    let built = place.build("FROM busybox:1\nRUN rm /etc/group && echo x > /new && chmod 700 /home && touch /etc/passwd && ls /proc /sys /dev > /dev/null\n").ok();
    let layer = built.layer(0);
    let find = |path: &str| layer.iter().find(|entry| entry.path.trim_end_matches('/') == path);
    assert!(find("etc/.wh.group").is_some(), "{layer:?}");
    assert_eq!(find("new").map(|entry| (entry.mode & 0o7777, entry.content.as_str())), Some((0o644, "x\n")));
    assert_eq!(find("home").map(|entry| entry.mode & 0o7777), Some(0o700));
    for path in ["proc", "sys", "dev", "etc/resolv.conf", "etc/hosts", "bin/busybox"] {
        assert!(find(path).is_none(), "{path}: {layer:?}");
    }
}

#[test]
fn a_step_that_changes_nothing_makes_no_layer() {
    let built = Place::new().build("FROM busybox:1\nRUN true\nWORKDIR /tmp\n").ok();
    assert_eq!(built.manifest().layers.len(), 1);
    let empty: Vec<bool> = built.config().history.iter().map(|entry| entry.empty_layer).collect();
    assert_eq!(empty, [true, true]);
}

#[test]
fn stages_that_the_target_does_not_need_are_neither_built_nor_looked_up() {
    let place = Place::new();
    place.file("f", "content");
    let dockerfile = "FROM busybox:1 AS one\nCOPY f /f\nRUN cat /f /f > /g\nFROM nowhere.invalid/x AS two\nRUN false\nFROM scratch\nCOPY --from=one /g /\nCOPY --from=busybox:1 --chown=7:8 /bin/busybox /bb\n";
    let built = place.build(dockerfile).ok();
    assert_eq!(built.layer(1)[0].content, "contentcontent");
    assert_eq!((built.layer(0)[0].path.as_str(), built.layer(0)[0].owner), ("bb", (7, 8)));
    assert_eq!(built.manifest().layers.len(), 2);
    let target = place.build_with(dockerfile, &["--target", "one"]).ok();
    assert_eq!(target.steps(), ["cached"; 3]);
}

#[test]
fn a_copy_from_a_stage_is_known_by_its_files_when_the_stage_is_another() {
    let place = Place::new();
    let dockerfile = |text: &str| {
        format!(
            "FROM busybox:1 AS one\nRUN echo {text} > /other; echo same > /f\nFROM scratch\nCOPY --from=one /f /f\n"
        )
    };
    let first = place.build(&dockerfile("a")).ok();
    let second = place.build(&dockerfile("b")).ok();
    assert_eq!(second.steps(), ["cached", "done", "cached", "cached"]);
    assert_eq!(first.digest(), second.digest());
}

#[test]
fn heredocs_scripts_and_exec_forms_run() {
    let place = Place::new();
    let dockerfile = "FROM busybox:1\nARG N=3\nRUN <<END\necho one\necho two $N\nEND\nRUN <<END\n#!/bin/ash\necho three\nEND\nRUN [\"echo\", \"four\", \"$N\"]\nCOPY <<END /etc/conf\nn=$N\nEND\nRUN cat /etc/conf; ls /run 2>&1 || true\n";
    let built = place.build_with(dockerfile, &["--build-arg", "N=5"]).ok();
    assert_eq!(
        built.lines(),
        ["one", "two 5", "three", "four $N", "n=5", "ls: /run: No such file or directory"]
    );
}

#[test]
fn entrypoint_clears_an_inherited_command_and_keeps_its_own() {
    let cmd = |dockerfile: &str| Place::new().build(dockerfile).ok().config().config.cmd;
    assert_eq!(cmd("FROM busybox:1\nENTRYPOINT [\"a\"]\n"), None);
    assert_eq!(cmd("FROM busybox:1\nCMD [\"b\"]\nENTRYPOINT [\"a\"]\n"), Some(vec!["b".to_owned()]));
}

#[test]
fn triggers_of_a_base_run_right_after_from_and_are_left_behind() {
    let place = Place::new();
    let mirror = place.path("mirror");
    base::write(&mirror, "parent:1", &base::rootfs(), &["COPY f /from-trigger", "RUN cat /from-trigger"]);
    place.file("f", "triggered\n");
    let mirror = format!("oci:{}", mirror.display());
    let built = place.build_with("FROM parent:1\nRUN echo own\n", &["--mirror", &mirror]).ok();
    assert_eq!(built.lines(), ["triggered", "own"]);
    assert_eq!(built.config().config.on_build, [""; 0]);
}

#[test]
fn a_working_directory_belongs_to_the_user_of_its_stage() {
    let built = Place::new().build("FROM busybox:1\nUSER app\nWORKDIR /a/b\n").ok();
    let owners: Vec<(String, (u64, u64))> = built
        .layer(0)
        .into_iter()
        .map(|Entry { path, owner, .. }| (path.trim_end_matches('/').to_owned(), owner))
        .collect();
    assert_eq!(owners, [("a".to_owned(), (1000, 1000)), ("a/b".to_owned(), (1000, 1000))]);
}

#[test]
fn zstd_layers_have_their_media_type() {
    let place = Place::new();
    let built = place.build_with("FROM busybox:1\nRUN echo 1 > /x\n", &["--compression", "zstd"]).ok();
    let types: Vec<String> =
        built.manifest().layers.iter().map(|layer| layer.media_type.to_string()).collect();
    assert_eq!(types[1], "application/vnd.oci.image.layer.v1.tar+zstd");
}

#[test]
fn a_tar_of_the_image_is_read_by_others() {
    let place = Place::new();
    let tar = place.path("image.tar");
    let built =
        place.build_with("FROM busybox:1\nRUN echo 1 > /x\n", &["--tar-path", tar.to_str().unwrap()]).ok();
    let names: Vec<String> = tar::Archive::new(fs::File::open(tar).unwrap())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    let manifest = built.digest().replace("sha256:", "blobs/sha256/");
    for name in ["index.json", "oci-layout", "manifest.json", &manifest] {
        assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
    }
}
