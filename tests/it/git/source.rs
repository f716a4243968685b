//! What is read of a commit.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use hephy::git::{Commit, EntryKind};

use super::server::{Client, Server};

/// A repository with one of everything, pushed.
async fn pushed() -> (Server, Client, Commit) {
    let server = Server::start().await;
    let client = Client::new(&server);
    client.write("Dockerfile", "FROM scratch\n");
    client.write("bin/run", "#!/bin/sh\n");
    client.write("media/big.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n");
    client.write("large", vec![7; 20 << 20]);
    std::fs::set_permissions(client.path.join("bin/run"), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink("../../../etc/passwd", client.path.join("bin/link")).unwrap();
    let module = client.commit("é", "é").to_string();
    client.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{module},vendor/lib")]);
    client.git(&["commit", "-q", "-m", "Second\n\nmore"]);
    client.git_async(&["push", "deis", "main"]).await;
    let commit = server.repository.commit(client.id("HEAD")).unwrap();
    (server, client, commit)
}

#[tokio::test]
async fn a_commit_is_described_and_its_files_are_read() {
    let (_server, _client, commit) = pushed().await;
    assert_eq!(commit.author(), "Ada <ada@example.org>");
    assert_eq!(commit.summary(), "Second");
    assert_eq!(commit.time().as_second(), 1_700_000_000);
    assert_eq!(commit.parents().len(), 1);
    let root = commit.root().unwrap();
    let root: Vec<_> = root.iter().map(|entry| (entry.name.to_str().unwrap(), entry.kind)).collect();
    assert_eq!(
        root,
        [
            ("Dockerfile", EntryKind::File),
            ("bin", EntryKind::Directory),
            ("large", EntryKind::File),
            ("media", EntryKind::Directory),
            ("vendor", EntryKind::Directory),
            ("é", EntryKind::File),
        ]
    );
    assert_eq!(commit.list("bin/").unwrap().unwrap().len(), 2);
    assert!(commit.list("none").unwrap().is_none());
    assert_eq!(commit.read("./bin/run", 100).unwrap().unwrap(), b"#!/bin/sh\n");
    for path in ["bin", "bin/link", "bin/../Dockerfile", "none", "Dockerfile/x", "vendor/lib"] {
        assert_eq!(commit.read(path, 100).unwrap(), None, "{path}");
    }
    assert!(commit.read("large", 100).is_err());
}

#[tokio::test]
async fn files_whose_content_is_elsewhere_are_named() {
    let (server, client, commit) = pushed().await;
    let survey = commit.survey().unwrap();
    assert_eq!(survey.submodules, ["vendor/lib"]);
    assert_eq!(survey.lfs_pointers, ["media/big.bin"]);
    assert_eq!(survey.files, 6);
    assert!(survey.bytes > 20 << 20);
    let before = server.repository.commit(client.id("HEAD^")).unwrap();
    assert_eq!(commit.changed_paths(&before, 10).unwrap(), ["vendor/lib"]);
    assert_eq!(before.changed_paths(&commit, 10).unwrap(), ["vendor/lib"]);
    assert!(commit.changed_paths(&commit, 10).unwrap().is_empty());
}

#[tokio::test]
async fn an_export_is_the_tree_with_the_commits_time_and_plain_modes() {
    let (server, client, commit) = pushed().await;
    let directory = server.repository.path().join("export");
    let exported = commit.export(&directory).unwrap();
    assert_eq!(exported.files, 6);
    for (path, mode) in
        [("Dockerfile", 0o644), ("bin/run", 0o755), ("large", 0o644), ("bin", 0o755), ("", 0o755)]
    {
        let metadata = std::fs::symlink_metadata(directory.join(path)).unwrap();
        assert_eq!(metadata.mode() & 0o7777, mode, "{path}");
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_700_000_000, 0), "{path}");
    }
    assert_eq!(std::fs::symlink_metadata(directory.join("bin/link")).unwrap().mtime(), 1_700_000_000);
    assert!(directory.join("vendor/lib").is_dir());
    let same = std::process::Command::new("diff")
        .args(["-r", "--no-dereference", "-x", ".git", "-x", "vendor"])
        .args([&client.path, &directory])
        .output()
        .unwrap();
    assert!(same.status.success(), "{same:?}");
    assert!(commit.export(&directory).is_err(), "a directory that is there is not written to");
}
