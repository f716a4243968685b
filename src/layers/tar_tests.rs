//! The same changes give the same bytes, and what is written is read back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt as _, symlink};

use super::super::Owners;
use super::super::diff::{DiffInput, diff};
use super::super::testing::{is_root, listing};
use super::super::unpack::{UnpackOptions, unpack_layer};
use super::*;

fn tar_of(dir: &Path, epoch: Option<i64>) -> Vec<u8> {
    let upper = Root::open(dir).unwrap();
    let changes = diff(&DiffInput { upper: &upper, lowers: &[], ignore: &[], epoch: None }).unwrap();
    let mut tar = Vec::new();
    write_tar(&changes, &upper, epoch, &mut tar).unwrap();
    tar
}

fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let deep = dir.path().join("d".repeat(60)).join("e".repeat(60));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("long"), "long path").unwrap();
    fs::write(dir.path().join("grüße"), "utf-8").unwrap();
    fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"latin-\xfc")), "not utf-8").unwrap();
    fs::write(dir.path().join("a"), vec![b'x'; 300_000]).unwrap();
    fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    symlink("x".repeat(200), dir.path().join("link")).unwrap();
    let file = fs::File::open(dir.path().join("a")).unwrap();
    rustix::fs::fsetxattr(&file, c"user.note", b"one\ntwo=2", rustix::fs::XattrFlags::empty()).unwrap();
    dir
}

#[test]
fn what_is_written_is_read_back_by_us_and_by_others() {
    let dir = sample();
    let tar = tar_of(dir.path(), None);
    let back = tempfile::tempdir().unwrap();
    let owners = if is_root() { Owners::Keep } else { Owners::Ignore };
    let options = UnpackOptions { owners, ..UnpackOptions::default() };
    unpack_layer(&tar[..], &Root::open(back.path()).unwrap(), None, &options).unwrap();
    assert_eq!(listing(back.path()), listing(dir.path()));
    assert_eq!(tar_of(back.path(), None), tar, "a tree unpacked from a layer gives that layer again");

    let mut archive = ::tar::Archive::new(&tar[..]);
    let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path_bytes().into_owned()).collect();
    let long = [&b"d".repeat(60)[..], b"/", &b"e".repeat(60), b"/long"].concat();
    assert!(names.contains(&long) && names.contains(&b"latin-\xfc".to_vec()), "{names:?}");
}

#[test]
fn times_are_clamped_and_older_ones_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("new"), "").unwrap();
    fs::write(dir.path().join("old"), "").unwrap();
    let old = super::super::place::times(1000);
    rustix::fs::utimensat(rustix::fs::CWD, dir.path().join("old"), &old, rustix::fs::AtFlags::empty())
        .unwrap();
    let tar = tar_of(dir.path(), Some(2000));
    let mut archive = ::tar::Archive::new(&tar[..]);
    let times: Vec<u64> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path_bytes().len() == 3)
        .map(|entry| entry.header().mtime().unwrap())
        .collect();
    assert_eq!(times, [2000, 1000]);
}

#[test]
fn plain_entries_need_no_extended_headers_and_name_no_users() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("file"), "text").unwrap();
    let tar = tar_of(dir.path(), Some(0));
    assert_eq!(tar.len(), if is_root() { 512 * 2 + 1024 } else { 512 * 3 + 1024 });
    let mut archive = ::tar::Archive::new(&tar[..]);
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header().as_ustar().unwrap();
        assert_eq!((header.username_bytes(), header.groupname_bytes()), (&b""[..], &b""[..]));
    }
}

#[test]
fn deletions_are_whiteout_names() {
    let deleted = Change { path: "etc/x".into(), kind: ChangeKind::Deleted, node: None, hardlink: None };
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Vec::new();
    write_tar(&[deleted], &Root::open(dir.path()).unwrap(), None, &mut tar).unwrap();
    assert!(tar.starts_with(b"etc/.wh.x\0"));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "text").unwrap();
    let upper = Root::open(dir.path()).unwrap();
    let changes = diff(&DiffInput { upper: &upper, lowers: &[], ignore: &[], epoch: None }).unwrap();
    fs::write(dir.path().join("file"), "longer text").unwrap();
    let error = write_tar(&changes, &upper, None, std::io::sink()).unwrap_err();
    assert!(matches!(error, TarError::Changed(_)), "{error}");
}

#[test]
fn numbers_that_ustar_cannot_hold_are_in_pax_records() {
    let (mut header, mut pax) = (new_header(EntryType::Regular), Pax::default());
    set_number(&mut header, 108..116, 0o7_777_777, b"uid", &mut pax);
    assert!(pax.0.is_empty());
    set_number(&mut header, 108..116, 0o10_000_000, b"uid", &mut pax);
    set_number(&mut header, 124..136, 1 << 33, b"size", &mut pax);
    assert_eq!(pax.0, b"15 uid=2097152\n19 size=8589934592\n");
}

#[test]
fn a_tree_made_here_gets_the_times_that_its_layer_says() {
    let dir = sample();
    let upper = Root::open(dir.path()).unwrap();
    let changes = diff(&DiffInput { upper: &upper, lowers: &[], ignore: &[], epoch: None }).unwrap();
    normalize_times(&changes, &upper, Some(2000)).unwrap();
    for path in ["a", "b", "link", "d".repeat(60).as_str()] {
        let found = fs::symlink_metadata(dir.path().join(path)).unwrap();
        assert_eq!((MetadataExt::mtime(&found), found.mtime_nsec()), (2000, 0), "{path}");
    }
}
