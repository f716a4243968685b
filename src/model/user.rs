//! Users and their keys.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Kind, Object, ObjectName, UserName};

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
    /// `<algorithm> <base64>`, without a comment.
    pub body: String,
    /// `SHA256:…`, as OpenSSH prints it.
    pub fingerprint: String,
    /// When it was added.
    pub added_at: Timestamp,
}

impl Object for User {
    const KIND: Kind = Kind::User;

    fn name(&self) -> ObjectName {
        ObjectName::of(&self.name)
    }
}
