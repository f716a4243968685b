//! What every runtime tells an app by its environment, and where the app listens.

use crate::model::Release;
use crate::oci::ImageConfig;
use crate::rollout::{RuntimeError, Version};

const DEFAULT_PORT: u16 = 5000;

/// Where the app is to listen: as the config says, else the one TCP port that the image exposes, else 5000.
pub(super) fn port(version: &Version, image: &ImageConfig) -> Result<u16, RuntimeError> {
    let set = version.variables.iter().find(|(name, _)| name.as_str() == "PORT");
    if let Some((_, value)) = set {
        let value = value.reveal();
        let port = value.parse().ok().filter(|port| *port > 0);
        return port.ok_or_else(|| RuntimeError::Port(value.clone()));
    }
    let mut exposed = image.config.exposed_ports.iter().filter_map(|port| {
        let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        number.parse::<u16>().ok().filter(|number| *number > 0 && protocol.eq_ignore_ascii_case("tcp"))
    });
    match (exposed.next(), exposed.next()) {
        (Some(port), None) => Ok(port),
        _ => Ok(DEFAULT_PORT),
    }
}

/// The variables of every instance of a release, whichever it is.
pub(super) fn of_release(release: &Release, port: u16) -> [(&'static str, String); 9] {
    [
        ("PORT", port.to_string()),
        ("HEPHY_APP", release.app.to_string()),
        ("HEPHY_RELEASE", release.number.to_string()),
        ("HEPHY_COMMIT", release.commit.to_string()),
        // Deis Workflow's names, so that what ran there runs here.
        ("DEIS_APP", release.app.to_string()),
        ("WORKFLOW_RELEASE", release.number.to_string()),
        ("WORKFLOW_RELEASE_SUMMARY", release.summary.clone()),
        ("WORKFLOW_RELEASE_CREATED_AT", release.created_at.to_string()),
        ("SOURCE_VERSION", release.commit.to_string()),
    ]
}

/// The image's entrypoint and its arguments.
pub(super) fn image_command(image: &ImageConfig) -> Vec<String> {
    let parts = [&image.config.entrypoint, &image.config.cmd];
    parts.into_iter().flatten().flatten().cloned().collect()
}
