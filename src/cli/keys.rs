//! The part of `hephy keys add` that looks at files here: a `.pub` file, standard input, or a menu of `~/.ssh`. And the whole
//! of `hephy keys add --kube`, which asks no server.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use super::verbs::{KeysArguments, KeysCommand};
use super::{chain, line};
use crate::kubernetes::Cluster;
use crate::model::{PublicKey, UserName};
use crate::receive::key_files::{self, Menu};
use crate::receive::keys::{self, Added, Role, name_for_login};
use crate::store::KubernetesStore;

/// The words to send and the key to send with them; `None` if nothing here is needed.
pub(super) fn local(arguments: &KeysArguments) -> Option<Result<(Vec<String>, String), String>> {
    let Some(KeysCommand::Add { key, user, name, admin, .. }) = &arguments.command else { return None };
    // A mistake is told here, before anything is sent: a private key stays on this machine.
    let key = match key.as_deref() {
        Some(text) if text.starts_with("SHA256:") => return None,
        given => read(given),
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

/// The key of `keys add --kube`, written into the records of a cluster as whoever may write them there: nobody need be
/// known to the server yet. `None` for every other verb.
pub(super) fn on_cluster(arguments: &KeysArguments) -> Option<Result<(), String>> {
    let Some(KeysCommand::Add { key, user, name, admin, kube: true, apps_namespace }) = &arguments.command
    else {
        return None;
    };
    let added = read(key.as_deref()).and_then(|key| {
        let user = match user {
            Some(user) => user.clone(),
            None => name_for_login(key.comment().split('@').next().unwrap_or_default())
                .map_err(|error| format!("the key's comment names no user ({error}): give `--user NAME`"))?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
        runtime.block_on(add_on_cluster(apps_namespace, &user, *admin, &key, name.as_deref()))
    });
    Some(added.map(|text| line(&format!("-----> {text}"))))
}

async fn add_on_cluster(
    namespace: &str,
    user: &UserName,
    admin: bool,
    key: &PublicKey,
    name: Option<&str>,
) -> Result<String, String> {
    let cluster = Cluster::connect(None, None).await.map_err(|error| chain(&error))?;
    let store = KubernetesStore::new(&cluster.client(), namespace);
    let nobody = keys::nobody_yet(&store).await.map_err(|error| chain(&error))?;
    // Somebody has to let the others in.
    let is_admin = admin || nobody;
    let role = if is_admin { Role::Admin } else { Role::Member };
    let added = keys::add_or_create(&store, user, role, key, name).await.map_err(|error| chain(&error))?;
    let whose = if is_admin { format!("{user}, an admin,") } else { user.to_string() };
    Ok(match added {
        Added::New(key) => format!("{whose} has the key {} ({})", key.name, key.fingerprint()),
        Added::Already(key) => format!("{whose} had the key {} already ({})", key.name, key.fingerprint()),
    })
}

/// Reads a key from a file, from standard input, or lets one be chosen.
fn read(given: Option<&str>) -> Result<PublicKey, String> {
    match given {
        Some("-") => {
            key_files::read(io::stdin().lock(), Path::new("standard input")).map_err(|error| chain(&error))
        }
        Some(path) => key_files::read_file(Path::new(path)).map_err(|error| chain(&error)),
        None => choose(),
    }
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
