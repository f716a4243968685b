//! The server's own key: made once, kept in the data directory, never changed by itself.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::{Algorithm, LineEnding, PrivateKey};

use crate::model::{Fingerprint, PublicKey, Secret};

const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why there is no host key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// The file cannot be read or written.
    #[error("the SSH host key `{path}` cannot be read or written")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it.
    #[error(
        "the SSH host key `{0}` can be read by others: run `chmod 600 {0}`, and think about who has read it"
    )]
    Permissions(PathBuf),
    /// It is not an unencrypted Ed25519 key in OpenSSH's format.
    #[error(
        "the SSH host key `{0}` is not an unencrypted Ed25519 key in OpenSSH's format; restore it, or move it away and every client will be asked to trust a new one"
    )]
    Format(PathBuf),
    /// A key could not be made.
    #[error("an SSH host key cannot be made")]
    Make(#[source] russh::keys::ssh_key::Error),
}

/// The server's key. Its `Debug` shows only the fingerprint.
#[derive(Clone)]
pub struct HostKey {
    pub(super) private: PrivateKey,
    public: PublicKey,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostKey({})", self.fingerprint())
    }
}

impl HostKey {
    /// Reads the key at a path, or makes it: readable by the owner alone, and whole or not there.
    pub fn open(path: &Path) -> Result<Self, HostKeyError> {
        let file_error = |source| HostKeyError::File { path: path.to_owned(), source };
        match OpenOptions::new().read(true).open(path) {
            Ok(file) => Self::read(file, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(path)?;
                // Another process may have been first: whatever is there now is the key.
                Self::read(File::open(path).map_err(file_error)?, path)
            }
            Err(error) => Err(file_error(error)),
        }
    }

    fn read(file: File, path: &Path) -> Result<Self, HostKeyError> {
        let file_error = |source| HostKeyError::File { path: path.to_owned(), source };
        if file.metadata().map_err(file_error)?.mode() & 0o077 != 0 {
            return Err(HostKeyError::Permissions(path.to_owned()));
        }
        let mut text = String::new();
        file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(file_error)?;
        Self::parse(&text, path)
    }

    /// Reads a key from the text of a file; `path` is what errors call it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, HostKeyError> {
        let format = || HostKeyError::Format(path.to_owned());
        let private = PrivateKey::from_openssh(text.as_bytes()).map_err(|_| format())?;
        if private.is_encrypted() || private.algorithm() != Algorithm::Ed25519 {
            return Err(format());
        }
        let blob = private.public_key().to_bytes().map_err(|_| format())?;
        let public = PublicKey::from_blob(&blob).map_err(|_| format())?;
        Ok(Self { private, public })
    }

    /// What clients are shown when they first connect.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.public.fingerprint()
    }

    /// The public half, as a line of `known_hosts` has it after the host.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }
}

/// A new key, as the text of a file.
pub fn new_host_key() -> Result<Secret<String>, HostKeyError> {
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(HostKeyError::Make)?;
    let text = key.to_openssh(LineEnding::LF).map_err(HostKeyError::Make)?;
    Ok(Secret::new(text.to_string()))
}

/// Writes a new key aside and links it into place, so that it is never half there and never replaced.
fn make(path: &Path) -> Result<(), HostKeyError> {
    let file_error = |source| HostKeyError::File { path: path.to_owned(), source };
    let text = new_host_key()?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let aside =
        directory.join(format!(".ssh_host_key-{}-{:016x}", std::process::id(), rand::random::<u64>()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(text.reveal().as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&aside, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => File::open(directory)?.sync_all(),
        }
    })();
    let removed = fs::remove_file(&aside);
    written.and(removed).map_err(file_error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_made_once_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ssh_host_ed25519_key");
        let made = HostKey::open(&path).unwrap();
        let read = HostKey::open(&path).unwrap();
        assert_eq!(made.fingerprint(), read.fingerprint());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn many_at_once_agree_on_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let mut prints: Vec<_> = std::thread::scope(|scope| {
            let openers: Vec<_> =
                (0..8).map(|_| scope.spawn(|| HostKey::open(&path).unwrap().fingerprint())).collect();
            openers.into_iter().map(|opener| opener.join().unwrap()).collect()
        });
        prints.dedup();
        assert_eq!(prints.len(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_and_a_damaged_key_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        HostKey::open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(HostKey::open(&path), Err(HostKeyError::Permissions(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "hello").unwrap();
        assert!(matches!(HostKey::open(&path), Err(HostKeyError::Format(_))));
    }
}
