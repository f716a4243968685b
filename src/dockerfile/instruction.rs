//! The instructions as types: what each of them says, before variables are replaced.

use std::time::Duration;

use super::error::Span;
use super::expansion::{ExpandError, Expander};
use super::mount::{Device, Mount, MountSpec};

/// An instruction and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Where it stands.
    pub span: Span,
    /// Its line as written, continuations joined: for the history and for people.
    pub text: String,
    /// What it says.
    pub instruction: Instruction,
}

/// Every instruction but FROM, which begins a [`Stage`](super::Stage).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// `ADD`
    Add(Add),
    /// `ARG`
    Arg(Vec<ArgDeclaration>),
    /// `CMD`
    Cmd(CommandLine),
    /// `COPY`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `ENV`
    Env(Vec<KeyValue>),
    /// `EXPOSE`: words as written; see [`exposed_ports`](super::exposed_ports).
    Expose(Vec<String>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(Vec<KeyValue>),
    /// `MAINTAINER`
    Maintainer(String),
    /// `ONBUILD`
    Onbuild(Onbuild),
    /// `RUN`
    Run(Run),
    /// `SHELL`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    Stopsignal(String),
    /// `USER`
    User(String),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `WORKDIR`
    Workdir(String),
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// Text for the shell of the stage.
    Shell(String),
    /// A JSON array: the program and its arguments.
    Exec(Vec<String>),
}

/// `key=value` of ENV and LABEL, unexpanded and with its quotes until [`Instruction::expand`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The name.
    pub key: String,
    /// The value.
    pub value: String,
}

/// One name of an ARG, and its default if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// The name.
    pub name: String,
    /// The text after `=`, unexpanded.
    pub default: Option<String>,
}

/// What COPY and ADD copy, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    /// Paths, wildcards or URLs.
    pub paths: Vec<String>,
    /// Heredocs.
    pub inline: Vec<InlineFile>,
    /// The last argument; a trailing `/` makes it a directory.
    pub destination: String,
}

/// A file written in the Dockerfile itself: mode 0644, owner 0:0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// The delimiter: the file's name if the destination is a directory.
    pub name: String,
    /// The body; the tabs of `<<-` are gone.
    pub content: String,
    /// Variables in the body are still to be replaced.
    pub expand: bool,
}

/// `COPY`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copy {
    /// What and where to.
    pub sources: Sources,
    /// `--from`: a stage, a named context or an image; never a variable.
    pub from: Option<String>,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude`, each
    pub exclude: Vec<String>,
}

/// `ADD`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Add {
    /// What and where to.
    pub sources: Sources,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--keep-git-dir`, if given
    pub keep_git_dir: Option<bool>,
    /// `--checksum`
    pub checksum: Option<String>,
    /// `--unpack`, if given
    pub unpack: Option<bool>,
    /// `--exclude`, each
    pub exclude: Vec<String>,
}

/// `RUN`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What is run.
    pub command: RunCommand,
    /// `--mount`, each; see [`Run::mounts`].
    pub mounts: Vec<MountSpec>,
    /// `--network`
    pub network: Network,
    /// `--security`
    pub security: Security,
    /// `--device`, each
    pub devices: Vec<Device>,
}

/// What a RUN runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunCommand {
    /// Text for the shell of the stage: the line, the body of its one bare heredoc, or the line with its heredocs
    /// for the shell to read.
    Shell(String),
    /// A JSON array: the program and its arguments.
    Exec(Vec<String>),
    /// One bare heredoc that begins with `#!`: a file of mode 0755 at `/dev/pipes/<name>`, run by the shell.
    Script {
        /// The heredoc's delimiter.
        name: String,
        /// The file.
        content: String,
    },
}

impl Run {
    /// The mounts, with variables replaced in all their fields but `from`.
    pub fn mounts(&self, expander: &Expander<'_>) -> Result<Vec<Mount>, ExpandError> {
        self.mounts.iter().map(|spec| spec.resolve(expander)).collect()
    }
}

/// `RUN --network`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The network of the build.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's.
    Host,
}

/// `RUN --security`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// The usual isolation.
    #[default]
    Sandbox,
    /// All capabilities.
    Insecure,
}

/// `HEALTHCHECK`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`: not even the base's.
    None,
    /// `HEALTHCHECK CMD …`
    Check(HealthcheckCommand),
}

/// The command of a health check and its times; what is absent is the runtime's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthcheckCommand {
    /// What is run.
    pub command: CommandLine,
    /// `--interval`
    pub interval: Option<Duration>,
    /// `--timeout`
    pub timeout: Option<Duration>,
    /// `--start-period`
    pub start_period: Option<Duration>,
    /// `--start-interval`
    pub start_interval: Option<Duration>,
    /// `--retries`
    pub retries: Option<u32>,
}

/// `ONBUILD`: an instruction for builds that start from this image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Onbuild {
    /// The trigger as the image's config keeps it, with its heredocs.
    pub text: String,
    /// The same, understood; it was checked when this file was read.
    pub instruction: Box<Instruction>,
}

impl Instruction {
    /// The keyword.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Arg(_) => "ARG",
            Self::Cmd(_) => "CMD",
            Self::Copy(_) => "COPY",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Env(_) => "ENV",
            Self::Expose(_) => "EXPOSE",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Label(_) => "LABEL",
            Self::Maintainer(_) => "MAINTAINER",
            Self::Onbuild(_) => "ONBUILD",
            Self::Run(_) => "RUN",
            Self::Shell(_) => "SHELL",
            Self::Stopsignal(_) => "STOPSIGNAL",
            Self::User(_) => "USER",
            Self::Volume(_) => "VOLUME",
            Self::Workdir(_) => "WORKDIR",
        }
    }

    /// The instruction with its variables replaced, from one snapshot, where Dockerfiles have variables: ADD, COPY,
    /// ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR.
    ///
    /// The others come back as they are: RUN, CMD, ENTRYPOINT, HEALTHCHECK and SHELL are the shell's business (the
    /// mounts of a RUN are [`Run::mounts`]), ARG belongs to [`StageScope::declare`](super::StageScope::declare), and
    /// a trigger of ONBUILD is expanded in the build that it runs in.
    pub fn expand(&self, expander: &Expander<'_>) -> Result<Self, ExpandError> {
        Ok(match self {
            Self::Add(add) => Self::Add(Add {
                sources: add.sources.expand(expander)?,
                chown: optional(add.chown.as_ref(), expander)?,
                chmod: optional(add.chmod.as_ref(), expander)?,
                checksum: optional(add.checksum.as_ref(), expander)?,
                ..add.clone()
            }),
            Self::Copy(copy) => Self::Copy(Copy {
                sources: copy.sources.expand(expander)?,
                chown: optional(copy.chown.as_ref(), expander)?,
                chmod: optional(copy.chmod.as_ref(), expander)?,
                ..copy.clone()
            }),
            Self::Env(pairs) => Self::Env(key_values(pairs, expander)?),
            Self::Label(pairs) => Self::Label(key_values(pairs, expander)?),
            Self::Expose(ports) => {
                let words = ports.iter().map(|port| expander.words(port)).collect::<Result<Vec<_>, _>>()?;
                Self::Expose(words.into_iter().flatten().collect())
            }
            Self::Stopsignal(signal) => Self::Stopsignal(expander.word(signal)?),
            Self::User(user) => Self::User(expander.word(user)?),
            Self::Volume(paths) => Self::Volume(words(paths, expander)?),
            Self::Workdir(path) => Self::Workdir(expander.word(path)?),
            Self::Arg(_)
            | Self::Cmd(_)
            | Self::Entrypoint(_)
            | Self::Healthcheck(_)
            | Self::Maintainer(_)
            | Self::Onbuild(_)
            | Self::Run(_)
            | Self::Shell(_) => self.clone(),
        })
    }
}

impl Sources {
    fn expand(&self, expander: &Expander<'_>) -> Result<Self, ExpandError> {
        let inline = self.inline.iter().map(|file| {
            let content = if file.expand { expander.heredoc(&file.content)? } else { file.content.clone() };
            Ok(InlineFile { name: file.name.clone(), content, expand: false })
        });
        let destination = expander.word(&self.destination)?;
        if destination.is_empty() {
            return Err(ExpandError::Empty(self.destination.clone()));
        }
        Ok(Self {
            paths: words(&self.paths, expander)?,
            inline: inline.collect::<Result<_, _>>()?,
            destination,
        })
    }
}

fn optional(text: Option<&String>, expander: &Expander<'_>) -> Result<Option<String>, ExpandError> {
    text.map(|text| expander.word(text)).transpose()
}

fn words(texts: &[String], expander: &Expander<'_>) -> Result<Vec<String>, ExpandError> {
    texts.iter().map(|text| expander.word(text)).collect()
}

fn key_values(pairs: &[KeyValue], expander: &Expander<'_>) -> Result<Vec<KeyValue>, ExpandError> {
    let expand =
        |pair: &KeyValue| Ok(KeyValue { key: expander.word(&pair.key)?, value: expander.word(&pair.value)? });
    pairs.iter().map(expand).collect()
}
