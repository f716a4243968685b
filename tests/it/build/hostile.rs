//! Dockerfiles and contexts that mean no good.

use std::fs;
use std::os::unix::fs::symlink;

use super::{Place, read};

#[test]
fn archives_do_not_write_outside_the_image() {
    let place = Place::new();
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["../escaped", "/etc/absolute", "a/../../escaped", "link/through"] {
        if name == "link/through" {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, "link", place.directory.path()).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        let bytes = name.as_bytes();
        header.as_gnu_mut().unwrap().name[..bytes.len()].copy_from_slice(bytes);
        header.set_cksum();
        tar.append(&header, &b"evil"[..]).unwrap();
    }
    place.file("evil.tar", tar.into_inner().unwrap());
    // Whether refused or kept inside: nothing of it is outside.
    place.build("FROM busybox:1\nADD evil.tar /deep/\n");
    for path in ["escaped", "context/escaped", "data/escaped", "through"] {
        assert_eq!(read(&place.path(path)), None, "{path}");
    }
    assert!(!fs::exists("/etc/absolute").unwrap() && !fs::exists("/escaped").unwrap());
}

#[test]
fn links_of_the_context_and_of_the_image_stay_inside() {
    let place = Place::new();
    fs::write(place.path("outside"), "secret").unwrap();
    symlink("../outside", place.path("context/out")).unwrap();
    symlink(place.path("outside"), place.path("context/absolute")).unwrap();
    for name in ["out", "absolute"] {
        let built = place.build(&format!("FROM scratch\nCOPY {name} /x\n"));
        assert!(!built.output.status.success(), "{name}");
    }
    let target = place.directory.path().display();
    place.file("f", "written");
    let built = place.build(&format!("FROM busybox:1\nRUN ln -s {target} /link\nCOPY f /link/f\n")).ok();
    assert!(built.layer_paths(0).iter().any(|path| path.ends_with("/f")));
    assert_eq!(read(&place.path("f")), None);
}

#[test]
fn a_run_sees_neither_the_host_nor_the_engine() {
    let place = Place::new();
    let mut command = place.command(
        "FROM busybox:1\nRUN env; ls / ; cat /proc/1/environ | tr '\\0' '\\n'; ls /proc/1/root/; id -u\nRUN (echo x > /proc/sys/kernel/core_pattern) 2>&1; (echo c > /proc/sysrq-trigger) 2>&1; mknod /dev/sda b 8 0 2>&1; true\n",
        &["--no-push"],
    );
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let output = command.env("SECRET_TOKEN", "hunter2").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(place.path("build/events.jsonl")).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("HEPHY"), "{text}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
}

#[test]
fn the_data_directory_is_out_of_reach() {
    let place = Place::new();
    let data = place.path("data");
    let built = place.build(&format!("FROM busybox:1\nRUN ls {} 2>&1; true\n", data.display())).ok();
    assert!(built.lines()[0].contains("No such file"), "{:?}", built.lines());
}

#[test]
fn odd_output_is_cut_and_made_readable() {
    let place = Place::new();
    let built = place.build("FROM busybox:1\nRUN head -c 10485760 /dev/zero | tr '\\0' x; echo; printf 'a\\377b\\n'; printf 'no newline'\n").ok();
    let lines = built.lines();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].len() < 9000 && lines[0].starts_with("xxxx"));
    assert_eq!(lines[1..], ["a\u{fffd}b", "no newline"]);
}

#[test]
fn a_dockerfile_that_is_no_text_is_refused() {
    let place = Place::new();
    place.file("blob", [0, 159, 146, 150, 255].repeat(1000));
    let output = place.command("FROM scratch\n", &["--no-push", "--dockerfile", "blob"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}
