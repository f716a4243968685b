//! What was given, until shortly before it ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{IdentityError, Issued};
use crate::oci::Host;

/// It is asked again this long before the end at most, and a tenth of its life before it at least.
const MARGIN: Duration = Duration::from_mins(5);
/// And no later than this before it.
const LEAST_MARGIN: Duration = Duration::from_secs(15);
/// However long it is good: a service may say anything.
const LONGEST: Duration = Duration::from_hours(24);
/// How long nobody is nobody.
const NOBODY: Duration = Duration::from_mins(5);
/// How long after a failure it is not asked again.
const AFTER_FAILURE: Duration = Duration::from_secs(20);

/// Answers by registry.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<HashMap<Host, Arc<tokio::sync::Mutex<Option<Answer>>>>>);

type Found = Result<Option<Issued>, Arc<IdentityError>>;

#[derive(Debug)]
struct Answer {
    until: Instant,
    found: Found,
}

impl Kept {
    /// The answer for `host`; asked if none is kept, by one at a time.
    pub(super) async fn get<F>(&self, host: &Host, ask: impl FnOnce() -> F) -> Found
    where
        F: Future<Output = Result<Option<Issued>, IdentityError>>,
    {
        let one = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(host.clone()).or_default())
        };
        let mut kept = one.lock().await;
        if let Some(answer) = kept.as_ref().filter(|answer| Instant::now() < answer.until) {
            return answer.found.clone();
        }
        let found = ask().await.map_err(Arc::new);
        let life = match &found {
            Ok(Some(issued)) => usable(issued.valid).min(LONGEST),
            Ok(None) => NOBODY,
            Err(_) => AFTER_FAILURE,
        };
        *kept = Some(Answer { until: Instant::now() + life, found: found.clone() });
        found
    }
}

/// How long something that is good for `valid` is used.
pub(super) fn usable(valid: Duration) -> Duration {
    valid.saturating_sub((valid / 10).clamp(LEAST_MARGIN, MARGIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Secret;

    fn issued(valid: Duration) -> Issued {
        let password = Secret::new("p".to_owned());
        Issued { username: "u".to_owned(), password, valid, origin: "x".to_owned() }
    }

    #[tokio::test]
    async fn what_is_good_is_asked_once_and_what_ends_at_once_is_asked_again() {
        let endless = Duration::from_secs(u64::MAX);
        for (valid, expected) in [(Duration::from_hours(1), 1), (endless, 1), (Duration::from_secs(10), 3)] {
            let (kept, host) = (Kept::default(), "a.test".parse().unwrap());
            let asked = std::cell::Cell::new(0);
            for _ in 0..3 {
                let ask = || async {
                    asked.set(asked.get() + 1);
                    Ok(Some(issued(valid)))
                };
                assert!(kept.get(&host, ask).await.unwrap().is_some());
            }
            assert_eq!(asked.get(), expected);
        }
    }

    #[test]
    fn it_is_renewed_before_it_ends() {
        assert_eq!(usable(Duration::from_secs(12 * 3600)), Duration::from_secs(12 * 3600 - 300));
        assert_eq!(usable(Duration::from_secs(300)), Duration::from_secs(270));
        assert_eq!(usable(Duration::from_secs(10)), Duration::ZERO);
    }
}
