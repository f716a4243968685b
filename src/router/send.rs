//! One request to one instance: over a kept connection or a fresh one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tracing::debug;

use super::body::RequestBody;
use super::instance::Instance;

/// Why there is no response.
pub(super) enum Unanswered {
    /// Nothing of the request was sent; here it is. The instance refused, or a kept connection had been closed.
    Unsent { request: Box<Request<RequestBody>>, refused: bool },
    /// It was sent, at least in part.
    Sent { error: hyper::Error, kept_connection: bool },
    /// It was sent, and the response did not begin in time.
    Late,
}

/// Which connection a request may go over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// A kept one if there is one.
    Any,
    /// A fresh one: what must not be sent twice must not meet a connection that is just being closed.
    Fresh,
}

/// How long things may take.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    pub(super) connect: Duration,
    pub(super) response: Duration,
}

/// Sends `request` and returns the head of the response; its body follows on the same connection.
///
/// Dropped before it ends, the connection is closed: the app sees that nobody waits any more.
pub(super) async fn send(
    instance: &Arc<Instance>,
    request: Request<RequestBody>,
    over: Over,
    patience: Patience,
) -> Result<Response<Incoming>, Unanswered> {
    let kept = if over == Over::Any { instance.take_idle() } else { None };
    let kept_connection = kept.is_some();
    let mut sender = match kept {
        Some(sender) => sender,
        None => match timeout(patience.connect, connect(instance)).await {
            Ok(Ok(sender)) => {
                instance.restore();
                sender
            }
            failed => {
                debug!(instance = instance.backend.id(), error = ?failed.err(), "the instance refuses connections");
                instance.eject();
                return Err(Unanswered::Unsent { request: Box::new(request), refused: true });
            }
        },
    };
    let response = match timeout(patience.response, sender.try_send_request(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(mut error)) => {
            return Err(match error.take_message() {
                Some(request) => Unanswered::Unsent { request: Box::new(request), refused: false },
                None => Unanswered::Sent { error: error.into_error(), kept_connection },
            });
        }
        Err(_) => return Err(Unanswered::Late),
    };
    let instance = Arc::clone(instance);
    // Ends with the response's body or the connection, whichever ends first.
    tokio::spawn(async move {
        if sender.ready().await.is_ok() {
            instance.keep(sender);
        }
    });
    Ok(response)
}

async fn connect(instance: &Instance) -> io::Result<SendRequest<RequestBody>> {
    let stream = instance.backend.connect().await?;
    let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(io::Error::other)?;
    // Ends when the sender is dropped or the instance closes the stream.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "a connection to an instance ended");
        }
    });
    Ok(sender)
}
