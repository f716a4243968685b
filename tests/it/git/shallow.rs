//! Pushes from shallow clones, which every CI checkout is.

use hephy::model::CommitId;

use super::server::{Client, Server};

/// An upstream with commits `1` to `5`, and its server.
async fn upstream() -> (Server, Client, Vec<CommitId>) {
    let server = Server::start().await;
    let client = Client::new(&server);
    let commits = (1..=5).map(|n| client.commit("file", format!("{n}\n"))).collect();
    client.git_async(&["push", "deis", "main"]).await;
    (server, client, commits)
}

#[tokio::test]
async fn a_clone_of_depth_one_is_pushed_first_then_goes_on() {
    let (upstream, full, commits) = upstream().await;
    let app = Server::start().await;
    let checkout = Client::clone_from(&upstream.url, &["--depth=1"]).await;
    checkout.git_async(&["push", &app.url, "main"]).await;
    assert_eq!(app.branch("main"), Some(commits[4]));
    assert_eq!(app.repository.shallow().unwrap().into_iter().collect::<Vec<_>>(), [commits[4]]);
    app.fsck();
    let clone = Client::clone_from(&app.url, &[]).await;
    assert_eq!(clone.git(&["rev-list", "--count", "HEAD"]), "1");

    // The next commit, from the same checkout.
    let next = checkout.commit("file", "6\n");
    checkout.git_async(&["push", &app.url, "main"]).await;
    assert_eq!(app.branch("main"), Some(next));
    app.fsck();

    // A commit on top, from a full clone.
    full.git_async(&["fetch", "-q", &app.url, "main"]).await;
    full.git(&["reset", "-q", "--hard", "FETCH_HEAD"]);
    let last = full.commit("file", "7\n");
    full.git_async(&["push", &app.url, "main"]).await;
    assert_eq!(app.branch("main"), Some(last));
    app.fsck();
}

#[tokio::test]
async fn a_fresh_checkout_of_the_next_commit_is_forced_over_the_last() {
    let (upstream, full, commits) = upstream().await;
    let app = Server::start().await;
    let checkout = Client::clone_from(&upstream.url, &["--depth=1"]).await;
    checkout.git_async(&["push", &app.url, "main"]).await;
    let next = full.commit("file", "6\n");
    full.git_async(&["push", "deis", "main"]).await;
    let checkout = Client::clone_from(&upstream.url, &["--depth=1"]).await;
    checkout.git_async(&["push", "--force", &app.url, "main"]).await;
    assert_eq!(app.branch("main"), Some(next));
    // Its parent is here: the history goes on to it.
    assert_eq!(app.repository.shallow().unwrap().into_iter().collect::<Vec<_>>(), [commits[4]]);
    app.fsck();
}

#[tokio::test]
async fn history_that_comes_later_ends_the_shallowness() {
    let (upstream, full, commits) = upstream().await;
    let (three, four) = (commits[2].to_string(), commits[3].to_string());
    full.git_async(&[
        "push",
        "deis",
        &format!("{three}:refs/heads/three"),
        &format!("{four}:refs/heads/four"),
    ])
    .await;
    let app = Server::start().await;
    let checkout = Client::clone_from(&upstream.url, &["--depth=1", "--branch=four"]).await;
    checkout.git_async(&["push", &app.url, "four:main"]).await;
    assert_eq!(app.repository.shallow().unwrap().len(), 1);
    let older = Client::clone_from(&upstream.url, &["--single-branch", "--branch=three"]).await;
    older.git_async(&["push", &app.url, "three"]).await;
    assert_eq!(app.repository.shallow().unwrap().len(), 0);
    app.fsck();
    let clone = Client::clone_from(&app.url, &[]).await;
    assert_eq!(clone.git(&["rev-list", "--count", "HEAD"]), "4");
}

#[tokio::test]
async fn history_that_a_full_clone_thinks_we_have_is_refused_with_the_way_out() {
    let (upstream, full, commits) = upstream().await;
    let app = Server::start().await;
    let checkout = Client::clone_from(&upstream.url, &["--depth=1"]).await;
    checkout.git_async(&["push", &app.url, "main"]).await;
    full.git(&["branch", "old", &commits[2].to_string()]);
    let said = full.git_fails(&["push", &app.url, "old"]).await;
    assert!(said.contains("git clone --depth=1"), "{said}");
    let checkout =
        Client::clone_from(&format!("file://{}", full.path.display()), &["--depth=1", "--branch=old"]).await;
    checkout.git_async(&["push", &app.url, "old"]).await;
    assert_eq!(app.refs(), ["refs/heads/main", "refs/heads/old"]);
    app.fsck();
}

#[tokio::test]
async fn a_refused_push_leaves_no_shallow_commits() {
    let (upstream, _full, _) = upstream().await;
    let refuse = |_: &hephy::git::Command| hephy::git::Verdict::Refused("no".to_owned());
    let app = Server::with(hephy::git::Limits::default(), refuse).await;
    let checkout = Client::clone_from(&upstream.url, &["--depth=1"]).await;
    checkout.git_fails(&["push", &app.url, "main"]).await;
    assert_eq!(app.refs(), [""; 0]);
    app.fsck();
}
