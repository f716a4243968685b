use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::model::Kind;
use crate::model::store::{Document, Version};

/// The least that keeps users; a store proper is above this module.
#[derive(Debug, Default)]
struct Memory(Mutex<BTreeMap<String, Vec<u8>>>);

#[async_trait]
impl Store for Memory {
    async fn get(&self, _: Kind, name: &ObjectName) -> Result<Option<Document>, StoreError> {
        let json = self.0.lock().unwrap().get(name.as_str()).cloned();
        Ok(json.map(|json| Document { version: Version(hex::encode(&json)), json }))
    }

    async fn list(&self, _: Kind, _: &str) -> Result<Vec<(ObjectName, Document)>, StoreError> {
        let documents = self.0.lock().unwrap();
        let document = |json: &Vec<u8>| Document { version: Version(hex::encode(json)), json: json.clone() };
        Ok(documents.iter().map(|(name, json)| (ObjectName::of(name), document(json))).collect())
    }

    async fn create(&self, kind: Kind, name: &ObjectName, json: Vec<u8>) -> Result<Version, StoreError> {
        let mut documents = self.0.lock().unwrap();
        if documents.contains_key(name.as_str()) {
            return Err(StoreError::Exists { kind, name: name.clone() });
        }
        documents.insert(name.to_string(), json.clone());
        Ok(Version(hex::encode(json)))
    }

    async fn replace(
        &self,
        _: Kind,
        name: &ObjectName,
        _: &Version,
        json: Vec<u8>,
    ) -> Result<Version, StoreError> {
        self.0.lock().unwrap().insert(name.to_string(), json.clone());
        Ok(Version(hex::encode(json)))
    }

    async fn delete(&self, _: Kind, name: &ObjectName, _: &Version) -> Result<(), StoreError> {
        self.0.lock().unwrap().remove(name.as_str());
        Ok(())
    }

    async fn changed(&self, _: Kind, _: &ObjectName, _: &Version) -> Result<(), StoreError> {
        std::future::pending().await
    }
}

/// An Ed25519 key of this number.
fn key(number: u8, comment: &str) -> PublicKey {
    let mut blob = Vec::from(*b"\0\0\0\x0bssh-ed25519\0\0\0\x20");
    blob.extend([number; 32]);
    PublicKey::from_blob(&blob).unwrap().with_comment(comment)
}

fn name(text: &str) -> UserName {
    text.parse().unwrap()
}

async fn ada_and_bob() -> Memory {
    let store = Memory::default();
    assert!(nobody_yet(&store).await.unwrap());
    create_user(&store, &name("ada"), Role::Admin, &[key(1, "laptop"), key(1, "again"), key(2, "laptop")])
        .await
        .unwrap();
    create_user(&store, &name("bob"), Role::Member, &[key(9, "")]).await.unwrap();
    assert!(!nobody_yet(&store).await.unwrap());
    store
}

async fn names(store: &Memory, user: &str) -> Vec<String> {
    list(store, &name(user)).await.unwrap().into_iter().map(|key| key.name).collect()
}

#[tokio::test]
async fn a_key_is_found_with_its_user_whatever_its_comment() {
    let store = ada_and_bob().await;
    let known = user_of(&store, &key(1, "other")).await.unwrap().unwrap();
    assert_eq!(known, KnownKey { user: name("ada"), key_name: "laptop".into() });
    assert_eq!(user_of(&store, &key(3, "laptop")).await.unwrap(), None);
}

#[tokio::test]
async fn keys_without_a_name_of_their_own_are_named_by_their_fingerprints() {
    let store = ada_and_bob().await;
    assert_eq!(
        names(&store, "ada").await,
        ["laptop".to_owned(), format!("laptop {}", key(2, "").fingerprint())]
    );
    assert_eq!(names(&store, "bob").await, [key(9, "").fingerprint().to_string()]);
}

#[tokio::test]
async fn a_key_is_added_once_and_to_one_user() {
    let store = ada_and_bob().await;
    let ada = name("ada");
    assert!(matches!(add(&store, &ada, &key(3, "desk"), None).await, Ok(Added::New(_))));
    assert!(
        matches!(add(&store, &ada, &key(3, "x"), Some("y")).await, Ok(Added::Already(known)) if known.name == "desk")
    );
    let error = add(&store, &name("bob"), &key(3, ""), None).await.unwrap_err();
    assert!(error.to_string().contains("belongs to `ada`"), "{error}");
    assert!(matches!(
        create_user(&store, &name("eve"), Role::Member, &[key(3, "")]).await,
        Err(KeysError::OfAnother { .. })
    ));
    assert!(matches!(add(&store, &ada, &key(4, ""), Some("desk")).await, Err(KeysError::NameTaken { .. })));
    assert!(matches!(add(&store, &ada, &key(4, ""), Some(" \n")).await, Err(KeysError::Name(_))));
    assert!(matches!(add(&store, &name("nobody"), &key(4, ""), None).await, Err(KeysError::NoUser(_))));
    assert!(matches!(create_user(&store, &ada, Role::Member, &[]).await, Err(KeysError::UserExists(_))));
}

#[tokio::test]
async fn keys_are_removed_by_name_or_fingerprint_but_not_the_last_admins_last() {
    let store = ada_and_bob().await;
    let (ada, bob) = (name("ada"), name("bob"));
    let error = remove(&store, Whose::One(&ada), "latpop").await.unwrap_err();
    assert!(error.to_string().ends_with("did you mean `laptop`?"), "{error}");
    let second = key(2, "").fingerprint().to_string();
    assert!(matches!(remove(&store, Whose::One(&bob), &second).await, Err(KeysError::NoKey { .. })));
    assert_eq!(remove(&store, Whose::One(&ada), &second).await.unwrap().1.key, key(2, ""));
    assert!(matches!(remove(&store, Whose::Everybody, "laptop").await, Err(KeysError::LastAdmin)));
    let bobs = key(9, "").fingerprint().to_string();
    assert_eq!(remove(&store, Whose::Everybody, &bobs).await.unwrap().0, bob);
    assert_eq!(names(&store, "ada").await, ["laptop"]);
    assert!(names(&store, "bob").await.is_empty());
}

#[tokio::test]
async fn adding_makes_the_user_who_is_not_there_and_an_admin_on_demand() {
    let store = ada_and_bob().await;
    let (bob, eve) = (name("bob"), name("eve"));
    let added = add_or_create(&store, &eve, Role::Member, &key(7, "desk"), None).await.unwrap();
    assert!(matches!(added, Added::New(new) if new.name == "desk"));
    add_or_create(&store, &bob, Role::Admin, &key(9, ""), None).await.unwrap();
    add_or_create(&store, &bob, Role::Member, &key(8, "b"), None).await.unwrap();
    let users: Vec<User> = store::list(&store, "").await.unwrap();
    let admins: Vec<_> = users.iter().filter(|user| user.admin).map(|user| user.name.as_str()).collect();
    assert_eq!(admins, ["ada", "bob"]);
    let error = add_or_create(&store, &name("mallory"), Role::Admin, &key(1, ""), None).await.unwrap_err();
    assert!(matches!(error, KeysError::OfAnother { .. }));
    assert!(matches!(list(&store, &name("mallory")).await, Err(KeysError::NoUser(_))));
}

#[tokio::test]
async fn a_key_of_two_users_lets_nobody_in() {
    let store = ada_and_bob().await;
    let stored = UserKey { name: "stolen".into(), key: key(1, ""), added_at: Timestamp::now() };
    change(&store, &name("bob"), |bob| {
        bob.keys.push(stored.clone());
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(user_of(&store, &key(1, "")).await.unwrap(), None);
}

#[test]
fn login_names_become_user_names() {
    for (login, user) in [
        ("root", "root"),
        ("Ada.Lovelace", "ada-lovelace"),
        ("_www", "www"),
        ("1st", "st"),
        ("a--b", "a-b"),
        ("42", "admin"),
        ("", "admin"),
        ("émile", "mile"),
        ("x2345678901234567890123456789-1", "x2345678901234567890123456789"),
    ] {
        assert_eq!(name_for_login(login), Ok(name(user)), "{login}");
    }
}
