//! A push becomes a running app.

use crate::machine::Machine;

#[test]
fn a_first_push_is_built_released_and_answers() {
    let machine = Machine::start();
    assert!(machine.printed().contains("is the first admin"), "{}", machine.printed());
    let hello = machine.web("hello", "first");
    let pushed = hello.push().succeeded().stderr;
    let commit: String = hello.rev("main").chars().take(7).collect();
    let lines: Vec<&str> =
        pushed.lines().filter_map(|line| line.strip_prefix("remote: ")).map(str::trim_end).collect();
    assert!(lines[0].starts_with(&format!("-----> hello: build #1 of {commit} by ")), "{pushed}");
    assert!(lines.contains(&"-----> Dockerfile found"), "{pushed}");
    assert!(lines.contains(&"-----> Released v1"), "{pushed}");
    let url = lines.iter().rfind(|line| line.starts_with("-----> ")).unwrap();
    assert!(url.starts_with("-----> http://hello.localhost:"), "{pushed}");
    assert_eq!(machine.get("hello", "/").unwrap(), (200, "first".to_owned()));
    assert_eq!(machine.get("other", "/").unwrap().0, 404);

    hello.commit(&[("www/index.html", "second")]);
    hello.push().succeeded().says(&["Released v2", "changed: www/index.html"]);
    assert_eq!(machine.get("hello", "/").unwrap(), (200, "second".to_owned()));
    machine.verb("releases -a hello").succeeded().says(&["v2", "v1", "serves", "served"]);
}

#[test]
fn the_same_commit_gives_the_same_digest_on_another_machine() {
    let digest = |machine: &Machine, date: &str| {
        let app = machine.web("same", "page");
        let env = [("GIT_COMMITTER_DATE", date), ("GIT_AUTHOR_DATE", date)];
        let amended = app.command(&["commit", "-q", "--amend", "--no-edit"]).envs(env).status().unwrap();
        assert!(amended.success());
        app.push().succeeded();
        let apps: serde_json::Value =
            serde_json::from_str(&machine.verb("apps --format json").succeeded().stdout).unwrap();
        apps[0]["image"].as_str().unwrap().rsplit_once('@').unwrap().1.to_owned()
    };
    let date = "2026-01-02T03:04:05Z";
    let first = digest(&Machine::start(), date);
    assert_eq!(first, digest(&Machine::start(), date));
}

#[test]
fn a_failing_build_rejects_the_ref_and_the_same_commit_can_be_pushed_again() {
    let machine = Machine::start();
    let app = machine.web("fails", "good");
    app.push().succeeded();
    let dockerfile = std::fs::read_to_string(app.path.join("Dockerfile")).unwrap();
    app.commit(&[(
        "Dockerfile",
        &dockerfile.replace("COPY www", "RUN echo to the pusher; exit 3\nCOPY www"),
    )]);
    for build in ["#2", "#3"] {
        app.push().failed_with(&[
            "to the pusher",
            &format!("Build {build} failed"),
            "v1 still serves http://fails.localhost:",
            "Full log: ssh -p ",
            "! [remote rejected] main -> main (build failed: Dockerfile:4 on linux/",
        ]);
    }
    assert_eq!(machine.get("fails", "/").unwrap(), (200, "good".to_owned()));
    machine.verb("builds log 2 -a fails").failed_with(&["to the pusher", "Build #2 failed"]);
    app.git(&["reset", "-q", "--hard", "HEAD~1"]).succeeded();
    app.commit(&[("www/index.html", "mended")]);
    app.push().succeeded();
    assert_eq!(machine.get("fails", "/").unwrap(), (200, "mended".to_owned()));
}

#[test]
fn what_cannot_be_built_is_refused_with_every_candidate() {
    let machine = Machine::start();
    let empty = machine.repository("empty", &[("README", "nothing here")]);
    empty.push().failed_with(&["Dockerfile", "[remote rejected]"]);
    let typo = machine.repository(
        "typo",
        &[("hephy.toml", "[build]\ndockerfil = \"x\"\n"), ("Dockerfile", "FROM scratch\n")],
    );
    typo.push().failed_with(&["hephy.toml:2", "dockerfile"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let lfs = machine.repository("lfs", &[("Dockerfile", "FROM scratch\nCOPY big /\n"), ("big", pointer)]);
    lfs.push().failed_with(&["big", "LFS"]);
    let unknown = machine.repository("unknown", &[("Dockerfile", "FROM scratch\nCOPPY a b\n")]);
    unknown.push().failed_with(&["Dockerfile:2", "COPY"]);
    let nowhere = machine.repository("nowhere", &[("Dockerfile", "FROM no-such-base.invalid/x:1\n")]);
    nowhere.push().failed_with(&["no-such-base.invalid/x:1"]);
}

/// What a pusher may read of the server's machine is nothing: its keys are there.
#[test]
fn no_link_of_a_repository_leads_a_build_out_of_it() {
    let machine = Machine::start();
    let outside = machine.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "of the server").unwrap();
    let toml = "[build]\ncontext = \"place\"\n";
    let dockerfile = "FROM scratch\nCOPY . /\nCMD [\"/x\"]\n";
    let above = "../".repeat(30) + outside.to_str().unwrap().trim_start_matches('/');
    for (app, name, target) in [
        ("context", "place", outside.to_str().unwrap()),
        ("above", "place", &above),
        ("ignored", ".dockerignore", outside.join("secret").to_str().unwrap()),
        ("beside", "Dockerfile.dockerignore", outside.join("secret").to_str().unwrap()),
    ] {
        let files = if name == "place" {
            &[("hephy.toml", toml), ("Dockerfile", dockerfile)][..]
        } else {
            &[("Dockerfile", dockerfile)]
        };
        let app = machine.repository(app, files);
        std::os::unix::fs::symlink(target, app.path.join(name)).unwrap();
        app.commit(&[]);
        let pushed =
            app.push().failed_with(&[&format!("`{name}` is a link that leads out of the repository")]);
        assert!(!pushed.stderr.contains("of the server"), "{}", pushed.stderr);
    }
    // One that stays inside is none of them.
    let app = machine.web("inside", "page");
    std::os::unix::fs::symlink(".", app.path.join("place")).unwrap();
    app.commit(&[("hephy.toml", toml)]);
    app.push().succeeded();
    assert_eq!(machine.get("inside", "/").unwrap(), (200, "page".to_owned()));
}

#[test]
fn a_submodule_is_refused_by_name() {
    let machine = Machine::start();
    let app = machine.repository("parent", &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    let commit = app.rev("HEAD");
    app.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},vendor/lib")]).succeeded();
    app.git(&["commit", "-q", "-m", "add a submodule"]).succeeded();
    app.push().failed_with(&["vendor/lib", "submodule"]);
}

/// Root is not the only one who starts hephy.
#[test]
fn an_ordinary_user_is_pushed_to_as_well() {
    crate::ordinary_user::run_tests(&[
        "push::deploys::a_first_push_is_built_released_and_answers",
        "push::deploys::a_failing_build_rejects_the_ref_and_the_same_commit_can_be_pushed_again",
        "push::interrupted::control_c_in_git_cancels_within_two_seconds_and_frees_the_app",
        "push::interrupted::a_server_killed_at_any_stage_leaves_a_state_from_which_the_next_push_works",
        "build::cache::what_builds_left_is_shown_and_pruned_and_the_next_build_makes_it_again",
    ]);
}
