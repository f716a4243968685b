//! What a server tells whoever operates it, beside its log: where its traces go.

use std::time::Duration;

use crate::config::traces::{Endpoint, TraceSettings, TraceSettingsError};
use crate::traces::{Exporter, ExporterError};

/// How long the last traces may take at the end.
pub(super) const LAST_TRACES: Duration = Duration::from_secs(3);

/// Why what a server tells cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A setting.
    #[error(transparent)]
    Settings(#[from] TraceSettingsError),
    /// The way to the collector.
    #[error(transparent)]
    Exporter(#[from] ExporterError),
}

/// Sends traces where `given` says, else where OpenTelemetry's variables do, else nowhere. `instance` tells this server
/// from others.
pub(super) fn traces(given: Option<&Endpoint>, instance: &str) -> Result<Exporter, TelemetryError> {
    match TraceSettings::read(given, instance, |name| std::env::var(name).ok())? {
        Some(settings) => Ok(Exporter::start(settings)?),
        None => Ok(Exporter::off()),
    }
}

/// The name of this machine.
pub(super) fn machine() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
