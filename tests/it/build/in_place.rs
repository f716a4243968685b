//! Builds without namespaces and without mounts, with no more rights than a container's root has by default.

use std::process::Command;

use hephy::build::BuildEvent;

use super::{Built, Place, failures::wait_for, read, runs};

/// What Docker and containerd give a container's root.
const CAPABILITIES: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
                            +net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

/// The command with the rights of a container's root alone.
pub(super) fn contained(command: &Command) -> Command {
    let mut contained = Command::new("setpriv");
    contained.args(["--bounding-set", CAPABILITIES, "--"]);
    contained.arg(command.get_program()).args(command.get_args());
    contained.stdin(std::process::Stdio::null());
    contained.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    contained
}

fn build(place: &Place, dockerfile: &str) -> Built {
    build_with(place, dockerfile, &["--isolation", "in-place"])
}

fn build_with(place: &Place, dockerfile: &str, arguments: &[&str]) -> Built {
    let layout = place.path("layout");
    drop(std::fs::remove_dir_all(&layout));
    let mut command = place.command(dockerfile, arguments);
    command.arg("--oci-layout-path").arg(&layout);
    let output = contained(&command).output().unwrap();
    place.built(output)
}

fn rung(built: &Built) -> &str {
    let started = built.events.iter().find_map(|event| match event {
        BuildEvent::Started { isolation, .. } => Some(isolation.as_str()),
        _ => None,
    });
    started.unwrap()
}

/// The digests of the layers by both rungs, which must be the same.
fn same_on_both(files: &[(&str, &str)], dockerfile: &str) {
    let (one, other) = (Place::new(), Place::new());
    for (name, content) in files {
        one.file(name, content);
        other.file(name, content);
    }
    for (place, (name, _)) in
        [&one, &other].into_iter().flat_map(|place| files.iter().map(move |file| (place, file)))
    {
        let file = std::fs::File::open(place.path("context").join(name)).unwrap();
        rustix::fs::fsetxattr(&file, "user.note", name.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
    }
    let (userns, in_place) = (one.build(dockerfile).ok(), build(&other, dockerfile).ok());
    assert_eq!((rung(&userns), rung(&in_place)), ("userns", "in-place"));
    assert_eq!(userns.lines(), in_place.lines(), "{dockerfile}");
    let (left, right) = (userns.manifest().layers.len(), in_place.manifest().layers.len());
    assert_eq!(left, right, "{dockerfile}");
    for from_top in (0..left - 1).rev() {
        assert_eq!(userns.layer(from_top), in_place.layer(from_top), "{dockerfile}");
    }
    assert_eq!(userns.config().rootfs.diff_ids, in_place.config().rootfs.diff_ids, "{dockerfile}");
    wait_for(|| other.left_over().is_empty());
}

#[test]
fn files_of_every_kind_make_the_same_layers_as_on_an_overlay() {
    same_on_both(
        &[],
        "FROM busybox:1\n\
         RUN echo a > /a && ln /a /b && ln -s a /c && mkfifo /fifo && chmod 4755 /a && chown 7:8 /b && mkdir -m 1777 /t\n\
         RUN echo more >> /b && cat /a /b && rm /c && mv /t /home/t\n\
         RUN rm -rf /home && mkdir /home && echo x > /home/x && touch -d @1000 /home/x\n\
         RUN mkdir -p /d/e/f && echo 1 > /d/e/f/g && mv /d/e /d/h\n\
         RUN mv /d /moved && mkdir /d && ls -R /d /moved\n\
         RUN rm /etc/group /bin/vi && chmod 700 /etc/passwd && chmod 755 /etc/passwd\n\
         RUN cat /etc/passwd > /tmp/p && cat /tmp/p > /etc/passwd && rm /tmp/p\n\
         RUN true\n",
    );
}

#[test]
fn instructions_of_every_kind_make_the_same_layers_as_on_an_overlay() {
    same_on_both(
        &[("f", "content"), ("dir/a", "1"), ("dir/sub/b", "2")],
        "FROM busybox:1 AS one\n\
         WORKDIR /work/deep\n\
         COPY --chown=app:staff f dir/ ./\n\
         RUN sha256sum f a sub/b && rm a && mv sub/b renamed && ln f g && chmod 600 g\n\
         USER app\n\
         WORKDIR /home/app\n\
         RUN id -u && pwd && echo mine > file && ls -ln file | cut -c 1-20\n\
         FROM busybox:1 AS two\n\
         COPY --chmod=750 dir /dir\n\
         RUN echo two > /dir/two\n\
         FROM one\n\
         USER root\n\
         COPY --from=two /dir /from-two\n\
         COPY --from=busybox:1 /bin/busybox /copied/\n\
         COPY f /etc/passwd-\n\
         RUN cat /from-two/two /work/deep/f && rm -r /from-two && /copied/busybox id -u\n\
         COPY --from=one /home /homes\n",
    );
}

#[test]
fn a_file_that_is_copied_again_makes_no_layer_and_keeps_its_time() {
    let dockerfile =
        "FROM busybox:1\nCOPY f /\nCOPY f /\nRUN cat /f > /g; cat /g > /f; rm /g\nRUN stat -c %Y /f\n";
    same_on_both(&[("f", "content")], dockerfile);
    let place = Place::new();
    place.file("f", "content");
    let built = build(&place, dockerfile).ok();
    assert_eq!((built.manifest().layers.len(), built.lines()), (2, vec![super::EPOCH]));
}

#[test]
fn a_step_finds_devices_names_and_facts_and_leaves_none_of_them() {
    let place = Place::new();
    let dockerfile = "FROM busybox:1\n\
        RUN head -c 3 /dev/zero | wc -c && echo x > /dev/null && test -s /etc/resolv.conf && grep -c localhost /etc/hosts \
        && test -s /proc/meminfo && ls /sys && echo y > /etc/hosts && echo z > /proc/z\n";
    let built = build(&place, dockerfile).ok();
    assert_eq!(built.lines()[0], "3");
    assert_eq!(built.manifest().layers.len(), 1, "{:?}", built.layer_paths(0));
}

#[test]
fn many_builds_follow_one_another_in_one_store() {
    let place = Place::new();
    for number in 0..3 {
        let dockerfile =
            format!("FROM busybox:1\nRUN echo same > /same\nRUN echo {number} > /number && cat /same\n");
        let built = build(&place, &dockerfile).ok();
        assert_eq!(built.lines().last(), Some(&"same"));
        assert_eq!(built.layer(0)[0].content, format!("{number}\n"));
    }
    let steps = build(&place, "FROM busybox:1\nRUN echo same > /same\n").ok().steps();
    assert_eq!(steps, ["cached", "cached"]);
}

#[test]
fn a_failed_step_leaves_nothing_to_the_next_build() {
    let place = Place::new();
    let failed = build(&place, "FROM busybox:1\nRUN echo x > /spoilt; exit 3\n");
    assert_eq!(failed.app_failure().exit_status, Some(3));
    let built = build(&place, "FROM busybox:1\nRUN ls / | tee /list\n").ok();
    assert!(!built.lines().contains(&"spoilt"), "{:?}", built.lines());
    wait_for(|| place.left_over().is_empty());
}

#[test]
fn what_a_step_leaves_running_ends_with_it() {
    let place = Place::new();
    let word = "27182819";
    build(&place, &format!("FROM busybox:1\nRUN (setsid sleep {word} >/dev/null 2>&1 &); true\n")).ok();
    assert!(!runs(word));
}

#[test]
fn a_killed_engine_leaves_no_process_and_a_store_that_works() {
    let place = Place::new();
    let word = "31415927";
    let dockerfile = format!("FROM busybox:1\nRUN (setsid sleep {word} &); echo begun; sleep {word}; true\n");
    let mut engine = contained(&place.command(&dockerfile, &["--no-push", "--isolation", "in-place"]));
    let mut engine = engine.spawn().unwrap();
    wait_for(|| runs(word));
    engine.kill().unwrap();
    engine.wait().unwrap();
    wait_for(|| !runs(word));
    build(&place, "FROM busybox:1\nRUN echo works > /works\n").ok();
}

#[test]
fn a_step_that_takes_too_long_is_ended_with_all_its_processes() {
    let place = Place::new();
    let word = "16180339";
    let dockerfile =
        format!("FROM busybox:1\nRUN trap '' TERM; (setsid sleep {word} &); sleep {word}; true\n");
    let built = build_with(&place, &dockerfile, &["--isolation", "in-place", "--time-limit", "2s"]);
    assert_eq!(built.output.status.code(), Some(124));
    wait_for(|| !runs(word));
}

#[test]
fn the_engine_and_what_else_runs_here_are_closed_to_a_step() {
    let place = Place::new();
    std::fs::write(place.path("secret"), "hunter2").unwrap();
    let outside = place.path("secret");
    // A chroot is left by another one, by devices, by processes outside and by what they have open.
    let dockerfile = format!(
        "FROM busybox:1\n\
         RUN cat {0}; mkdir /x; chroot /x /bin/sh -c 'cat ../../../../../../..{0}'; chroot / true && echo left; true\n\
         RUN mknod /disk b 254 0 && echo made; mknod /mem c 1 1 && echo made; true\n\
         RUN mkdir -p /p && mount -t proc proc /p && cat /p/1/environ; unshare -r true && echo unshared; true\n",
        outside.display()
    );
    let built = build(&place, &dockerfile).ok();
    for line in built.lines() {
        assert!(!line.contains("hunter2") && !["left", "made"].contains(&line), "{:?}", built.lines());
    }
    assert_eq!(read(&outside).as_deref(), Some("hunter2"));
}

#[test]
fn a_step_without_a_network_is_refused_with_its_line() {
    let built = build(&Place::new(), "FROM busybox:1\nRUN --network=none true\n");
    let failure = built.app_failure();
    assert_eq!(failure.at.as_ref().map(|at| at.line), Some(2));
    assert!(failure.heading.contains("network"), "{failure:?}");
}

#[test]
fn the_hosts_root_gets_in_place_by_force_alone() {
    let place = Place::new();
    let built = place.build_with("FROM busybox:1\nRUN true\n", &["--isolation", "in-place"]);
    assert_eq!(built.output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&built.output.stderr).into_owned();
    assert!(text.contains("--force"), "{text}");
    place.build_with("FROM busybox:1\nRUN true\n", &["--isolation", "in-place", "--force"]).ok();
}

#[test]
fn mounts_are_lent_to_a_step_and_leave_no_trace() {
    let dockerfile = "FROM busybox:1 AS one\nRUN mkdir /d && echo stage > /d/f\nFROM busybox:1\nWORKDIR /app\n\
        RUN --mount=source=src,target=src --mount=from=one,source=/d,target=/s,rw --mount=type=cache,target=/app/c \
        --mount=type=tmpfs,target=/t --mount=type=secret,id=token,mode=0440,gid=50 \\\n  \
        cat src/a /s/f; echo changed > /s/f; echo x >> c/f; touch /t/t made; wc -c < /run/secrets/token; stat -c '%a %u:%g' /run/secrets/token\n\
        RUN --mount=from=one,source=/d/f,target=/f --mount=type=cache,target=/c,id=/app/c cat /f /c/f; ls /run /t /s 2>&1; true\n";
    let token = "hunter2-in-place";
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), token).unwrap();
    let secret = format!("id=token,src={}", secret.path().display());
    let (one, other) = (Place::new(), Place::new());
    one.file("src/a", "context\n");
    other.file("src/a", "context\n");
    let userns = one.build_with(dockerfile, &["--secret", &secret]).ok();
    let in_place = build_with(&other, dockerfile, &["--isolation", "in-place", "--secret", &secret]).ok();
    assert_eq!(
        in_place.lines(),
        [
            "context",
            "stage",
            "16",
            "440 0:50",
            "stage",
            "x",
            "ls: /run: No such file or directory",
            "ls: /t: No such file or directory",
            "ls: /s: No such file or directory",
        ]
    );
    assert_eq!(userns.lines(), in_place.lines());
    assert_eq!(userns.config().rootfs.diff_ids, in_place.config().rootfs.diff_ids);
    // Whole roots are removed after the build has ended.
    wait_for(|| other.left_over().is_empty());
    let found = Command::new("grep").args(["-rlaF", token]).arg(other.directory.path()).output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");
    let refused = build_with(
        &other,
        "FROM busybox:1\n\nRUN --security=insecure true\n",
        &["--isolation", "in-place", "--allow", "security.insecure"],
    );
    assert_eq!(refused.app_failure().at.as_ref().unwrap().line, 3);
}
