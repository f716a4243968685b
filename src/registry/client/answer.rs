//! What a registry answers: bodies within limits, and the errors that answers stand for.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::ClientError;
use super::advice::Given;
use super::call::Call;
use super::transport::ANSWER_LIMIT;

/// The largest error answer that is read.
const ERROR_BYTES: usize = 64 * 1024;

/// The error that an answer stands for.
pub(super) async fn status_error(call: &Call<'_>, response: Response) -> ClientError {
    let (repository, doing, status) = (call.repository.clone(), call.doing.clone(), response.status());
    let retry_after = retry_after(response.headers());
    let given = response.extensions().get::<Given>().cloned().unwrap_or(Given::NotAsked);
    let message = error_message(response).await;
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => call.denied(message, given),
        _ => ClientError::Status { repository, doing, status, message, retry_after },
    }
}

pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    SystemTime::from(date.timestamp()).duration_since(SystemTime::now()).ok()
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    code: Option<String>,
    message: Option<String>,
}

/// What the registry says went wrong, on one printable line.
pub(super) async fn error_message(response: Response) -> String {
    let status = response.status();
    let body = read_up_to(response, ERROR_BYTES).await.unwrap_or_default();
    let said = serde_json::from_slice::<Errors>(&body).ok().map(|errors| {
        let texts = errors.errors.into_iter().take(5).filter_map(|error| match (error.code, error.message) {
            (code, Some(message)) if !message.is_empty() => Some(match code {
                Some(code) => format!("{message} ({code})"),
                None => message,
            }),
            (code, _) => code,
        });
        texts.collect::<Vec<_>>().join("; ")
    });
    let text = said
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| status.canonical_reason().map_or_else(|| status.to_string(), str::to_lowercase));
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
    printable.trim().trim_end_matches('.').to_owned()
}

async fn read_up_to(mut response: Response, max_bytes: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Ok(Ok(Some(part))) = tokio::time::timeout(ANSWER_LIMIT, response.chunk()).await {
        if body.len() + part.len() > max_bytes {
            return None;
        }
        body.extend_from_slice(&part);
    }
    Some(body)
}

/// The whole body of an answer that may not be longer than `max_bytes`.
pub(super) async fn body(
    call: &Call<'_>,
    mut response: Response,
    what: &str,
    max_bytes: u64,
) -> Result<Bytes, ClientError> {
    let mut body = Vec::new();
    loop {
        let part = tokio::time::timeout(ANSWER_LIMIT, response.chunk()).await;
        let part = part.map_err(|_| call.stalled(ANSWER_LIMIT))?.map_err(|source| call.broken(source))?;
        let Some(part) = part else { return Ok(body.into()) };
        if body.len() as u64 + part.len() as u64 > max_bytes {
            let (repository, what) = (call.repository.clone(), what.to_owned());
            return Err(ClientError::TooLarge { repository, what, max_bytes });
        }
        body.extend_from_slice(&part);
    }
}
