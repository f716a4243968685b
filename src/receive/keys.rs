//! The users' keys in the store: whose a key is, adding, removing, and the first admin.
//!
//! A key belongs to one user. Two users that are given the same key at the same moment both keep it, and it
//! lets nobody in until one of them is rid of it.

use jiff::Timestamp;

use crate::model::store::{self, Store, StoreError};
use crate::model::{FORMAT, Fingerprint, NameError, ObjectName, PublicKey, User, UserKey, UserName, nearest};

use super::{DirectoryError, KnownKey};

/// More keys than this no user needs.
const MAX_KEYS: usize = 100;

/// Why a user's keys are not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// There is no such user.
    #[error("there is no user `{0}`")]
    NoUser(UserName),
    /// There is one of that name.
    #[error("there is a user `{0}` already")]
    UserExists(UserName),
    /// Another user has the key.
    #[error(
        "this key ({fingerprint}) belongs to `{user}`; a key says who you are, so it can be only one user's: make another with `ssh-keygen -t ed25519`"
    )]
    OfAnother {
        /// The key.
        fingerprint: Fingerprint,
        /// Whose it is.
        user: UserName,
    },
    /// Another key of the user has the name.
    #[error("you have another key named `{name}` ({fingerprint}); give this one another name with `--name`")]
    NameTaken {
        /// The name.
        name: String,
        /// The key that has it.
        fingerprint: Fingerprint,
    },
    /// A name that cannot be shown or given again.
    #[error("`{0}` is not a name for a key: use 1 to 100 letters, digits and signs")]
    Name(String),
    /// The user has very many.
    #[error("nobody needs more than {MAX_KEYS} keys; remove one first")]
    TooMany,
    /// No key is meant.
    #[error("there is no key `{given}`; {}", advice(nearest.as_deref()))]
    NoKey {
        /// What was given.
        given: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// Several keys are meant.
    #[error("there are several keys `{given}`; name one by its fingerprint, which `keys list` shows")]
    Ambiguous {
        /// What was given.
        given: String,
    },
    /// Nobody could add keys any more.
    #[error("this is the last key of the last admin; add another one first")]
    LastAdmin,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn advice(nearest: Option<&str>) -> String {
    let shown = "`keys list` shows those there are".to_owned();
    nearest.map_or(shown, |nearest| format!("did you mean `{nearest}`?"))
}

/// What adding a key did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It is new.
    New(UserKey),
    /// The user had it.
    Already(UserKey),
}

/// Whose key it is. A key of several users is nobody's.
pub async fn user_of(store: &dyn Store, key: &PublicKey) -> Result<Option<KnownKey>, DirectoryError> {
    let holders = holders(store, key).await.map_err(|error| DirectoryError(Box::new(error)))?;
    match &holders[..] {
        [(user, known)] => Ok(Some(KnownKey { user: user.name.clone(), key_name: known.name.clone() })),
        [] => Ok(None),
        [(first, _), (second, _), ..] => {
            tracing::error!(fingerprint = %key.fingerprint(), %first.name, %second.name, "key belongs to several users");
            Ok(None)
        }
    }
}

async fn holders(store: &dyn Store, key: &PublicKey) -> Result<Vec<(User, UserKey)>, StoreError> {
    let users: Vec<User> = store::list(store, "").await?;
    let held = |user: User| {
        let known = user.keys.iter().find(|known| known.key == *key).cloned()?;
        Some((user, known))
    };
    Ok(users.into_iter().filter_map(held).collect())
}

/// Gives a user a key, named by `name` or else by its comment.
pub async fn add(
    store: &dyn Store,
    user: &UserName,
    key: &PublicKey,
    name: Option<&str>,
) -> Result<Added, KeysError> {
    refuse_anothers(store, user, key).await?;
    let new = user_key(key, name)?;
    let given = name.is_some();
    change(store, user, |object| {
        if let Some(known) = object.keys.iter().find(|known| known.key == *key) {
            return Ok(Added::Already(known.clone()));
        }
        if object.keys.len() >= MAX_KEYS {
            return Err(KeysError::TooMany);
        }
        let mut new = new.clone();
        if let Some(other) = object.keys.iter().find(|known| known.name == new.name) {
            if given {
                return Err(KeysError::NameTaken { name: new.name, fingerprint: other.fingerprint() });
            }
            // Comments are often the same on all keys of a machine.
            new.name = format!("{} {}", new.name, new.fingerprint());
        }
        object.keys.push(new.clone());
        Ok(Added::New(new))
    })
    .await
}

/// Gives a user a key, making the user first if there is none. A [`Role::Admin`] makes an admin also of a user who
/// was not; a [`Role::Member`] changes nothing about one who is.
pub async fn add_or_create(
    store: &dyn Store,
    user: &UserName,
    role: Role,
    key: &PublicKey,
    name: Option<&str>,
) -> Result<Added, KeysError> {
    let added = match add(store, user, key, name).await {
        Err(KeysError::NoUser(_)) => {
            let new = user_key(key, name)?;
            match create(store, user, role, vec![new.clone()]).await {
                Ok(_) => return Ok(Added::New(new)),
                Err(KeysError::UserExists(_)) => add(store, user, key, name).await?,
                Err(error) => return Err(error),
            }
        }
        added => added?,
    };
    if role == Role::Admin {
        let make_admin = |object: &mut User| {
            object.admin = true;
            Ok(())
        };
        change(store, user, make_admin).await?;
    }
    Ok(added)
}

/// Whose keys may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// One user's: their own.
    One(&'a UserName),
    /// Everybody's, as an admin may.
    Everybody,
}

/// Removes a key by its name or fingerprint, and says whose it was. The last key of the last admin stays.
pub async fn remove(
    store: &dyn Store,
    whose: Whose<'_>,
    which: &str,
) -> Result<(UserName, UserKey), KeysError> {
    let users: Vec<User> = store::list(store, "").await?;
    let in_reach = |user: &&User| match whose {
        Whose::One(name) => user.name == *name,
        Whose::Everybody => true,
    };
    let (user, key) = find(users.iter().filter(in_reach), which)?;
    let of_admins: usize = users.iter().filter(|user| user.admin).map(|user| user.keys.len()).sum();
    if user.admin && of_admins == 1 {
        return Err(KeysError::LastAdmin);
    }
    let (name, removed) = (user.name.clone(), key.clone());
    change(store, &name, |object| {
        object.keys.retain(|kept| kept.key != removed.key);
        Ok(())
    })
    .await?;
    Ok((name, removed))
}

/// A user's keys, oldest first.
pub async fn list(store: &dyn Store, user: &UserName) -> Result<Vec<UserKey>, KeysError> {
    let read: Option<store::Versioned<User>> = store::load(store, &ObjectName::of(user)).await?;
    read.map(|read| read.object.keys).ok_or_else(|| KeysError::NoUser(user.clone()))
}

/// What a new user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Push to the apps it owns or is let into.
    Member,
    /// Everything, to every app and user.
    Admin,
}

/// Makes a user who holds these keys.
pub async fn create_user(
    store: &dyn Store,
    name: &UserName,
    role: Role,
    keys: &[PublicKey],
) -> Result<User, KeysError> {
    let mut user_keys: Vec<UserKey> = Vec::new();
    for key in keys {
        refuse_anothers(store, name, key).await?;
        let mut new = user_key(key, None)?;
        if user_keys.iter().any(|known| known.key == *key) {
            continue;
        }
        if user_keys.iter().any(|known| known.name == new.name) {
            new.name = format!("{} {}", new.name, new.fingerprint());
        }
        user_keys.push(new);
    }
    create(store, name, role, user_keys).await
}

async fn create(
    store: &dyn Store,
    name: &UserName,
    role: Role,
    keys: Vec<UserKey>,
) -> Result<User, KeysError> {
    if keys.len() > MAX_KEYS {
        return Err(KeysError::TooMany);
    }
    let admin = role == Role::Admin;
    let user = User { format: FORMAT, name: name.clone(), admin, created_at: Timestamp::now(), keys };
    match store::create(store, user).await {
        Ok(written) => Ok(written.object),
        Err(StoreError::Exists { .. }) => Err(KeysError::UserExists(name.clone())),
        Err(error) => Err(error.into()),
    }
}

/// Whether anybody can log in at all; if not, the first admin is still to be made.
pub async fn nobody_yet(store: &dyn Store) -> Result<bool, KeysError> {
    let users: Vec<User> = store::list(store, "").await?;
    Ok(users.is_empty())
}

/// The user name for a login name of the system: what of it is allowed in one, or `admin`.
pub fn name_for_login(login: &str) -> Result<UserName, NameError> {
    let lower = login.to_lowercase();
    let parts = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    let joined = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    let from_letter = joined.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let short: String = from_letter.chars().take(30).collect();
    short.trim_end_matches('-').parse().or_else(|_| "admin".parse())
}

async fn change<R>(
    store: &dyn Store,
    user: &UserName,
    change: impl FnMut(&mut User) -> Result<R, KeysError> + Send,
) -> Result<R, KeysError> {
    match store::modify(store, &ObjectName::of(user), change).await {
        Ok((_, result)) => Ok(result),
        Err(KeysError::Store(StoreError::Missing { .. })) => Err(KeysError::NoUser(user.clone())),
        Err(error) => Err(error),
    }
}

async fn refuse_anothers(store: &dyn Store, user: &UserName, key: &PublicKey) -> Result<(), KeysError> {
    let other = holders(store, key).await?.into_iter().find(|(holder, _)| holder.name != *user);
    match other {
        Some((holder, _)) => Err(KeysError::OfAnother { fingerprint: key.fingerprint(), user: holder.name }),
        None => Ok(()),
    }
}

fn user_key(key: &PublicKey, name: Option<&str>) -> Result<UserKey, KeysError> {
    let fingerprint = key.fingerprint().to_string();
    let comment = if key.comment().is_empty() { &fingerprint } else { key.comment() };
    let name = name.unwrap_or(comment).trim();
    if name.is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
        return Err(KeysError::Name(name.chars().filter(|c| !c.is_control()).take(100).collect()));
    }
    Ok(UserKey { name: name.to_owned(), key: key.clone().with_comment(""), added_at: Timestamp::now() })
}

/// The one key that is meant, and whose it is.
fn find<'a>(
    users: impl Iterator<Item = &'a User> + Clone,
    which: &str,
) -> Result<(&'a User, &'a UserKey), KeysError> {
    let fingerprint: Option<Fingerprint> = which.parse().ok();
    let keys = users.flat_map(|user| user.keys.iter().map(move |key| (user, key)));
    let meant = |(_, key): &(&User, &UserKey)| {
        key.name == which || fingerprint.as_ref().is_some_and(|fingerprint| *fingerprint == key.fingerprint())
    };
    let found: Vec<_> = keys.clone().filter(meant).collect();
    let given = || which.chars().filter(|c| !c.is_control()).take(100).collect::<String>();
    match found[..] {
        [one] => Ok(one),
        [] => {
            let nearest = nearest(which, keys.map(|(_, key)| key.name.as_str())).map(str::to_owned);
            Err(KeysError::NoKey { given: given(), nearest })
        }
        [..] => Err(KeysError::Ambiguous { given: given() }),
    }
}

#[cfg(test)]
mod tests;
