//! The first admins of a cluster, whom its installation names.
//!
//! They are several writes, and a server may end between two of them. So that they have begun is written down before
//! the first, beside the host key, which is as old as the installation: a server that finds it goes on.

use super::people::People;
use super::secrets::{SecretError, Secrets};
use super::up::{FirstAdmin, Notice};
use crate::model::store::Store;
use crate::receive::keys::{self, KeysError, Role};

/// The annotation that says how far they are made: `begun` or `made`.
const MARK: &str = "hephy.dev/first-admins";

/// Why the first admins are not made.
#[derive(Debug, thiserror::Error)]
pub enum AdminsError {
    /// The users.
    #[error("cannot make the first admins")]
    Keys(#[from] KeysError),
    /// The mark.
    #[error("cannot tell whether the first admins are made")]
    Mark(#[from] SecretError),
}

/// Who becomes admin by the installation's word.
pub(super) struct FirstAdmins<'a> {
    pub(super) people: &'a People,
    pub(super) secrets: &'a Secrets,
    /// The Secret that is marked.
    pub(super) marked: &'a str,
}

impl FirstAdmins<'_> {
    /// Makes admins of the keys that the installation names, where there are no users yet.
    pub(super) async fn make(
        &self,
        store: &dyn Store,
        admins: Vec<FirstAdmin>,
        tell: &(impl Fn(Notice) + Send + Sync),
    ) -> Result<(), AdminsError> {
        if admins.is_empty() {
            return Ok(());
        }
        let is_begun = self.secrets.mark(self.marked, MARK).await?.as_deref() == Some("begun");
        if !is_begun && !keys::nobody_yet(store).await? {
            return Ok(());
        }
        self.secrets.set_mark(self.marked, MARK, "begun").await?;
        for admin in admins {
            for (called, key) in &admin.keys {
                self.people.add_key(&admin.name, Role::Admin, key, Some(called)).await?;
            }
            let keys = admin.keys.into_iter().map(|(called, _)| called).collect();
            tell(Notice::Admin { name: admin.name, keys });
        }
        Ok(self.secrets.set_mark(self.marked, MARK, "made").await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::extract::State;
    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::{Value, json};

    use super::*;
    use crate::config::address::{Addresses, Apps};
    use crate::model::PublicKey;
    use crate::store::DirectoryStore;

    type Kept = Arc<Mutex<Value>>;

    async fn write(State(secret): State<Kept>, Json(patch): Json<Value>) -> Json<Value> {
        let mut secret = secret.lock().unwrap();
        for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
            secret["metadata"]["annotations"][key] = value.clone();
        }
        Json(secret.clone())
    }

    /// The Secret with the host key, alone in an API server.
    async fn secrets(kept: &Kept) -> Secrets {
        let read = |State(secret): State<Kept>| async move { Json(secret.lock().unwrap().clone()) };
        let path = "/api/v1/namespaces/hephy/secrets/hephy-host-key";
        let router = Router::new().route(path, get(read).patch(write)).with_state(Arc::clone(kept));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        Secrets::of(kube::Api::namespaced(kube::Client::try_from(config).unwrap(), "hephy"))
    }

    fn admin(name: &str, end: &str) -> FirstAdmin {
        let key =
            format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9G{end}");
        let key = PublicKey::parse_file(&key).unwrap();
        FirstAdmin { name: name.parse().unwrap(), keys: vec![(format!("{name}@laptop"), key)] }
    }

    #[tokio::test]
    async fn admins_are_made_once_and_a_beginning_that_was_interrupted_is_finished() {
        let kept: Kept = Arc::new(Mutex::new(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hephy-host-key", "annotations": {}}}),
        ));
        let secrets = secrets(&kept).await;
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(DirectoryStore::open(directory.path()).unwrap());
        let addresses = Addresses::of_cluster(
            "hephy.local".parse().unwrap(),
            Apps::ByName { scheme: "http", port: 80 },
            "10.0.0.1:30022".parse().unwrap(),
            "127.0.0.1:30500".to_owned(),
        );
        let operator = admin("operator", "KJk").keys.remove(0).1;
        let people = People::new(store.clone(), addresses, operator);
        let first = FirstAdmins { people: &people, secrets: &secrets, marked: "hephy-host-key" };
        let names = async || {
            let users = people.users().await.unwrap();
            users.iter().map(|user| user.name.to_string()).collect::<Vec<_>>()
        };

        let given = vec![admin("ada", "KJl"), admin("bob", "KJm")];
        first.make(&*store, given[..1].to_vec(), &|_| {}).await.unwrap();
        assert_eq!(names().await, ["ada"]);
        assert_eq!(kept.lock().unwrap()["metadata"]["annotations"][MARK], "made");
        // They are made: who is named later is an admin's to add.
        first.make(&*store, given.clone(), &|_| {}).await.unwrap();
        assert_eq!(names().await, ["ada"]);
        // As a server leaves it that ends after the first.
        kept.lock().unwrap()["metadata"]["annotations"][MARK] = "begun".into();
        first.make(&*store, given, &|_| {}).await.unwrap();
        assert_eq!(names().await, ["ada", "bob"]);
        assert_eq!(kept.lock().unwrap()["metadata"]["annotations"][MARK], "made");
    }
}
