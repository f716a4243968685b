//! A client's connection that ends when it goes quiet: hyper's own limits begin only at a request's header, and end there.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::Deadline;

/// As long as HTTP/2's preface: until then nobody else watches the time.
const PREFACE_BYTES: usize = 24;

/// A stream that fails with `TimedOut` when its first bytes or any later ones are too late.
pub(super) struct Watched<S> {
    stream: S,
    idle: Duration,
    deadline: Deadline,
    preface_left: usize,
}

impl<S> Watched<S> {
    /// Gives the first bytes until `first`, then lets the stream be quiet for `idle` at a time.
    pub(super) fn new(stream: S, first: Duration, idle: Duration) -> Self {
        Self { stream, idle, deadline: Deadline::after(first), preface_left: PREFACE_BYTES }
    }

    fn progress<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match poll {
            Poll::Ready(done) => {
                if self.preface_left == 0 {
                    self.deadline.push_out(self.idle);
                }
                Poll::Ready(done)
            }
            Poll::Pending => self.deadline.poll(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.preface_left = self.preface_left.saturating_sub(buffer.filled().len() - before);
        self.progress(context, poll)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.preface_left = 0;
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.progress(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.preface_left = 0;
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.progress(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
