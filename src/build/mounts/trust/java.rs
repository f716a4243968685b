//! The stores of the JDKs of an image: Java reads no bundle and no variable that others read.
//!
//! A store has the certificates while a step runs, as JKS, which every JDK reads; then it is what it was, to the byte. One that
//! the step has changed meanwhile is left without them.

use std::fs::{File, FileTimes};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::keystore::KeyStore;
use super::{find, left, writable};
use crate::build::worker::WorkerError;
use crate::layers::{Root, RootError};

/// Where distributions keep the one store of all their JDKs.
const STORES: [&str; 4] = [
    "/etc/ssl/certs/java/cacerts",
    "/etc/pki/ca-trust/extracted/java/cacerts",
    "/etc/pki/java/cacerts",
    "/var/lib/ca-certificates/java-cacerts",
];
/// Below what JDKs are.
const JDKS: [&str; 3] = ["/usr/lib/jvm", "/opt/java", "/usr/java"];
/// Where a JDK keeps its own; the second is that of Java 8.
const OWN: [&str; 2] = ["lib/security/cacerts", "jre/lib/security/cacerts"];
/// The most that are looked at below a directory.
const MAX_JDKS: usize = 50;
/// The largest store; those of JDKs have a fifth of a megabyte.
const MAX_STORE_BYTES: u64 = 8 << 20;
/// What aliases of ours begin with.
const ALIAS: &str = "hephy-ca-bundle";

/// Certificates that are in an image's stores for the time of a step.
#[derive(Default)]
pub(super) struct Stores {
    certificates: Vec<Vec<u8>>,
    files: Vec<LaidStore>,
}

struct LaidStore {
    /// Without links.
    path: PathBuf,
    before: Vec<u8>,
    modified: SystemTime,
    laid: Vec<u8>,
    inode: u64,
}

impl Stores {
    /// Adds certificates to the stores of an image. One that cannot be read is taken to be of what its `system` trusts.
    pub(super) fn lay(
        root: &Root,
        java_home: Option<&str>,
        certificates: Vec<Vec<u8>>,
        system: &[Vec<u8>],
    ) -> Result<Self, WorkerError> {
        let mut stores = Self { certificates, files: Vec::new() };
        if stores.certificates.is_empty() {
            return Ok(stores);
        }
        for path in paths(root, java_home) {
            let before = match root.read(&path, MAX_STORE_BYTES) {
                Ok(Some(before)) => before,
                // Whatever that is, no JDK came with it.
                Ok(None) | Err(RootError::TooLarge { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut store = KeyStore::read(&before).unwrap_or_else(|| KeyStore::of(system));
            store.add(&stores.certificates, ALIAS);
            let laid = store.write();
            let file = write_over(root, path, before, laid).map_err(WorkerError::Trust)?;
            stores.files.push(file);
        }
        Ok(stores)
    }

    /// Leaves the stores as the step wanted them: without what was added.
    pub(super) fn take_back(&self, root: &Root) -> Result<(), WorkerError> {
        for store in &self.files {
            self.clean(root, store)?;
        }
        Ok(())
    }

    fn clean(&self, root: &Root, store: &LaidStore) -> Result<(), WorkerError> {
        let Some(content) = left(root, &store.path, 2 * MAX_STORE_BYTES)? else { return Ok(()) };
        if content == store.laid {
            return store.restore(root).map_err(WorkerError::Trust);
        }
        let Some(mut changed) = KeyStore::read(&content) else {
            // Encrypted, it may have them and not show it.
            let shows = self.certificates.iter().any(|certificate| find(&content, certificate).is_some());
            let is_opaque = content.first() == Some(&0x30) || content.starts_with(&[0xce; 4]);
            if shows || is_opaque {
                return Err(WorkerError::KeyStore(store.path.clone()));
            }
            return Ok(());
        };
        if self.certificates.iter().any(|certificate| changed.trusts(certificate)) {
            // Without the image's own, there is nothing that the step's change could be put into.
            let before = KeyStore::read(&store.before)
                .ok_or_else(|| WorkerError::LockedKeyStore(store.path.clone()))?;
            // What the image trusted before by itself, it goes on to trust.
            let ours = self.certificates.iter().filter(|certificate| !before.trusts(certificate));
            changed.remove(&ours.cloned().collect::<Vec<_>>());
            let write = || {
                let mut file = writable(root, &store.path)?;
                file.set_len(0)?;
                file.write_all(&changed.write())
            };
            write().map_err(WorkerError::Trust)?;
        }
        Ok(())
    }
}

impl LaidStore {
    fn restore(&self, root: &Root) -> io::Result<()> {
        let mut file = writable(root, &self.path)?;
        file.set_len(0)?;
        file.write_all(&self.before)?;
        // A file that the step has put there is new, whatever is in it.
        if file.metadata()?.ino() == self.inode {
            file.set_times(FileTimes::new().set_modified(self.modified))?;
        }
        Ok(())
    }
}

fn write_over(root: &Root, path: PathBuf, before: Vec<u8>, laid: Vec<u8>) -> io::Result<LaidStore> {
    let mut file = writable(root, &path)?;
    let modified = file.metadata()?.modified()?;
    file.set_len(0)?;
    file.write_all(&laid)?;
    // On an overlay it is another file once it is written to.
    let inode = file.metadata()?.ino();
    Ok(LaidStore { path, before, modified, laid, inode })
}

/// The stores of an image, each once and without links.
fn paths(root: &Root, java_home: Option<&str>) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = STORES.map(PathBuf::from).into();
    let mut homes: Vec<PathBuf> =
        java_home.map(PathBuf::from).filter(|home| home.is_absolute()).into_iter().collect();
    for directory in JDKS.map(Path::new) {
        homes.extend(names(root, directory).into_iter().map(|name| directory.join(name)));
    }
    places.extend(homes.iter().flat_map(|home| OWN.map(|own| home.join(own))));
    let mut paths = Vec::new();
    for place in places {
        if let Ok(path) = root.canonical(&place)
            && !paths.contains(&path)
            && root.open_file(&path).is_ok()
        {
            paths.push(path);
        }
    }
    paths
}

fn names(root: &Root, directory: &Path) -> Vec<std::ffi::OsString> {
    let Ok(inside) = root.subroot(directory) else { return Vec::new() };
    let opened = File::from(inside.into_fd());
    let entries = std::fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let entries = entries.into_iter().flatten().flatten().take(MAX_JDKS);
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// A program that must succeed, and what it says.
    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        said
    }

    /// A certificate, in PEM and in DER.
    fn certificate(directory: &Path, name: &str) -> (PathBuf, Vec<u8>) {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        let (key, pem) = (directory.join("key"), directory.join(format!("{name}.pem")));
        let (key, subject) = (key.to_str().unwrap(), format!("/CN={name}"));
        let to = pem.to_str().unwrap();
        let request =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        run("openssl", &[&request[..], &["-subj", &subject, "-keyout", key, "-out", to]].concat());
        let der = CertificateDer::from_pem_slice(&fs::read(&pem).unwrap()).unwrap().to_vec();
        (pem, der)
    }

    struct Image {
        directory: tempfile::TempDir,
        root: Root,
        store: PathBuf,
        modified: SystemTime,
    }

    /// An image with a JDK whose store is this.
    fn image(store: &[u8]) -> Image {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("usr/lib/jvm/java-17/lib/security/cacerts");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir_all(directory.path().join("etc/ssl/certs/java")).unwrap();
        let link = directory.path().join("etc/ssl/certs/java/cacerts");
        std::os::unix::fs::symlink("/usr/lib/jvm/java-17/lib/security/cacerts", link).unwrap();
        fs::write(&path, store).unwrap();
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        let root = Root::open(directory.path()).unwrap();
        Image { directory, root, store: path, modified }
    }

    impl Image {
        fn lay(&self, ours: &[Vec<u8>]) -> Stores {
            let stores = Stores::lay(&self.root, Some("/usr/lib/jvm/java-17"), ours.to_vec(), &[]).unwrap();
            assert_eq!(stores.files.len(), 1);
            stores
        }

        fn read(&self) -> KeyStore {
            KeyStore::read(&fs::read(&self.store).unwrap()).unwrap()
        }
    }

    #[test]
    fn a_store_trusts_more_during_the_step_and_is_the_same_file_after_it() {
        let (theirs, ours) = (vec![b"theirs".to_vec()], vec![b"ours".to_vec()]);
        let before = KeyStore::of(&theirs).write();
        let image = image(&before);
        let stores = image.lay(&ours);
        assert!(image.read().trusts(&theirs[0]) && image.read().trusts(&ours[0]));
        stores.take_back(&image.root).unwrap();
        assert_eq!(fs::read(&image.store).unwrap(), before);
        assert_eq!(fs::metadata(&image.store).unwrap().modified().unwrap(), image.modified);
        drop(image.directory);
    }

    #[test]
    fn a_store_that_the_step_changes_is_left_without_ours_and_one_that_cannot_be_read_is_told() {
        let (theirs, ours) = (vec![b"theirs".to_vec()], vec![b"ours".to_vec()]);
        let image = image(&KeyStore::of(&theirs).write());
        let stores = image.lay(&ours);
        let mut changed = image.read();
        changed.add(&[b"the steps".to_vec()], "step");
        fs::write(&image.store, changed.write()).unwrap();
        stores.take_back(&image.root).unwrap();
        let after = image.read();
        assert!(after.trusts(b"theirs") && after.trusts(b"the steps") && !after.trusts(b"ours"));
        for (content, is_told) in
            [(&b"0\x82 encrypted"[..], true), (b"text with ours in it", true), (b"text", false)]
        {
            let stores = image.lay(&ours);
            fs::write(&image.store, content).unwrap();
            assert_eq!(stores.take_back(&image.root).is_err(), is_told, "{content:?}");
        }
        fs::remove_file(&image.store).unwrap();
        stores.take_back(&image.root).unwrap();
        assert!(!image.store.exists());
    }

    #[test]
    fn a_store_without_a_password_is_added_to_and_an_encrypted_one_is_that_of_the_system() {
        let home = tempfile::tempdir().unwrap();
        let (pem, theirs) = certificate(home.path(), "theirs");
        let to = home.path().join("store.p12");
        let make = |how: &[&str]| {
            let common =
                ["pkcs12", "-export", "-nokeys", "-in", pem.to_str().unwrap(), "-out", to.to_str().unwrap()];
            run("openssl", &[&common[..], how].concat());
            fs::read(&to).unwrap()
        };
        let open = image(&make(&["-certpbe", "NONE", "-nomac", "-passout", "pass:"]));
        let stores = open.lay(&[b"ours".to_vec()]);
        assert!(open.read().trusts(&theirs) && open.read().trusts(b"ours"));
        stores.take_back(&open.root).unwrap();
        let encrypted = image(&make(&["-passout", "pass:changeit"]));
        let system = [b"system".to_vec()];
        let stores = Stores::lay(&encrypted.root, None, vec![b"ours".to_vec()], &system).unwrap();
        assert!(encrypted.read().trusts(b"system") && encrypted.read().trusts(b"ours"));
        stores.take_back(&encrypted.root).unwrap();
        assert!(KeyStore::read(&fs::read(&encrypted.store).unwrap()).is_none());
    }

    #[test]
    fn a_change_of_a_store_that_could_not_be_read_is_an_error_and_one_that_the_step_puts_there_is_the_steps()
    {
        let (system, ours) = ([b"system".to_vec()], vec![b"ours".to_vec()]);
        let image = image(b"0\x82 encrypted");
        let lay = || Stores::lay(&image.root, None, ours.clone(), &system).unwrap();
        let stores = lay();
        let mut changed = image.read();
        changed.add(&[b"the steps".to_vec()], "step");
        fs::write(&image.store, changed.write()).unwrap();
        let error = stores.take_back(&image.root).unwrap_err();
        assert!(
            matches!(&error, WorkerError::LockedKeyStore(path) if image.store.ends_with(path)),
            "{error}"
        );
        assert!(error.is_app());
        fs::write(&image.store, b"0\x82 encrypted").unwrap();
        let stores = lay();
        let own = KeyStore::of(&[b"the steps".to_vec()]).write();
        fs::write(&image.store, &own).unwrap();
        stores.take_back(&image.root).unwrap();
        assert_eq!(fs::read(&image.store).unwrap(), own);
    }

    #[test]
    fn a_store_that_is_too_large_is_left_alone_and_one_that_became_so_is_told() {
        let image = image(&KeyStore::default().write());
        let grow = |bytes| File::options().write(true).open(&image.store).unwrap().set_len(bytes).unwrap();
        let stores = image.lay(&[b"ours".to_vec()]);
        grow(2 * MAX_STORE_BYTES + 1);
        let error = stores.take_back(&image.root).unwrap_err();
        assert!(matches!(error, WorkerError::TrustTooLarge { .. }) && error.is_app(), "{error}");
        let stores = Stores::lay(&image.root, None, vec![b"ours".to_vec()], &[]).unwrap();
        assert!(stores.files.is_empty());
    }

    #[test]
    #[ignore = "needs keytool, of a Java runtime"]
    fn keytool_reads_what_is_laid_and_what_it_changes_is_taken_back() {
        let home = tempfile::tempdir().unwrap();
        let [(_, theirs), (_, ours), (step, _)] =
            ["theirs", "ours", "step"].map(|name| certificate(home.path(), name));
        let image = image(&KeyStore::of(&[theirs]).write());
        let stores = image.lay(&[ours]);
        let path = image.store.to_str().unwrap();
        let keytool = |arguments: &[&str]| {
            run("keytool", &[arguments, &["-keystore", path, "-storepass", "changeit"]].concat())
        };
        let listed = keytool(&["-list"]);
        assert!(listed.contains("hephy-ca-bundle-1") && listed.contains("2 entries"), "{listed}");
        keytool(&["-importcert", "-noprompt", "-alias", "step", "-file", step.to_str().unwrap()]);
        assert!(keytool(&["-list"]).contains("3 entries"));
        stores.take_back(&image.root).unwrap();
        let listed = keytool(&["-list"]);
        assert!(listed.contains("2 entries") && !listed.contains("hephy-ca-bundle"), "{listed}");
    }
}
