//! `COPY` and `ADD`, rule by rule.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::super::testing::{RawTar, is_root, listing};
use super::*;

mod parents;

type Change = fn(&Fixture);

struct Fixture {
    dir: tempfile::TempDir,
    from: Root,
    to: Root,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for path in ["from/src/deep", "from/empty", "to/etc", "to/usr/lib"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    for (path, content) in
        [("a.txt", "a"), ("b.txt", "b"), ("src/main", "m"), ("src/deep/x", "x"), ("src/.hidden", "h")]
    {
        fs::write(from.join(path), content).unwrap();
        fs::set_permissions(from.join(path), fs::Permissions::from_mode(0o644)).unwrap();
    }
    fs::set_permissions(from.join("src"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("main", from.join("src/link")).unwrap();
    symlink("src", from.join("to-src")).unwrap();
    symlink("/etc/passwd", from.join("absolute")).unwrap();
    let (from, to) = (Root::open(&from).unwrap(), Root::open(&to).unwrap());
    Fixture { dir, from, to }
}

fn options() -> CopyOptions<'static> {
    let owners = if is_root() { Owners::Keep } else { Owners::Ignore };
    CopyOptions { owners, keep_attributes: true, ..CopyOptions::default() }
}

impl Fixture {
    fn copy(&self, sources: &[&str], dest: &str) -> Result<Copied, CopyError> {
        copy(sources, &self.from, dest, &self.to, &options())
    }

    fn from(&self, path: &str) -> PathBuf {
        self.dir.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.dir.path().join("to").join(path)
    }

    /// What is in the destination beyond what was there.
    fn result(&self) -> Vec<String> {
        let skip = ["etc/ 755", "usr/ 755", "usr/lib/ 755"];
        listing(&self.to("")).into_iter().filter(|line| !skip.contains(&line.as_str())).collect()
    }

    fn copied(&self, sources: &[&str], dest: &str) -> Vec<String> {
        self.copy(sources, dest).unwrap();
        self.result()
    }
}

#[test]
fn a_file_goes_into_a_directory_or_becomes_the_destination() {
    for (dest, expected) in [
        ("/etc", vec![r#"etc/a.txt 644 "a""#]),
        ("etc/", vec![r#"etc/a.txt 644 "a""#]),
        ("/new/", vec!["new/ 755", r#"new/a.txt 644 "a""#]),
        ("/new/.", vec!["new/ 755", r#"new/a.txt 644 "a""#]),
        ("/new/name", vec!["new/ 755", r#"new/name 644 "a""#]),
        ("/", vec![r#"a.txt 644 "a""#]),
    ] {
        assert_eq!(fixture().copied(&["a.txt"], dest), expected, "{dest}");
    }
}

#[test]
fn a_directory_gives_what_is_in_it_and_nothing_of_itself() {
    let expected = [
        "app/ 755",
        r#"app/.hidden 644 "h""#,
        "app/deep/ 755",
        r#"app/deep/x 644 "x""#,
        "app/link -> main",
        r#"app/main 644 "m""#,
    ];
    assert_eq!(fixture().copied(&["src"], "/app"), expected);
    assert_eq!(fixture().copied(&["/src/"], "/app/"), expected);
    assert_eq!(fixture().copied(&["to-src"], "/app"), expected, "a source's own symlink is followed");
    let fixture = fixture();
    let existing = fixture.copied(&["src"], "/etc");
    assert!(existing.contains(&r#"etc/main 644 "m""#.to_owned()) && fixture.to("etc").is_dir());
    assert_eq!(
        fs::metadata(fixture.to("etc")).unwrap().mode() & 0o777,
        0o755,
        "an existing one keeps its mode"
    );
}

#[test]
fn existing_directories_inside_get_the_mode_of_the_source() {
    let fixture = fixture();
    fs::create_dir_all(fixture.to("app/deep")).unwrap();
    fs::set_permissions(fixture.to("app/deep"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(fixture.to("app/deep/kept"), "k").unwrap();
    fixture.copy(&["src"], "/app").unwrap();
    assert_eq!(fs::metadata(fixture.to("app/deep")).unwrap().mode() & 0o777, 0o755);
    assert!(fixture.to("app/deep/kept").exists());
}

#[test]
fn sources_cannot_climb_out_of_the_context() {
    let fixture = fixture();
    fs::write(fixture.dir.path().join("secret"), "outside").unwrap();
    symlink("../secret", fixture.from("climbing")).unwrap();
    symlink("../../..", fixture.from("src/up")).unwrap();
    for source in ["../secret", "src/../../secret", "climbing", "absolute", "src/up/secret"] {
        assert!(matches!(fixture.copy(&[source], "/x"), Err(CopyError::Missing(_))), "{source}");
    }
    assert!(fixture.copy(&["src/up/*"], "/all/").is_ok());
    assert!(!listing(&fixture.to("")).iter().any(|line| line.contains("outside")));
}

#[test]
fn destinations_cannot_climb_out_of_the_root() {
    let fixture = fixture();
    symlink("../../../outside", fixture.to("relative")).unwrap();
    symlink(fixture.dir.path(), fixture.to("absolute")).unwrap();
    for dest in ["../../escaped", "/relative/escaped", "/absolute/escaped", "/relative"] {
        fixture.copy(&["a.txt"], dest).unwrap();
    }
    fixture.copy(&["src"], "/absolute/").unwrap();
    let mut names: Vec<_> =
        fs::read_dir(fixture.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["from", "to"]);
}

#[test]
fn symlinks_of_the_destination_are_followed_inside() {
    let fixture = fixture();
    symlink("usr/lib", fixture.to("lib")).unwrap();
    symlink("/made/here", fixture.to("dangling")).unwrap();
    fs::write(fixture.to("usr/lib/old"), "old").unwrap();
    symlink("/usr/lib/old", fixture.to("etc/current")).unwrap();
    fixture.copy(&["a.txt"], "/lib").unwrap();
    fixture.copy(&["b.txt"], "/dangling").unwrap();
    fixture.copy(&["b.txt"], "/etc/current").unwrap();
    let expected = [
        "dangling -> /made/here",
        "etc/current -> /usr/lib/old",
        "lib -> usr/lib",
        "made/ 755",
        r#"made/here 644 "b""#,
        r#"usr/lib/a.txt 644 "a""#,
        r#"usr/lib/old 644 "b""#,
    ];
    assert_eq!(fixture.result(), expected);
}

#[test]
fn what_is_in_the_way_is_replaced_and_not_written_through() {
    let fixture = fixture();
    fs::write(fixture.to("etc/one"), "one").unwrap();
    fs::hard_link(fixture.to("etc/one"), fixture.to("etc/a.txt")).unwrap();
    symlink("one", fixture.to("etc/b.txt")).unwrap();
    fixture.copy(&["a.txt", "b.txt"], "/etc/").unwrap();
    assert_eq!(fs::read_to_string(fixture.to("etc/one")).unwrap(), "one");
    assert!(!fixture.to("etc/b.txt").is_symlink());
}

#[test]
fn files_and_directories_do_not_replace_each_other() {
    let fixture = fixture();
    fs::create_dir(fixture.to("etc/a.txt")).unwrap();
    assert!(matches!(fixture.copy(&["a.txt"], "/etc/"), Err(CopyError::IsADirectory { .. })));
    fs::write(fixture.to("file"), "").unwrap();
    assert!(matches!(fixture.copy(&["src"], "/file"), Err(CopyError::NotADirectory { .. })));
    fs::create_dir(fixture.to("app")).unwrap();
    symlink("/usr/lib", fixture.to("app/deep")).unwrap();
    let error = fixture.copy(&["src"], "/app").unwrap_err();
    let expected = "cannot copy the directory `src/deep` onto `app/deep`, which is not a directory";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn wildcards_may_match_nothing_and_names_may_not() {
    let fixture = fixture();
    assert_eq!(fixture.copy(&["*.none", "none/*"], "/x/").unwrap(), Copied::default());
    assert!(matches!(fixture.copy(&["none"], "/x/"), Err(CopyError::Missing(_))));
    assert!(matches!(fixture.copy(&["[a"], "/x/"), Err(CopyError::Pattern(_))));
    assert_eq!(fixture.copied(&["*.txt"], "/t/"), ["t/ 755", r#"t/a.txt 644 "a""#, r#"t/b.txt 644 "b""#]);
    fixture.copy(&["s*/d*/?"], "/deep/").unwrap();
    assert!(fixture.to("deep/x").exists());
}

#[test]
fn hard_links_and_times_and_attributes_are_kept() {
    let fixture = fixture();
    fs::hard_link(fixture.from("src/main"), fixture.from("src/again")).unwrap();
    let file = fs::File::open(fixture.from("src/main")).unwrap();
    rustix::fs::fsetxattr(&file, c"user.note", b"n", rustix::fs::XattrFlags::empty()).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5);
    file.set_modified(then).unwrap();
    fs::File::open(fixture.from("src/deep")).unwrap().set_modified(then).unwrap();
    fixture.copy(&["src"], "/app").unwrap();
    let (one, two) =
        (fs::metadata(fixture.to("app/main")).unwrap(), fs::metadata(fixture.to("app/again")).unwrap());
    assert_eq!(one.ino(), two.ino());
    assert_eq!((one.mtime(), one.mtime_nsec()), (1_000_000_000, 0));
    assert_eq!(fs::metadata(fixture.to("app/deep")).unwrap().mtime(), 1_000_000_000);
    assert!(fixture.result().contains(&r#"app/main 644 "m" user.note=n"#.to_owned()));
}

#[test]
fn the_attributes_of_a_context_are_neither_copied_nor_looked_at() {
    let options = CopyOptions { keep_attributes: false, ..options() };
    let fixture = fixture();
    let hash = || hash_sources(&["src"], &fixture.from, &options, None).unwrap().digest;
    let before = hash();
    let file = fs::File::open(fixture.from("src/main")).unwrap();
    rustix::fs::fsetxattr(&file, c"user.note", b"n", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(hash(), before);
    copy(&["src"], &fixture.from, "/app", &fixture.to, &options).unwrap();
    assert!(fixture.result().contains(&r#"app/main 644 "m""#.to_owned()));
}

#[test]
fn directories_on_the_way_get_the_permissions_of_an_octal_mode_and_no_more() {
    let mode = |text: &str| {
        let mode: ModeChange = text.parse().unwrap();
        let fixture = fixture();
        let options = CopyOptions { mode: Some(&mode), ..options() };
        copy(&["a.txt"], &fixture.from, "/new/a", &fixture.to, &options).unwrap();
        ["new", "new/a"].map(|path| fs::metadata(fixture.to(path)).unwrap().mode() & 0o7777)
    };
    assert_eq!(mode("2750"), [0o750, 0o2750]);
    assert_eq!(mode("go="), [0o755, 0o600]);
}

#[test]
fn owner_and_mode_are_what_was_asked_for() {
    if !is_root() {
        return;
    }
    let fixture = fixture();
    std::os::unix::fs::chown(fixture.from("src/main"), Some(5), Some(6)).unwrap();
    let owner = |path: &str| {
        let found = fs::symlink_metadata(fixture.to(path)).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    fixture.copy(&["src"], "/root").unwrap();
    assert_eq!(owner("root/main"), (0, 0, 0o644));
    let preserve = CopyOptions { preserve_owner: true, ..options() };
    copy(&["src"], &fixture.from, "/stage", &fixture.to, &preserve).unwrap();
    assert_eq!(owner("stage/main"), (5, 6, 0o644));
    let mode: ModeChange = "0700".parse().unwrap();
    let chown = CopyOptions { owner: Some(Owner { uid: 7, gid: 8 }), mode: Some(&mode), ..options() };
    copy(&["src"], &fixture.from, "/new/asked", &fixture.to, &chown).unwrap();
    for path in ["new", "new/asked", "new/asked/deep", "new/asked/main"] {
        assert_eq!(owner(path), (7, 8, 0o700), "{path}");
    }
    assert_eq!(owner("new/asked/link").0, 7);
    let mode: ModeChange = "go-r,u+x".parse().unwrap();
    copy(&["a.txt"], &fixture.from, "/sym", &fixture.to, &CopyOptions { mode: Some(&mode), ..options() })
        .unwrap();
    assert_eq!(owner("sym"), (0, 0, 0o700));
}

#[test]
fn what_is_excluded_is_not_copied_and_an_exception_brings_its_directories() {
    let fixture = fixture();
    let exclude = |path: &Path, _: bool| match path.to_str().unwrap() {
        "src/deep" | "src" => Excluded::YesButLookInside,
        "src/deep/x" => Excluded::No,
        path if path.starts_with("src/") || path == "a.txt" => Excluded::Yes,
        "empty" => Excluded::YesButLookInside,
        _ => Excluded::No,
    };
    let options = CopyOptions { exclude: Some(&exclude), ..options() };
    let copy = |source: &str, dest: &str| copy(&[source], &fixture.from, dest, &fixture.to, &options);
    assert!(matches!(copy("a.txt", "/x"), Err(CopyError::Excluded(_))));
    copy(".", "/app").unwrap();
    let expected = [
        "app/ 755",
        "app/absolute -> /etc/passwd",
        r#"app/b.txt 644 "b""#,
        "app/src/ 750",
        "app/src/deep/ 755",
        r#"app/src/deep/x 644 "x""#,
        "app/to-src -> src",
    ];
    assert_eq!(fixture.result(), expected);
    copy("*.txt", "/etc").unwrap();
    assert!(!fixture.to("etc/a.txt").exists() && fixture.to("etc/b.txt").exists());
}

#[test]
fn add_unpacks_what_is_an_archive_by_its_content() {
    let tar = RawTar::default().dir("./").dir("d/").file("d/f", "f").entry(b'2', "up", "../..", b"").end();
    let gz = {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, &tar).unwrap();
        gz.finish().unwrap()
    };
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    std::io::Write::write_all(&mut xz, &tar).unwrap();
    let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    std::io::Write::write_all(&mut bz, &tar).unwrap();
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    for bytes in [tar, gz, xz.finish().unwrap(), bz.finish().unwrap(), zstd] {
        let fixture = fixture();
        fs::write(fixture.from("archive"), bytes).unwrap();
        let add = CopyOptions { extract: true, ..options() };
        copy(&["archive"], &fixture.from, "/app", &fixture.to, &add).unwrap();
        assert_eq!(fixture.result(), ["app/ 755", "app/d/ 755", r#"app/d/f 644 "f""#, "app/up -> ../.."]);
        copy(&["archive"], &fixture.from, "/copied/", &fixture.to, &options()).unwrap();
        assert!(fixture.to("copied/archive").is_file(), "COPY does not unpack");
    }
    let fixture = fixture();
    let add = CopyOptions { extract: true, ..options() };
    for (name, content) in [("named.tar.gz", &b"not an archive"[..]), ("empty.tar", &[0; 1024])] {
        fs::write(fixture.from(name), content).unwrap();
        copy(&[name], &fixture.from, "/plain/", &fixture.to, &add).unwrap();
        assert!(fixture.to("plain").join(name).is_file());
    }
}

#[test]
fn an_archive_of_add_stays_in_its_destination() {
    let hostile = [
        RawTar::default().file("../../escaped", "x"),
        RawTar::default().entry(b'2', "up", "../../..", b"").file("up/escaped", "x"),
        RawTar::default().entry(b'2', "abs", "/", b"").file("abs/escaped", "x"),
        RawTar::default().entry(b'2', "up", "../..", b"").entry(b'1', "stolen", "up/secret", b""),
        RawTar::default().file("/escaped", "x"),
    ];
    for tar in hostile {
        let fixture = fixture();
        fs::write(fixture.dir.path().join("secret"), "outside").unwrap();
        fs::write(fixture.from("archive"), tar.end()).unwrap();
        fs::create_dir(fixture.to("app")).unwrap();
        let add = CopyOptions { extract: true, ..options() };
        drop(copy(&["archive"], &fixture.from, "/app/", &fixture.to, &add));
        assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 3);
        assert!(!fixture.to("escaped").exists(), "nor elsewhere in the image");
        assert!(!listing(&fixture.to("")).iter().any(|line| line.contains("outside")));
    }
}

#[test]
fn a_file_from_nowhere_has_the_mode_and_time_it_is_given() {
    let fixture = fixture();
    let new = NewFile { mode: 0o600, mtime: 1_000_000_000 };
    write_file(&fixture.to, "/etc/", "name", &b"text"[..], &options(), new).unwrap();
    write_file(&fixture.to, "/etc/other", "name", &b"text"[..], &options(), new).unwrap();
    assert_eq!(fixture.result(), [r#"etc/name 600 "text""#, r#"etc/other 600 "text""#]);
    assert_eq!(fs::metadata(fixture.to("etc/name")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn the_hash_changes_with_everything_that_would_be_copied_and_nothing_else() {
    let hash =
        |fixture: &Fixture| hash_sources(&["src", "*.txt"], &fixture.from, &options(), None).unwrap().digest;
    let one = fixture();
    let before = hash(&one);
    assert_eq!(before, hash(&fixture()), "another directory with the same files");
    fs::File::open(one.from("src/main")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::write(one.from("not-a-source"), "").unwrap();
    assert_eq!(hash(&one), before);
    let changes: [(&str, Change); 8] = [
        ("content", |f| fs::write(f.from("src/main"), "M").unwrap()),
        ("mode", |f| fs::set_permissions(f.from("a.txt"), fs::Permissions::from_mode(0o600)).unwrap()),
        ("name", |f| fs::rename(f.from("src/main"), f.from("src/niam")).unwrap()),
        ("new file", |f| fs::write(f.from("c.txt"), "").unwrap()),
        ("new directory", |f| fs::create_dir(f.from("src/new")).unwrap()),
        ("link target", |f| {
            fs::remove_file(f.from("src/link")).unwrap();
            symlink("deep", f.from("src/link")).unwrap();
        }),
        ("type", |f| {
            fs::remove_file(f.from("src/link")).unwrap();
            fs::write(f.from("src/link"), "main").unwrap();
        }),
        ("attribute", |f| {
            let file = fs::File::open(f.from("a.txt")).unwrap();
            rustix::fs::fsetxattr(file, c"user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        }),
    ];
    let mut seen = vec![before];
    for (what, change) in changes {
        let fixture = fixture();
        change(&fixture);
        let after = hash(&fixture);
        assert!(!seen.contains(&after), "{what}");
        seen.push(after);
    }
}

#[test]
fn the_listing_names_what_changed() {
    let fixture = fixture();
    let list = || hash_sources(&["src"], &fixture.from, &options(), None).unwrap().files;
    let before = list();
    fs::write(fixture.from("src/deep/x"), "changed").unwrap();
    let changed: Vec<_> =
        before.iter().zip(list()).filter(|(old, new)| *old != new).map(|(old, _)| &old.0).collect();
    assert_eq!(changed, [Path::new("src/deep/x")]);
}

#[test]
fn several_files_need_a_directory() {
    for sources in [&["a.txt", "b.txt"][..], &["*.txt"]] {
        assert!(matches!(fixture().copy(sources, "/new"), Err(CopyError::SeveralOntoOne(_))), "{sources:?}");
        assert!(fixture().copy(sources, "/new/").is_ok() && fixture().copy(sources, "/etc").is_ok());
    }
    assert!(fixture().copy(&["src", "a.txt"], "/new").is_ok(), "the first has made it one");
    assert!(fixture().copy(&["src/deep", "src"], "/new").is_ok(), "what is in directories");
}

#[test]
fn what_a_url_gave_is_a_file_or_what_is_in_it() {
    let tar = RawTar::default().dir("d/").file("d/f", "f").end();
    let content = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    };
    let new = NewFile { mode: 0o600, mtime: 5 };
    let add = |bytes: &[u8], name, dest, extract| {
        let fixture = fixture();
        let options = CopyOptions { extract, ..options() };
        add_file(&fixture.to, dest, name, content(bytes), &options, new).map(|_| fixture.result())
    };
    assert_eq!(add(b"x", Some("n"), "/out/", true).unwrap(), ["out/ 755", r#"out/n 600 "x""#]);
    assert_eq!(add(b"x", None, "/out", false).unwrap(), [r#"out 600 "x""#]);
    assert_eq!(add(&tar, None, "/out", true).unwrap(), ["out/ 755", "out/d/ 755", r#"out/d/f 644 "f""#]);
    assert_eq!(add(&tar, Some("n"), "/etc", false).unwrap().len(), 1);
    for dest in ["/out/", "/etc"] {
        assert!(matches!(add(b"x", None, dest, true), Err(CopyError::Nameless(_))), "{dest}");
    }
}
