//! Who is who: keys to users, users to what they may do, and the keys that were refused lately.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::config::address::Addresses;
use crate::model::store::{self, Store, StoreError};
use crate::model::{App, AppName, FORMAT, Fingerprint, ObjectName, PublicKey, User, UserKey, UserName};
use crate::receive::{Directory, DirectoryError, KnownKey};

/// How many refused keys are remembered, the oldest forgotten first.
const REMEMBERED: usize = 64;

/// The users of the store, and the operator, who holds the key in the data directory.
#[derive(Debug, Clone)]
pub struct People {
    store: Arc<dyn Store>,
    addresses: Addresses,
    operator: PublicKey,
    refused: Arc<Mutex<VecDeque<PublicKey>>>,
}

/// Somebody who has proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The name.
    pub name: UserName,
    /// May do everything.
    pub admin: bool,
}

/// Why a key was not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum KeyChangeError {
    /// It is somebody's already.
    #[error("the key {fingerprint} is {user}'s already (`{name}`)")]
    Taken {
        /// Which.
        fingerprint: Fingerprint,
        /// Whose.
        user: UserName,
        /// What it is called there.
        name: String,
    },
    /// Nothing by that name.
    #[error("there is no key `{0}`; `keys list` shows those there are")]
    Unknown(String),
    /// Several by that name.
    #[error("there are {1} keys called `{0}`; name one by its fingerprint, which `keys list` shows")]
    Ambiguous(String, usize),
    /// Nobody could get in any more.
    #[error("this is the last key of the last admin; add another one first")]
    LastAdmin,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl People {
    /// The users in `store`, and the operator by its key.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, addresses: Addresses, operator: PublicKey) -> Self {
        Self { store, addresses, operator, refused: Arc::default() }
    }

    /// The name of who runs the server.
    #[must_use]
    pub fn operator() -> UserName {
        #[expect(clippy::expect_used, reason = "the literal is a valid name")]
        "operator".parse().expect("`operator` is a name")
    }

    /// Who `name` is.
    pub async fn person(&self, name: &UserName) -> Result<Person, StoreError> {
        if *name == Self::operator() {
            return Ok(Person { name: name.clone(), admin: true });
        }
        let user = store::load::<User>(&*self.store, &ObjectName::of(name)).await?;
        Ok(Person { name: name.clone(), admin: user.is_some_and(|user| user.object.admin) })
    }

    /// All users.
    pub async fn users(&self) -> Result<Vec<User>, StoreError> {
        store::list(&*self.store, "").await
    }

    /// A key that was refused lately.
    #[must_use]
    pub fn refused(&self, fingerprint: &Fingerprint) -> Option<PublicKey> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.iter().find(|key| key.fingerprint() == *fingerprint).cloned()
    }

    /// Adds a key to a user, making the user if there is none.
    pub async fn add_key(
        &self,
        user: &UserName,
        admin: bool,
        name: &str,
        key: PublicKey,
    ) -> Result<(), KeyChangeError> {
        for other in self.users().await? {
            if let Some(taken) = other.keys.iter().find(|taken| taken.key == key) {
                let (fingerprint, name) = (key.fingerprint(), taken.name.clone());
                return Err(KeyChangeError::Taken { fingerprint, user: other.name, name });
            }
        }
        let added = UserKey { name: name.to_owned(), key: key.clone(), added_at: Timestamp::now() };
        let fresh = User {
            format: FORMAT,
            name: user.clone(),
            admin,
            created_at: Timestamp::now(),
            keys: vec![added.clone()],
        };
        match store::create(&*self.store, fresh).await {
            Ok(_) => {}
            Err(StoreError::Exists { .. }) => {
                store::modify(&*self.store, &ObjectName::of(user), |user: &mut User| {
                    user.admin |= admin;
                    user.keys.push(added.clone());
                    Ok::<_, StoreError>(())
                })
                .await?;
            }
            Err(error) => return Err(error.into()),
        }
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).retain(|refused| *refused != key);
        Ok(())
    }

    /// Removes a key by fingerprint or name; of anybody's keys for an admin, else of the person's own.
    pub async fn remove_key(
        &self,
        person: &Person,
        wanted: &str,
    ) -> Result<(UserName, UserKey), KeyChangeError> {
        let users = self.users().await?;
        let mine = |user: &&User| person.admin || user.name == person.name;
        let matches = |key: &&UserKey| key.key.fingerprint().to_string() == wanted || key.name == wanted;
        let found: Vec<_> = users
            .iter()
            .filter(mine)
            .flat_map(|user| user.keys.iter().filter(matches).map(move |key| (user, key)))
            .collect();
        let (user, key) = match found.as_slice() {
            [] => return Err(KeyChangeError::Unknown(wanted.to_owned())),
            [(user, key)] => (*user, *key),
            several => return Err(KeyChangeError::Ambiguous(wanted.to_owned(), several.len())),
        };
        let admin_keys = users.iter().filter(|user| user.admin).map(|user| user.keys.len()).sum::<usize>();
        if user.admin && admin_keys == 1 {
            return Err(KeyChangeError::LastAdmin);
        }
        store::modify(&*self.store, &ObjectName::of(&user.name), |user: &mut User| {
            user.keys.retain(|kept| kept.key != key.key);
            Ok::<_, StoreError>(())
        })
        .await?;
        Ok((user.name.clone(), key.clone()))
    }
}

impl Person {
    /// Whether the person may push to the app and fetch from it.
    #[must_use]
    pub fn may_use(&self, app: &App) -> bool {
        self.admin || app.may_push(&self.name)
    }

    /// What somebody is told who may not.
    #[must_use]
    pub fn refusal(&self, app: &AppName, owner: &UserName, addresses: &Addresses) -> Vec<String> {
        let verb = addresses.verb(&format!("access add {} -a {app}", self.name));
        vec![
            format!("You are {}, and {app} is {owner}'s: you have no access to it.", self.name),
            format!("Ask {owner} or an admin to run: {verb}"),
        ]
    }
}

#[async_trait]
impl Directory for People {
    async fn user_of(&self, key: &PublicKey) -> Result<Option<KnownKey>, DirectoryError> {
        if *key == self.operator {
            return Ok(Some(KnownKey { user: Self::operator(), key_name: "operator".to_owned() }));
        }
        let users = self.users().await.map_err(|error| DirectoryError(Box::new(error)))?;
        let known = users.iter().find_map(|user| {
            let held = user.keys.iter().find(|held| held.key == *key)?;
            Some(KnownKey { user: user.name.clone(), key_name: held.name.clone() })
        });
        Ok(known)
    }

    fn how_to_add(&self, keys: &[PublicKey]) -> Vec<String> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            refused.retain(|known| known != key);
            refused.push_back(key.clone());
        }
        while refused.len() > REMEMBERED {
            refused.pop_front();
        }
        let Some(key) = keys.first() else {
            return vec!["Make a key with: ssh-keygen -t ed25519".to_owned()];
        };
        vec![
            "An admin adds the key by running, where hephy runs:".to_owned(),
            format!("  hephy keys add {} --user NAME", key.fingerprint()),
            format!(
                "or from elsewhere: {}",
                self.addresses.verb(&format!("keys add {} --user NAME", key.fingerprint()))
            ),
        ]
    }
}
