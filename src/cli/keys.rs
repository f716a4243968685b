//! The part of `hephy keys add` that looks at files here: a `.pub` file, standard input, or a menu of `~/.ssh`.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use super::verbs::{KeysArguments, KeysCommand};
use super::{chain, line};
use crate::model::PublicKey;
use crate::receive::key_files::{self, Menu};

/// The words to send and the key to send with them; `None` if nothing here is needed.
pub(super) fn local(arguments: &KeysArguments) -> Option<Result<(Vec<String>, String), String>> {
    let Some(KeysCommand::Add { key, user, name, admin }) = &arguments.command else { return None };
    // A mistake is told here, before anything is sent: a private key stays on this machine.
    let key = match key.as_deref() {
        Some(text) if text.starts_with("SHA256:") => return None,
        Some("-") => {
            key_files::read(io::stdin().lock(), Path::new("standard input")).map_err(|error| chain(&error))
        }
        Some(path) => key_files::read_file(Path::new(path)).map_err(|error| chain(&error)),
        None => choose(),
    };
    Some(key.map(|key| {
        let mut words = vec!["keys".to_owned(), "add".to_owned(), "-".to_owned()];
        for (flag, value) in [("--user", user.as_ref().map(ToString::to_string)), ("--name", name.clone())] {
            words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        }
        words.extend(admin.then(|| "--admin".to_owned()));
        (words, format!("{key}\n"))
    }))
}

/// A numbered menu of the keys in `~/.ssh`; nothing is asked where there is one.
fn choose() -> Result<PublicKey, String> {
    let home = std::env::var_os("HOME").ok_or("HOME is not set: give a `.pub` file")?;
    let menu = Menu::of(&PathBuf::from(home).join(".ssh")).map_err(|error| chain(&error))?;
    if let Some(only) = menu.only() {
        line(&format!("-----> {} {}", only.path.display(), only.key.fingerprint()));
        return Ok(only.key.clone());
    }
    line("-----> Found these public keys:");
    line(menu.to_string().trim_end());
    if !io::stdin().is_terminal() {
        return Err("name one of them: `hephy keys add FILE`".to_owned());
    }
    line("Which one? [1]");
    let mut answer = String::new();
    io::stdin().lock().take(64).read_line(&mut answer).map_err(|error| error.to_string())?;
    menu.choose(&answer).map(|chosen| chosen.key.clone()).map_err(|error| chain(&error))
}
