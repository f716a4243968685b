//! The part of `hephy keys add` that looks at files here: a `.pub` file, standard input, or a menu of `~/.ssh`.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use super::line;
use super::verbs::{KeysArguments, KeysCommand};
use crate::model::PublicKey;

/// The longest key file that is read, in bytes.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// The words to send and the key to send with them; `None` if nothing here is needed.
pub(super) fn local(arguments: &KeysArguments) -> Option<Result<(Vec<String>, String), String>> {
    let Some(KeysCommand::Add { key, user, name, admin }) = &arguments.command else { return None };
    let text = match key.as_deref() {
        Some(text) if text.starts_with("SHA256:") => return None,
        Some("-") => read(io::stdin().lock(), "standard input"),
        Some(path) => open(Path::new(path)),
        None => choose(),
    };
    Some(text.and_then(|text| {
        // A mistake is told here, before anything is sent: a private key stays on this machine.
        let key = PublicKey::parse_file(&text).map_err(|error| error.to_string())?;
        let mut words = vec!["keys".to_owned(), "add".to_owned(), "-".to_owned()];
        for (flag, value) in [("--user", user.as_ref().map(ToString::to_string)), ("--name", name.clone())] {
            words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        }
        words.extend(admin.then(|| "--admin".to_owned()));
        Ok((words, format!("{key}\n")))
    }))
}

/// The `.pub` files of a directory with the keys in them, by name.
pub(super) fn public_keys(directory: &Path) -> Vec<(PathBuf, Result<PublicKey, String>)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pub"))
        .collect();
    paths.sort();
    let key = |path: &Path| {
        open(path).and_then(|text| PublicKey::parse_file(&text).map_err(|error| error.to_string()))
    };
    paths.into_iter().map(|path| (path.clone(), key(&path))).collect()
}

fn open(path: &Path) -> Result<String, String> {
    let file =
        std::fs::File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    read(file, &path.display().to_string())
}

fn read(source: impl io::Read, name: &str) -> Result<String, String> {
    let mut bytes = Vec::new();
    source
        .take(MAX_KEY_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot read {name}: {error}"))?;
    String::from_utf8(bytes).map_err(|_| format!("{name} is not a public key: it is not text"))
}

/// A numbered menu of the keys in `~/.ssh`.
fn choose() -> Result<String, String> {
    let home = std::env::var_os("HOME").ok_or("HOME is not set: give a `.pub` file")?;
    let directory = PathBuf::from(home).join(".ssh");
    let keys: Vec<(PathBuf, PublicKey)> =
        public_keys(&directory).into_iter().filter_map(|(path, key)| Some((path, key.ok()?))).collect();
    if keys.is_empty() {
        return Err(format!(
            "there is no public key in {}: make one with `ssh-keygen -t ed25519`",
            directory.display()
        ));
    }
    line("Found these public keys:");
    for (number, (path, key)) in (1..).zip(&keys) {
        line(&format!("  {number}) {}  {}", path.display(), key.fingerprint()));
    }
    if !io::stdin().is_terminal() {
        return Err("name one of them: `hephy keys add FILE`".to_owned());
    }
    line(&format!("Which one? [1-{}]", keys.len()));
    let mut answer = String::new();
    io::stdin().lock().take(64).read_line(&mut answer).map_err(|error| error.to_string())?;
    let chosen = answer.trim().parse::<usize>().ok().and_then(|number| keys.get(number.checked_sub(1)?));
    chosen.map(|(_, key)| key.to_string()).ok_or_else(|| format!("`{}` is none of them", answer.trim()))
}
