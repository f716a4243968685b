//! What an image is after each instruction: its configuration, its variables and its history.
//!
//! Pure: instructions that only say something about the image are applied here; those that touch files (RUN, COPY,
//! ADD, WORKDIR) are the engine's, which tells their outcome by [`StageState::record`].

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::build::image::Layer;
use crate::dockerfile::{
    CommandLine, Escape, ExpandError, GlobalScope, Healthcheck, HealthcheckCommand, Instruction, KeyValue,
    PortError, StageScope, exposed_ports,
};
use crate::oci;

/// `PATH` of an image whose base says none (`BuildKit`'s `system.DefaultPathEnv`).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why an instruction that only says something about the image cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// A variable could not be expanded.
    #[error(transparent)]
    Expand(#[from] ExpandError),
    /// Not a port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Not a signal.
    #[error("`{0}` is not a signal: use a name such as `SIGTERM` or a number from 1 to 64")]
    Signal(String),
    /// Empty where something is needed.
    #[error("{0} needs a value, and `{1}` expands to nothing")]
    Empty(&'static str, String),
}

/// A stage between two instructions.
#[derive(Debug, Clone)]
pub(crate) struct StageState {
    /// The image configuration; `rootfs` is filled from `layers` at the end.
    pub(crate) config: oci::ImageConfig,
    /// From the base upward.
    pub(crate) layers: Vec<Layer>,
    /// ENV and ARG.
    pub(crate) scope: StageScope,
    /// Whether this stage said CMD: then ENTRYPOINT does not clear it.
    cmd_set: bool,
    /// The time of `created` and of history.
    now: Timestamp,
}

impl StageState {
    /// The state right after FROM.
    #[must_use]
    pub(crate) fn new(mut config: oci::ImageConfig, layers: Vec<Layer>, now: Timestamp) -> Self {
        if !config.config.env.iter().any(|pair| pair.starts_with("PATH=")) {
            config.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        let scope = StageScope::from_image(&config.config.env);
        Self { config, layers, scope, cmd_set: false, now }
    }

    /// The state right after `FROM this-stage`: variables are inherited, and a CMD is.
    #[must_use]
    pub(crate) fn child(&self) -> Self {
        Self { cmd_set: false, ..self.clone() }
    }

    /// What ONBUILD left for whoever builds upon this image; it is left no more.
    pub(crate) fn take_triggers(&mut self) -> Vec<String> {
        std::mem::take(&mut self.config.config.on_build)
    }

    /// The command that runs a shell form.
    #[must_use]
    pub(crate) fn shell(&self) -> Vec<String> {
        self.config.config.shell.clone().unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()])
    }

    /// The working directory, absolute.
    #[must_use]
    pub(crate) fn working_directory(&self) -> String {
        absolute(self.config.config.working_dir.as_deref().unwrap_or("/"), "/")
    }

    /// A command line as it is run.
    #[must_use]
    pub(crate) fn command(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Shell(text) => {
                let mut words = self.shell();
                words.push(text.clone());
                words
            }
            CommandLine::Exec(words) => words.clone(),
        }
    }

    /// Adds a history entry, and the layer if the step made one.
    pub(crate) fn record(&mut self, created_by: String, layer: Option<Layer>) {
        self.config.history.push(oci::History {
            created: Some(self.now),
            created_by: Some(created_by),
            comment: Some("hephy".to_owned()),
            empty_layer: layer.is_none(),
            ..oci::History::default()
        });
        self.layers.extend(layer);
    }

    /// Applies an instruction that touches no files; `instruction` is expanded. False: it is not one of those.
    pub(crate) fn apply(
        &mut self,
        instruction: &Instruction,
        global: &GlobalScope,
        escape: Escape,
    ) -> Result<bool, StateError> {
        let config = &mut self.config.config;
        let created_by = match instruction {
            Instruction::Env(pairs) => {
                for KeyValue { key, value } in pairs {
                    set_env(&mut config.env, key, value);
                    self.scope.set_env(key, value);
                }
                format!("ENV {}", joined(pairs))
            }
            Instruction::Arg(declarations) => {
                let mut words = Vec::new();
                for declaration in declarations {
                    let value = self.scope.declare(declaration, global, escape)?;
                    words.push(match value {
                        Some(value) => format!("{}={value}", declaration.name),
                        None => declaration.name.clone(),
                    });
                }
                format!("ARG {}", words.join(" "))
            }
            Instruction::Label(pairs) => {
                config.labels.extend(pairs.iter().map(|pair| (pair.key.clone(), pair.value.clone())));
                format!("LABEL {}", joined(pairs))
            }
            Instruction::Maintainer(author) => {
                self.config.author = Some(author.clone());
                format!("MAINTAINER {author}")
            }
            Instruction::User(user) => {
                config.user = Some(needed("USER", user)?);
                format!("USER {user}")
            }
            Instruction::Cmd(_) | Instruction::Entrypoint(_) | Instruction::Shell(_) => {
                self.apply_command(instruction)
            }
            Instruction::Expose(words) => {
                let mut ports = Vec::new();
                for word in words {
                    ports.extend(exposed_ports(word)?);
                }
                config.exposed_ports.extend(ports.iter().cloned());
                format!("EXPOSE {}", ports.join(" "))
            }
            Instruction::Volume(paths) => {
                for path in paths {
                    config.volumes.insert(needed("VOLUME", path)?);
                }
                format!("VOLUME {}", json(paths))
            }
            Instruction::Stopsignal(name) => {
                config.stop_signal = Some(signal(name)?);
                format!("STOPSIGNAL {name}")
            }
            Instruction::Healthcheck(check) => {
                let check = healthcheck(check);
                let text = format!("HEALTHCHECK {}", json(&check.test));
                config.healthcheck = Some(check);
                text
            }
            Instruction::Onbuild(onbuild) => {
                config.on_build.push(onbuild.text.clone());
                format!("ONBUILD {}", onbuild.text)
            }
            Instruction::Run(_) | Instruction::Copy(_) | Instruction::Add(_) | Instruction::Workdir(_) => {
                return Ok(false);
            }
        };
        self.record(created_by, None);
        Ok(true)
    }

    /// Applies what says how the image is run, and returns what history says of it.
    fn apply_command(&mut self, instruction: &Instruction) -> String {
        match instruction {
            Instruction::Cmd(command) => {
                let words = self.command(command);
                self.cmd_set = true;
                let text = format!("CMD {}", json(&words));
                self.config.config.cmd = Some(words).filter(|words| !words.is_empty());
                text
            }
            Instruction::Entrypoint(command) => {
                let words = self.command(command);
                let text = format!("ENTRYPOINT {}", json(&words));
                self.config.config.entrypoint = Some(words).filter(|words| !words.is_empty());
                if !self.cmd_set {
                    self.config.config.cmd = None;
                }
                text
            }
            Instruction::Shell(words) => {
                self.config.config.shell = Some(words.clone());
                format!("SHELL {}", json(words))
            }
            other => other.name().to_owned(),
        }
    }

    /// Sets the working directory from WORKDIR's expanded argument, and returns it.
    pub(crate) fn enter(&mut self, path: &str) -> Result<String, StateError> {
        let path = absolute(&needed("WORKDIR", path)?, &self.working_directory());
        self.config.config.working_dir = Some(path.clone());
        Ok(path)
    }

    /// Sets labels given from outside over those of the Dockerfile.
    pub(crate) fn label(&mut self, labels: impl IntoIterator<Item = (String, String)>) {
        self.config.config.labels.extend(labels);
    }

    /// RUN's environment, without what the sandbox adds.
    #[must_use]
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        self.scope.environment().into_iter().collect()
    }
}

/// `path`, relative to `directory` if it is not absolute, without `.`, `..` and doubled or trailing slashes.
#[must_use]
pub(crate) fn absolute(path: &str, directory: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{directory}/{path}") };
    let mut parts = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn set_env(env: &mut Vec<String>, key: &str, value: &str) {
    let pair = format!("{key}={value}");
    let same = |old: &&mut String| old.split_once('=').map_or(old.as_str(), |(name, _)| name) == key;
    match env.iter_mut().find(same) {
        Some(old) => *old = pair,
        None => env.push(pair),
    }
}

fn needed(what: &'static str, text: &str) -> Result<String, StateError> {
    if text.is_empty() { Err(StateError::Empty(what, text.to_owned())) } else { Ok(text.to_owned()) }
}

fn joined(pairs: &[KeyValue]) -> String {
    pairs.iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect::<Vec<_>>().join(" ")
}

fn json(words: &[String]) -> String {
    serde_json::to_string(words).unwrap_or_default()
}

/// A signal's name or number, as Docker's `signal.ParseSignal` takes it.
fn signal(text: &str) -> Result<String, StateError> {
    const NAMES: [&str; 33] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
        "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
        "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU",
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = name.strip_prefix("RTMIN").or_else(|| name.strip_prefix("RTMAX")).is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix(['+', '-']).is_some_and(|digits| digits.parse::<u8>().is_ok())
    });
    let number = text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    if number || realtime || NAMES.contains(&name) || name == "XFSZ" {
        Ok(text.to_owned())
    } else {
        Err(StateError::Signal(text.to_owned()))
    }
}

fn healthcheck(check: &Healthcheck) -> oci::Healthcheck {
    let nanoseconds = |duration: &Option<std::time::Duration>| {
        duration.map(|duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    };
    match check {
        Healthcheck::None => {
            oci::Healthcheck { test: vec!["NONE".to_owned()], ..oci::Healthcheck::default() }
        }
        Healthcheck::Check(HealthcheckCommand {
            command,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        }) => oci::Healthcheck {
            test: match command {
                CommandLine::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
                CommandLine::Exec(words) => {
                    std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect()
                }
            },
            interval: nanoseconds(interval),
            timeout: nanoseconds(timeout),
            start_period: nanoseconds(start_period),
            start_interval: nanoseconds(start_interval),
            retries: *retries,
        },
    }
}
