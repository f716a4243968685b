//! What `hephy build` is told in the container of a Job: where its credentials are had, and where its result goes.

use std::time::Duration;

use clap::Args;
use url::Url;

use super::signals::Signals;
use super::{BuildArguments, Refusal, code};
use crate::build::{
    BuildResult, EVENTS_FILE, NO_RECEIVER_STATUS, TicketError, chain, exchange_ticket, keep_ticket,
    push_report,
};
use crate::model::Secret;
use crate::oci::Reference;
use crate::registry::client::DockerConfig;

/// How long the result may take on its way.
const LIMIT: Duration = Duration::from_secs(60);
/// The same after a signal: some seconds less than the pods' `GRACE_SECONDS`, of which the end of what was built takes a part.
const SIGNALLED: Duration = Duration::from_secs(12);

/// Where an engine in a Job has its credentials from, and where its result goes.
#[derive(Debug, Clone, Default, Args)]
pub struct ReportArguments {
    /// Leave the result and the log at a reference before ending
    #[arg(long, hide = true, value_name = "REFERENCE")]
    pub report: Option<Reference>,
    /// Where the ticket in HEPHY_TICKET is exchanged for the credentials of registries
    #[arg(long, hide = true, value_name = "URL")]
    pub ticket_url: Option<Url>,
}

/// The arguments with the credentials that a ticket is good for, if there is one.
pub(super) async fn with_credentials(arguments: &BuildArguments) -> Result<BuildArguments, Refusal> {
    let mut arguments = arguments.clone();
    if let Some(url) = &arguments.report.ticket_url {
        let ticket = std::env::var("HEPHY_TICKET").map(Secret::new);
        let ticket = ticket.map_err(|_| "HEPHY_TICKET is not set, and `--ticket-url` is".to_owned())?;
        let exchanged = exchange_ticket(url, &ticket).await.map_err(|error| {
            let code = match &error {
                TicketError::Unreachable { .. } => NO_RECEIVER_STATUS,
                TicketError::Refused { .. } => code::PLATFORM,
            };
            Refusal { text: chain(&error).join(": "), code }
        })?;
        let read = match &exchanged.renewal {
            Some(renewal) => DockerConfig::for_now(exchanged.config, renewal.valid),
            None => DockerConfig::parse(exchanged.config),
        };
        let config = read.map_err(|error| Refusal::platform(chain(&error).join(": ")))?;
        if let Some(renewal) = exchanged.renewal {
            // Until the process ends, whose last word goes to the registry.
            drop(tokio::spawn(keep_ticket(url.clone(), config.clone(), renewal)));
        }
        arguments.registry.docker_config = Some(config);
    }
    Ok(arguments)
}

/// Leaves the result where it is to go.
pub(super) async fn send(
    arguments: &BuildArguments,
    result: &BuildResult,
    signals: &Signals,
) -> Result<(), String> {
    let Some(reference) = &arguments.report.report else { return Ok(()) };
    let client = arguments.registry.client(
        std::slice::from_ref(reference),
        None,
        arguments.mounts.trusted()?.as_deref(),
    )?;
    let log = arguments.build_directory.as_ref().map(|directory| directory.join(EVENTS_FILE));
    let over = async {
        let signalled = async {
            signals.first.cancelled().await;
            tokio::time::sleep(SIGNALLED).await;
            SIGNALLED
        };
        tokio::select! {
            limit = signalled => limit,
            () = tokio::time::sleep(LIMIT) => LIMIT,
        }
    };
    tokio::select! {
        sent = push_report(&client, reference, result, log.as_deref()) => match sent {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("failed to leave the result: {}", chain(&error).join(": "))),
        },
        limit = over => Err(format!("failed to leave the result within {} s", limit.as_secs())),
        () = signals.second.cancelled() => Err("the result is not left: a second signal came".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::kubernetes::GRACE_SECONDS;

    #[test]
    fn an_engine_gives_up_before_its_pod_is_killed() {
        assert!(SIGNALLED.as_secs() + 5 <= GRACE_SECONDS.unsigned_abs());
    }
}
