//! `hephy base`: base images from Debian's archive, into the registry's mirror, where `FROM` looks first.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::remote::Operator;
use super::render::elapsed;
use super::{chain, default_data, line, problem};
use crate::bases::{Assembly, Base, Mirrors, PackageName, assemble};
use crate::layers::Compression;
use crate::oci::{Host, Platform, Repository, Tag};
use crate::publish::{BaseImage, base_image, pack_layout, push_base, write_layout};
use crate::registry::client::{Client, ClientConfig, Credential, Credentials, Hosts, Reach};
use crate::registry::server::TokenIssuer;

/// How long the token for the push is good for.
const TOKEN_TTL: Duration = Duration::from_secs(3600);

/// `base`.
#[derive(Debug, Args)]
pub(super) struct BaseArguments {
    /// What to make: debian:12, debian:bookworm-slim, busybox
    #[arg(required = true, value_name = "BASE")]
    bases: Vec<Base>,
    /// For which architectures, as in `amd64,arm64` [default: this machine's]
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    arch: Vec<String>,
    /// Packages that the base has too; they become a part of the tag: debian:12-with-curl
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',')]
    include: Vec<PackageName>,
    /// A mirror of Debian's archive [default: the one that apt uses here]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// A mirror of Debian's security updates [default: the one that apt uses here]
    #[arg(long, value_name = "URL")]
    security_mirror: Option<String>,
    /// The registry to push to [default: the one of `hephy up` on this machine]
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["oci_layout_path", "tar_path"])]
    registry: Option<Host>,
    /// A registry that may be spoken to in plain HTTP, as one on this machine always may
    #[arg(long, value_name = "HOST:PORT")]
    insecure_registry: Vec<Host>,
    /// Write an OCI layout into this directory instead of pushing
    #[arg(long, value_name = "DIRECTORY")]
    oci_layout_path: Option<PathBuf>,
    /// Write an OCI archive to this file instead of pushing
    #[arg(long, value_name = "FILE")]
    tar_path: Option<PathBuf>,
}

pub(super) fn run(arguments: &BaseArguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let made = match runtime {
        Ok(runtime) => runtime.block_on(make_all(arguments)),
        Err(error) => Err(format!("cannot start: {error}")),
    };
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            problem(&text);
            ExitCode::FAILURE
        }
    }
}

async fn make_all(arguments: &BaseArguments) -> Result<(), String> {
    let mirrors = Mirrors::find(arguments.mirror.as_deref(), arguments.security_mirror.as_deref())
        .map_err(|error| chain(&error))?;
    let platforms = platforms(&arguments.arch)?;
    // Before minutes are spent on what could not be pushed.
    let target = Target::of(arguments)?;
    for base in &arguments.bases {
        make(*base, arguments, &mirrors, &platforms, &target).await?;
    }
    Ok(())
}

fn platforms(architectures: &[String]) -> Result<Vec<Platform>, String> {
    if architectures.is_empty() {
        return Ok(vec![Platform::native()]);
    }
    let platform = |name: &String| match name.split_once('/') {
        Some(("linux", rest)) => rest.split_once('/').map_or_else(
            || Platform::new("linux", rest, None),
            |(architecture, variant)| Platform::new("linux", architecture, Some(variant)),
        ),
        _ => Platform::new("linux", name, None),
    };
    architectures.iter().map(|name| platform(name).map_err(|error| error.to_string())).collect()
}

/// Where the images go.
enum Target {
    Registry(Host, Box<Client>),
    Layout(PathBuf),
    Archive(PathBuf),
}

impl Target {
    fn of(arguments: &BaseArguments) -> Result<Self, String> {
        if let Some(directory) = &arguments.oci_layout_path {
            return Ok(Self::Layout(directory.clone()));
        }
        if let Some(file) = &arguments.tar_path {
            return Ok(Self::Archive(file.clone()));
        }
        let data = default_data();
        let here = data.as_deref().and_then(|data| Some((data, Operator::read(data)?)));
        let local = here.as_ref().and_then(|(_, operator)| operator.registry.parse::<Host>().ok());
        let host = arguments.registry.clone().or_else(|| local.clone()).ok_or(
            "no registry: start one with `hephy up` (one with `--data DIRECTORY` is found by HEPHY_DATA=DIRECTORY), name one with `--registry`, or write a file with `--oci-layout-path`",
        )?;
        let credentials = match here {
            Some((data, _)) if Some(&host) == local.as_ref() => {
                Credentials::none().with(&host, own_credential(data)?)
            }
            _ => Credentials::from_environment().map_err(|error| chain(&error))?,
        };
        let mut reach = Reach::default();
        reach.insecure = Hosts::These(arguments.insecure_registry.iter().cloned().collect());
        let client = Client::new(ClientConfig { credentials, reach, ..ClientConfig::default() });
        Ok(Self::Registry(host, Box::new(client)))
    }
}

/// Whoever may read the registry's key may write to its mirror.
fn own_credential(data: &Path) -> Result<Credential, String> {
    let tokens = TokenIssuer::open(&data.join("registry")).map_err(|error| chain(&error))?;
    Ok(Credential::Basic { username: "hephy".to_owned(), password: tokens.for_mirror(TOKEN_TTL) })
}

async fn make(
    base: Base,
    arguments: &BaseArguments,
    mirrors: &Mirrors,
    platforms: &[Platform],
    target: &Target,
) -> Result<(), String> {
    let directory =
        tempfile::tempdir().map_err(|error| format!("cannot make a temporary directory: {error}"))?;
    let mut images = Vec::new();
    for platform in platforms {
        let started = Instant::now();
        line(&format!("-----> Assembling {base} for {platform} from {}", mirrors.debian));
        let place = directory.path().join(platform.to_string().replace('/', "-"));
        std::fs::create_dir(&place).map_err(|error| format!("cannot make `{}`: {error}", place.display()))?;
        let assembly =
            Assembly { base, include: arguments.include.clone(), mirrors: mirrors.clone(), directory: place };
        let root = assemble(&assembly, platform, &|text| line(&format!("       {text}")));
        let root = root.await.map_err(|error| chain(&error))?;
        let image = tokio::task::spawn_blocking(move || base_image(&root, Compression::default()));
        images.push(image.await.map_err(|error| error.to_string())?.map_err(|error| chain(&error))?);
        line(&format!("       {platform} made                          {}", elapsed(started.elapsed())));
    }
    let tags = base.tags(&arguments.include);
    let tags = tags.iter().map(|tag| tag.parse::<Tag>().map_err(|error| error.to_string()));
    let tags = tags.collect::<Result<Vec<_>, _>>()?;
    deliver(base, &tags, &images, target, directory.path()).await
}

async fn deliver(
    base: Base,
    tags: &[Tag],
    images: &[BaseImage],
    target: &Target,
    directory: &Path,
) -> Result<(), String> {
    let name = |tag: &Tag| format!("{}:{tag}", base.repository().trim_start_matches("library/"));
    let repository = |host: &Host, namespace: &str| {
        let parsed = format!("{host}/{namespace}{}", base.repository()).parse::<Repository>();
        parsed.map_err(|error| error.to_string())
    };
    let hub = repository(&Host::docker_hub(), "")?;
    match target {
        Target::Registry(host, client) => {
            let repository = repository(host, "mirror/")?;
            let pushed = push_base(client, &repository, tags, images).await.map_err(|error| chain(&error))?;
            line(&format!("-----> Pushed {repository}@{}", pushed.digest));
        }
        Target::Layout(path) => {
            let written = write_layout(path, &hub, tags, images).map_err(|error| chain(&error))?;
            line(&format!("-----> Wrote {} ({})", path.display(), written.digest));
            line(&format!("       hephy build --mirror oci:{} …", path.display()));
        }
        Target::Archive(path) => {
            let layout = directory.join("layout");
            let written = write_layout(&layout, &hub, tags, images).map_err(|error| chain(&error))?;
            pack_layout(&layout, path).map_err(|error| chain(&error))?;
            line(&format!("-----> Wrote {} ({})", path.display(), written.digest));
            return Ok(());
        }
    }
    for tag in tags {
        line(&format!("       FROM {}", name(tag)));
    }
    Ok(())
}
