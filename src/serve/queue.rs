//! Pushes that wait for a busy app: the newest waits, an older one gives way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::model::AppName;

/// Who waits, by app.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue {
    waiting: Arc<Mutex<HashMap<AppName, CancellationToken>>>,
}

/// A place in the queue, left when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    queue: Queue,
    app: AppName,
    overtaken: CancellationToken,
}

impl Queue {
    /// Waits as the newest; who waited before is overtaken.
    pub(super) fn wait(&self, app: &AppName) -> Turn {
        let overtaken = CancellationToken::new();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(older) = waiting.insert(app.clone(), overtaken.clone()) {
            older.cancel();
        }
        Turn { queue: self.clone(), app: app.clone(), overtaken }
    }
}

impl Turn {
    /// Returns when a newer push waits.
    pub(super) async fn overtaken(&self) {
        self.overtaken.cancelled().await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.overtaken.is_cancelled() {
            self.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.app);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_waits_and_the_older_one_gives_way() {
        let queue = Queue::default();
        let app: AppName = "hello".parse().unwrap();
        let first = queue.wait(&app);
        let second = queue.wait(&app);
        first.overtaken().await;
        drop(first);
        assert!(!second.overtaken.is_cancelled());
        let third = queue.wait(&app);
        second.overtaken().await;
        drop(third);
        assert!(queue.waiting.lock().unwrap().is_empty());
    }
}
