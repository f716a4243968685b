//! A base image for these tests: Debian's static busybox, as an OCI image layout made once.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tar::EntryType::{Directory, Regular, Symlink};

use crate::ordinary_user;

use hephy::oci::{Descriptor, Digest, ImageConfig, Index, Manifest, MediaType, Platform, RawManifest};

/// The layout, with the image `busybox:1`.
pub(crate) fn layout() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap().keep();
        write(&directory, "busybox:1", &rootfs(), &[]);
        directory
    })
}

/// Adds an image of one layer to a layout.
pub(crate) fn write(directory: &Path, name: &str, tar: &[u8], triggers: &[&str]) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(tar).unwrap();
    let layer = gzip.finish().unwrap();
    put(&layer);
    let mut config = ImageConfig::new(&Platform::native());
    config.config.env = vec!["PATH=/bin".to_owned()];
    config.config.cmd = Some(vec!["sh".to_owned()]);
    config.config.on_build = triggers.iter().map(|text| (*text).to_owned()).collect();
    config.rootfs.diff_ids = vec![Digest::of(tar)];
    let config = config.to_bytes();
    put(&config);
    let config = Descriptor::of(MediaType::ImageConfig, &config);
    let manifest = Manifest::image(config, vec![Descriptor::of(MediaType::LayerTarGzip, &layer)]);
    let manifest = RawManifest::image(&manifest);
    put(manifest.bytes());
    let mut entry = manifest.descriptor();
    entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), name.to_owned());
    let index = Index {
        schema_version: 2,
        media_type: Some(MediaType::ImageIndex),
        artifact_type: None,
        manifests: vec![entry],
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    fs::write(directory.join("index.json"), RawManifest::index(&index).bytes()).unwrap();
}

/// A root file system with busybox, two users and little else.
pub(crate) fn rootfs() -> Vec<u8> {
    let busybox = fs::read(busybox()).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, content: &[u8], link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_500_000_000);
        header.set_size(content.len() as u64);
        if link.is_empty() {
            tar.append_data(&mut header, name, content).unwrap();
        } else {
            tar.append_link(&mut header, name, link).unwrap();
        }
    };
    for (name, mode) in [("bin", 0o755), ("etc", 0o755), ("home", 0o755), ("root", 0o700), ("tmp", 0o1777)] {
        add(name, Directory, mode, b"", "");
    }
    add("bin/busybox", Regular, 0o755, &busybox, "");
    let list = Command::new(self::busybox()).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(list).unwrap().lines().filter(|applet| *applet != "busybox") {
        add(&format!("bin/{applet}"), Symlink, 0o777, b"", "busybox");
    }
    add("etc/passwd", Regular, 0o644, b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", "");
    add("etc/group", Regular, 0o644, b"root:x:0:\napp:x:1000:\nstaff:x:50:app\n", "");
    tar.into_inner().unwrap()
}

/// A static busybox, of Debian's package.
pub(crate) fn busybox() -> PathBuf {
    let kept =
        ordinary_user::busybox().unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("busybox"));
    if kept.exists() {
        return kept;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    };
    run("apt-get", &["download", "-q", "busybox-static"]);
    run("sh", &["-c", "dpkg-deb -x busybox-static*.deb ."]);
    fs::rename(directory.path().join("bin/busybox"), &kept).unwrap();
    kept
}
