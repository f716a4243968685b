//! The public keys that somebody has in `~/.ssh`, to choose one from or to begin with.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::model::{KeyError, PublicKey};

const MAX_FILE_BYTES: u64 = 64 * 1024;
const MAX_FILES: usize = 100;

/// Why a file or standard input gives no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read the key `{path}`")]
    Read {
        /// The file; `-` is standard input.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not one public key.
    #[error("`{path}` gives no key: {reason}")]
    Key {
        /// The file; `-` is standard input.
        path: PathBuf,
        /// What is wrong with it.
        reason: KeyError,
    },
    /// The answer to the menu is not one of its numbers.
    #[error("`{given}` is not a number from 1 to {last}; give one, or name the file: hephy keys add FILE")]
    Choice {
        /// What was answered.
        given: String,
        /// The last number.
        last: usize,
    },
    /// There is nothing to choose from.
    #[error(
        "there is no public key in `{0}`; make one with `ssh-keygen -t ed25519`, or give a file: hephy keys add FILE"
    )]
    NoneIn(PathBuf),
}

/// Reads the one key of a `.pub` file. A private key's file is not accepted, nor looked for its public half.
pub fn read_file(path: &Path) -> Result<PublicKey, KeyFileError> {
    let file = File::open(path).map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
    read(file, path)
}

/// Reads the one key on a stream; `path` is what errors call it.
pub fn read(stream: impl Read, path: &Path) -> Result<PublicKey, KeyFileError> {
    let mut bytes = Vec::new();
    let read = stream.take(MAX_FILE_BYTES).read_to_end(&mut bytes);
    read.map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
    parse(&bytes, path)
}

/// Reads the one key in bytes that came over the network or from elsewhere.
pub fn parse(bytes: &[u8], path: &Path) -> Result<PublicKey, KeyFileError> {
    let text = String::from_utf8_lossy(bytes);
    PublicKey::parse_file(&text).map_err(|reason| KeyFileError::Key { path: path.to_owned(), reason })
}

/// A key that may be chosen.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// Where it is.
    pub path: PathBuf,
    /// The key.
    pub key: PublicKey,
}

/// A numbered menu of the keys in a directory. Its text is the lines of the menu.
#[derive(Debug, Clone)]
pub struct Menu {
    keys: Vec<KeyFile>,
}

impl Menu {
    /// The keys in the `.pub` files of `~/.ssh`, by file name. Files that give no acceptable key are not in it.
    pub fn of(ssh_directory: &Path) -> Result<Self, KeyFileError> {
        let keys = public_keys(ssh_directory);
        if keys.is_empty() { Err(KeyFileError::NoneIn(ssh_directory.to_owned())) } else { Ok(Self { keys }) }
    }

    /// The key of a number that was typed; an empty answer means the first.
    pub fn choose(&self, answer: &str) -> Result<&KeyFile, KeyFileError> {
        let answer = answer.trim();
        let number: Option<usize> = if answer.is_empty() { Some(1) } else { answer.parse().ok() };
        number.and_then(|number| self.keys.get(number.checked_sub(1)?)).ok_or_else(|| KeyFileError::Choice {
            given: answer.chars().filter(|c| !c.is_control()).take(40).collect(),
            last: self.keys.len(),
        })
    }

    /// The only key, if there is nothing to choose.
    #[must_use]
    pub fn only(&self) -> Option<&KeyFile> {
        if let [only] = &self.keys[..] { Some(only) } else { None }
    }
}

impl fmt::Display for Menu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.keys.len().to_string().len();
        for (number, KeyFile { path, key }) in (1_usize..).zip(&self.keys) {
            let file = path.file_name().unwrap_or_default().display();
            writeln!(f, "{number:>width$}) {file}  {} {}", key.fingerprint(), key.comment())?;
        }
        Ok(())
    }
}

/// The keys of whoever starts the server, who becomes the first admin: those in `~/.ssh/*.pub`, and where there are
/// none (a server that its owner reaches by SSH) those without options in `~/.ssh/authorized_keys`.
#[must_use]
pub fn own_keys(ssh_directory: &Path) -> Vec<KeyFile> {
    let keys = public_keys(ssh_directory);
    if keys.is_empty() { authorized_keys(&ssh_directory.join("authorized_keys")) } else { keys }
}

fn public_keys(directory: &Path) -> Vec<KeyFile> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "pub") && path.is_file())
        .take(MAX_FILES)
        .collect();
    paths.sort();
    let mut keys: Vec<KeyFile> = Vec::new();
    for path in paths {
        match read_file(&path) {
            Ok(key) if keys.iter().any(|known| known.key == key) => {}
            Ok(key) => keys.push(KeyFile { path, key }),
            Err(error) => tracing::debug!(%error, "file is left out"),
        }
    }
    keys
}

fn authorized_keys(path: &Path) -> Vec<KeyFile> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let mut keys: Vec<KeyFile> = Vec::new();
    for key in text.lines().filter_map(|line| line.parse::<PublicKey>().ok()).take(MAX_FILES) {
        if !keys.iter().any(|known| known.key == key) {
            keys.push(KeyFile { path: path.to_owned(), key });
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ONE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAar54PFdBzQqRcHf7funiUt/ixDeh4aBh6sEYz8yJzt ada@laptop";
    const TWO: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBH9UxPasSVRa58CNQezyeQUnJSZnV+YwhqWXlo3cn8mtgoECnC15GVnK7qgiAzC1J/CUBOsbmVf0wr5iJoiqWZs= token";

    #[test]
    fn the_menu_lists_usable_keys_once_and_by_file_name() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path();
        assert!(matches!(Menu::of(directory), Err(KeyFileError::NoneIn(_))));
        for (file, text) in [
            ("id_rsa", "-----BEGIN OPENSSH PRIVATE KEY-----"),
            ("id_ed25519.pub", ONE),
            ("copy_of_it.pub", "ssh-dss AAAA old"),
            ("id_ecdsa.pub", TWO),
            ("z_again.pub", ONE),
            ("authorized_keys", TWO),
        ] {
            fs::write(directory.join(file), text).unwrap();
        }
        let menu = Menu::of(directory).unwrap();
        assert_eq!(
            menu.to_string(),
            "1) id_ecdsa.pub  SHA256:reqPcxk4HfopLyY2Z84dT0eaS/Ra0WtZCJNNFvhKjp4 token\n\
             2) id_ed25519.pub  SHA256:3yOxlaUMe7Qn6JxwA8gN2fBfRqPt9o8MKCLMDCCsTsw ada@laptop\n"
        );
        assert_eq!(menu.choose(" 2\n").unwrap().key.comment(), "ada@laptop");
        assert_eq!(menu.choose("\n").unwrap().key.comment(), "token");
        for answer in ["0", "3", "x", "-1"] {
            assert!(matches!(menu.choose(answer), Err(KeyFileError::Choice { last: 2, .. })), "{answer}");
        }
        assert!(menu.only().is_none());
        assert_eq!(own_keys(directory).len(), 2);
    }

    #[test]
    fn without_public_keys_those_that_may_log_in_are_ones_own() {
        let home = tempfile::tempdir().unwrap();
        let text = format!("# mine\n{ONE}\ncommand=\"backup\" {TWO}\nnonsense\n{ONE}\n");
        fs::write(home.path().join("authorized_keys"), text).unwrap();
        let keys = own_keys(home.path());
        assert_eq!(keys.iter().map(|key| key.key.comment()).collect::<Vec<_>>(), ["ada@laptop"]);
        assert!(own_keys(&home.path().join("missing")).is_empty());
    }

    #[test]
    fn errors_name_the_file_and_what_is_wrong_with_it() {
        let error = read(&b"-----BEGIN OPENSSH PRIVATE KEY-----"[..], Path::new("-")).unwrap_err();
        assert!(error.to_string().starts_with("`-` gives no key: this is a private key"), "{error}");
        assert!(matches!(read_file(Path::new("/missing.pub")), Err(KeyFileError::Read { .. })));
    }
}
