//! Whether the client is still there, and how it went.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How a client went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It closed the channel or the connection, as Ctrl-C in git does: what it asked for is to be cancelled.
    Hangup,
    /// It stopped answering: what it asked for goes on without it.
    Silent,
    /// This server is being stopped: what it asked for goes on without this server.
    Shutdown,
}

/// Tells whether the client of a session is gone. The first way it went is the one that counts.
#[derive(Debug, Clone)]
pub struct Closed {
    gone: Arc<watch::Sender<Option<Gone>>>,
    hangup: CancellationToken,
}

impl Closed {
    /// A client that is there.
    #[must_use]
    pub fn new() -> Self {
        Self { gone: Arc::new(watch::Sender::new(None)), hangup: CancellationToken::new() }
    }

    /// Says that the client is gone, unless it was already.
    pub fn set(&self, how: Gone) {
        let first = self.gone.send_if_modified(|gone| gone.is_none() && gone.replace(how).is_none());
        if first && how == Gone::Hangup {
            self.hangup.cancel();
        }
    }

    /// How the client went, if it did.
    #[must_use]
    pub fn now(&self) -> Option<Gone> {
        *self.gone.borrow()
    }

    /// Waits until the client is gone. Cancel safe.
    pub async fn wait(&self) -> Gone {
        let mut gone = self.gone.subscribe();
        let went = gone.wait_for(Option::is_some).await.ok().and_then(|gone| *gone);
        // The sender is in `self`, so the wait never ends without a value.
        went.unwrap_or(Gone::Hangup)
    }

    /// Fires when the client closes, and never when it is silent or the server stops.
    #[must_use]
    pub fn hangup(&self) -> &CancellationToken {
        &self.hangup
    }
}

impl Default for Closed {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_way_to_go_counts_and_only_a_hangup_cancels() {
        let closed = Closed::new();
        assert_eq!(closed.now(), None);
        closed.set(Gone::Silent);
        closed.set(Gone::Hangup);
        assert_eq!(closed.wait().await, Gone::Silent);
        assert!(!closed.hangup().is_cancelled());

        let closed = Closed::new();
        let waiting = tokio::spawn({
            let closed = closed.clone();
            async move { closed.wait().await }
        });
        closed.set(Gone::Hangup);
        assert_eq!(waiting.await.unwrap(), Gone::Hangup);
        assert!(closed.hangup().is_cancelled());
    }
}
