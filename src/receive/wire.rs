//! The TCP stream under a connection, watched from beside it.
//!
//! A client that closes while its input is not being read would go unnoticed. The kernel's word about the read
//! side does not depend on reading.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::gate::Gate;

const LOOK: Duration = Duration::from_millis(250);

/// A TCP stream that several may hold.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    stream: Arc<TcpStream>,
    gate: Arc<Gate>,
}

impl Wire {
    /// Takes a stream; packets leave at once, and a peer that acknowledges nothing for `stall` is given up.
    pub(super) fn new(stream: TcpStream, stall: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let stall_ms = u32::try_from(stall.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(&stream, stall_ms)?;
        Ok(Self { stream: Arc::new(stream), gate: Arc::default() })
    }

    /// What holds back reading.
    pub(super) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Waits until the client has closed its side. Looks four times a second while there is input, read or not.
    pub(super) async fn closed_by_client(&self) {
        loop {
            match self.stream.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => tokio::time::sleep(LOOK).await,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Closes the connection at once, whatever is under way on it.
    pub(super) fn shut(&self) {
        if let Err(error) = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "connection was closed before");
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.gate.poll_open(cx));
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buf.initialize_unfilled()) {
                Ok(bytes) => {
                    buf.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write).map_err(Into::into))
    }
}
