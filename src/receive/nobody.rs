//! What a client is told whose keys are not known.

use crate::model::{Fingerprint, KeyError, PublicKey};

use super::Directory;

/// More keys than this are not remembered.
const MAX_OFFERED: usize = 32;

/// Keys that a client offered and that did not let it in.
#[derive(Debug, Clone, Default)]
pub(super) struct Offered {
    keys: Vec<(Fingerprint, Standing)>,
    /// Whether looking up a key failed.
    pub(super) directory_failed: bool,
}

/// Why an offered key did not let its holder in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is nobody's.
    Unknown(PublicKey),
    /// It is of a type or size that is not accepted.
    Refused(KeyError),
    /// It is known, but the client has not signed with it.
    Unproven(PublicKey),
    /// It is an RSA key, offered to sign with SHA-1.
    Sha1,
}

impl Offered {
    /// Remembers a key; the last standing counts.
    pub(super) fn remember(&mut self, fingerprint: Fingerprint, standing: Standing) {
        if let Some((_, before)) = self.keys.iter_mut().find(|(known, _)| *known == fingerprint) {
            *before = standing;
        } else if self.keys.len() < MAX_OFFERED {
            self.keys.push((fingerprint, standing));
        }
    }

    /// The message, in the grammar of everything a pusher sees.
    pub(super) fn explain(&self, directory: &dyn Directory) -> String {
        let mut lines = Vec::new();
        if self.directory_failed {
            lines.push(
                "Your SSH key could not be checked, because the users cannot be read. Try again in a moment."
                    .to_owned(),
            );
        } else if self.keys.is_empty() {
            lines.push("Your SSH client offered no key, so nobody knows who you are.".to_owned());
            lines.push("If you have none, make one: ssh-keygen -t ed25519".to_owned());
        } else {
            lines.push("No key that your SSH client offered is known here:".to_owned());
        }
        lines.extend(self.keys.iter().map(|(fingerprint, standing)| match standing {
            Standing::Unknown(key) => format!("  {fingerprint} ({})", key.algorithm()),
            Standing::Refused(error) => format!("  {fingerprint}: {error}"),
            Standing::Unproven(key) => {
                format!("  {fingerprint} ({}) is known, but your client could not sign with it: see `ssh-add -l`", key.algorithm())
            }
            Standing::Sha1 => format!("  {fingerprint} (ssh-rsa) with a SHA-1 signature, which is not accepted: use a newer SSH client"),
        }));
        if !self.directory_failed {
            lines.extend(directory.how_to_add(&self.unknown()));
        }
        lines.iter().flat_map(|line| [" !     ", line, "\n"]).collect()
    }

    fn unknown(&self) -> Vec<PublicKey> {
        let key = |standing: &Standing| match standing {
            Standing::Unknown(key) => Some(key.clone()),
            Standing::Refused(_) | Standing::Unproven(_) | Standing::Sha1 => None,
        };
        self.keys.iter().filter_map(|(_, standing)| key(standing)).collect()
    }
}
