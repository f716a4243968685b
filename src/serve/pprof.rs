//! Profiles for whoever operates the server, at an address of loopback alone: `go tool pprof URL` reads them.

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::model::Chain;
use crate::profile::{self, LONGEST, ProfileError};

/// How long a profile is where nobody says.
const USUAL_SECONDS: u64 = 30;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    seconds: Option<u64>,
}

/// `/debug/pprof/profile?seconds=10`; no profile outlasts `stop`.
pub(super) fn router(stop: CancellationToken) -> Router {
    Router::new().route("/debug/pprof/profile", get(processor)).with_state(stop)
}

async fn processor(State(stop): State<CancellationToken>, Query(asked): Query<Asked>) -> Response {
    let seconds = asked.seconds.unwrap_or(USUAL_SECONDS);
    if !(1..=LONGEST.as_secs()).contains(&seconds) {
        let text = format!("seconds is from 1 to {}\n", LONGEST.as_secs());
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    let taken = stop.run_until_cancelled(profile::take(Duration::from_secs(seconds))).await;
    let Some(taken) = taken else {
        return (StatusCode::SERVICE_UNAVAILABLE, "hephy stops\n").into_response();
    };
    match taken {
        Ok(profile) => {
            let kind = [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CONTENT_DISPOSITION, "attachment; filename=\"hephy.pb.gz\""),
            ];
            (kind, profile).into_response()
        }
        Err(error) => {
            let status = match error {
                ProfileError::Busy => StatusCode::CONFLICT,
                ProfileError::Signal(_) | ProfileError::Write(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            (status, format!("{}\n", Chain(&error))).into_response()
        }
    }
}
