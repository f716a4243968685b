//! Users and their keys.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Fingerprint, Kind, Object, ObjectName, PublicKey, UserName};

/// Somebody who may push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The version of this object's format.
    pub format: u32,
    /// The name.
    pub name: UserName,
    /// An admin may do everything to every app, and add users.
    pub admin: bool,
    /// When the user was made.
    pub created_at: Timestamp,
    /// The keys that prove who it is.
    pub keys: Vec<UserKey>,
}

/// One public key of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserKey {
    /// What the user calls it: the comment of the key file, or a name given.
    pub name: String,
    /// The key, without a comment.
    pub key: PublicKey,
    /// When it was added.
    pub added_at: Timestamp,
}

impl UserKey {
    /// The key's fingerprint, as OpenSSH prints it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.key.fingerprint()
    }
}

impl Object for User {
    const KIND: Kind = Kind::User;

    fn name(&self) -> ObjectName {
        ObjectName::of(&self.name)
    }
}
