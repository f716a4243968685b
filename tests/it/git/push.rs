//! Pushes of every shape.

use std::time::Duration;

use hephy::git::{Limits, ReceiveError, Repository, Verdict};

use super::server::{Client, Server};

#[tokio::test]
async fn a_new_repository_then_a_fast_forward_then_a_forced_update() {
    let server = Server::start().await;
    let client = Client::new(&server);
    let first = client.commit("a.txt", "one\n".repeat(1000));
    let said = client.git_async(&["push", "deis", "main"]).await;
    assert!(said.contains("remote: -----> received"), "{said}");
    assert!(said.contains("[new branch]"), "{said}");
    assert_eq!(server.branch("main"), Some(first));

    // Thin: the second is a delta against what the server has.
    let second = client.commit("a.txt", "one\n".repeat(1000) + "two\n");
    client.git_async(&["push", "--thin", "deis", "main"]).await;
    assert_eq!(server.branch("main"), Some(second));

    client.git(&["commit", "-q", "--amend", "-m", "Other"]);
    assert!(client.git_fails(&["push", "deis", "main"]).await.contains("non-fast-forward"));
    client.git_async(&["push", "--force", "deis", "main"]).await;
    assert_eq!(server.branch("main"), Some(client.id("HEAD")));
    server.fsck();
    assert_eq!(server.quarantines(), 0);
}

#[tokio::test]
async fn several_refs_tags_and_deletes_in_one_push() {
    let server = Server::start().await;
    let client = Client::new(&server);
    client.commit("a", "a");
    client.git(&["tag", "light"]);
    client.git(&["tag", "-a", "-m", "Heavy", "heavy"]);
    client.git(&["branch", "side"]);
    client.git_async(&["push", "deis", "main", "side", "light", "heavy"]).await;
    assert_eq!(server.refs(), ["refs/heads/main", "refs/heads/side", "refs/tags/heavy", "refs/tags/light"]);

    client.git_async(&["push", "deis", ":side", ":light", "main:other"]).await;
    assert_eq!(server.refs(), ["refs/heads/main", "refs/heads/other", "refs/tags/heavy"]);
    client.git_async(&["push", "deis", "--delete", "other"]).await;
    assert_eq!(server.refs(), ["refs/heads/main", "refs/tags/heavy"]);
    let said = client.git_async(&["push", "deis", "main"]).await;
    assert!(said.contains("Everything up-to-date"), "{said}");
    server.outcome().await.unwrap();
    server.fsck();
}

#[tokio::test]
async fn a_refused_ref_shows_its_reason_and_the_others_move() {
    let refuse_side = |command: &hephy::git::Command| match command.name.short() {
        "side" => Verdict::Refused("only main deploys".to_owned()),
        _ => Verdict::Accepted,
    };
    let server = Server::with(Limits::default(), refuse_side).await;
    let client = Client::new(&server);
    client.commit("a", "a");
    client.git(&["branch", "side"]);
    let said = client.git_fails(&["push", "deis", "main", "side"]).await;
    assert!(said.contains("! [remote rejected] side -> side (only main deploys)"), "{said}");
    assert_eq!(server.refs(), ["refs/heads/main"]);

    client.commit("b", "b");
    let said = client.git_fails(&["push", "--atomic", "deis", "main", "side"]).await;
    assert!(said.contains("! [remote rejected] main -> main (another ref"), "{said}");
    assert!(server.seen.lock().unwrap().atomic);
    assert_ne!(server.branch("main"), Some(client.id("main")));
    // The objects were stored all the same; the same commit can be pushed again.
    client.git_async(&["push", "deis", "main"]).await;
    assert_eq!(server.branch("main"), Some(client.id("main")));
}

#[tokio::test]
async fn push_options_arrive() {
    let server = Server::start().await;
    let client = Client::new(&server);
    client.commit("a", "a");
    client.git_async(&["push", "-o", "detach", "-o", "no-cache", "deis", "main"]).await;
    assert_eq!(server.seen.lock().unwrap().options, ["detach", "no-cache"]);
}

#[tokio::test]
async fn a_branch_must_name_a_commit_and_a_tag_is_peeled() {
    let server = Server::start().await;
    let client = Client::new(&server);
    client.commit("a", "a");
    client.git(&["tag", "-a", "-m", "Heavy", "heavy"]);
    client.git(&["update-ref", "--no-deref", "refs/odd/tag", "heavy"]);
    // The client itself refuses a tag as a branch unless it is asked by another name.
    let said = client.git_fails(&["push", "deis", "heavy:refs/heads/main"]).await;
    assert!(said.contains("a branch names a commit"), "{said}");
    assert!(matches!(server.outcome().await, Ok("refused")));
    client.git_async(&["push", "deis", "heavy"]).await;
    assert_eq!(server.refs(), ["refs/tags/heavy"]);
}

#[tokio::test]
async fn a_sha256_repository_is_refused_by_name() {
    let server = Server::start().await;
    let client = Client::new(&server);
    std::fs::remove_dir_all(client.path.join(".git")).unwrap();
    client.git(&["init", "-q", "-b", "main", "--object-format=sha256"]);
    client.write("a", "a");
    client.git(&["add", "-A"]);
    client.git(&["commit", "-q", "-m", "First"]);
    let said = client.git_fails(&["push", &server.url, "main"]).await;
    assert!(said.contains("this repository uses SHA-256"), "{said}");
    assert!(matches!(server.outcome().await, Err(ReceiveError::Sha256)));
}

#[tokio::test]
async fn what_no_ref_keeps_is_collected_and_what_one_keeps_is_not() {
    let server = Server::start().await;
    let client = Client::new(&server);
    let first = client.commit("a", "a");
    client.git_async(&["push", "deis", "main"]).await;
    client.git(&["checkout", "-q", "--orphan", "other"]);
    let other = client.commit("b", "b");
    client.git_async(&["push", "deis", "other"]).await;
    client.git_async(&["push", "deis", ":other"]).await;

    let repository = Repository::open_or_create(server.repository.path()).unwrap();
    assert!(!repository.is_crowded().unwrap());
    repository.keep(&[first], Duration::from_mins(1)).unwrap();
    assert!(repository.collect().await.unwrap());
    assert!(repository.contains(other).unwrap(), "it came lately");
    repository.keep(&[first], Duration::ZERO).unwrap();
    assert!(repository.collect().await.unwrap());
    assert!(repository.contains(first).unwrap());
    assert!(!repository.contains(other).unwrap());
    server.fsck();
    // And the deleted one can come again.
    client.git_async(&["push", "deis", "other"]).await;
    assert!(repository.contains(other).unwrap());
}

#[tokio::test]
async fn a_commit_without_files_can_be_pushed() {
    let server = Server::start().await;
    let client = Client::new(&server);
    client.git(&["commit", "-q", "--allow-empty", "-m", "Nothing"]);
    client.git_async(&["push", "deis", "main"]).await;
    server.fsck();
    let clone = Client::clone_from(&server.url, &[]).await;
    assert_eq!(clone.id("HEAD"), client.id("HEAD"));
}

#[tokio::test]
async fn another_client_than_git_pushes() {
    let server = Server::start().await;
    let client = Client::new(&server);
    let commit = client.commit("a", "a");
    let path = client.path.clone();
    let push = move || {
        let repository = git2::Repository::open(path).unwrap();
        repository.find_remote("deis").unwrap().push(&["refs/heads/main"], None).unwrap();
    };
    tokio::task::spawn_blocking(push).await.unwrap();
    assert_eq!(server.branch("main"), Some(commit));
}

#[tokio::test]
async fn a_repository_with_many_packs_is_tidied() {
    let server = Server::start().await;
    let client = Client::new(&server);
    for n in 0..41 {
        assert!(!server.repository.tidy(Vec::new()).await.unwrap());
        client.commit("a", format!("{n}"));
        client.git_async(&["push", "-q", "deis", "main"]).await;
    }
    assert!(server.repository.is_crowded().unwrap());
    let ids = server.seen.lock().unwrap().refs.values().copied().collect();
    assert!(server.repository.tidy(ids).await.unwrap());
    assert!(!server.repository.is_crowded().unwrap());
    server.fsck();
    assert_eq!(Client::clone_from(&server.url, &[]).await.id("HEAD"), client.id("HEAD"));
}
