//! ADD of what is elsewhere: files over HTTP and git repositories.

use hephy::build::Outcome;
use hephy::oci::Digest;

use super::web::Web;
use super::{Built, Place};

const DATE: Option<&str> = Some("Sun, 09 Sep 2001 01:46:40 GMT");

fn lines(built: &Built) -> Vec<String> {
    let line = |entry: super::Entry| format!("{} {:o} {}", entry.path, entry.mode & 0o7777, entry.content);
    built.layer(0).into_iter().map(|entry| line(entry).trim_end().to_owned()).collect()
}

fn add(what: &str) -> String {
    format!("FROM scratch\nADD {what}\n")
}

/// A tar with one file and one that climbs.
fn tar(names: &[&str]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in names {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o640);
        header.set_size(1);
        header.set_cksum();
        tar.append(&header, &b"t"[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_file_is_called_as_in_its_address_and_has_its_time_and_mode_0600() {
    let web = Web::new();
    web.dated("/dir/a.txt", "hello", None, DATE).page("/moved", "-> /dir/a.txt");
    let place = Place::new();
    let built = place.build(&add(&format!("{} /out/", web.url("/dir/a.txt?x=1#y")))).ok();
    assert_eq!(lines(&built), ["out/ 755", "out/a.txt 600 hello"]);
    let entry = &built.layer(0)[1];
    assert_eq!((entry.mtime, entry.owner), (1_000_000_000, (0, 0)));
    let built = place.build(&add(&format!("--chmod=644 --chown=5:6 {} /name", web.url("/moved")))).ok();
    assert_eq!((lines(&built), built.layer(0)[0].owner), (vec!["name 644 hello".to_owned()], (5, 6)));
    let built = place.build(&format!("FROM scratch\nARG U={}\nADD $U/dir/a.txt /x\n", web.base)).ok();
    assert_eq!(lines(&built), ["x 600 hello"]);
    assert_eq!(place.left_over(), [""; 0]);
}

#[test]
fn a_file_that_the_server_says_is_the_same_is_not_fetched_and_one_that_is_not_is() {
    let web = Web::new();
    let place = Place::new();
    let dockerfile = add(&format!("{} /a", web.url("/a")));
    web.dated("/a", "1", Some("\"one\""), None);
    place.build(&dockerfile).ok();
    assert_eq!(web.asked(), [("/a".to_owned(), 200)]);
    assert_eq!(place.build(&dockerfile).ok().steps(), ["cached", "cached"]);
    assert_eq!(web.asked(), [("/a".to_owned(), 304)]);
    web.dated("/a", "2", Some("\"two\""), None);
    assert_eq!(lines(&place.build(&dockerfile).ok()), ["a 600 2"]);
    // Without a word of the server it is fetched, and the content decides.
    web.page("/a", "2");
    place.build(&dockerfile).ok();
    assert_eq!(place.build(&dockerfile).ok().steps(), ["cached", "cached"]);
    // Known, and needed again for another step.
    web.dated("/a", "3", None, DATE);
    place.build(&dockerfile).ok();
    web.asked();
    place.build(&dockerfile.replace(" /a", " /b")).ok();
    assert_eq!(web.asked(), [("/a".to_owned(), 304), ("/a".to_owned(), 200)]);
}

#[test]
fn a_checksum_is_what_the_file_has_to_be_and_nobody_is_asked_for_what_is_known() {
    let web = Web::new();
    web.page("/a", "content");
    let place = Place::new();
    let with = |digest: Digest| add(&format!("--checksum={digest} {} /a", web.url("/a")));
    let wrong = place.build(&with(Digest::of("other")));
    let heading = &wrong.app_failure().heading;
    assert!(
        heading.contains(&Digest::of("content").to_string()) && heading.contains("--checksum"),
        "{heading}"
    );
    place.build(&with(Digest::of("content"))).ok();
    web.asked();
    assert_eq!(place.build(&with(Digest::of("content"))).ok().steps(), ["cached", "cached"]);
    assert_eq!(web.asked(), []);
    for (wrong, word) in
        [("--checksum=sha256:1 http://h/a /a", "sha256"), ("--checksum=sha256:1 a b /a/", "one source")]
    {
        let built = Place::new().build(&add(wrong));
        assert!(built.app_failure().heading.contains(word), "{:?}", built.app_failure());
    }
}

#[test]
fn an_archive_from_an_address_is_unpacked_only_if_that_is_asked_for() {
    let web = Web::new();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar(&["f"])).unwrap();
    web.page("/x.tgz", gzip.finish().unwrap()).page("/evil.tar", tar(&["../../evil"]));
    let place = Place::new();
    let paths = |flags: &str, file: &str| {
        place.build(&add(&format!("{flags} {} /out/", web.url(file)))).ok().layer_paths(0)
    };
    assert_eq!(paths("", "/x.tgz"), ["out/", "out/x.tgz"]);
    assert_eq!(paths("--unpack", "/x.tgz"), ["out/", "out/f"]);
    let evil = place.build(&add(&format!("--unpack {} /out/", web.url("/evil.tar"))));
    if matches!(evil.result.outcome, Outcome::Built { .. }) {
        assert!(evil.layer_paths(0).iter().all(|path| path.starts_with("out/")), "{:?}", evil.layer_paths(0));
    }
    place.file("local.tar", tar(&["l"]));
    assert_eq!(
        place.build(&add("--unpack=false local.tar /out/")).ok().layer_paths(0),
        ["out/", "out/local.tar"]
    );
    assert_eq!(place.build(&add("local.tar /out/")).ok().layer_paths(0), ["out/", "out/l"]);
}

#[test]
fn what_an_address_may_not_do_is_an_error_that_says_why() {
    let web = Web::new();
    web.page("/file", "-> file:///etc/passwd").page("/", "root");
    for (what, word) in [
        (format!("{} /x", web.url("/none")), "answers 404"),
        (format!("{} /x", web.url("/file")), "answers 302"),
        (format!("{} /x/", web.url("/")), "no name"),
        (format!("{} /x/", web.url("/..%2f..")), "404"),
        ("ftp://example.org/x /x".to_owned(), "none of http"),
        (format!("{} {} /x", web.url("/"), web.url("/")), "several files"),
    ] {
        let built = Place::new().build(&add(&what));
        assert!(built.app_failure().heading.contains(word), "{what}: {:?}", built.app_failure());
        assert_eq!(built.app_failure().at.as_ref().unwrap().line, 2);
    }
    for (copy, word) in [("http://h/x /x", "ADD http://h/x"), ("git@h:r.git /x", "ADD git@h:r.git")] {
        let built = Place::new().build(&format!("FROM scratch\nCOPY {copy}\n"));
        assert!(built.app_failure().heading.contains(word), "{:?}", built.app_failure());
    }
    let guarded = Place::new().build_with(&add(&format!("{} /x", web.url("/"))), &["--network", "none"]);
    assert!(guarded.app_failure().heading.contains("not reachable"), "{:?}", guarded.app_failure());
}

#[test]
fn a_repository_gives_the_files_of_a_commit_and_not_its_history() {
    let web = Web::new();
    let first = web.commit("r.git", &[("a", "1"), ("dir/b", "b"), ("dir/deep/c", "c")]);
    let place = Place::new();
    let whole = place.build(&add(&format!("{} /out", web.url("/r.git")))).ok();
    assert_eq!(
        lines(&whole),
        [
            "out/ 755",
            "out/a 644 1",
            "out/dir/ 755",
            "out/dir/b 644 b",
            "out/dir/deep/ 755",
            "out/dir/deep/c 644 c"
        ]
    );
    assert_eq!(whole.layer(0)[1].mtime, 1_600_000_000, "the time of the commit");
    assert!(whole.layer(0).iter().all(|entry| entry.owner == (0, 0)), "whoever checked it out");
    web.git("r.git", &["tag", "-a", "v1", "-m", "one"]);
    web.commit("r.git", &[("a", "2")]);
    let file = |what: &str| lines(&place.build(&add(&format!("--exclude=dir {} /", web.url(what)))).ok());
    assert_eq!(file("/r.git"), ["a 644 2"]);
    assert_eq!(file("/r.git#v1"), ["a 644 1"]);
    assert_eq!(file(&format!("/r.git#{first}")), ["a 644 1"]);
    assert_eq!(file("/r.git?tag=v1"), ["a 644 1"]);
    let part = place.build(&add(&format!("{} /", web.url("/r.git#main:dir/deep")))).ok();
    assert_eq!(lines(&part), ["c 644 c"]);
    let kept = place.build(&add(&format!("--keep-git-dir=true {} /out", web.url("/r.git")))).ok();
    assert!(kept.layer_paths(0).contains(&"out/.git/HEAD".to_owned()));
    assert_eq!(place.left_over(), [""; 0]);
}

#[test]
fn a_step_of_a_repository_is_known_by_its_commit() {
    let web = Web::new();
    let commit = web.commit("r.git", &[("a", "1")]);
    let place = Place::new();
    let dockerfile = add(&format!("{} /", web.url("/r.git")));
    place.build(&dockerfile).ok();
    assert_eq!(place.build(&dockerfile).ok().steps(), ["cached", "cached"]);
    web.asked();
    let by_commit = add(&format!("{} /", web.url(&format!("/r.git#{commit}"))));
    assert_eq!(place.build(&by_commit).ok().steps(), ["cached", "cached"]);
    assert_eq!(web.asked(), [], "a commit is what it is");
    web.commit("r.git", &[("a", "2")]);
    assert_eq!(place.build(&dockerfile).ok().steps(), ["cached", "done"]);
    let wrong = place.build(&add(&format!("--checksum={commit} {} /", web.url("/r.git"))));
    assert!(wrong.app_failure().heading.contains(&commit), "{:?}", wrong.app_failure());
    let right = place.build(&add(&format!(
        "--checksum={} {} /",
        &commit[..12],
        web.url(&format!("/r.git#{commit}"))
    )));
    right.ok();
}

#[test]
fn a_hostile_repository_runs_nothing_and_stays_in_its_directory() {
    let web = Web::new();
    web.commit("r.git", &[("a", "1"), (".gitattributes", "* filter=evil\n")]);
    let hook = web.repository("r.git").join(".git/hooks/post-checkout");
    std::fs::write(&hook, "#!/bin/sh\ntouch /tmp/hephy-hook-ran\n").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", web.repository("r.git").join("link")).unwrap();
    std::os::unix::fs::symlink("../../..", web.repository("r.git").join("up")).unwrap();
    web.commit("r.git", &[]);
    let built = Place::new().build(&add(&format!("{} /", web.url("/r.git")))).ok();
    let entries = lines(&built);
    assert!(
        entries.contains(&"link 777 /etc/passwd".to_owned())
            && entries.contains(&"up 777 ../../..".to_owned())
    );
    let up = Place::new().build(&add(&format!("{} /", web.url("/r.git#main:up")))).ok();
    assert_eq!(lines(&up), entries, "above the repository is the repository");
    for outside in ["/r.git#main:none", "/r.git#none"] {
        let built = Place::new().build(&add(&format!("{} /", web.url(outside))));
        assert!(built.app_failure().heading.contains("has no"), "{:?}", built.app_failure());
    }
}
