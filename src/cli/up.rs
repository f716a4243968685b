//! `hephy up`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use nix::unistd::{Uid, User};

use super::remote::Operator;
use super::verbs::SshVerbs;
use super::{chain, default_data, line, problem};
use crate::config::server::{GivenSettings, HostPort, Settings};
use crate::receive::key_files::{KeyFile, own_keys};
use crate::receive::keys::name_for_login;
use crate::sandbox::preflight::{self, Needs, Severity};
use crate::serve::people::People;
use crate::serve::up::{FirstAdmin, Notice, Ready, Start};

/// `up`.
#[derive(Debug, Args)]
pub(super) struct UpArguments {
    /// A file with settings; keys are the flags' names with `_` for `-` [default: $XDG_CONFIG_HOME/hephy/config.toml]
    #[arg(long, env = "HEPHY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: GivenSettings,
}

pub(super) fn run(arguments: UpArguments) -> ExitCode {
    match try_run(arguments) {
        Ok(code) => code,
        Err(text) => {
            problem(&text);
            ExitCode::FAILURE
        }
    }
}

fn try_run(arguments: UpArguments) -> Result<ExitCode, String> {
    let mut settings = settings(arguments).map_err(|error| chain(&error))?;
    if let Some(bundle) = &mut settings.ca_bundle {
        // Builds begin somewhere else, and a push is no time to learn that it is not there.
        *bundle = std::path::absolute(&*bundle).map_err(|error| format!("--ca-bundle: {error}"))?;
        super::build::read_bundle(bundle)?;
    }
    let executable = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    if !checked(&settings.data, &executable) {
        return Ok(ExitCode::FAILURE);
    }
    let start = Start {
        first_admin: first_admin(),
        settings,
        verbs: Arc::new(SshVerbs),
        executable,
        operator_file,
        operator_file_name: Operator::FILE,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).min(8))
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let ended = runtime.block_on(crate::serve::up::up(start, |notice| show(&notice)));
    // A second signal stops now: what still blocks is not waited for.
    runtime.shutdown_background();
    ended.map_err(|error| chain(&error))?;
    Ok(ExitCode::SUCCESS)
}

fn settings(arguments: UpArguments) -> Result<Settings, crate::config::server::SettingsError> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
    let file = match (&arguments.config, home) {
        (Some(path), _) => GivenSettings::read(path, true)?,
        (None, Some(home)) => GivenSettings::read(&home.join("hephy/config.toml"), false)?,
        (None, None) => GivenSettings::default(),
    };
    arguments.settings.resolve(file, default_data())
}

/// Says what is lacking, each with the command that fixes it. Whether everything that is needed is there.
fn checked(data: &Path, executable: &Path) -> bool {
    let findings = preflight::check(Needs { data, executable });
    for finding in &findings {
        match &finding.command {
            Some(command) => problem(&format!("{}\n  fix it with: {command}", finding.lacking)),
            None => problem(&finding.lacking),
        }
    }
    findings.iter().all(|finding| finding.severity != Severity::Fatal)
}

/// Whoever starts the server, by the keys in their `~/.ssh`; under `sudo`, whoever ran that.
fn first_admin() -> Option<FirstAdmin> {
    let starts = User::from_uid(nix::unistd::getuid()).ok().flatten();
    let home = std::env::var_os("HOME").map(PathBuf::from).or_else(|| Some(starts.as_ref()?.dir.clone()));
    let itself = admin_of(home, starts.as_ref());
    let sudo_uid = std::env::var("SUDO_UID").ok().and_then(|id| id.parse().ok()).map(Uid::from_raw);
    let invoker =
        sudo_uid.filter(|_| nix::unistd::getuid().is_root()).and_then(|id| User::from_uid(id).ok()?);
    let through_sudo = invoker.and_then(|user| admin_of(Some(user.dir.clone()), Some(&user)));
    through_sudo.filter(|admin| !admin.keys.is_empty()).or(itself)
}

fn admin_of(home: Option<PathBuf>, user: Option<&User>) -> Option<FirstAdmin> {
    let login = user.map(|user| user.name.as_str()).unwrap_or_default();
    // A login named as whoever runs the server is called would get that one's rights, and no other name.
    let login = if login == People::operator().as_str() { "" } else { login };
    let name = name_for_login(login).ok()?;
    let called = |file: &KeyFile| match file.path.file_name() {
        Some(name) if name != "authorized_keys" => name.to_string_lossy().into_owned(),
        _ => file.key.comment().to_owned(),
    };
    let keys = own_keys(&home?.join(".ssh")).into_iter().map(|file| (called(&file), file.key)).collect();
    Some(FirstAdmin { name, keys })
}

fn operator_file(settings: &Settings, key: &Path, known_hosts: &Path) -> Vec<u8> {
    let reachable = |address| HostPort::reachable(address).to_string();
    let operator = Operator {
        ssh: reachable(settings.ssh),
        http: reachable(settings.http),
        registry: reachable(settings.registry),
        health: settings.health.map(reachable),
        pprof: settings.pprof.map(reachable),
        key: key.to_owned(),
        known_hosts: known_hosts.to_owned(),
    };
    // Paths that are no text cannot be written as JSON: the command line then needs `--server`.
    serde_json::to_vec_pretty(&operator).unwrap_or_default()
}

fn show(notice: &Notice) {
    match notice {
        Notice::Admin { name, keys } => {
            line(&format!("-----> {name} is the first admin, by the keys {}", keys.join(", ")));
        }
        Notice::Ready(ready) => show_ready(ready),
        Notice::Draining { builds: 0, .. } => line("-----> Stopping; the apps go on"),
        Notice::Draining { builds, at_most } => {
            let at_most = humantime::format_duration(*at_most);
            line(&format!(
                "-----> Stopping once {} ended, in {at_most} at most; again to stop now",
                counted(*builds, "build has", "builds have")
            ));
        }
        Notice::Left { builds } => {
            line(&format!(
                "       {} on at the next `hephy up`",
                counted(*builds, "build goes", "builds go")
            ));
        }
    }
}

fn show_ready(ready: &Ready) {
    let addresses = &ready.addresses;
    line(&format!("-----> hephy is up; everything is kept in {}", ready.data.display()));
    line(&format!("       ssh       {}  host key {}", addresses.ssh(), ready.host_key));
    line(&format!("       registry  {}", addresses.registry()));
    line(&format!("       apps      {}", addresses.app_url_pattern()));
    if let Some(health) = ready.health {
        line(&format!("       health    http://{health}/readyz, /metrics"));
    }
    if let Some(pprof) = ready.pprof {
        line(&format!("       profiles  http://{pprof}/debug/pprof/profile"));
    }
    if ready.apps > 0 {
        let (apps, builds) = (counted(ready.apps, "app", "apps"), counted(ready.builds, "build", "builds"));
        line(&format!("       {apps}, {builds} taken up"));
    }
    if ready.users == 0 {
        line("-----> Nobody may push yet: there was no key in ~/.ssh. Make one and add it:");
        line("       ssh-keygen -t ed25519");
        line(&format!("       {}hephy keys add --user NAME --admin", data_prefix(&ready.data)));
    }
    line("-----> In a repository with a Dockerfile:");
    line(&format!("       git remote add deis {}", addresses.remote_url("myapp")));
    line("       git push deis main");
}

/// A number with what is counted.
fn counted(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// What makes the command line find a server that is not in the default place.
fn data_prefix(data: &Path) -> String {
    match default_data() {
        Some(default) if default == data => String::new(),
        _ => format!("HEPHY_DATA={} ", data.display()),
    }
}
