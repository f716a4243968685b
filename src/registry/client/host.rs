//! What is known of a registry while the client lives: how it is spoken to, what it wants to see, when it is to be left alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use super::auth::{Token, TokenKey};
use super::challenge::Challenge;

/// The longest that a registry may ask us to wait.
pub(super) const RETRY_AFTER_LIMIT: Duration = Duration::from_mins(2);

/// One registry.
#[derive(Debug)]
pub(super) struct HostState {
    /// `http` or `https`, when it is known.
    pub(super) scheme: OnceCell<&'static str>,
    pub(super) challenge: Mutex<Option<Challenge>>,
    pub(super) tokens: Mutex<HashMap<TokenKey, Token>>,
    /// One exchange at a time: parallel transfers wait for the token of the first.
    pub(super) exchange: tokio::sync::Mutex<()>,
    /// Whether it was asked for a challenge that its answers did not hold.
    pub(super) was_asked: AtomicBool,
    /// Whether a connection has broken: from then on none is shared by HTTP/2.
    pub(super) is_http1: AtomicBool,
    /// The size of the smallest upload that was too large for one request.
    pub(super) too_large_bytes: AtomicU64,
    slots: Arc<Semaphore>,
    not_before: Mutex<Option<Instant>>,
}

/// Held while a request and its answer are on their way.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl HostState {
    /// A registry to which `requests` may be under way at once.
    pub(super) fn new(requests: usize) -> Self {
        Self {
            scheme: OnceCell::new(),
            challenge: Mutex::default(),
            tokens: Mutex::default(),
            exchange: tokio::sync::Mutex::default(),
            was_asked: AtomicBool::new(false),
            is_http1: AtomicBool::new(false),
            too_large_bytes: AtomicU64::new(u64::MAX),
            slots: Arc::new(Semaphore::new(requests.max(1))),
            not_before: Mutex::default(),
        }
    }

    /// Waits until a request may be sent.
    pub(super) async fn turn(&self) -> Slot {
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok().map(Arc::new);
        loop {
            let until = *lock(&self.not_before);
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => return Slot { _permit: permit },
            }
        }
    }

    /// Sends nothing for as long as the registry asks, up to a limit.
    pub(super) fn pause(&self, asked: Duration) {
        let until = Instant::now() + asked.min(RETRY_AFTER_LIMIT);
        let mut not_before = lock(&self.not_before);
        *not_before = Some(not_before.map_or(until, |known| known.max(until)));
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
