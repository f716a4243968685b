//! What layers become, and what hostile ones do not.

use std::os::unix::fs::{MetadataExt as _, symlink};

use super::super::testing::{RawTar, is_root, listing};
use super::*;

fn options(lowers: &[Root]) -> UnpackOptions<'_> {
    let owners = if is_root() { Owners::Keep } else { Owners::Ignore };
    UnpackOptions { owners, lowers, ..UnpackOptions::default() }
}

/// Unpacks into `outer/tree`, so that what climbs out would be seen in `outer`.
fn unpack_into(outer: &Path, tar: &[u8], walking: bool) -> Result<Unpacked, UnpackError> {
    let tree = outer.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    let root = if walking { Root::open_walking(&tree) } else { Root::open(&tree) };
    unpack_layer(tar, &root.unwrap(), None, &options(&[]))
}

fn unpacked(tar: RawTar) -> (tempfile::TempDir, Result<Unpacked, UnpackError>) {
    let dir = tempfile::tempdir().unwrap();
    let result = unpack_into(dir.path(), &tar.end(), false);
    (dir, result)
}

/// The tree after a layer that is accepted.
fn tree(tar: RawTar) -> Vec<String> {
    let (dir, result) = unpacked(tar);
    result.unwrap();
    listing(&dir.path().join("tree"))
}

/// The reason why a layer is refused, having written nothing outside.
fn refusal(tar: RawTar) -> String {
    let tar = tar.end();
    let mut reasons = [false, true].map(|walking| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("outside"), "untouched").unwrap();
        let error = unpack_into(dir.path(), &tar, walking).unwrap_err();
        assert_eq!(std::fs::read_to_string(dir.path().join("outside")).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "something was written outside");
        error.to_string()
    });
    assert_eq!(reasons[0], reasons[1]);
    std::mem::take(&mut reasons[0])
}

#[test]
fn files_directories_and_links_keep_mode_content_and_time() {
    let tar = RawTar::default()
        .dir("./")
        .dir("bin/")
        .owned(b'0', "bin/su", "", b"root", (0o4755, 0, 0))
        .entry(b'1', "bin/sudo", "bin/su", b"")
        .entry(b'2', "sh", "/bin/su", b"")
        .entry(b'6', "pipe", "", b"");
    let (dir, result) = unpacked(tar);
    let unpacked = result.unwrap();
    assert_eq!((unpacked.entries, unpacked.bytes), (6, 4));
    let tree = dir.path().join("tree");
    let expected =
        ["bin/ 755", r#"bin/su 4755 "root""#, r#"bin/sudo 4755 "root""#, "pipe Fifo 644", "sh -> /bin/su"];
    assert_eq!(listing(&tree), expected);
    for name in ["bin", "bin/su", "sh", "pipe", ""] {
        let found = std::fs::symlink_metadata(tree.join(name)).unwrap();
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000_000, 0), "{name}");
    }
    assert_eq!(std::fs::metadata(tree.join("bin/su")).unwrap().nlink(), 2);
}

#[test]
fn owners_are_kept_by_root() {
    if !is_root() {
        return;
    }
    let tar =
        RawTar::default().owned(b'0', "a", "", b"", (0o600, 7, 8)).owned(b'2', "b", "a", b"", (0o777, 9, 10));
    let (dir, result) = unpacked(tar);
    result.unwrap();
    for (name, owner) in [("a", (7, 8)), ("b", (9, 10))] {
        let found = std::fs::symlink_metadata(dir.path().join("tree").join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), owner);
    }
}

#[test]
fn gzip_zstd_and_plain_give_the_same_tree_and_diff_id() {
    let tar = RawTar::default().file("a", "text").end();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &tar[..700]).unwrap();
    let mut first = gz.finish().unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &tar[700..]).unwrap();
    first.extend(gz.finish().unwrap());
    for bytes in [tar.clone(), first, zstd::encode_all(&tar[..], 3).unwrap()] {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unpack_into(dir.path(), &bytes, false).unwrap().diff_id, Digest::of(&tar));
        assert_eq!(listing(dir.path()), ["tree/ 755", r#"tree/a 644 "text""#]);
    }
}

#[test]
fn a_layer_that_is_not_its_diff_id_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::open(dir.path()).unwrap();
    let mut tar = RawTar::default().file("a", "text").end();
    let diff_id = Digest::of(&tar);
    unpack_layer(&tar[..], &root, Some(&diff_id), &options(&[])).unwrap();
    tar.push(0);
    let error = unpack_layer(&tar[..], &root, Some(&diff_id), &options(&[])).unwrap_err();
    assert!(matches!(error, UnpackError::DiffId { .. }), "{error}");
}

#[test]
fn whiteouts_become_what_overlay_expects() {
    let tar = RawTar::default()
        .dir("etc/")
        .file("etc/.wh.gone", "")
        .dir("var/")
        .file("var/.wh..wh..opq", "")
        .file("var/new", "n")
        .file(".wh..wh.aufs", "");
    assert_eq!(tree(tar), ["etc/ 755", "etc/gone whiteout", "var/ 755 opaque", r#"var/new 644 "n""#]);
}

#[test]
fn a_whiteout_never_hides_what_its_own_layer_has() {
    let before =
        RawTar::default().file(".wh.d", "").file(".wh.f", "").dir("d/").file("d/x", "").file("f", "");
    let after = RawTar::default().dir("d/").file("d/x", "").file("f", "").file(".wh.d", "").file(".wh.f", "");
    let expected = ["d/ 755 opaque", r#"d/x 644 """#, r#"f 644 """#];
    assert_eq!(tree(before), expected);
    assert_eq!(tree(after), expected);
}

#[test]
fn a_layer_cannot_forge_the_marks_of_overlay() {
    let tar = RawTar::default()
        .pax(&[("SCHILY.xattr.user.overlay.opaque", "y"), ("SCHILY.xattr.user.kept", "1")])
        .dir("d/")
        .entry(b'3', "whiteout", "", b"");
    let (dir, result) = unpacked(tar);
    assert_eq!(result.unwrap().skipped, [Path::new("whiteout")]);
    assert_eq!(listing(&dir.path().join("tree")), ["d/ 755 user.kept=1"]);
}

#[test]
fn paths_that_climb_are_refused() {
    for name in ["../outside", "a/../../outside", "/../outside", ".."] {
        assert_eq!(
            refusal(RawTar::default().file(name, "x")),
            format!("entry `{name}` is refused: its path has `..`")
        );
    }
    let long = RawTar::default().entry(b'L', "", "", b"../outside\0").file("short", "x");
    assert_eq!(refusal(long), "entry `../outside` is refused: its path has `..`");
    let pax = RawTar::default().pax(&[("path", "x/../../outside")]).file("short", "x");
    assert_eq!(refusal(pax), "entry `x/../../outside` is refused: its path has `..`");
    let link = RawTar::default().entry(b'1', "a", "../outside", b"");
    assert_eq!(refusal(link), "entry `a` is refused: it links to a path with `..`");
    let whiteout = RawTar::default().file("a/.wh...", "");
    assert_eq!(refusal(whiteout), "entry `a/.wh...` is refused: it deletes no name");
}

#[test]
fn absolute_paths_land_inside() {
    assert_eq!(tree(RawTar::default().file("/etc/x", "x")), ["etc/ 755", r#"etc/x 644 "x""#]);
}

#[test]
fn symlinks_lead_nowhere_but_inside() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "untouched").unwrap();
    let target = outside.to_str().unwrap();
    for (name, link) in [("up", ".."), ("far", target), ("deep", "../../../../../..")] {
        for walking in [false, true] {
            let tar = RawTar::default()
                .entry(b'2', name, link, b"")
                .file(&format!("{name}/file"), "x")
                .file(&format!("{name}/outside/file"), "x")
                .end();
            // Inside, `far` leads to a directory that does not exist: it is made there.
            let inner = tempfile::tempdir_in(dir.path()).unwrap();
            let result = unpack_into(inner.path(), &tar, walking);
            assert!(result.is_ok(), "{name} {result:?}");
            assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "untouched");
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
            assert_eq!(std::fs::read_dir(inner.path()).unwrap().count(), 1);
        }
    }
}

#[test]
fn a_file_replaces_a_symlink_and_is_not_written_through_it() {
    let tar = RawTar::default().file("b", "kept").entry(b'2', "a", "b", b"").file("a", "new");
    assert_eq!(tree(tar), [r#"a 644 "new""#, r#"b 644 "kept""#]);
    let tar = RawTar::default().file("b", "kept").entry(b'1', "a", "b", b"").file("a", "new");
    assert_eq!(tree(tar), [r#"a 644 "new""#, r#"b 644 "kept""#]);
    let tar = RawTar::default()
        .dir("a/")
        .file("a/x", "")
        .file("a", "file now")
        .dir("b/")
        .entry(b'2', "b", "a", b"");
    assert_eq!(tree(tar), [r#"a 644 "file now""#, "b -> a"]);
}

#[test]
fn a_hard_link_reaches_no_file_outside() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("outside"), "untouched").unwrap();
    for walking in [false, true] {
        let tar =
            RawTar::default().entry(b'2', "up", "..", b"").entry(b'1', "stolen", "up/outside", b"").end();
        let error = unpack_into(dir.path(), &tar, walking).unwrap_err();
        assert!(matches!(error, UnpackError::Hardlink { .. }), "{error}");
    }
    let tar = RawTar::default().entry(b'1', "a", "a", b"");
    assert!(tree(tar).is_empty());
}

#[test]
fn damaged_and_ambiguous_archives_are_refused() {
    let differ = RawTar::default().entry(b'L', "", "", b"gnu\0").pax(&[("path", "pax")]).file("own", "x");
    assert_eq!(refusal(differ), "entry `gnu` is refused: a GNU and a PAX header give it different names");
    let zero = RawTar::default().pax(&[("path", "a\0b")]).file("own", "x");
    assert_eq!(refusal(zero), "entry `a\0b` is refused: its name has a zero byte");
    let long = RawTar::default().pax(&[("path", &"a".repeat(300))]).file("own", "x");
    assert!(refusal(long).ends_with("its name is longer than the system allows"));
    let sparse = RawTar::default().pax(&[("GNU.sparse.major", "1")]).file("own", "x");
    assert!(refusal(sparse).contains("it is sparse"));
    let unknown = RawTar::default().entry(b'M', "own", "", b"");
    assert!(refusal(unknown).contains("its type is not one that a layer has"));
    let owner = RawTar::default().pax(&[("uid", "4294967295")]).file("own", "x");
    assert!(refusal(owner).contains("its owner is not a user id"));
    let pax = RawTar::default().entry(b'x', "", "", b"99 path=a\n").file("own", "x");
    assert!(refusal(pax).contains("its PAX records are malformed"));
}

#[test]
fn an_archive_that_ends_early_is_an_error() {
    let whole = RawTar::default().file("a", "some text").0;
    for cut in [100, 515, 520] {
        let dir = tempfile::tempdir().unwrap();
        let error = unpack_into(dir.path(), &whole[..cut], false).unwrap_err();
        assert!(error.to_string().contains("ends in the middle of"), "{cut}: {error}");
    }
    // Without end marks and the last padding, it is complete all the same.
    for cut in [521, 1024] {
        let dir = tempfile::tempdir().unwrap();
        unpack_into(dir.path(), &whole[..cut], false).unwrap();
    }
}

#[test]
fn absurd_sizes_and_numbers_are_refused_before_they_are_read() {
    let mut header = ::tar::Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_size(u64::MAX / 2);
    header.set_entry_type(::tar::EntryType::Regular);
    assert!(refusal(RawTar::default().raw(header.clone(), b"")).starts_with("the archive has more than"));
    header.set_entry_type(::tar::EntryType::XHeader);
    assert_eq!(
        refusal(RawTar::default().raw(header, b"")),
        "the archive has more than 1048576 bytes in one extended header"
    );
    let dir = tempfile::tempdir().unwrap();
    let root = Root::open(dir.path()).unwrap();
    let tar = (0..20).fold(RawTar::default(), |tar, n| tar.file(&n.to_string(), "x")).end();
    let zip = zstd::encode_all(&vec![0_u8; 1 << 20][..], 1).unwrap();
    let limits = Limits { max_entries: 10, ..Limits::default() };
    let error = unpack_layer(&tar[..], &root, None, &UnpackOptions { limits, ..options(&[]) }).unwrap_err();
    assert_eq!(error.to_string(), "the archive has more than 10 entries");
    let limits = Limits { max_bytes: 1 << 16, ..Limits::default() };
    let error = unpack_layer(&zip[..], &root, None, &UnpackOptions { limits, ..options(&[]) }).unwrap_err();
    assert_eq!(error.to_string(), "the archive has more than 65536 bytes");
}

#[test]
fn directories_that_a_layer_does_not_name_are_as_the_layers_below_have_them() {
    let base = tempfile::tempdir().unwrap();
    let tar = RawTar::default().owned(b'5', "tmp/", "", b"", (0o1777, 0, 0)).file("tmp/keep", "k").end();
    let lower = Root::open(base.path()).unwrap();
    unpack_layer(&tar[..], &lower, None, &options(&[])).unwrap();
    let lowers = [lower];
    let dir = tempfile::tempdir().unwrap();
    let root = Root::open(dir.path()).unwrap();
    let tar =
        RawTar::default().file("tmp/x", "x").entry(b'1', "linked", "tmp/keep", b"").file("new/y", "y").end();
    unpack_layer(&tar[..], &root, None, &options(&lowers)).unwrap();
    let expected = [r#"linked 644 "k""#, "new/ 755", r#"new/y 644 "y""#, "tmp/ 1777", r#"tmp/x 644 "x""#];
    assert_eq!(listing(dir.path()), expected);
}

#[test]
fn an_archive_over_files_follows_their_links_inside_and_keeps_their_directories() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
    symlink("usr/bin", dir.path().join("bin")).unwrap();
    let root = Root::open(dir.path()).unwrap();
    let add = |tar: RawTar| unpack_archive(&tar.end()[..], &root, &options(&[]), &|_, _| {});
    add(RawTar::default().dir("./").file("bin/tool", "t")).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("usr/bin/tool")).unwrap(), "t");
    assert!(dir.path().join("bin").is_symlink());
    assert!(add(RawTar::default().file("usr", "file")).is_err());
    let error = add(RawTar::default().file("usr/.wh.bin", "")).unwrap_err();
    assert!(error.to_string().contains("mean deletions"), "{error}");
}
