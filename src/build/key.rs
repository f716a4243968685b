//! Cache keys: typed, framed hashes of everything that a step can see, and of nothing else.
//!
//! Every field is written as tag, length, bytes, so that no two different lists of fields are the same bytes.

use sha2::{Digest as _, Sha256};

use crate::oci::Digest;

/// Changes whenever the meaning of a key or the content of a layer made for it does: older records are then not found.
const VERSION: u64 = 2;

/// A cache key being written.
#[derive(Clone)]
pub(crate) struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// A key of one kind: `"run"`, `"copy"`.
    #[must_use]
    pub(crate) fn new(kind: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.frame(b'K', kind.as_bytes());
        key.number(VERSION);
        key
    }

    fn frame(&mut self, tag: u8, bytes: &[u8]) {
        self.0.update([tag]);
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    /// Adds text.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.frame(b's', text.as_bytes());
        self
    }

    /// Adds a number.
    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        self.frame(b'n', &number.to_be_bytes());
        self
    }

    /// Adds a digest.
    pub(crate) fn digest(&mut self, digest: Digest) -> &mut Self {
        self.frame(b'd', digest.hex().as_bytes());
        self
    }

    /// Adds what may be absent, which differs from empty.
    pub(crate) fn optional(&mut self, text: Option<&str>) -> &mut Self {
        if let Some(text) = text {
            return self.text(text);
        }
        self.frame(b'0', &[]);
        self
    }

    /// Adds a list, with its length.
    pub(crate) fn list<T: AsRef<str>>(&mut self, items: impl ExactSizeIterator<Item = T>) -> &mut Self {
        self.frame(b'l', &(items.len() as u64).to_be_bytes());
        for item in items {
            self.text(item.as_ref());
        }
        self
    }

    /// The key.
    #[must_use]
    pub(crate) fn finish(&self) -> Digest {
        Digest::from_sha256(self.0.clone().finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Digest {
        KeyBuilder::new("t").list(items.iter()).finish()
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_key() {
        assert_ne!(list(&["ab", "c"]), list(&["a", "bc"]));
        assert_ne!(list(&["a", ""]), list(&["a"]));
        assert_ne!(list(&[]), list(&[""]));
        assert_ne!(KeyBuilder::new("t").text("1").finish(), KeyBuilder::new("t").number(1).finish());
        assert_ne!(
            KeyBuilder::new("t").optional(None).finish(),
            KeyBuilder::new("t").optional(Some("")).finish()
        );
        assert_ne!(KeyBuilder::new("run").finish(), KeyBuilder::new("copy").finish());
    }

    #[test]
    fn equal_fields_give_equal_keys() {
        assert_eq!(list(&["a", "b"]), list(&["a", "b"]));
    }
}
