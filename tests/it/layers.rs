//! Layers on a real overlay, and what they cost.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use hephy::layers::{
    Compression, DiffInput, LayerWriter, Root, UnpackOptions, compress_layer, diff, match_root,
    normalize_times, unpack_layer, write_tar,
};
use rustix::mount::{MountFlags, UnmountFlags};

/// An overlay that is unmounted with the value.
struct Overlay(PathBuf);

impl Overlay {
    /// Mounts the trees in `lowers`, topmost first, and `upper` over them.
    fn mount(at: &Path, lowers: &[&Path], upper: &Path) -> Self {
        let (work, merged) = (at.join("work"), at.join("merged"));
        fs::create_dir_all(&work).unwrap();
        fs::create_dir_all(&merged).unwrap();
        let lowers: Vec<_> = lowers.iter().map(|lower| lower.to_str().unwrap()).collect();
        let options = format!(
            "userxattr,lowerdir={},upperdir={},workdir={}",
            lowers.join(":"),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        Self(merged)
    }

    fn run(&self, script: &str) {
        let status = Command::new("sh").args(["-ec", script]).current_dir(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // What stays mounted after a failed test is no further failure.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::empty());
    }
}

fn tar_of(script: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new("sh").args(["-ec", script]).current_dir(directory.path()).status().unwrap();
    assert!(status.success());
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--numeric-owner", "--mtime=@1000000000", "-cf", "-", "."]);
    tar.current_dir(directory.path()).output().unwrap().stdout
}

fn tree(at: &Path, tar: &[u8], lowers: &[Root]) -> Root {
    fs::create_dir_all(at).unwrap();
    let root = Root::open(at).unwrap();
    unpack_layer(tar, &root, None, &UnpackOptions { lowers, ..UnpackOptions::default() }).unwrap();
    root
}

/// What a step sees of every path: type and mode, owner, size, time, target, content.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let entry = |entry: walkdir::DirEntry| {
        let path = entry.path().strip_prefix(root).unwrap().to_owned();
        let found = entry.path().symlink_metadata().unwrap();
        let content = if found.is_file() { fs::read_to_string(entry.path()).unwrap() } else { String::new() };
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let size = if found.is_dir() { 0 } else { found.len() };
        let text = format!(
            "{:o} {}:{} {size} {}.{} {} {content}",
            found.mode(),
            found.uid(),
            found.gid(),
            found.mtime(),
            found.mtime_nsec(),
            target.display()
        );
        (path, text)
    };
    walkdir::WalkDir::new(root).min_depth(1).into_iter().map(|found| entry(found.unwrap())).collect()
}

const BASE: &str = "
    mkdir -p etc old/deep gone usr/lib tmp keep
    chmod 1777 tmp
    echo root > etc/passwd; echo hosts > etc/hosts; echo lock > etc/lock; echo sh > etc/shadow; chmod 600 etc/shadow
    ln etc/passwd etc/passwd-; echo a > old/a; echo x > old/deep/x; echo g > gone/g; ln -s usr/lib lib
    echo kept > keep/kept; echo m > usr/lib/moved; chown 7:8 usr/lib/moved
";

const STEP: &str = "
    rm -rf old gone; mkdir old; echo new > old/new
    rm etc/hosts; echo ada >> etc/passwd
    : <> etc/lock; chmod 644 etc/shadow
    ln usr/lib/moved usr/lib/second; echo one > one; ln one two
    mv usr/lib/moved tmp/moved; rm lib; mkdir lib; echo file > lib/file
    mkdir -m 2750 private; mkfifo private/pipe; chown 5:6 private
    touch -d @1000000000 keep keep/kept
";

#[test]
fn a_step_on_an_overlay_becomes_a_layer_that_shows_the_same() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let at = tempfile::tempdir().unwrap();
    let path = |name: &str| at.path().join(name);
    let lowers = [tree(&path("base"), &tar_of(BASE), &[])];
    fs::create_dir(path("upper")).unwrap();
    let upper = Root::open(&path("upper")).unwrap();
    match_root(&upper, &lowers, hephy::layers::Owners::Keep).unwrap();

    let overlay = Overlay::mount(&path("one"), &[&path("base")], &path("upper"));
    overlay.run(STEP);
    drop(overlay);
    let changes = diff(&DiffInput { upper: &upper, lowers: &lowers, ignore: &[], epoch: None }).unwrap();
    let shown: Vec<_> =
        changes.iter().map(|change| format!("{:?} {}", change.kind, change.path.display())).collect();
    for expected in [
        "Deleted gone",
        "Deleted old/a",
        "Deleted old/deep",
        "Added old/new",
        "Deleted etc/hosts",
        "Modified etc/passwd",
        "Modified etc/shadow",
        "Modified lib",
        "Added lib/file",
        "Added one",
        "Added two",
        "Added private/pipe",
        "Deleted usr/lib/moved",
        "Added usr/lib/second",
        "Added tmp/moved",
    ] {
        assert!(shown.contains(&expected.to_owned()), "{expected} is not in {shown:?}");
    }
    for path in ["etc/lock", "etc/passwd-", "keep/kept", "keep"] {
        assert!(
            !shown.iter().any(|line| line.ends_with(&format!(" {path}"))),
            "{path} did not change: {shown:?}"
        );
    }

    let epoch = Some(1_500_000_000);
    let mut layer = Vec::new();
    write_tar(&changes, &upper, epoch, &mut layer).unwrap();
    normalize_times(&changes, &upper, epoch).unwrap();
    tree(&path("layer"), &layer, &lowers);
    fs::create_dir(path("fresh")).unwrap();
    let made = Overlay::mount(&path("one"), &[&path("upper"), &path("base")], &path("fresh"));
    fs::create_dir(path("fresh2")).unwrap();
    let pulled = Overlay::mount(&path("two"), &[&path("layer"), &path("base")], &path("fresh2"));
    assert_eq!(
        seen(&pulled.0),
        seen(&made.0),
        "the tree that a step left and the one unpacked from its layer"
    );
}

/// A stream of numbers, as compressible as programs are.
struct Numbers {
    left: u64,
    state: u32,
}

impl Read for Numbers {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        for chunk in buffer[..count].chunks_mut(4) {
            self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let word = if self.state & 0x3000 == 0 { self.state } else { self.state & 0x0f0f_0000 };
            chunk.copy_from_slice(&word.to_be_bytes()[..chunk.len()]);
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
#[ignore = "measures; run alone: cargo test --release --test it layers::the_pipeline -- --ignored --nocapture"]
fn the_pipeline_of_a_500_mb_layer_stays_below_64_mib() {
    let before = peak_kib();
    for name in ["gzip", "zstd"] {
        let compression: Compression = name.parse().unwrap();
        let started = Instant::now();
        let source = Numbers { left: 500 << 20, state: 1 };
        let layer = compress_layer(source, std::io::sink(), compression).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        println!("{name}: {:.0} MB/s, {} bytes of 524288000", 524.288 / seconds, layer.size);
    }
    println!("peak {} KiB, {} KiB before", peak_kib(), before);
    assert!(peak_kib() < 64 << 10);
}

#[test]
#[ignore = "measures: cargo test --release --test it layers::a_base -- --ignored --nocapture"]
fn a_base_of_100_000_files_is_unpacked_and_compared() {
    let at = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(LayerWriter::new(Vec::new(), Compression::default()).unwrap());
    for number in 0..100_000 {
        let mut header = tar::Header::new_ustar();
        let content = format!("file {number}\n").repeat(20);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        builder
            .append_data(&mut header, format!("usr/{}/{number}", number / 100), content.as_bytes())
            .unwrap();
    }
    let (_, blob) = builder.into_inner().unwrap().finish().unwrap();
    let started = Instant::now();
    let root = tree(&at.path().join("base"), &blob, &[]);
    let ours = started.elapsed();
    let peer_at = at.path().join("peer");
    fs::create_dir(&peer_at).unwrap();
    let started = Instant::now();
    let mut peer = Command::new("tar")
        .args(["-xzf", "-"])
        .current_dir(&peer_at)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    peer.stdin.take().unwrap().write_all(&blob).unwrap();
    assert!(peer.wait().unwrap().success());
    println!("unpack 100,000 files: {ours:.2?}; GNU tar and gzip: {:.2?}", started.elapsed());

    fs::create_dir(at.path().join("upper")).unwrap();
    let upper = Root::open(&at.path().join("upper")).unwrap();
    fs::create_dir_all(at.path().join("upper/usr/5")).unwrap();
    fs::write(at.path().join("upper/usr/5/new"), "new").unwrap();
    let started = Instant::now();
    let changes = diff(&DiffInput { upper: &upper, lowers: &[root], ignore: &[], epoch: None }).unwrap();
    println!("diff of one file on it: {:.3?}, {} changes", started.elapsed(), changes.len());
}
