//! Certificates that RUN trusts beside the image's own (`--ca-bundle`), and that no image keeps.
//!
//! They are written into the image's bundle before a step and cut out of it after the step, and named by the variables that
//! programs know. They are not mounted over the bundle: whoever installs or upgrades `ca-certificates` in the step renames a
//! new file onto it, which a mount point refuses. A bundle that the step puts there gets them too, while the step runs, and
//! loses them as well. `lore/0023` has the reasons. The stores of JDKs are written over and given back in the same way.

mod java;
mod keystore;
mod watch;

use std::fs::{File, FileTimes, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use java::Stores;
pub(in crate::build) use watch::Watch;

use crate::build::worker::WorkerError;
use crate::layers::{Root, RootError};
use crate::model::Secret;
use crate::sandbox::{Access, Mount, MountSource};

/// Where distributions keep the bundle that their programs read.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What names a bundle to a program.
const VARIABLES: [&str; 13] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
    "DENO_CERT",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
];

/// What a package manager calls a file when it finds one that it did not write in its place.
const SET_ASIDE: [&str; 2] = ["apk-new", "rpmnew"];

/// The largest bundle that is read; those of distributions have a quarter of a megabyte.
const MAX_BUNDLE_BYTES: u64 = 8 << 20;

/// Where the step sees the bundle that the variables name.
const SEEN_AT: &str = "/run/hephy/ca-bundle.crt";

/// The variables that the image does not set itself.
pub(in crate::build) fn variables(is_set: impl Fn(&str) -> bool) -> impl Iterator<Item = (String, String)> {
    let unset = VARIABLES.into_iter().filter(move |name| !is_set(name));
    unset.map(|name| (name.to_owned(), SEEN_AT.to_owned()))
}

/// The certificates of a PEM file, and nothing else that is in it; none if there are none.
#[must_use]
pub fn certificates(pem: &str) -> Option<String> {
    let blocks = blocks(pem);
    let lines: String = blocks.iter().flat_map(|block| [block.trim_end(), "\n"]).collect();
    (!blocks.is_empty()).then_some(lines)
}

/// Certificates as they are without PEM.
fn encoded(pem: &str) -> Vec<Vec<u8>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().map(|certificate| certificate.to_vec()).collect()
}

fn blocks(pem: &str) -> Vec<&str> {
    const KINDS: [(&str, &str); 2] = [
        ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"),
        ("-----BEGIN TRUSTED CERTIFICATE-----", "-----END TRUSTED CERTIFICATE-----"),
    ];
    let mut found = Vec::new();
    let mut rest = pem;
    while let Some(begin) = KINDS.iter().filter_map(|(begin, end)| Some((rest.find(begin)?, end))).min() {
        let (from, end) = begin;
        let Some(until) = rest.get(from..).and_then(|tail| tail.find(end)) else { break };
        let until = from + until + end.len();
        found.extend(rest.get(from..until));
        rest = rest.get(until..).unwrap_or_default();
    }
    found
}

/// Certificates that are in an image's bundles for the time of a step.
pub(in crate::build) struct Laid {
    /// What the variables name: what the image trusts, and more.
    bundle: String,
    added: Added,
    files: Vec<LaidFile>,
    /// What had to be made, outermost first.
    made: Vec<Made>,
    java: Stores,
}

/// A file or directory that was made, and the time of what it is in, before and after that.
struct Made {
    path: PathBuf,
    before: Option<SystemTime>,
    after: Option<SystemTime>,
}

/// What is added to each bundle: it begins with a line's end, so that it can be cut out to the byte.
#[derive(Clone)]
struct Added(Vec<u8>);

struct LaidFile {
    /// Without links.
    path: PathBuf,
    /// If it was there: what was in it, its time, and which file it is.
    before: Option<(Vec<u8>, SystemTime, u64)>,
    /// What package managers had set aside already.
    aside: Vec<PathBuf>,
}

impl Laid {
    /// Adds certificates to the bundles of an image; an image without any gets the first that it has a place for.
    pub(in crate::build) fn lay(root: &Root, certificates: &str) -> Result<Self, WorkerError> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for bundle in BUNDLES {
            if let Ok(path) = root.canonical(Path::new(bundle))
                && !paths.contains(&path)
                && root.open_file(&path).is_ok()
            {
                paths.push(path);
            }
        }
        let mut laid = Self {
            bundle: certificates.to_owned(),
            added: Added(format!("\n{certificates}").into_bytes()),
            files: Vec::new(),
            made: Vec::new(),
            java: Stores::default(),
        };
        for path in paths {
            let Some(content) = left(root, &path, MAX_BUNDLE_BYTES)? else { continue };
            if laid.files.is_empty() {
                laid.bundle = joined(&String::from_utf8_lossy(&content), certificates);
            }
            laid.write_over(root, path, content).map_err(WorkerError::Trust)?;
        }
        if laid.files.is_empty() {
            laid.make(root)?;
        }
        Ok(laid)
    }

    /// Adds the certificates to the stores of the image's JDKs, too.
    pub(in crate::build) fn with_java(
        mut self,
        root: &Root,
        certificates: &str,
        java_home: Option<&str>,
    ) -> Result<Self, WorkerError> {
        // What the variables name has the image's own and ours.
        self.java = Stores::lay(root, java_home, encoded(certificates), &encoded(&self.bundle))?;
        Ok(self)
    }

    /// The bundle that the variables name.
    pub(in crate::build) fn mount(&self) -> Mount {
        let content = Secret::new(self.bundle.as_bytes().to_vec());
        Mount {
            target: PathBuf::from(SEEN_AT),
            source: MountSource::File { content, mode: 0o444, uid: 0, gid: 0 },
            access: Access::ReadOnly,
        }
    }

    fn write_over(&mut self, root: &Root, path: PathBuf, content: Vec<u8>) -> io::Result<()> {
        let aside = set_aside(root, &path);
        let mut file = writable(root, &path)?;
        let modified = file.metadata()?.modified()?;
        file.seek(io::SeekFrom::End(0))?;
        file.write_all(&self.added.0)?;
        // On an overlay it is another file once it is written to.
        let inode = file.metadata()?.ino();
        self.files.push(LaidFile { path, before: Some((content, modified, inode)), aside });
        Ok(())
    }

    /// Makes a bundle where there is none: where its directory is, else where Debian has it.
    fn make(&mut self, root: &Root) -> Result<(), WorkerError> {
        if root.subroot(Path::new("/etc")).is_err() {
            return Ok(());
        }
        let directories = BUNDLES[..4].iter().map(|bundle| Path::new(*bundle));
        let has_place = |bundle: &&Path| bundle.parent().is_some_and(|parent| root.subroot(parent).is_ok());
        let bundle = directories.clone().find(has_place).unwrap_or(Path::new(BUNDLES[0]));
        let parent = bundle.parent().unwrap_or(bundle);
        // Their times as they are before anything is made in them.
        let above: Vec<_> = bundle
            .ancestors()
            .filter_map(|path| path.strip_prefix("/").ok())
            .map(|path| (path.to_owned(), time_around(root, path)))
            .collect();
        let before = |path: &Path| above.iter().find(|(known, _)| known == path).and_then(|(_, time)| *time);
        for path in root.create_dirs(parent, 0o755, None)? {
            self.made.push(Made { before: before(&path), after: None, path });
        }
        let path = root.canonical_parent(bundle)?.join(bundle.file_name().unwrap_or_default());
        let around = time_around(root, &path);
        if let Some(path) = root.create_file(&path, 0o644)? {
            let aside = set_aside(root, &path);
            let mut file = writable(root, &path).map_err(WorkerError::Trust)?;
            file.write_all(&self.added.0).map_err(WorkerError::Trust)?;
            self.made.push(Made { path: path.clone(), before: around, after: None });
            self.files.push(LaidFile { path, before: None, aside });
        }
        for made in &mut self.made {
            made.after = time_around(root, &made.path);
        }
        Ok(())
    }

    /// Leaves the bundles as the step wanted them: without what was added.
    pub(in crate::build) fn take_back(self, root: &Root) -> Result<(), WorkerError> {
        self.java.take_back(root)?;
        for file in &self.files {
            self.clean(root, file)?;
        }
        for made in self.made.iter().rev() {
            // What the step has put something into, or has put there itself, stays.
            self.remove(root, &made.path, AtFlags::REMOVEDIR);
        }
        Ok(())
    }

    /// Removes what was made, and its trace in the directory around it, if nobody else has changed that.
    fn remove(&self, root: &Root, path: &Path, flags: AtFlags) {
        let Ok((parent, name)) = root.resolve_parent(path) else { return };
        let Some(made) = self.made.iter().find(|made| made.path == path) else { return };
        let unchanged = time_around(root, path) == made.after;
        if rustix::fs::unlinkat(&parent, &name, flags).is_ok()
            && unchanged
            && let Some(before) = made.before
            && let Ok(around) = root.subroot(path.parent().unwrap_or(path))
        {
            // A directory whose time is another is in the layer, and nothing else is wrong.
            drop(File::from(around.into_fd()).set_times(FileTimes::new().set_modified(before)));
        }
    }

    fn clean(&self, root: &Root, file: &LaidFile) -> Result<(), WorkerError> {
        for aside in set_aside(root, &file.path).iter().filter(|aside| !file.aside.contains(aside)) {
            // A package manager thought that ours was the administrator's.
            if let (Ok((parent, name)), Some(to)) = (root.resolve_parent(aside), file.path.file_name()) {
                rustix::fs::renameat(&parent, &name, &parent, to)
                    .map_err(|errno| WorkerError::Trust(errno.into()))?;
            }
        }
        let Some(content) = left(root, &file.path, 2 * MAX_BUNDLE_BYTES)? else { return Ok(()) };
        let Some(left) = self.added.cut_out_of(&content) else { return Ok(()) };
        if left.is_empty() && file.before.is_none() {
            self.remove(root, &file.path, AtFlags::empty());
            return Ok(());
        }
        file.write(root, &left).map_err(WorkerError::Trust)
    }

    /// Adds the certificates to bundles that a step makes, as long as the result lives.
    pub(in crate::build) fn watch(&self, root: &Root) -> Option<Watch> {
        let watch = Watch::start(self, root);
        if let Err(error) = &watch {
            // The variables name the certificates all the same.
            tracing::debug!(%error, "bundles that the step makes are not added to");
        }
        watch.ok()
    }
}

impl LaidFile {
    /// Makes `content` what is in it.
    fn write(&self, root: &Root, content: &[u8]) -> io::Result<()> {
        let mut bundle = writable(root, &self.path)?;
        bundle.set_len(0)?;
        bundle.write_all(content)?;
        // One that the step put there is new, whatever is in it.
        if let Some((before, modified, inode)) = &self.before
            && (before.as_slice(), *inode) == (content, bundle.metadata()?.ino())
        {
            bundle.set_times(FileTimes::new().set_modified(*modified))?;
        }
        Ok(())
    }
}

impl Added {
    /// `content` without it, wherever it is in there; none if it is not.
    fn cut_out_of(&self, content: &[u8]) -> Option<Vec<u8>> {
        let mut left = content.to_vec();
        let mut found = false;
        while let Some(at) = find(&left, &self.0) {
            left.drain(at..at + self.0.len());
            found = true;
        }
        found.then_some(left)
    }
}

/// `bundle` with those of `certificates` that it does not have.
fn joined(bundle: &str, certificates: &str) -> String {
    let mut joined = bundle.to_owned();
    if !joined.is_empty() && !joined.ends_with('\n') {
        joined.push('\n');
    }
    for block in blocks(certificates) {
        if !bundle.contains(block) {
            joined.push_str(block);
            joined.push('\n');
        }
    }
    joined
}

fn find(content: &[u8], part: &[u8]) -> Option<usize> {
    if part.is_empty() {
        return None;
    }
    // A certificate begins with a dash, and little else does.
    let first = *part.first()?;
    let mut from = 0;
    while let Some(at) = content.get(from..)?.iter().position(|byte| *byte == first).map(|at| from + at) {
        if content.get(at..)?.starts_with(part) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// What is in the file at `path`; none if it is gone, or is no file any more.
fn left(root: &Root, path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, WorkerError> {
    match root.read(path, max_bytes) {
        Err(RootError::NotAFile(_)) => Ok(None),
        Err(RootError::TooLarge { .. }) => {
            Err(WorkerError::TrustTooLarge { path: path.to_owned(), max_bytes })
        }
        // A file is where a directory was, or a link that leads in a circle.
        Err(RootError::File(error))
            if matches!(Errno::from_io_error(&error.source), Some(Errno::NOTDIR | Errno::LOOP)) =>
        {
            Ok(None)
        }
        read => Ok(read?),
    }
}

/// What package managers have left beside a file.
fn set_aside(root: &Root, path: &Path) -> Vec<PathBuf> {
    let beside = SET_ASIDE.iter().map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(".");
        name.push(suffix);
        PathBuf::from(name)
    });
    beside.filter(|path| root.open_file(path).is_ok()).collect()
}

fn writable(root: &Root, path: &Path) -> io::Result<File> {
    let file = root.open_file(path).map_err(io::Error::other)?;
    OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The time of the directory that `path` is in.
fn time_around(root: &Root, path: &Path) -> Option<SystemTime> {
    let around = root.subroot(path.parent().unwrap_or(path)).ok()?;
    File::from(around.into_fd()).metadata().ok()?.modified().ok()
}

#[cfg(test)]
mod tests;
