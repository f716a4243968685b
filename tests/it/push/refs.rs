//! What becomes of each ref of a push.

use crate::machine::Machine;

#[test]
fn only_the_deploy_branch_deploys() {
    let machine = Machine::start();
    let app = machine.web("refs", "one");
    app.git(&["push", "deis", "main:feature"]).succeeded().says(&["git push deis feature:main"]);
    assert_eq!(machine.get("refs", "/").unwrap().0, 404);
    app.git(&["tag", "-a", "-m", "one", "v1"]).succeeded();
    app.git(&["push", "deis", "v1"]).succeeded();
    assert_eq!(machine.get("refs", "/").unwrap().0, 404);
    app.push().succeeded();
    assert_eq!(machine.get("refs", "/").unwrap(), (200, "one".to_owned()));
    app.git(&["push", "deis", ":main"]).failed_with(&["main deploys and cannot be deleted"]);
    app.git(&["push", "deis", ":feature", ":v1"]).succeeded();
    let refs = app.git(&["ls-remote", "deis"]).succeeded().stdout;
    assert_eq!(refs, format!("{0}\tHEAD\n{0}\trefs/heads/main\n", app.rev("main")));
}

#[test]
fn history_may_be_rewritten_by_force_and_comes_back_whole() {
    let machine = Machine::start();
    let app = machine.web("forced", "one");
    app.push().succeeded();
    app.git(&["commit", "-q", "--amend", "-m", "other"]).succeeded();
    app.commit(&[("www/index.html", "two")]);
    app.push().failed_with(&["non-fast-forward"]);
    app.git(&["push", "--force", "deis", "main"]).succeeded();
    assert_eq!(machine.get("forced", "/").unwrap(), (200, "two".to_owned()));
    app.git(&["clone", "-q", &machine.remote("forced"), "../back"]).succeeded();
    let back = app.git(&["-C", "../back", "rev-parse", "HEAD"]).succeeded().stdout;
    assert_eq!(back.trim(), app.rev("main"));
    app.git(&["-C", "../back", "fsck", "--strict"]).succeeded();
}

#[test]
fn an_atomic_push_moves_all_refs_or_none() {
    let machine = Machine::start();
    let app = machine.repository("atomic", &[("Dockerfile", "FROM scratch\nRUN [\"/no\"]\n")]);
    app.git(&["push", "--atomic", "deis", "main", "main:other"]).failed_with(&["[remote rejected]"]);
    assert_eq!(app.git(&["ls-remote", "deis"]).stdout, "");
    app.git(&["push", "deis", "main", "main:other"]).failed_with(&["main -> main (build failed"]);
    assert_eq!(
        app.git(&["ls-remote", "deis"]).succeeded().stdout,
        format!("{}\trefs/heads/other\n", app.rev("main"))
    );
}

#[test]
fn a_push_with_nothing_to_send_says_what_is_deployed_and_deploy_does_it_again() {
    let machine = Machine::start();
    let app = machine.web("again", "one");
    app.push().succeeded();
    app.push().succeeded().says(&["again: v1", "is deployed at http://again.localhost:", "deploy -a again"]);
    let misspelt = app.git(&["push", "-o", "supercede", "deis", "main"]).succeeded();
    misspelt.says(&["unknown push option `supercede`: did you mean `supersede`?", "is deployed at"]);
    machine.verb("deploy -a again").succeeded().says(&["build #2", "Released v2"]);
    assert_eq!(machine.get("again", "/").unwrap(), (200, "one".to_owned()));
}

#[test]
fn a_commit_that_was_built_before_is_released_without_building_and_deploy_builds_it() {
    let machine = Machine::start();
    let app = machine.web("back", "one");
    app.push().succeeded();
    app.commit(&[("www/index.html", "two")]);
    app.push().succeeded();
    app.git(&["reset", "-q", "--hard", "HEAD~1"]).succeeded();
    let again = app.git(&["push", "--force", "deis", "main"]).succeeded();
    let again = again.says(&["was built before, by build #1", "deploy -a back", "Released v3"]);
    assert!(!again.stderr.contains("Building"), "{}", again.stderr);
    assert_eq!(machine.get("back", "/").unwrap(), (200, "one".to_owned()));
    let deployed = machine.verb("deploy -a back").succeeded();
    deployed.says(&["Building natively", "Released v4"]);
    app.git(&["reset", "-q", "--hard", "ORIG_HEAD"]).succeeded();
    app.git(&["push", "-o", "no-cache", "deis", "main"])
        .succeeded()
        .says(&["Building natively", "Released v5"]);
}

#[test]
fn a_push_from_a_shallow_clone_works_and_so_does_the_whole_history_after_it() {
    let machine = Machine::start();
    let app = machine.web("shallow", "one");
    app.commit(&[("www/index.html", "two")]);
    let url = format!("file://{}", app.path.display());
    app.git(&["clone", "-q", "--depth", "1", &url, "../cut"]).succeeded();
    let remote = machine.remote("shallow");
    app.git(&["-C", "../cut", "push", &remote, "HEAD:refs/heads/main"]).succeeded();
    assert_eq!(machine.get("shallow", "/").unwrap(), (200, "two".to_owned()));
    app.git(&["clone", "-q", &remote, "../back"]).succeeded();
    app.commit(&[("www/index.html", "three")]);
    app.push().succeeded();
    assert_eq!(machine.get("shallow", "/").unwrap(), (200, "three".to_owned()));
}

#[test]
fn an_unknown_push_option_and_a_sha256_repository_are_refused_by_name() {
    let machine = Machine::start();
    let app = machine.web("options", "one");
    app.git(&["push", "-o", "nocache", "deis", "main"]).failed_with(&["did you mean `no-cache`?"]);
    let path = machine.path().join("sha256");
    let path = path.to_str().unwrap();
    app.git(&["init", "-q", "--object-format=sha256", "-b", "main", path]).succeeded();
    app.git(&["-C", path, "commit", "-q", "--allow-empty", "-m", "one"]).succeeded();
    let refused = app.git(&["-C", path, "push", &machine.remote("sha256"), "main"]);
    assert!(!refused.ok, "{refused:?}");
}
