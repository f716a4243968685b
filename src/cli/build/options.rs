//! The flags of `hephy build`, and what the engine is told of them.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::context::Contexts;
use super::multi::OciMode;
use super::{
    CheckArguments, ContextArguments, MultiArguments, Refusal, RegistryArguments, ReportArguments, cache,
    code, kaniko, mounts,
};
use crate::build::{
    BuildLimits, BuildOptions, CacheUse, Compression, ImageFormat, Mirrors, NetworkMode, compression,
    layers_directory, with_default_tag,
};
use crate::cli::remote::Operator;
use crate::dockerfile::MAX_FILE_BYTES;
use crate::oci::{Platform, Reference};
use crate::sandbox::ladder::{Circumstances, Rung, Wish, choose};
use crate::sandbox::{IdMap, Isolation, SandboxError, WorkerSpec};

/// Build an image from a Dockerfile
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct BuildArguments {
    /// Where the context is
    #[command(flatten)]
    pub context: ContextArguments,
    /// Whether to check instead of building
    #[command(flatten)]
    pub check: CheckArguments,
    /// The Dockerfile, relative to the context or absolute; `-` is standard input
    #[arg(short = 'f', long, value_name = "FILE", default_value = "Dockerfile")]
    pub dockerfile: PathBuf,
    /// Where the image is pushed, as in HOST:PORT/REPOSITORY:TAG; may be repeated
    #[arg(short, long, value_name = "REFERENCE")]
    pub destination: Vec<Reference>,
    /// A build argument, NAME=VALUE, or NAME for its value in the environment; may be repeated
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub build_arg: Vec<String>,
    /// The stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// A label over those of the Dockerfile; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// The platform of the image [default: this machine's]
    #[arg(long, visible_alias = "platform", value_name = "OS/ARCHITECTURE")]
    pub custom_platform: Option<Platform>,
    /// Build for a platform whose programs this machine does not run natively, or in place as the host's root
    #[arg(long)]
    pub force: bool,
    /// Build without pushing
    #[arg(long)]
    pub no_push: bool,
    /// Push destinations without a tag by digest only
    #[arg(long, hide = true)]
    pub push_by_digest: bool,
    /// Write the digest of the manifest to a file
    #[arg(long, value_name = "FILE")]
    pub digest_file: Option<PathBuf>,
    /// Write the image to a tar, for `docker load` and `skopeo`
    #[arg(long, value_name = "FILE")]
    pub tar_path: Option<PathBuf>,
    /// Add the image to an OCI image layout
    #[arg(long, value_name = "DIRECTORY")]
    pub oci_layout_path: Option<PathBuf>,
    /// How layers are compressed
    #[arg(long, value_enum, default_value = "gzip")]
    pub compression: Compression,
    /// How hard: 1 to 9 for gzip, 1 to 22 for zstd [default: 6, 3]
    #[arg(long, value_name = "LEVEL")]
    pub compression_level: Option<i32>,
    /// How RUN is kept from the machine
    #[arg(long, value_enum, default_value = "auto")]
    pub isolation: IsolationChoice,
    /// What network RUN has
    #[arg(long, value_enum, default_value = "host")]
    pub network: NetworkMode,
    /// Where layers and the step cache are kept [default: `$XDG_DATA_HOME/hephy`]
    #[arg(long, env = "HEPHY_DATA", value_name = "DIRECTORY")]
    pub data: Option<PathBuf>,
    /// How progress is told, on standard error
    #[arg(long, value_enum, default_value = "auto")]
    pub progress: Progress,
    /// Run every step, whatever the cache knows
    #[arg(long)]
    pub no_cache: bool,
    /// Say of every step why it was not known, not only of the first
    #[arg(long)]
    pub explain: bool,
    /// What kaniko has besides
    #[command(flatten)]
    pub kaniko: kaniko::KanikoArguments,
    /// The cache repository
    #[command(flatten)]
    pub step_cache: cache::CacheArguments,
    /// Seconds since 1970: no time in the image is later
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", allow_hyphen_values = true)]
    pub source_date_epoch: Option<i64>,
    /// Leave aside layers that were made for another `SOURCE_DATE_EPOCH`: the same source gives the same digest anywhere
    #[arg(long)]
    pub reproducible: bool,
    /// How long the build may take
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    pub time_limit: Duration,
    /// How much memory a RUN may use, where cgroups are delegated
    #[arg(long, value_name = "BYTES")]
    pub memory: Option<u64>,
    /// How many processors a RUN may use, where cgroups are delegated
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<f64>,
    /// What RUN steps may have
    #[command(flatten)]
    pub mounts: mounts::MountArguments,
    /// A Dockerfile that was read from standard input, which is read once.
    #[arg(skip)]
    pub typed: Option<Vec<u8>>,
    /// A directory for the build's lock, events and result
    #[arg(long, hide = true, value_name = "DIRECTORY")]
    pub build_directory: Option<PathBuf>,
    /// Flags for registries.
    #[command(flatten)]
    pub registry: RegistryArguments,
    /// What an engine in a Job is told.
    #[command(flatten)]
    pub report: ReportArguments,
    /// Builds for several platforms.
    #[command(flatten)]
    pub multi: MultiArguments,
}

/// How RUN is kept from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IsolationChoice {
    /// The best there is.
    Auto,
    /// User, mount and process namespaces.
    Userns,
    /// A directory of this container, without namespaces and mounts.
    InPlace,
}

/// How progress is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// A display on a terminal, lines elsewhere.
    Auto,
    /// Lines for people.
    Plain,
    /// A JSON object a line.
    Json,
    /// Numbered JSON objects on standard output, for whoever reads a pod's log.
    #[value(hide = true)]
    Events,
}

impl BuildArguments {
    /// The same with what comes on standard input, which can be read only once.
    pub(super) fn with_standard_input(&self) -> Result<Self, String> {
        let mut arguments = self.clone();
        if self.is_typed() && self.registry.docker_config_stdin {
            return Err("standard input is the Dockerfile or the credentials, not both".to_owned());
        }
        if self.is_typed() && self.typed.is_none() {
            arguments.typed = Some(typed()?);
        }
        arguments.registry.read_docker_config()?;
        Ok(arguments)
    }

    /// Whether the Dockerfile comes on standard input.
    pub(super) fn is_typed(&self) -> bool {
        self.dockerfile == Path::new("-")
    }

    /// The contexts that are to be fetched.
    pub(super) fn contexts(&self) -> Result<Contexts, String> {
        self.context.contexts(self.registry.docker_config_stdin || self.is_typed(), self.mounts.trusted()?)
    }

    /// How progress is told, by hephy's flag or kaniko's.
    pub(super) fn progress(&self) -> Progress {
        if self.kaniko.log_format.as_deref() == Some("json") { Progress::Json } else { self.progress }
    }

    /// The types of the image's documents.
    pub(super) fn image_format(&self) -> ImageFormat {
        if self.multi.oci_mode == OciMode::Docker { ImageFormat::Docker } else { self.kaniko.image_format }
    }

    /// `--label`, split.
    pub(super) fn labels(&self) -> Vec<(String, String)> {
        let split = |label: &String| match label.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (label.clone(), String::new()),
        };
        self.label.iter().map(split).collect()
    }

    /// `--build-arg`, a name alone with its value in the environment.
    pub(super) fn build_args(&self) -> BTreeMap<String, String> {
        let split = |argument: &String| match argument.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => Some((argument.clone(), std::env::var(argument).ok()?)),
        };
        self.build_arg.iter().filter_map(split).collect()
    }

    /// Where an image is pushed: by digest alone if an index has the tag.
    fn pushed_to(&self) -> Vec<Reference> {
        if self.no_push {
            return Vec::new();
        }
        let mut places: Vec<Reference> = Vec::new();
        for destination in &self.destination {
            let mut place = destination.clone();
            if self.multi.is_of_index {
                place.tag = None;
            } else if !self.push_by_digest {
                place = with_default_tag(place);
            }
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }
}

/// Where a build is done.
struct Here {
    data: PathBuf,
    rung: Rung,
}

/// What a build on this machine is told.
pub(super) fn options(arguments: &BuildArguments) -> Result<(BuildOptions, Contexts), Refusal> {
    let contexts = checked(arguments)?;
    let data = data_directory(arguments)?;
    let platform_error = |text: String| Refusal { text, code: code::PLATFORM };
    std::fs::create_dir_all(&data)
        .map_err(|error| platform_error(format!("`{}`: {error}", data.display())))?;
    let rung =
        rung(arguments, &data).map_err(|error| platform_error(crate::build::chain(&error).join(": ")))?;
    Ok((options_at(arguments, &Here { data, rung })?, contexts))
}

/// What a build would be told, to be looked at only: nothing is isolated, and what is kept is kept in `scratch`.
pub(super) fn options_to_look(arguments: &BuildArguments, scratch: &Path) -> Result<BuildOptions, Refusal> {
    checked(arguments)?;
    let rung = Rung { isolation: Isolation::Userns, ids: IdMap::in_force(), why: None };
    options_at(arguments, &Here { data: scratch.to_owned(), rung })
}

/// The contexts of a build whose flags make sense, as far as that is seen without this machine.
fn checked(arguments: &BuildArguments) -> Result<Contexts, Refusal> {
    if let Some(refusal) = arguments.kaniko.refusal() {
        return Err(refusal.into());
    }
    let contexts = arguments.contexts()?;
    let outputs = [&arguments.tar_path, &arguments.oci_layout_path];
    let goes_nowhere = arguments.destination.is_empty() && outputs.iter().all(|output| output.is_none());
    if goes_nowhere && !arguments.no_push && !arguments.check.check {
        return Err("nowhere to push: give `--destination HOST/REPOSITORY:TAG`, or `--no-push`"
            .to_owned()
            .into());
    }
    platform(arguments)?;
    Ok(contexts)
}

fn options_at(arguments: &BuildArguments, here: &Here) -> Result<BuildOptions, Refusal> {
    let platform = platform(arguments)?;
    let build_args = arguments.build_args();
    let epoch_argument = || build_args.get("SOURCE_DATE_EPOCH").map(|text| text.parse::<i64>());
    let epoch = match (arguments.source_date_epoch, epoch_argument()) {
        (Some(epoch), _) | (None, Some(Ok(epoch))) => Some(epoch),
        (None, None) => None,
        (None, Some(Err(_))) => return Err("SOURCE_DATE_EPOCH is not a number of seconds".to_owned().into()),
    };
    let cache_repository =
        arguments.step_cache.repository(&arguments.destination, platform.architecture())?;
    let destinations = arguments.pushed_to();
    Ok(BuildOptions {
        client: arguments.registry.client(
            &destinations,
            cache_repository.as_ref(),
            arguments.mounts.trusted()?.as_deref(),
        )?,
        // Known when it is here.
        context: PathBuf::new(),
        named: BTreeMap::new(),
        dockerfile: if arguments.is_typed() { STANDARD_INPUT.into() } else { arguments.dockerfile.clone() },
        dockerfile_text: arguments.typed.clone(),
        platform,
        target: arguments.target.clone(),
        build_args,
        labels: arguments.labels(),
        destinations,
        ignore_immutable_tags: arguments.kaniko.push_ignore_immutable_tag_errors,
        names: arguments.destination.iter().cloned().map(with_default_tag).collect(),
        mirrors: mirrors(arguments)?,
        warmed: arguments.kaniko.cache_dir.clone(),
        layers: layers_directory(&here.data),
        rung: here.rung.clone(),
        epoch,
        reproducible: arguments.reproducible,
        cache: if arguments.no_cache { CacheUse::Ignore } else { CacheUse::Read },
        explain: arguments.explain,
        cache_repository,
        network: arguments.network,
        mounts: arguments.mounts.options()?,
        limits: BuildLimits {
            time: arguments.time_limit,
            memory_bytes: arguments.memory,
            cpus: arguments.cpus,
        },
        compression: compression(arguments.compression, arguments.compression_level),
        format: arguments.image_format(),
        annotations: arguments.kaniko.annotations()?.into_iter().collect(),
        oci_layout: arguments.oci_layout_path.clone(),
        tar: arguments.tar_path.clone(),
    })
}

/// How a Dockerfile on standard input is called.
const STANDARD_INPUT: &str = "<stdin>";

/// A Dockerfile on standard input.
fn typed() -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read = io::stdin().lock().take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut text);
    read.map_err(|error| format!("the Dockerfile on standard input: {error}"))?;
    if text.len() > MAX_FILE_BYTES {
        return Err(format!("the Dockerfile on standard input has more than {MAX_FILE_BYTES} bytes"));
    }
    Ok(text)
}

/// The places given, or else the mirror of the `hephy up` that keeps its data here: what `hephy base` made is there.
fn mirrors(arguments: &BuildArguments) -> Result<Mirrors, String> {
    let mut mirrors = arguments.registry.mirrors()?;
    let is_own = mirrors.places.is_empty() && arguments.build_directory.is_none();
    let data = data_directory(arguments).ok().filter(|_| is_own);
    if let Some(operator) = data.and_then(|data| Operator::read(&data))
        && let Ok(place) = format!("{}/mirror", operator.registry).parse()
    {
        mirrors.places.push(place);
    }
    Ok(mirrors)
}

fn platform(arguments: &BuildArguments) -> Result<Platform, String> {
    let native = Platform::native();
    let platform = arguments.custom_platform.clone().unwrap_or_else(|| native.clone());
    if platform != native && !arguments.force {
        return Err(format!(
            "this machine runs {native} natively, not {platform}: build it on a {} machine, or give `--force`",
            platform.architecture()
        ));
    }
    Ok(platform)
}

fn rung(arguments: &BuildArguments, data: &Path) -> Result<Rung, SandboxError> {
    let wish = match arguments.isolation {
        IsolationChoice::Auto => Wish::Any,
        IsolationChoice::Userns => Wish::One(Isolation::Userns),
        IsolationChoice::InPlace => Wish::One(Isolation::InPlace),
    };
    let executable = WorkerSpec::own_executable();
    let network = arguments.network.into();
    choose(wish, &Circumstances { data, executable: &executable, network, force: arguments.force })
}

/// Where what is kept between builds is kept.
pub(super) fn data_directory(arguments: &BuildArguments) -> Result<PathBuf, String> {
    let from_environment = || {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        var("XDG_DATA_HOME")
            .or_else(|| Some(var("HOME")?.join(".local/share")))
            .map(|base| base.join("hephy"))
    };
    let given = arguments.data.clone().or_else(|| arguments.kaniko.kaniko_dir.clone());
    let data = given.or_else(from_environment).ok_or("give `--data DIRECTORY`: there is no HOME")?;
    std::path::absolute(&data).map_err(|error| format!("`{}`: {error}", data.display()))
}
