//! Who builds next: for each architecture a few at once, and the owners in turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The rows of builds, one for each architecture.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: usize,
    rows: Mutex<Rows>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Rows {
    next: u64,
    rows: HashMap<String, Row>,
}

#[derive(Debug, Default)]
struct Row {
    running: Vec<Entry>,
    waiting: Vec<Entry>,
    /// When each owner had a turn last, by a count of turns.
    served: HashMap<String, u64>,
    turns: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    id: u64,
    owner: String,
}

/// A place in a row; it is given up when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    queue: Queue,
    architecture: String,
    id: u64,
}

impl Queue {
    /// Rows of which `limit` run at once.
    pub(super) fn new(limit: usize) -> Self {
        let (changed, _) = watch::channel(());
        Self { shared: Arc::new(Shared { limit: limit.max(1), rows: Mutex::default(), changed }) }
    }

    /// How many run at once.
    pub(super) fn limit(&self) -> usize {
        self.shared.limit
    }

    /// Stands in the row.
    pub(super) fn enter(&self, architecture: &str, owner: &str) -> Turn {
        self.add(architecture, owner, |row, entry| row.waiting.push(entry))
    }

    /// Counts a build that runs already, which nobody keeps from running.
    pub(super) fn take_over(&self, architecture: &str, owner: &str) -> Turn {
        self.add(architecture, owner, |row, entry| row.running.push(entry))
    }

    fn add(&self, architecture: &str, owner: &str, put: impl FnOnce(&mut Row, Entry)) -> Turn {
        let mut rows = self.rows();
        rows.next += 1;
        let id = rows.next;
        put(rows.rows.entry(architecture.to_owned()).or_default(), Entry { id, owner: owner.to_owned() });
        Turn { queue: self.clone(), architecture: architecture.to_owned(), id }
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.shared.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Runs if it may, and else says how many are before it.
    fn try_run(&self) -> Result<(), usize> {
        let mut rows = self.queue.rows();
        let Some(row) = rows.rows.get_mut(&self.architecture) else { return Ok(()) };
        if row.running.iter().any(|entry| entry.id == self.id) {
            return Ok(());
        }
        let order = row.order();
        let ahead = order.iter().position(|id| *id == self.id).unwrap_or_default();
        if row.running.len() + ahead >= self.queue.shared.limit {
            return Err(ahead);
        }
        if let Some(index) = row.waiting.iter().position(|entry| entry.id == self.id) {
            let entry = row.waiting.remove(index);
            row.turns += 1;
            row.served.insert(entry.owner.clone(), row.turns);
            row.running.push(entry);
        }
        Ok(())
    }

    /// Waits until it may run, or until its place is another than `known`: then says how many are before it.
    ///
    /// Cancel safe.
    pub(super) async fn place(&self, known: Option<usize>) -> Option<usize> {
        let mut changed = self.queue.shared.changed.subscribe();
        loop {
            match self.try_run() {
                Ok(()) => break,
                Err(ahead) if known != Some(ahead) => return Some(ahead),
                // Its sender lives in the queue that we hold.
                Err(_) => drop(changed.changed().await),
            }
        }
        // Somebody behind may run beside us.
        self.queue.shared.changed.send_replace(());
        None
    }
}

impl Row {
    /// Who is next: those who have the fewest running, of these who had a turn longest ago, of one owner who came first.
    fn order(&self) -> Vec<u64> {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for entry in &self.running {
            *counts.entry(&entry.owner).or_default() += 1;
        }
        let mut ranked: Vec<(usize, u64, u64)> = Vec::new();
        for entry in &self.waiting {
            let count = counts.entry(&entry.owner).or_default();
            let served = self.served.get(&entry.owner).copied().unwrap_or_default();
            ranked.push((*count, served, entry.id));
            *count += 1;
        }
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, _, id)| id).collect()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut rows = self.queue.rows();
        if let Some(row) = rows.rows.get_mut(&self.architecture) {
            row.running.retain(|entry| entry.id != self.id);
            row.waiting.retain(|entry| entry.id != self.id);
            if row.running.is_empty() && row.waiting.is_empty() {
                rows.rows.remove(&self.architecture);
            }
        }
        drop(rows);
        self.queue.shared.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_come_in_turn_and_the_architectures_do_not_wait_for_each_other() {
        let queue = Queue::new(1);
        let first = queue.enter("arm64", "big");
        assert_eq!(first.try_run(), Ok(()));
        let (second, third) = (queue.enter("arm64", "big"), queue.enter("arm64", "big"));
        let small = queue.enter("arm64", "small");
        assert_eq!((small.try_run(), second.try_run(), third.try_run()), (Err(0), Err(1), Err(2)));
        assert_eq!(queue.enter("amd64", "big").try_run(), Ok(()));
        drop(first);
        assert_eq!((second.try_run(), small.try_run(), third.try_run()), (Err(1), Ok(()), Err(1)));
        drop(small);
        assert_eq!((third.try_run(), second.try_run()), (Err(1), Ok(())));
    }

    #[tokio::test]
    async fn whoever_waits_is_told_its_place_and_runs_when_it_is_free() {
        let queue = Queue::new(1);
        let running = queue.take_over("arm64", "a");
        let next = queue.enter("arm64", "b");
        let last = queue.enter("arm64", "c");
        assert_eq!(last.place(None).await, Some(1));
        let leave = async {
            drop(running);
            assert_eq!(next.place(None).await, None);
            drop(next);
        };
        let (place, ()) = tokio::join!(last.place(Some(1)), leave);
        let place = if place.is_some() { last.place(place).await } else { place };
        assert_eq!(place, None);
    }
}
