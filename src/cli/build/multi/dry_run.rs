//! `--dry-run`: what a build would find, and nothing built.

use std::process::ExitCode;

use super::super::{BuildArguments, Refusal, code, options, refused, tell};
use super::{Asked, DriverChoice, kubernetes};
use crate::build::{BuildEvent, BuildOptions, Driver as _, Preflight, chain, preflight};
use crate::oci::{Platform, Target};
use crate::registry::client::BlobSource;

/// Names each platform's node and base, and asks the registries of the destinations whether they would take the image.
pub(super) async fn run(arguments: &BuildArguments, asked: &Asked) -> ExitCode {
    match look(arguments, asked).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(code::PLATFORM),
        Err(refusal) => refused(&refusal.text, refusal.code),
    }
}

async fn look(arguments: &BuildArguments, asked: &Asked) -> Result<bool, Refusal> {
    let mut is_well = true;
    let available = match asked.driver {
        DriverChoice::Local => Some(vec![Platform::native()]),
        DriverChoice::K8s => Box::pin(kubernetes::driver(arguments)).await?.platforms().await.ok(),
        DriverChoice::Ci => None,
    };
    for platform in &asked.platforms {
        let node = match (&available, asked.driver) {
            (Some(available), _) if available.contains(platform) => "builds natively",
            (Some(_), _) => {
                is_well = false;
                "no node builds it"
            }
            (None, DriverChoice::Ci) => "built by another job",
            (None, _) => "not known: the nodes may not be listed",
        };
        tell(&format!("{platform}: {node}"));
        if asked.driver != DriverChoice::Ci {
            is_well &= bases(arguments, platform).await?;
        }
    }
    for destination in &arguments.destination {
        is_well &= takes(arguments, destination).await?;
    }
    Ok(is_well)
}

/// Says which base images a platform has.
async fn bases(arguments: &BuildArguments, platform: &Platform) -> Result<bool, Refusal> {
    let found = look_at(arguments, platform).await?;
    for base in &found.bases {
        let said = base.problem.as_deref().unwrap_or("found");
        tell(&format!("  {}: {}: {said}", base.at, base.reference));
    }
    Ok(found.bases.iter().all(|base| base.problem.is_none()))
}

/// What a build for a platform would find.
pub(super) async fn look_at(arguments: &BuildArguments, platform: &Platform) -> Result<Preflight, Refusal> {
    let mut arguments = arguments.clone();
    arguments.custom_platform = Some(platform.clone());
    (arguments.force, arguments.no_push) = (true, true);
    let (options, contexts) = options(&arguments)?;
    let fetched = contexts.fetch(&std::env::temp_dir(), &options.client).await;
    let failed = |failure| {
        let text = BuildEvent::Failed { failure: Box::new(failure) }.lines().join("\n");
        Refusal { text, code: code::APP }
    };
    let fetched = fetched.map_err(failed)?;
    let options = BuildOptions { context: fetched.main.directory.clone(), ..options };
    preflight(options).await.map_err(failed)
}

/// Asks a registry whether we may push, by pushing two bytes that it may forget.
async fn takes(arguments: &BuildArguments, destination: &crate::oci::Reference) -> Result<bool, Refusal> {
    let client = super::client(arguments)?;
    let repository = &destination.repository;
    match client.push_blob(repository, BlobSource::bytes("{}"), &[]).await {
        Ok(_) => tell(&format!("{repository}: may be pushed to")),
        Err(error) => {
            tell(&format!("{repository}: {}", chain(&error).join(": ")));
            return Ok(false);
        }
    }
    let config = crate::oci::Descriptor::of(crate::oci::MediaType::Empty, b"{}");
    let probe = crate::oci::RawManifest::image(&crate::oci::Manifest {
        artifact_type: Some(crate::oci::MediaType::from("application/vnd.hephy.probe.v1")),
        ..crate::oci::Manifest::image(config, Vec::new())
    });
    let target = Target::Digest(probe.digest());
    match client.push_manifest(repository, &target, &probe).await {
        Ok(()) => {
            // Where nothing may be deleted, three lines of JSON without a tag stay.
            drop(client.delete_manifest(repository, &target).await);
            tell(&format!("{repository}: takes OCI manifests"));
            Ok(true)
        }
        Err(error) => {
            tell(&format!(
                "{repository}: takes no OCI manifests ({}): use `--oci-mode=docker`",
                chain(&error).join(": ")
            ));
            Ok(arguments.multi.oci_mode != super::OciMode::Oci)
        }
    }
}
