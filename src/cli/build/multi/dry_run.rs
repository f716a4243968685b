//! `--dry-run`: what a build would find, and nothing built.

use super::super::{BuildArguments, Refusal, tell};
use super::machines::{Available, Machine};
use super::{Asked, DriverChoice, kubernetes, machines};
use crate::build::{BuildFailure, chain};
use crate::oci::{Platform, Target};
use crate::registry::client::BlobSource;

/// Names each platform's machine and bases, and asks the registries of the destinations whether they would take the image.
pub(super) async fn run(arguments: &BuildArguments, asked: &Asked) -> Result<(), Refusal> {
    let mut is_well = true;
    let available = match asked.driver {
        DriverChoice::Local => Some(Available::here()),
        DriverChoice::K8s => {
            let driver = Box::pin(kubernetes::driver(arguments)).await?;
            Some(Available::in_cluster(&driver).await?)
        }
        DriverChoice::Ci => None,
    };
    for platform in &asked.platforms {
        match &available {
            Some(available) => is_well &= look(arguments, asked, platform, available).await?,
            None => tell(&format!("{platform}: built by another job")),
        }
    }
    // By the flag they are not asked to take anything.
    for destination in arguments.destination.iter().filter(|_| !arguments.no_push) {
        is_well &= takes(arguments, destination).await?;
    }
    // What is missing has been told.
    if is_well { Ok(()) } else { Err(Refusal::platform(String::new())) }
}

/// Says which machine and which base images a platform has.
async fn look(
    arguments: &BuildArguments,
    asked: &Asked,
    platform: &Platform,
    available: &Available,
) -> Result<bool, Refusal> {
    let found = machines::find(arguments, asked, platform, available).await?;
    let (said, machine) = match &found {
        Ok(Machine::Native(names)) => (format!("builds natively on {}", names.join(", ")), platform),
        Ok(Machine::Other(machine)) => {
            (format!("is made on {machine}, where nothing of it is executed"), machine)
        }
        Ok(Machine::Unknown) => ("not known: the nodes may not be listed".to_owned(), platform),
        Err(missing) => (missing.clone(), platform),
    };
    tell(&format!("{platform}: {said}"));
    let looked = machines::look_at(arguments, platform, machine).await?;
    for base in &looked.bases {
        let said = base.problem.as_ref().map_or_else(|| "found".to_owned(), BuildFailure::sentence);
        tell(&format!("  {}: {}: {said}", base.at, base.reference));
    }
    Ok(found.is_ok() && looked.bases.iter().all(|base| base.problem.is_none()))
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
