//! What a log said already when it was opened again: each of it is taken once for what is told again.
//!
//! An engine that outlives the server is followed from its first event, and a stage that was interrupted begins again.
//! What is said in between by nobody twice (how long a place was waited for) is in neither's way: lines are not compared
//! in their order.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};

use crate::build::begins_attempt;
use crate::model::PushEvent;
use crate::oci::Platform;

/// How often each event was said; of the text its hash, since a log may be large.
#[derive(Debug, Default)]
pub(super) struct Told {
    hasher: RandomState,
    platforms: BTreeMap<Platform, HashMap<u64, u32>>,
    others: HashMap<u64, u32>,
}

impl Told {
    /// Notes what is said in the log.
    pub(super) fn add(&mut self, event: &PushEvent) {
        let hash = self.hash(event);
        let said = match event {
            PushEvent::Platform { platform, text } => {
                let said = self.platforms.entry(platform.clone()).or_default();
                // What was before it is of an engine that nobody follows any more.
                if begins_attempt(text) {
                    said.clear();
                }
                said
            }
            PushEvent::Heading(_) | PushEvent::Line(_) | PushEvent::Problem(_) => &mut self.others,
        };
        *said.entry(hash).or_default() += 1;
    }

    /// Whether it was said, more often than it was taken.
    pub(super) fn take(&mut self, event: &PushEvent) -> bool {
        let hash = self.hash(event);
        let said = match event {
            PushEvent::Platform { platform, .. } => self.platforms.get_mut(platform),
            PushEvent::Heading(_) | PushEvent::Line(_) | PushEvent::Problem(_) => Some(&mut self.others),
        };
        match said.and_then(|said| said.get_mut(&hash)) {
            Some(times) if *times > 0 => {
                *times -= 1;
                true
            }
            _ => false,
        }
    }

    /// Nothing of what was said of a platform is said again.
    pub(super) fn forget(&mut self, platform: &Platform) {
        self.platforms.remove(platform);
    }

    fn hash(&self, event: &PushEvent) -> u64 {
        match event {
            PushEvent::Heading(text) => self.hasher.hash_one((0, text)),
            PushEvent::Line(text) => self.hasher.hash_one((1, text)),
            PushEvent::Platform { text, .. } => self.hasher.hash_one((2, text)),
            PushEvent::Problem(text) => self.hasher.hash_one((3, text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(platform: &str, text: &str) -> PushEvent {
        PushEvent::Platform { platform: platform.parse().unwrap(), text: text.to_owned() }
    }

    fn told(events: &[PushEvent]) -> Told {
        let mut told = Told::default();
        for event in events {
            told.add(event);
        }
        told
    }

    #[test]
    fn what_was_said_twice_is_taken_twice_and_of_its_platform_alone() {
        let mut told = told(&[of("linux/amd64", "."), of("linux/amd64", "waiting"), of("linux/amd64", ".")]);
        assert!(!told.take(&of("linux/arm64", ".")) && !told.take(&PushEvent::Line(".".to_owned())));
        let taken = [(); 3].map(|()| told.take(&of("linux/amd64", ".")));
        assert_eq!(taken, [true, true, false]);
    }

    #[test]
    fn what_an_engine_said_that_is_gone_is_not_taken_for_what_the_next_says() {
        let another = crate::build::another_attempt("the pod is gone", 2, 3);
        let mut told =
            told(&[of("linux/amd64", "1/2"), of("linux/amd64", &another), of("linux/amd64", "2/2")]);
        assert!(!told.take(&of("linux/amd64", "1/2")));
        assert!(told.take(&of("linux/amd64", "2/2")));
        told.add(&of("linux/amd64", "1/2"));
        told.forget(&"linux/amd64".parse().unwrap());
        assert!(!told.take(&of("linux/amd64", "1/2")));
    }
}
