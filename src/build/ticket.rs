//! A ticket, good once, for the credentials of a build: what an engine in a pod has instead of a Secret.

use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use crate::model::{Chain, Secret};
use crate::registry::client::DockerConfig;

/// The header with how many seconds credentials are good that end.
pub const VALID_HEADER: &str = "hephy-valid-seconds";
/// The header with what renews them.
pub const RENEWAL_HEADER: &str = "hephy-renewal";
/// Where they are renewed, below where tickets are exchanged.
pub const RENEWAL_PATH: &str = "renewal";

/// The largest answer.
const MAX_BYTES: usize = 1 << 20;
/// How long it is tried while nobody answers: one receiver may just be ending and the next be starting, on another node
/// and with a volume to attach.
const PATIENCE: Duration = Duration::from_mins(5);
/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(5);
/// The least between two renewals, however little is left.
const LEAST_PAUSE: Duration = Duration::from_secs(2);
/// How long after a renewal that failed it is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
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

/// What a ticket is good for.
#[derive(Debug)]
pub struct Exchanged {
    /// A Docker configuration.
    pub config: Secret<String>,
    /// How it is kept good, if it ends.
    pub renewal: Option<Renewal>,
}

/// What renews credentials that end.
#[derive(Debug)]
pub struct Renewal {
    ticket: Secret<String>,
    /// How long they are good.
    pub valid: Duration,
}

/// Exchanges a ticket for a Docker configuration.
pub async fn exchange_ticket(url: &Url, ticket: &Secret<String>) -> Result<Exchanged, TicketError> {
    let answer = ask(url, ticket).await?;
    let ticket = answer.headers.get(RENEWAL_HEADER).and_then(|value| value.to_str().ok());
    let renewal = ticket.zip(answer.valid()).map(|(ticket, valid)| {
        let ticket = Secret::new(ticket.to_owned());
        Renewal { ticket, valid }
    });
    Ok(Exchanged { config: answer.config, renewal })
}

/// Keeps `config` good, as long as the build runs that it is for.
///
/// # Cancel safety
/// It is as it was renewed last.
pub async fn keep_ticket(url: Url, config: DockerConfig, renewal: Renewal) {
    let mut at = url;
    at.set_path(&format!("{}/{RENEWAL_PATH}", at.path().trim_end_matches('/')));
    loop {
        let left = config.valid().unwrap_or(renewal.valid);
        tokio::time::sleep((left / 2).max(LEAST_PAUSE)).await;
        match ask(&at, &renewal.ticket).await {
            Ok(answer) => {
                let valid = answer.valid().unwrap_or(renewal.valid);
                if let Err(error) = config.replace(answer.config, Some(valid)) {
                    tracing::warn!(error = %Chain(&error), "renewed credentials cannot be used");
                }
            }
            // It knows no such build any more: it has ended.
            Err(TicketError::Refused { status: 401, .. }) => return,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the build's credentials are not renewed");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
}

struct Answer {
    config: Secret<String>,
    headers: reqwest::header::HeaderMap,
}

impl Answer {
    fn valid(&self) -> Option<Duration> {
        let seconds = self.headers.get(VALID_HEADER)?.to_str().ok()?.parse().ok()?;
        Some(Duration::from_secs(seconds))
    }
}

async fn ask(url: &Url, ticket: &Secret<String>) -> Result<Answer, TicketError> {
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
    let (status, headers) = (answer.status(), answer.headers().clone());
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
        Ok(Answer { config: Secret::new(text), headers })
    } else {
        let text = text.chars().filter(|c| !c.is_control()).take(300).collect();
        Err(TicketError::Refused { url: url.clone(), status: status.as_u16(), text })
    }
}
