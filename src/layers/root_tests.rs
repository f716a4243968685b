//! The suite of escapes, run on both ways to resolve.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

/// A secret outside, and a root with what an attacker can put into it.
fn hostile() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "outside").unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("etc/sub")).unwrap();
    std::fs::write(root.join("etc/passwd"), "inside").unwrap();
    std::fs::write(root.join("secret"), "inside").unwrap();
    for (link, target) in [
        ("absolute", "/etc/passwd"),
        ("climbing", "../../../../etc/passwd"),
        ("up", ".."),
        ("host", dir.path().join("secret").to_str().unwrap()),
        ("loop", "loop"),
        ("ping", "pong"),
        ("pong", "ping"),
        ("etc/sub/back", "../../up/secret"),
        ("run", "/made/by/link"),
        ("magic", "/proc/self/root/secret"),
    ] {
        symlink(target, root.join(link)).unwrap();
    }
    dir
}

fn both(dir: &tempfile::TempDir) -> [Root; 2] {
    let path = dir.path().join("root");
    let kernel = Root::open(&path).unwrap();
    assert!(kernel.kernel, "openat2 is expected where the tests run");
    [kernel, Root::open_walking(&path).unwrap()]
}

#[test]
fn no_path_reads_what_is_outside() {
    let dir = hostile();
    for root in both(&dir) {
        for path in [
            "secret",
            "/secret",
            "../secret",
            "../../../secret",
            "etc/../../secret",
            "up/secret",
            "up/up/secret",
            "etc/sub/back",
            "//secret",
            "./secret",
            "absolute",
            "climbing",
            "/absolute",
        ] {
            let content = root.read(Path::new(path), 100).unwrap();
            assert_eq!(content.as_deref(), Some(&b"inside"[..]), "{path}");
        }
        for path in ["host", "magic", "nothing", "etc/nothing", "nothing/.."] {
            assert_eq!(root.read(Path::new(path), 100).unwrap(), None, "{path}");
        }
    }
}

#[test]
fn a_loop_of_symlinks_is_an_error() {
    let dir = hostile();
    for root in both(&dir) {
        for path in ["loop", "ping", "loop/x"] {
            let RootError::File(error) = root.resolve(Path::new(path)).unwrap_err() else { panic!("{path}") };
            assert_eq!(error.source.raw_os_error(), Some(Errno::LOOP.raw_os_error()), "{path}");
        }
    }
}

#[test]
fn a_file_is_not_a_directory_of_others() {
    let dir = hostile();
    for root in both(&dir) {
        for path in ["secret/x", "secret/..", "absolute/../passwd"] {
            let error = root.resolve(Path::new(path)).unwrap_err();
            assert!(!error.is_not_found(), "{path}: {error}");
        }
    }
}

#[test]
fn the_parent_follows_links_and_the_last_name_does_not() {
    let dir = hostile();
    for root in both(&dir) {
        let (parent, name) = root.resolve_parent(Path::new("etc/sub/../../up/absolute")).unwrap();
        assert_eq!(name, "absolute");
        assert_eq!(Node::at(parent.as_fd(), &name).unwrap().unwrap().kind, Kind::Symlink);
        for path in ["", "/", "..", "etc/..", "."] {
            assert!(matches!(root.resolve_parent(Path::new(path)), Err(RootError::NoName(_))), "{path}");
        }
    }
}

#[test]
fn directories_are_made_inside_whatever_the_links_say() {
    for way in 0..2 {
        let dir = hostile();
        let root = &both(&dir)[way];
        let made = root.create_dirs(Path::new("/run/x"), 0o751, None).unwrap();
        let expected = ["made", "made/by", "made/by/link", "made/by/link/x"];
        assert_eq!(made, expected.map(PathBuf::from));
        let by = std::fs::metadata(dir.path().join("root/made/by")).unwrap();
        assert_eq!(by.permissions().mode() & 0o7777, 0o751);
        assert_eq!(
            root.create_dirs(Path::new("up/../run/x"), 0o700, None).unwrap(),
            [""; 0].map(PathBuf::from)
        );
        let made = root.create_dirs(Path::new("../../new"), 0o755, None).unwrap();
        assert_eq!(made, [PathBuf::from("new")]);
        assert!(!dir.path().join("new").exists());
        assert!(root.create_dirs(Path::new("secret/x"), 0o755, None).is_err());
        assert!(root.create_dirs(Path::new("secret"), 0o755, None).is_err());
    }
}

#[test]
fn a_mount_point_is_made_once_and_never_through_a_link() {
    let dir = hostile();
    for (root, name) in both(&dir).iter().zip(["one", "two"]) {
        let path = Path::new("/up/etc/sub").join(name);
        assert_eq!(root.create_file(&path, 0o644).unwrap(), Some(Path::new("etc/sub").join(name)));
        assert_eq!(root.create_file(&path, 0o644).unwrap(), None);
        assert_eq!(root.create_file(Path::new("host"), 0o644).unwrap(), None);
    }
}

#[test]
fn what_is_not_a_regular_file_is_not_opened() {
    let dir = hostile();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("root/pipe"),
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for root in both(&dir) {
        for path in ["pipe", "etc", "/"] {
            assert!(matches!(root.open_file(Path::new(path)), Err(RootError::NotAFile(_))), "{path}");
        }
        let error = root.read(Path::new("etc/passwd"), 5).unwrap_err();
        assert!(matches!(error, RootError::TooLarge { max_bytes: 5, .. }), "{error}");
    }
}

#[test]
fn removing_takes_links_and_not_what_they_lead_to() {
    let dir = hostile();
    let root = Root::open(&dir.path().join("root")).unwrap();
    symlink(dir.path(), dir.path().join("root/etc/sub/outside")).unwrap();
    remove(root.as_fd(), OsStr::new("etc")).unwrap();
    assert!(!dir.path().join("root/etc").exists());
    assert!(dir.path().join("secret").exists());
}

#[test]
fn a_directory_made_for_nobody_is_of_the_group_of_a_setgid_directory_above_it() {
    use std::os::unix::fs::MetadataExt as _;

    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o2700)).unwrap();
    let root = Root::open(dir.path()).unwrap();
    root.create_dirs(Path::new("nobodys"), 0o755, None).unwrap();
    let metadata = std::fs::metadata(dir.path()).unwrap();
    let own = Owner { uid: metadata.uid(), gid: metadata.gid() };
    root.create_dirs(Path::new("owned"), 0o755, Some(own)).unwrap();
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("nobodys"), mode("owned")), (0o2755, 0o755));
}
