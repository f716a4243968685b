//! `hephy serve`

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::verbs::SshVerbs;
use super::{chain, operators_problem};
use crate::config::cluster::ClusterSettings;
use crate::model::PublicKey;
use crate::receive::keys::name_for_login;
use crate::serve::cluster::Start;
use crate::serve::people::People;
use crate::serve::up::{FirstAdmin, Notice};

/// `serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArguments {
    #[command(flatten)]
    settings: ClusterSettings,
}

pub(super) fn run(arguments: ServeArguments) -> ExitCode {
    match try_run(arguments.settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            operators_problem(&text);
            ExitCode::FAILURE
        }
    }
}

fn try_run(settings: ClusterSettings) -> Result<(), String> {
    let first_admins = match &settings.admin_keys {
        Some(path) => admins(path)?,
        None => Vec::new(),
    };
    let identity = std::env::var("POD_NAME").unwrap_or_else(|_| format!("hephy-{}", std::process::id()));
    let start = Start { settings, verbs: Arc::new(SshVerbs), first_admins, identity };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).min(8))
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let ended = runtime.block_on(crate::serve::cluster::serve(start, |notice| tell(&notice)));
    runtime.shutdown_background();
    ended.map_err(|error| chain(&error))
}

/// The users of an `authorized_keys` file: a key's comment says whose it is.
fn admins(path: &Path) -> Result<Vec<FirstAdmin>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
    let mut admins: Vec<FirstAdmin> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = PublicKey::parse_file(line)
            .map_err(|error| format!("`{}`, line {number}: {error}", path.display()))?;
        let login = key.comment().split('@').next().unwrap_or_default();
        let named = name_for_login(login);
        // Whoever runs the server is called that, and nobody else is.
        let named =
            named.and_then(|name| if name == People::operator() { name_for_login("") } else { Ok(name) });
        let name = named.map_err(|error| chain(&error))?;
        let called = key.comment().to_owned();
        match admins.iter_mut().find(|admin| admin.name == name) {
            Some(admin) => admin.keys.push((called, key)),
            None => admins.push(FirstAdmin { name, keys: vec![(called, key)] }),
        }
    }
    Ok(admins)
}

/// For whoever reads the pod's log.
fn tell(notice: &Notice) {
    match notice {
        Notice::Admin { name, keys } => tracing::info!(%name, ?keys, "the first admin is made"),
        Notice::Ready(ready) => tracing::info!(
            ssh = %ready.addresses.ssh(), registry = ready.addresses.registry(), host_key = %ready.host_key,
            users = ready.users, apps = ready.apps, builds = ready.builds, "hephy receives"
        ),
        Notice::Draining { builds, at_most } => tracing::info!(builds, ?at_most, "hephy stops"),
        Notice::Left { builds } => tracing::info!(builds, "builds go on without this server"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_belong_to_who_their_comments_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
        std::fs::write(&path, format!("# ours\n{key} ada@laptop\n\n{key} Operator\n")).unwrap();
        let admins = admins(&path).unwrap();
        let names: Vec<&str> = admins.iter().map(|admin| admin.name.as_str()).collect();
        assert_eq!(names, ["ada", "admin"]);
        std::fs::write(&path, "ssh-ed25519 nonsense").unwrap();
        assert!(super::admins(&path).unwrap_err().contains("line 1"));
    }
}
