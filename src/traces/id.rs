//! Ids of traces and spans, derived from what they are of.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The id of a trace (<https://www.w3.org/TR/trace-context/#trace-id>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId([u8; 16]);

/// The id of a span in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// The id of what these words tell from everything else. The same words, the same id, in every process.
    #[must_use]
    pub fn of(words: &[&str]) -> Self {
        let mut sum = Sha256::new();
        for word in words {
            sum.update((word.len() as u64).to_be_bytes());
            sum.update(word);
        }
        Self(beginning(sum))
    }
}

impl SpanId {
    /// The id of the span that `path` names in a trace.
    #[must_use]
    pub fn of(trace: TraceId, path: &str) -> Self {
        Self(beginning(Sha256::new().chain_update(trace.0).chain_update(path)))
    }
}

fn beginning<const N: usize>(sum: Sha256) -> [u8; N] {
    let sum: [u8; 32] = sum.finalize().into();
    std::array::from_fn(|index| sum[index])
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_their_words_and_of_no_others() {
        let trace = TraceId::of(&["hello", "7"]);
        assert_eq!(trace, TraceId::of(&["hello", "7"]));
        assert_ne!(trace, TraceId::of(&["hello7"]));
        assert_ne!(trace, TraceId::of(&["hell", "o7"]));
        assert_eq!(trace.to_string().len(), 32);
        let span = SpanId::of(trace, "build");
        assert_eq!(span, SpanId::of(trace, "build"));
        assert_ne!(span, SpanId::of(trace, "plan"));
        assert_ne!(span, SpanId::of(TraceId::of(&["hello", "8"]), "build"));
        assert_eq!(span.to_string().len(), 16);
    }
}
