//! What counts as a change, on trees made by hand as overlay makes them.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};

use super::super::Owners;
use super::super::testing::{RawTar, is_root};
use super::super::unpack::{UnpackOptions, make_whiteout, unpack_layer};
use super::*;

const THEN: i64 = 1_000_000_000;

/// A base of two layers and an empty upper.
struct Fixture {
    dir: tempfile::TempDir,
    lowers: Vec<Root>,
    upper: Root,
}

fn fixture(layers: Vec<RawTar>) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let owners = if is_root() { Owners::Keep } else { Owners::Ignore };
    let mut lowers: Vec<Root> = Vec::new();
    for (number, layer) in layers.into_iter().enumerate() {
        let path = dir.path().join(number.to_string());
        fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        unpack_layer(&layer.end()[..], &root, None, &UnpackOptions { owners, ..UnpackOptions::default() })
            .unwrap();
        lowers.insert(0, root);
    }
    fs::create_dir(dir.path().join("upper")).unwrap();
    fs::set_permissions(dir.path().join("upper"), fs::Permissions::from_mode(0o755)).unwrap();
    let upper = Root::open(&dir.path().join("upper")).unwrap();
    Fixture { dir, lowers, upper }
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("upper").join(name)
    }

    fn dir(&self, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
        self.then(name);
    }

    fn file(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o644)).unwrap();
        self.then(name);
        if let Some(parent) = Path::new(name).parent() {
            self.then(parent.to_str().unwrap());
        }
    }

    /// Gives a path the time that the base's files have.
    fn then(&self, name: &str) {
        let times = super::super::place::times(THEN);
        let path = self.path(name);
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    fn whiteout(&self, name: &str) {
        let path = self.path(name);
        let dir = fs::File::open(path.parent().unwrap()).unwrap();
        make_whiteout(dir.as_fd(), path.file_name().unwrap()).unwrap();
        if let Some(parent) = Path::new(name).parent() {
            self.then(parent.to_str().unwrap());
        }
    }

    fn opaque(&self, name: &str) {
        let dir = fs::File::open(self.path(name)).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(dir, super::super::node::OPAQUE_XATTR, b"y", flags).unwrap();
    }

    fn changes(&self, ignore: &[&str]) -> Vec<String> {
        let ignore: Vec<PathBuf> = ignore.iter().map(PathBuf::from).collect();
        let input = DiffInput { upper: &self.upper, lowers: &self.lowers, ignore: &ignore, epoch: None };
        let shown = |change: &Change| {
            let link = change.hardlink.as_ref().map(|to| format!(" = {}", to.display())).unwrap_or_default();
            format!("{:?} {}{link}", change.kind, change.path.display())
        };
        diff(&input).unwrap().iter().map(shown).collect()
    }
}

fn base() -> Vec<RawTar> {
    let bottom = RawTar::default()
        .dir("./")
        .dir("etc/")
        .file("etc/passwd", "root")
        .file("etc/hosts", "localhost")
        .dir("old/")
        .file("old/a", "a")
        .file("old/b", "b")
        .entry(b'2', "link", "etc", b"")
        .dir("gone/")
        .file("gone/x", "x");
    let top = RawTar::default()
        .dir("etc/")
        .file("etc/top", "top")
        .file(".wh.gone", "")
        .dir("old/")
        .file("old/.wh.b", "");
    vec![bottom, top]
}

#[test]
fn an_upper_that_only_copied_things_up_has_no_changes() {
    let fixture = fixture(base());
    fixture.dir("etc");
    fixture.file("etc/passwd", "root");
    symlink("etc", fixture.path("link")).unwrap();
    fixture.then("link");
    assert!(fixture.changes(&[]).is_empty());
}

#[test]
fn content_size_mode_time_target_and_type_are_changes() {
    for (what, change) in [
        ("content", (|f: &Fixture| f.file("etc/passwd", "toor")) as fn(&Fixture)),
        ("size", |f| f.file("etc/passwd", "root\n")),
        ("mode", |f| {
            f.file("etc/passwd", "root");
            fs::set_permissions(f.path("etc/passwd"), fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("time", |f| {
            f.file("etc/passwd", "root");
            let times = super::super::place::times(THEN + 1);
            rustix::fs::utimensat(
                rustix::fs::CWD,
                f.path("etc/passwd"),
                &times,
                rustix::fs::AtFlags::empty(),
            )
            .unwrap();
        }),
        ("type", |f| {
            symlink("root", f.path("etc/passwd")).unwrap();
            f.then("etc/passwd");
            f.then("etc");
        }),
        ("attribute", |f| {
            f.file("etc/passwd", "root");
            let file = fs::File::open(f.path("etc/passwd")).unwrap();
            rustix::fs::fsetxattr(file, c"user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        }),
    ] {
        let fixture = fixture(base());
        fixture.dir("etc");
        change(&fixture);
        assert_eq!(fixture.changes(&[]), ["Parent etc", "Modified etc/passwd"], "{what}");
    }
}

#[test]
fn overlays_own_attributes_are_no_change() {
    let fixture = fixture(base());
    fixture.dir("etc");
    fixture.file("etc/passwd", "root");
    let file = fs::File::open(fixture.path("etc/passwd")).unwrap();
    rustix::fs::fsetxattr(file, c"user.overlay.origin", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    assert!(fixture.changes(&[]).is_empty());
}

#[test]
fn only_what_shows_below_can_be_deleted() {
    let fixture = fixture(base());
    fixture.dir("etc");
    for name in ["etc/passwd", "etc/never", "gone", "link"] {
        fixture.whiteout(name);
    }
    assert_eq!(fixture.changes(&[]), ["Parent etc", "Deleted etc/passwd", "Deleted link"]);
}

#[test]
fn a_replaced_directory_is_what_it_lost_and_gained() {
    let fixture = fixture(base());
    fixture.dir("old");
    fixture.file("old/new", "new");
    fixture.opaque("old");
    assert_eq!(fixture.changes(&[]), ["Parent old", "Deleted old/a", "Added old/new"]);
    fixture.file("old/a", "a");
    assert_eq!(fixture.changes(&[]), ["Parent old", "Added old/new"]);
}

#[test]
fn what_a_lower_layer_deleted_is_new_when_it_comes_back() {
    let fixture = fixture(base());
    fixture.dir("gone");
    fixture.file("gone/x", "x");
    assert_eq!(fixture.changes(&[]), ["Added gone", "Added gone/x"]);
}

#[test]
fn new_names_of_one_file_are_one_file_and_its_links() {
    let fixture = fixture(base());
    fixture.file("b", "content");
    fs::hard_link(fixture.path("b"), fixture.path("c")).unwrap();
    fs::hard_link(fixture.path("b"), fixture.path("a")).unwrap();
    assert_eq!(fixture.changes(&[]), ["Added a", "Added b = a", "Added c = a"]);
}

#[test]
fn a_new_name_of_a_file_below_is_a_file_of_its_own() {
    let fixture = fixture(base());
    fixture.dir("etc");
    fixture.file("etc/passwd", "root");
    fs::hard_link(fixture.path("etc/passwd"), fixture.path("etc/zz")).unwrap();
    fixture.then("etc");
    assert_eq!(fixture.changes(&[]), ["Parent etc", "Added etc/zz"]);
}

#[test]
fn mount_points_are_in_no_layer_and_leave_no_trace() {
    let fixture = fixture(base());
    fixture.dir("proc");
    fixture.file("proc/x", "");
    fixture.dir("etc");
    fs::write(fixture.path("etc/resolv.conf"), "").unwrap();
    let ignore = ["proc", "etc/resolv.conf"];
    assert!(fixture.changes(&ignore).is_empty());
    fixture.file("etc/new", "");
    assert_eq!(fixture.changes(&ignore), ["Parent etc", "Added etc/new"]);
}

#[test]
fn a_time_that_no_layer_says_is_no_change() {
    let fixture = fixture(base());
    fixture.dir("etc");
    fixture.file("etc/hosts", "localhost");
    fixture.file("etc/passwd", "other");
    let differences = |epoch| {
        let input = DiffInput { upper: &fixture.upper, lowers: &fixture.lowers, ignore: &[], epoch };
        let found = differences(&input).unwrap();
        let paths = |changes: &[Change]| {
            changes.iter().map(|change| change.path.display().to_string()).collect::<Vec<_>>()
        };
        (paths(&found.changes), paths(&found.late))
    };
    for path in ["etc/hosts", "etc/passwd"] {
        let times = super::super::place::times(THEN + 9);
        let path = fixture.path(path);
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
    }
    let strings = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    assert_eq!(differences(None), (strings(&["etc", "etc/hosts", "etc/passwd"]), vec![]));
    assert_eq!(differences(Some(THEN)), (strings(&["etc", "etc/passwd"]), strings(&["etc/hosts"])));
    // What is below is from before the epoch: the layer would say another time.
    assert_eq!(differences(Some(THEN + 5)).0, strings(&["etc", "etc/hosts", "etc/passwd"]));
}

#[test]
fn sockets_are_in_no_layer() {
    let fixture = fixture(base());
    let socket = std::os::unix::net::UnixListener::bind(fixture.path("socket")).unwrap();
    assert!(fs::symlink_metadata(fixture.path("socket")).unwrap().file_type().is_socket());
    drop(socket);
    assert!(fixture.changes(&[]).is_empty());
}

#[test]
fn a_name_that_would_mean_a_deletion_is_refused() {
    let fixture = fixture(base());
    fixture.file(".wh.x", "");
    let input = DiffInput { upper: &fixture.upper, lowers: &fixture.lowers, ignore: &[], epoch: None };
    assert!(matches!(diff(&input), Err(DiffError::WhiteoutName(_))));
}

#[test]
fn the_root_changes_by_its_mode_alone() {
    let fixture = fixture(vec![RawTar::default().dir("./")]);
    let chmod = |mode| fs::set_permissions(fixture.path(""), fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o755);
    assert!(fixture.changes(&[]).is_empty());
    chmod(0o700);
    assert_eq!(fixture.changes(&[]), ["Modified "]);
}

#[test]
fn links_to_what_is_outside_are_compared_as_links() {
    let fixture = fixture(vec![RawTar::default().entry(b'2', "d", "/etc", b"")]);
    fs::create_dir(fixture.path("d")).unwrap();
    fs::write(fixture.path("d/passwd"), "x").unwrap();
    assert_eq!(fixture.changes(&[]), ["Modified d", "Added d/passwd"]);
}

#[test]
fn what_no_layer_says_is_taken_out_of_the_upper() {
    let fixture = fixture(base());
    fixture.dir("etc");
    // As it is below, and so the directory is too.
    fixture.file("etc/hosts", "localhost");
    fixture.dir("old");
    fixture.file("old/a", "a");
    fixture.file("old/new", "new");
    fixture.whiteout("old/never-there");
    fixture.whiteout("link");
    fixture.dir("made");
    let said = fixture.changes(&[]);
    assert_eq!(said, ["Deleted link", "Added made", "Parent old", "Added old/new"]);
    let input = DiffInput { upper: &fixture.upper, lowers: &fixture.lowers, ignore: &[], epoch: None };
    super::super::strip(&diff(&input).unwrap(), &fixture.upper).unwrap();
    let left = walkdir::WalkDir::new(fixture.path("")).min_depth(1).sort_by_file_name().into_iter();
    let left: Vec<_> =
        left.map(|entry| entry.unwrap().path().strip_prefix(fixture.path("")).unwrap().to_owned()).collect();
    assert_eq!(left, ["link", "made", "old", "old/new"].map(PathBuf::from));
}

#[test]
fn a_directory_that_was_made_anew_hides_what_its_layer_says_and_nothing_else() {
    let fixture = fixture(base());
    fixture.dir("old");
    fixture.opaque("old");
    fixture.file("old/new", "new");
    let input = DiffInput { upper: &fixture.upper, lowers: &fixture.lowers, ignore: &[], epoch: None };
    let said = diff(&input).unwrap();
    super::super::strip(&said, &fixture.upper).unwrap();
    let expected = ["old/ 755", "old/a whiteout", r#"old/new 644 "new""#];
    assert_eq!(super::super::testing::listing(&fixture.path("")), expected);
    let again = diff(&input).unwrap();
    let paths = |changes: &[Change]| changes.iter().map(|change| change.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&again), paths(&said));
}
