//! An image with a shell and a web server, for both architectures of the cluster: busybox of Debian.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use hephy::model::{PlatformImage, PublishedIndex};
use hephy::oci::{
    Descriptor, Digest, Host, ImageConfig, Index, Manifest, MediaType, Platform, RawManifest, Repository,
    Target,
};
use hephy::registry::client::{BlobSource, Client};

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// The program of each architecture, fetched once and kept beside what is built.
static PROGRAMS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| ARCHITECTURES.map(program));

/// Pushes the image as `hephy-test/web` of `host`.
pub(super) async fn push(client: &Client, host: &Host) -> PublishedIndex {
    let repository = "hephy-test/web";
    let to: Repository = format!("{host}/{repository}").parse().unwrap();
    let programs = tokio::task::spawn_blocking(|| &*PROGRAMS).await.unwrap();
    let (mut images, mut children) = (Vec::new(), Vec::new());
    for (architecture, program) in ARCHITECTURES.iter().zip(programs) {
        let platform: Platform = format!("linux/{architecture}").parse().unwrap();
        let manifest = image(client, &to, &platform, program).await;
        images.push(PlatformImage {
            platform: platform.clone(),
            manifest: manifest.digest(),
            size_bytes: 0,
            layers: 1,
            new_layers: 0,
            steps: Vec::new(),
        });
        children.push((platform, manifest.descriptor()));
    }
    let index = RawManifest::index(&Index::of_platforms(children).unwrap());
    client.push_manifest(&to, &Target::Digest(index.digest()), &index).await.unwrap();
    PublishedIndex { digest: index.digest(), repository: repository.to_owned(), images }
}

async fn image(client: &Client, to: &Repository, platform: &Platform, program: &[u8]) -> RawManifest {
    let tar = layer(program);
    let mut config = ImageConfig::new(platform);
    config.config.env = vec!["PATH=/bin".to_owned()];
    config.config.cmd = Some(vec!["/bin/sh".to_owned()]);
    config.rootfs.diff_ids.push(Digest::of(&tar));
    let layer = zstd::encode_all(tar.as_slice(), 3).unwrap();
    let layers = vec![Descriptor::of(MediaType::LayerTarZstd, &layer)];
    let config = config.to_bytes();
    let manifest = Manifest::image(Descriptor::of(MediaType::ImageConfig, &config), layers);
    let manifest = RawManifest::image(&manifest);
    client.push_blob(to, BlobSource::bytes(layer), &[]).await.unwrap();
    client.push_blob(to, BlobSource::bytes(config), &[]).await.unwrap();
    client.push_manifest(to, &Target::Digest(manifest.digest()), &manifest).await.unwrap();
    manifest
}

/// A root with a shell and `httpd`, and what it serves.
fn layer(program: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut file = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content).unwrap();
    };
    file("bin/busybox", program);
    let head = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'";
    file("www/cgi-bin/release", format!("{head}\necho $HEPHY_RELEASE\n").as_bytes());
    file("www/cgi-bin/env", format!("{head}\nenv\n").as_bytes());
    // The server of this connection and the one that it is of: no answer, since the head would be one. They are not told
    // by their name, which is another where programs are emulated.
    file(
        "www/cgi-bin/end",
        b"#!/bin/sh\nread pid name state parent rest </proc/$PPID/stat\nkill -9 $parent $PPID\n",
    );
    for applet in ["sh", "httpd", "sleep", "env", "echo", "tail", "uname"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    tar.into_inner().unwrap()
}

fn program(architecture: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let kept = directory.join(format!("busybox-{architecture}"));
    if !kept.exists() {
        let archive = directory.join(format!("busybox-{architecture}-{}.tar", std::process::id()));
        let status = Command::new("mmdebstrap")
            .args(["--quiet", "--variant=extract", "--include=busybox-static"])
            .arg(format!("--architectures={architecture}"))
            .args([Path::new("bookworm"), &archive])
            .status();
        assert!(status.unwrap().success(), "needs mmdebstrap and Debian's archive");
        let new = extract(&archive);
        std::fs::rename(new, &kept).unwrap();
        std::fs::remove_file(archive).unwrap();
    }
    std::fs::read(kept).unwrap()
}

fn extract(archive: &Path) -> PathBuf {
    let to = archive.with_extension("program");
    let mut entries = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let mut found = entries.entries().unwrap().filter_map(Result::ok);
    let is_it = |path: &Path| path.ends_with("bin/busybox");
    let mut program = found.find(|entry| is_it(&entry.path().unwrap())).unwrap();
    std::io::copy(&mut program, &mut std::fs::File::create(&to).unwrap()).unwrap();
    to
}
