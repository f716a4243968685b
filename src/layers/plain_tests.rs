//! A plain root against trees made by hand: the changes found in what was gathered are those that were made.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::super::diff::{ChangeKind, DiffInput, diff};
use super::super::testing::{RawTar, is_root, listing};
use super::super::unpack::{UnpackOptions, unpack_layer};
use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    lowers: Vec<Root>,
    plain: PlainRoot,
}

fn fixture(files: LaidFiles, layers: Vec<RawTar>) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let mut lowers: Vec<Root> = Vec::new();
    let make = |name: &str| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
        Root::open(&dir.path().join(name)).unwrap()
    };
    let mut plain = PlainRoot::new(make("root"), files);
    for (number, layer) in layers.into_iter().enumerate() {
        let root = make(&number.to_string());
        let options = UnpackOptions { lowers: &lowers, ..UnpackOptions::default() };
        unpack_layer(&layer.end()[..], &root, None, &options).unwrap();
        plain.lay(&root).unwrap();
        lowers.insert(0, root);
    }
    Fixture { dir, lowers, plain }
}

fn base() -> RawTar {
    let tar = RawTar::default().dir("a").file("a/one", "1\n").file("a/two", "2\n").dir("a/deep");
    let tar = tar.file("a/deep/file", "deep").dir("b").file("b/one", "9\n").dir("b/deep");
    tar.file("b/deep/file", "DEEP").file("name", "shared").entry(b'1', "other", "name", b"")
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    /// What is found changed by `step`, one line each.
    fn changes(&mut self, step: impl FnOnce(&dyn Fn(&str) -> PathBuf)) -> Vec<String> {
        self.changes_found(Look::Everywhere, step)
    }

    fn changes_found(&mut self, look: Look, step: impl FnOnce(&dyn Fn(&str) -> PathBuf)) -> Vec<String> {
        let marker = self.dir.path().join("marker");
        fs::write(&marker, "").unwrap();
        let metadata = fs::metadata(&marker).unwrap();
        step(&|name| self.path(name));
        let upper = self.dir.path().join("upper");
        if upper.exists() {
            fs::remove_dir_all(&upper).unwrap();
        }
        fs::create_dir(&upper).unwrap();
        let upper = Root::open(&upper).unwrap();
        let since = (metadata.ctime(), metadata.ctime_nsec());
        self.plain.gather(since, look, &self.lowers, &upper).unwrap();
        let changes =
            diff(&DiffInput { upper: &upper, lowers: &self.lowers, ignore: &[], epoch: None }).unwrap();
        let shown = changes.iter().filter(|change| !change.path.as_os_str().is_empty()).map(|change| {
            let kind = match change.kind {
                ChangeKind::Added => "+",
                ChangeKind::Modified => "!",
                ChangeKind::Deleted => "-",
                ChangeKind::Parent => "/",
            };
            format!("{kind}{}", change.path.display())
        });
        shown.collect()
    }
}

#[test]
fn layers_laid_over_one_another_are_what_an_overlay_shows() {
    if !is_root() {
        return;
    }
    let top = RawTar::default().file("a/.wh.one", "").dir("b").file("b/.wh..wh..opq", "").file("b/new", "n");
    let top = top.file(".wh.other", "").file("a/two", "two").entry(b'2', "a/deep", "two", b"");
    for files in [LaidFiles::Copied, LaidFiles::Linked] {
        let fixture = fixture(files, vec![base(), top_copy(&top)]);
        let found = listing(&fixture.path(""));
        let expected = [
            "a/ 755",
            "a/deep -> two",
            "a/two 644 \"two\"",
            "b/ 755",
            "b/new 644 \"n\"",
            "name 644 \"shared\"",
        ];
        assert_eq!(found, expected, "{files:?}");
    }
}

fn top_copy(tar: &RawTar) -> RawTar {
    RawTar(tar.0.clone())
}

#[test]
fn changes_of_every_kind_are_found() {
    if !is_root() {
        return;
    }
    let mut fixture = fixture(LaidFiles::Copied, vec![base()]);
    let found = fixture.changes(|path| {
        fs::write(path("a/one"), "changed").unwrap();
        fs::remove_file(path("a/two")).unwrap();
        fs::set_permissions(path("b/one"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink("x", path("link")).unwrap();
        fs::create_dir_all(path("new/deep")).unwrap();
        fs::write(path("new/deep/file"), "").unwrap();
    });
    let expected = ["!a", "!a/one", "-a/two", "/b", "!b/one", "+link", "+new", "+new/deep", "+new/deep/file"];
    assert_eq!(found, expected);
}

#[test]
fn a_step_that_changes_nothing_changes_nothing() {
    if !is_root() {
        return;
    }
    let mut fixture = fixture(LaidFiles::Copied, vec![base()]);
    let found = fixture.changes(|path| {
        let time = fs::metadata(path("a/one")).unwrap().modified().unwrap();
        fs::write(path("a/one"), "1\n").unwrap();
        fs::File::open(path("a/one")).unwrap().set_modified(time).unwrap();
    });
    assert_eq!(found, [""; 0]);
}

/// The files have old times and equal sizes; only the directories say that they are others.
#[test]
fn directories_that_change_places_are_found_with_all_they_hold() {
    if !is_root() {
        return;
    }
    let mut fixture = fixture(LaidFiles::Copied, vec![base()]);
    let found = fixture.changes(|path| {
        fs::rename(path("a/deep"), path("aside")).unwrap();
        fs::rename(path("b/deep"), path("a/deep")).unwrap();
        fs::rename(path("aside"), path("b/deep")).unwrap();
    });
    assert_eq!(found, ["!a", "/a/deep", "!a/deep/file", "!b", "/b/deep", "!b/deep/file"]);
    let found = fixture.changes(|path| fs::rename(path("a"), path("c")).unwrap());
    assert!(found.contains(&"-a".to_owned()) && found.contains(&"+c/deep/file".to_owned()), "{found:?}");
}

#[test]
fn writing_one_name_of_a_file_leaves_the_other() {
    if !is_root() {
        return;
    }
    let mut fixture = fixture(LaidFiles::Copied, vec![base()]);
    let found = fixture.changes(|path| fs::write(path("name"), "written").unwrap());
    assert_eq!(found, ["!name"]);
    // Also for names that a step has given: the next step would find them apart on an overlay.
    let mut fixture = self::fixture(LaidFiles::Copied, vec![base()]);
    let found = fixture.changes(|path| fs::hard_link(path("a/one"), path("a/link")).unwrap());
    assert_eq!(found, ["!a", "+a/link"]);
    fs::write(fixture.path("a/link"), "written").unwrap();
    assert_eq!(fs::read_to_string(fixture.path("a/one")).unwrap(), "1\n");
}

#[test]
fn a_root_of_links_leaves_the_trees_as_they_are() {
    if !is_root() {
        return;
    }
    let mut fixture = fixture(LaidFiles::Linked, vec![base()]);
    let found = fixture.changes_found(Look::WhereNamesChanged, |path| {
        fs::remove_file(path("a/one")).unwrap();
        fs::write(path("a/one"), "new").unwrap();
        fs::create_dir_all(path("a/deep/new/er")).unwrap();
        fs::set_permissions(path("b/deep"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_file(path("name")).unwrap();
    });
    let expected = ["!a", "!a/one", "!a/deep", "+a/deep/new", "+a/deep/new/er", "/b", "!b/deep", "-name"];
    let mut expected = expected.map(ToOwned::to_owned);
    expected.sort_by(|one, other| one[1..].cmp(&other[1..]));
    assert_eq!(found, expected);
    // What came is known from now on.
    let found = fixture.changes_found(Look::WhereNamesChanged, |path| {
        fs::write(path("a/deep/new/file"), "").unwrap();
        fs::remove_dir_all(path("b")).unwrap();
    });
    assert!(found.contains(&"+a/deep/new/file".to_owned()) && found.contains(&"-b".to_owned()), "{found:?}");
    assert_eq!(fs::read_to_string(fixture.dir.path().join("0/a/one")).unwrap(), "1\n");
}
