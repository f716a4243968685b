//! Standard input and output of a session.
//!
//! Both are queues of buffers: a reader that stops stops the client, a client that stops stops the writer, and a
//! connection holds a bounded amount of either.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::gate::Held;

/// Buffers of output that wait; a buffer is at most [`MAX_CHUNK_BYTES`].
const QUEUED_CHUNKS: usize = 16;
const MAX_CHUNK_BYTES: usize = 32 * 1024;

/// What the client sends. Reads end when the client says so or is gone; [`Session::closed`](super::Session)
/// tells the two apart.
#[derive(Debug)]
pub struct Stdin {
    chunks: mpsc::UnboundedReceiver<Held>,
    current: Option<Held>,
}

impl Stdin {
    /// What waits in it is counted and bounded by the connection's [`Gate`](super::gate::Gate).
    pub(super) fn new() -> (mpsc::UnboundedSender<Held>, Self) {
        let (sender, chunks) = mpsc::unbounded_channel();
        (sender, Self { chunks, current: None })
    }
}

impl AsyncBufRead for Stdin {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        while this.current.as_ref().is_none_or(|chunk| chunk.bytes().is_empty()) {
            this.current = None;
            match ready!(this.chunks.poll_recv(cx)) {
                Some(chunk) => this.current = Some(chunk),
                None => break,
            }
        }
        Poll::Ready(Ok(this.current.as_ref().map(Held::bytes).unwrap_or_default()))
    }

    fn consume(mut self: Pin<&mut Self>, bytes: usize) {
        if let Some(chunk) = &mut self.current {
            chunk.advance(bytes);
        }
    }
}

impl AsyncRead for Stdin {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let available = ready!(self.as_mut().poll_fill_buf(cx))?;
        let bytes = available.len().min(buf.remaining());
        buf.put_slice(available.get(..bytes).unwrap_or_default());
        self.consume(bytes);
        Poll::Ready(Ok(()))
    }
}

/// Which of the client's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// A piece of output on its way.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) stream: Stream,
    pub(super) bytes: Bytes,
}

/// What the client sees. What is written before the handler returns is delivered; a write fails once the
/// client is gone. Clones write to the same stream, each write whole if it is below 32 KiB.
#[derive(Debug, Clone)]
pub struct Output {
    chunks: PollSender<Chunk>,
    stream: Stream,
    terminal: bool,
}

impl Output {
    pub(super) fn pair(terminal: bool) -> (Self, Self, mpsc::Receiver<Chunk>) {
        let (sender, receiver) = mpsc::channel(QUEUED_CHUNKS);
        let chunks = PollSender::new(sender);
        let stdout = Self { chunks: chunks.clone(), stream: Stream::Stdout, terminal };
        // A terminal has one stream.
        let stream = if terminal { Stream::Stdout } else { Stream::Stderr };
        (stdout, Self { chunks, stream, terminal }, receiver)
    }
}

fn gone<E>(_: E) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")
}

impl AsyncWrite for Output {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.chunks.poll_reserve(cx)).map_err(gone)?;
        let part = buf.get(..MAX_CHUNK_BYTES).unwrap_or(buf);
        let bytes = if self.terminal { for_terminal(part) } else { Bytes::copy_from_slice(part) };
        let stream = self.stream;
        self.chunks.send_item(Chunk { stream, bytes }).map_err(gone)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A client with a terminal has it in raw mode: a line ends in a carriage return too.
fn for_terminal(text: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(text.len() + text.len() / 16);
    for byte in text {
        if *byte == b'\n' {
            bytes.push(b'\r');
        }
        bytes.push(*byte);
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn input_is_read_across_buffers_until_its_end() {
        let gate = std::sync::Arc::new(super::super::gate::Gate::default());
        let (sender, mut stdin) = Stdin::new();
        for chunk in ["one ", "", "two ", "three"] {
            sender.send(gate.hold(Bytes::from_static(chunk.as_bytes()))).unwrap();
        }
        drop(sender);
        let mut text = String::new();
        stdin.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "one two three");
    }

    #[tokio::test]
    async fn output_waits_when_the_client_does_not_read_and_fails_when_it_is_gone() {
        let (mut stdout, mut stderr, mut receiver) = Output::pair(false);
        stdout.write_all(&vec![1; MAX_CHUNK_BYTES * QUEUED_CHUNKS]).await.unwrap();
        assert!(stderr.write_all(b"x").now_or_never().is_none());
        assert_eq!(receiver.recv().await.unwrap().stream, Stream::Stdout);
        drop(receiver);
        assert_eq!(stdout.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_terminal_gets_carriage_returns_on_its_one_stream() {
        let (_stdout, mut stderr, mut receiver) = Output::pair(true);
        stderr.write_all(b"a\nb\n").await.unwrap();
        let chunk = receiver.recv().await.unwrap();
        assert_eq!((chunk.stream, &*chunk.bytes), (Stream::Stdout, &b"a\r\nb\r\n"[..]));
    }

    use futures::FutureExt as _;
}
