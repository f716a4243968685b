//! `hephy cache warm`: base images for `hephy build --cache-dir`, fetched beforehand.

use std::path::PathBuf;

use clap::Args;

use super::told;
use crate::build::{WarmOptions, warm};
use crate::cli::build::{RegistryArguments, read_bundle};
use crate::oci::{Platform, Reference};

/// `cache warm`.
#[derive(Debug, Args)]
pub(super) struct WarmArguments {
    /// An image, as FROM names it; may be repeated
    #[arg(short, long, value_name = "IMAGE", required = true)]
    image: Vec<Reference>,
    /// The directory, an OCI image layout
    #[arg(short, long, value_name = "DIRECTORY", default_value = "/cache")]
    cache_dir: PathBuf,
    /// For which platforms [default: this machine's]
    #[arg(long, value_delimiter = ',', value_name = "OS/ARCHITECTURE")]
    custom_platform: Vec<Platform>,
    /// A PEM file with certificates that registries are believed by, too
    #[arg(long, env = "HEPHY_CA_BUNDLE", value_name = "FILE")]
    ca_bundle: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// Fetches them; returns a line for each.
pub(super) fn run(arguments: &WarmArguments) -> Result<String, String> {
    let platforms = match &arguments.custom_platform[..] {
        [] => vec![Platform::native()],
        given => given.to_vec(),
    };
    let mut registry = arguments.registry.clone();
    registry.read_docker_config()?;
    let trusted = arguments.ca_bundle.as_deref().map(read_bundle).transpose()?;
    let options = WarmOptions {
        client: registry.client(&[], None, trusted.as_deref())?,
        mirrors: registry.mirrors()?,
        images: arguments.image.clone(),
        platforms,
        directory: arguments.cache_dir.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let warmed = runtime.block_on(warm(&options)).map_err(|failure| told(&failure))?;
    let lines = warmed
        .iter()
        .map(|warmed| format!("{} {} {}", warmed.image.familiar(), warmed.platform, warmed.manifest));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
