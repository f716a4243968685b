//! What is told and published when all platforms are built.

use std::io::{self, Write as _};

use super::super::signals::Signals;
use super::super::{BuildArguments, Refusal, code, tell, write_digest_files};
use super::Asked;
use crate::build::{chain, with_default_tag};
use crate::model::PlatformImage;
use crate::oci::{Digest, MediaType, RawManifest, Reference, Target};
use crate::publish::{Access, Place, Publisher};
use crate::registry::client::Reach;

/// Publishes the index, if it is asked for, and tells the digest where it is to be told.
pub(super) async fn conclude(
    arguments: &BuildArguments,
    asked: &Asked,
    images: &[PlatformImage],
    signals: &Signals,
) -> Result<(), Refusal> {
    let digest = if asked.publishes {
        Some(publish(arguments, asked, images, signals).await?)
    } else {
        match images {
            [image] => Some(image.manifest),
            _ => None,
        }
    };
    let mut out = io::stdout().lock();
    let Some(digest) = digest else {
        for image in images {
            drop(writeln!(out, "{} {}", image.platform, image.manifest));
        }
        return Ok(());
    };
    write_digest_files(arguments, &digest).map_err(Refusal::platform)?;
    drop(writeln!(out, "{digest}"));
    Ok(())
}

/// Writes the index at every destination, and then moves the tags: a signal before that leaves them as they are.
async fn publish(
    arguments: &BuildArguments,
    asked: &Asked,
    images: &[PlatformImage],
    signals: &Signals,
) -> Result<Digest, Refusal> {
    let client = super::client(arguments)?;
    let failed = |destination: &Reference, error: &dyn std::error::Error, is_app: bool| Refusal {
        text: format!("failed to publish {destination}: {}", chain(error).join(": ")),
        code: if is_app { code::APP } else { code::PLATFORM },
    };
    let write = async {
        let mut written: Vec<(Reference, RawManifest)> = Vec::new();
        for destination in arguments.destination.iter().cloned().map(with_default_tag) {
            let host = destination.repository.host.clone();
            let place =
                Place { host, prefix: None, is_plain: false, access: Access::Open, reach: Reach::default() };
            let publisher = Publisher::new(client.clone(), place);
            let index = publisher.publish_in(&destination.repository, images, &asked.form).await;
            let index = index.map_err(|error| failed(&destination, &error, error.is_app()))?;
            if index.media_type() == &MediaType::DockerManifestList && !asked.form.annotations.is_empty() {
                tell(&format!(
                    "{destination}: the registry takes no OCI index, and Docker's list has no annotations"
                ));
            }
            written.push((destination, index));
        }
        Ok::<_, Refusal>(written)
    };
    let written = signals.first.run_until_cancelled(write).await.ok_or_else(Refusal::cancelled)??;
    let ignores_immutable = arguments.kaniko.push_ignore_immutable_tag_errors;
    let tag = async {
        for (destination, index) in &written {
            if let Some(tag) = destination.tag.clone() {
                let tagged = client.push_manifest(&destination.repository, &Target::Tag(tag), index).await;
                match tagged {
                    Err(error) if error.is_immutable_tag() && ignores_immutable => {
                        tell(&format!("{destination} stays as it is: the registry moves no tag"));
                        continue;
                    }
                    tagged => tagged.map_err(|error| failed(destination, &error, false))?,
                }
            }
            tell(&format!("Published {destination}@{} ({} platforms)", index.digest(), images.len()));
        }
        Ok::<_, Refusal>(())
    };
    signals.second.run_until_cancelled(tag).await.ok_or_else(Refusal::cancelled)??;
    let first = written.first().map(|(_, index)| index.digest());
    first.ok_or_else(|| Refusal::from("there is no destination".to_owned()))
}
