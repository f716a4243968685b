//! Bodies in passing: nothing is buffered, and each holds what must last as long as it does.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::instance::Lease;

/// The client sent no more of the body for too long.
#[derive(Debug, thiserror::Error)]
#[error("the client stopped in the middle of its request")]
struct Abandoned;

/// Whether a request failed because its client stopped in the middle of it.
pub(super) fn is_abandoned(error: &hyper::Error) -> bool {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source()).any(<dyn std::error::Error>::is::<Abandoned>)
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request on its way to an app.
pub(super) enum RequestBody {
    /// There is none.
    Empty,
    /// The client's, with a limit on how long it may send nothing while it is waited for.
    Client { incoming: Incoming, timeout: Duration, deadline: Option<Pin<Box<Sleep>>> },
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, timeout: Duration) -> Self {
        if incoming.is_end_stream() {
            Self::Empty
        } else {
            Self::Client { incoming, timeout, deadline: None }
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self::Client { incoming, timeout, deadline } = self.get_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(incoming).poll_frame(context) {
            *deadline = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let sleep = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(*timeout)));
        ready!(sleep.as_mut().poll(context));
        Poll::Ready(Some(Err(Box::new(Abandoned))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client { incoming, .. } => incoming.size_hint(),
        }
    }
}

/// The body of a response on its way to a client.
pub(super) enum ResponseBody {
    /// The router's own words.
    Page(Full<Bytes>),
    /// An app's; the request is in flight until it is dropped.
    App { incoming: Incoming, _lease: Lease },
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Page(full) => Pin::new(full).poll_frame(context).map_err(Into::into),
            Self::App { incoming, .. } => Pin::new(incoming).poll_frame(context).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Page(full) => full.is_end_stream(),
            Self::App { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(full) => full.size_hint(),
            Self::App { incoming, .. } => incoming.size_hint(),
        }
    }
}

/// When something that must make progress is late; pushed out without touching the timer.
pub(super) struct Deadline {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
}

impl Deadline {
    pub(super) fn after(time: Duration) -> Self {
        let at = Instant::now() + time;
        Self { sleep: Box::pin(tokio::time::sleep_until(at)), at }
    }

    pub(super) fn push_out(&mut self, time: Duration) {
        self.at = Instant::now() + time;
    }

    /// Ready once the deadline has passed.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(context));
            if self.at <= self.sleep.deadline() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.at);
        }
    }
}
