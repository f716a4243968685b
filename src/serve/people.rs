//! Who is who: keys to users, users to what they may do, and the keys that were refused lately.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::config::address::Addresses;
use crate::model::store::{self, Store, StoreError};
use crate::model::{App, AppName, Fingerprint, ObjectName, PublicKey, User, UserKey, UserName};
use crate::receive::keys::{self, Added, KeysError, Role, Whose};
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

impl People {
    /// The users in `store`, and the operator by its key.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, addresses: Addresses, operator: PublicKey) -> Self {
        Self { store, addresses, operator, refused: Arc::default() }
    }

    /// The name of who runs the server.
    ///
    /// # Panics
    /// Never: the name is valid.
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

    /// Adds a key to a user, making the user if there is none. Whether the one who asks may is the caller's to check.
    pub async fn add_key(
        &self,
        user: &UserName,
        role: Role,
        key: &PublicKey,
        name: Option<&str>,
    ) -> Result<Added, KeysError> {
        let added = keys::add_or_create(&*self.store, user, role, key, name).await?;
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).retain(|refused| refused != key);
        Ok(added)
    }

    /// Removes a key by fingerprint or name; of anybody's keys for an admin, else of the person's own.
    pub async fn remove_key(&self, person: &Person, which: &str) -> Result<(UserName, UserKey), KeysError> {
        let whose = if person.admin { Whose::Everybody } else { Whose::One(&person.name) };
        keys::remove(&*self.store, whose, which).await
    }

    /// Makes the first admin, unless there is anybody already; says whether it did.
    pub async fn make_first_admin(&self, name: &UserName, keys: &[PublicKey]) -> Result<bool, KeysError> {
        if !keys::nobody_yet(&*self.store).await? {
            return Ok(false);
        }
        keys::create_user(&*self.store, name, Role::Admin, keys).await?;
        Ok(true)
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
        keys::user_of(&*self.store, key).await
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
