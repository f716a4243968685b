//! Ctrl-C and SIGTERM, for as long as the process lives: tokio never gives a signal its usual effect back, so whatever
//! may take long listens to these.

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals that this process has got. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Signals {
    /// Cancelled by the first: what is built is not wanted any more.
    pub(super) first: CancellationToken,
    /// Cancelled by the second: nor is anything that only tidies up.
    pub(super) second: CancellationToken,
}

impl Signals {
    /// Listens on a runtime.
    pub(super) fn of(runtime: &Runtime) -> Self {
        let signals = Self::default();
        runtime.spawn(signals.clone().listen());
        signals
    }

    /// Ends what follows a build: by the next signal, whichever that is.
    pub(super) fn next(&self) -> &CancellationToken {
        if self.first.is_cancelled() { &self.second } else { &self.first }
    }

    async fn listen(self) {
        let (Ok(mut terminate), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return;
        };
        for token in [&self.first, &self.second] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    }
}
