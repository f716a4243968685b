//! A ticket, good once, for the credentials of a build: what an engine in a pod has instead of a Secret.

use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use crate::model::Secret;

/// The largest answer.
const MAX_BYTES: usize = 1 << 20;
/// How long it is tried while nobody answers: one receiver may just be ending and the next be starting, on another node
/// and with a volume to attach.
const PATIENCE: Duration = Duration::from_mins(5);
/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(5);
/// How long one try may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What an engine exits with that reached no receiver: the cluster's trouble, and another attempt may do better
/// (`EX_TEMPFAIL` of sysexits.h).
pub const NO_RECEIVER_STATUS: u8 = 75;

/// Why a ticket was not exchanged.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// Nobody answers.
    #[error("no receiver answers at `{url}`, where the build's credentials are had")]
    Unreachable {
        /// Where.
        url: Url,
        /// Why.
        source: Box<reqwest::Error>,
    },
    /// The receiver does not take it.
    #[error("the receiver at `{url}` does not take the build's ticket: {status}, {text}")]
    Refused {
        /// Where.
        url: Url,
        /// The status.
        status: u16,
        /// What it says.
        text: String,
    },
}

/// Exchanges a ticket for a Docker configuration.
pub async fn exchange_ticket(url: &Url, ticket: &Secret<String>) -> Result<Secret<String>, TicketError> {
    let unreachable = |source| TicketError::Unreachable { url: url.clone(), source: Box::new(source) };
    // The credentials are for us alone: no proxy, no redirect.
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let client = client.timeout(LIMIT).build().map_err(unreachable)?;
    let (begun, mut pause) = (Instant::now(), Duration::from_millis(250));
    let answer = loop {
        match client.post(url.clone()).bearer_auth(ticket.reveal()).send().await {
            // One that was sent may have been used: only what did not arrive is sent again.
            Err(error) if error.is_connect() && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE);
            }
            answer => break answer.map_err(unreachable)?,
        }
    };
    let status = answer.status();
    let mut bytes = Vec::new();
    let mut answer = answer;
    while let Some(part) = answer.chunk().await.map_err(unreachable)? {
        bytes.extend_from_slice(&part);
        if bytes.len() > MAX_BYTES {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if status.is_success() && bytes.len() <= MAX_BYTES {
        Ok(Secret::new(text))
    } else {
        let text = text.chars().filter(|c| !c.is_control()).take(300).collect();
        Err(TicketError::Refused { url: url.clone(), status: status.as_u16(), text })
    }
}
