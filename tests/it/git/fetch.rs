//! Clones and fetches.

use super::server::{Client, Server};

#[tokio::test]
async fn a_clone_is_what_was_pushed_in_every_version_of_the_protocol() {
    let server = Server::start().await;
    let client = Client::new(&server);
    for name in ["a", "b/c", "b/d"] {
        client.commit(name, name.repeat(500));
    }
    client.git(&["tag", "-a", "-m", "Heavy", "heavy"]);
    client.git_async(&["push", "deis", "main", "heavy"]).await;
    for version in ["0", "1", "2"] {
        let version = format!("protocol.version={version}");
        let clone = Client::clone_from(&server.url, &["-c", &version]).await;
        assert_eq!(clone.id("HEAD"), client.id("main"));
        assert_eq!(clone.id("refs/tags/heavy"), client.id("heavy"));
        assert_eq!(clone.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
        clone.git(&["fsck", "--strict"]);
    }
    let commit = client.commit("e", "e");
    let clone = Client::clone_from(&server.url, &["--depth=1"]).await;
    assert_eq!(clone.git(&["rev-list", "--count", "HEAD"]), "1");
    client.git_async(&["push", "deis", "main"]).await;
    clone.git_async(&["fetch", "--unshallow"]).await;
    assert_eq!(clone.id("origin/main"), commit);
    assert_eq!(clone.git(&["rev-list", "--count", "origin/main"]), "4");
}

#[tokio::test]
async fn only_the_refs_given_can_be_fetched() {
    let server = Server::start().await;
    let client = Client::new(&server);
    let first = client.commit("a", "a");
    client.git_async(&["push", "deis", "main"]).await;
    let second = client.commit("a", "b");
    client.git_async(&["push", "deis", "main"]).await;
    // The objects of the second commit stay, and a keep ref names it.
    let main = hephy::model::RefName::branch("main").unwrap();
    server.seen.lock().unwrap().refs.insert(main, first);
    let clone = Client::clone_from(&server.url, &[]).await;
    assert_eq!(clone.id("HEAD"), first);
    let kept = format!("refs/hephy/keep/{second}");
    clone.git_fails(&["fetch", "origin", &kept]).await;
    clone.git_fails(&["-c", "protocol.version=0", "fetch", "origin", &second.to_string()]).await;
}

#[tokio::test]
async fn an_empty_repository_can_be_cloned() {
    let server = Server::start().await;
    let clone = Client::clone_from(&server.url, &[]).await;
    assert!(clone.path.join(".git").exists());
}
