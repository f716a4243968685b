//! Back-pressure on what a client sends.
//!
//! russh widens a client's window when data arrives, not when it is read, and the only other way to slow a client
//! is to stop russh itself, output and keepalives included. So what arrives is always taken from russh, and when
//! too much of it waits to be read, nothing more is read from the socket.
//!
//! A command that reads on only while its output moves, such as `cat`, could stop for good so: the client's permission
//! to send output is behind input that is not taken. git's protocols do not: a pack is read to its end before much
//! is said, and a request before its answer. Such a client is given up as a silent one.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes};

/// More than this waits only while output waits for the client too: its permission to send more output may be
/// behind its input.
const SOFT_LIMIT_BYTES: usize = 4 << 20;
/// More than this never waits.
const HARD_LIMIT_BYTES: usize = 32 << 20;

/// Whether more may be read from a connection.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    bytes: usize,
    blocked_writers: usize,
    reader: Option<Waker>,
}

impl Waiting {
    fn is_open(&self) -> bool {
        self.bytes < SOFT_LIMIT_BYTES || (self.blocked_writers > 0 && self.bytes < HARD_LIMIT_BYTES)
    }

    fn wake(&mut self) {
        if self.is_open()
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
    }
}

impl Gate {
    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ready when more may be read.
    pub(super) fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|waiting| {
            if waiting.is_open() {
                return Poll::Ready(());
            }
            waiting.reader = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Counts data in until it is dropped.
    pub(super) fn hold(self: &Arc<Self>, bytes: Bytes) -> Held {
        self.with(|waiting| waiting.bytes += bytes.len());
        Held { counted: bytes.len(), bytes, gate: Arc::clone(self) }
    }

    /// Says that output waits for the client, until dropped.
    pub(super) fn writer(self: &Arc<Self>) -> Writer {
        self.with(|waiting| {
            waiting.blocked_writers += 1;
            waiting.wake();
        });
        Writer(Arc::clone(self))
    }
}

/// Data that waits to be read.
#[derive(Debug)]
pub(super) struct Held {
    bytes: Bytes,
    counted: usize,
    gate: Arc<Gate>,
}

impl Held {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes.min(self.bytes.len()));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gate.with(|waiting| {
            waiting.bytes = waiting.bytes.saturating_sub(self.counted);
            waiting.wake();
        });
    }
}

/// Output that waits.
#[derive(Debug)]
pub(super) struct Writer(Arc<Gate>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.with(|waiting| waiting.blocked_writers = waiting.blocked_writers.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(gate: &Gate) -> bool {
        gate.poll_open(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_gate_closes_when_too_much_waits_and_opens_when_it_is_read_or_a_writer_needs_it() {
        let gate = Arc::new(Gate::default());
        let held = gate.hold(Bytes::from(vec![0; SOFT_LIMIT_BYTES]));
        assert!(!is_open(&gate));
        let writer = gate.writer();
        assert!(is_open(&gate));
        let more = gate.hold(Bytes::from(vec![0; HARD_LIMIT_BYTES - SOFT_LIMIT_BYTES]));
        assert!(!is_open(&gate));
        drop(writer);
        drop(held);
        assert!(!is_open(&gate));
        drop(more);
        assert!(is_open(&gate));
    }
}
