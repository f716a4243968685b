use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_key_type_logs_in_as_its_user() {
    let home = tempfile::tempdir().unwrap();
    let users = Users::default();
    let types: [(&str, &[&str]); 5] = [
        ("ed25519", &["-t", "ed25519"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
    ];
    for (name, options) in types {
        let key = make_key(home.path(), name, options);
        let who = KnownKey { user: "ada".parse().unwrap(), key_name: name.to_owned() };
        users.keys.lock().unwrap().push((key, who));
    }
    let receiver = serve(home, users, Limits::default()).await;
    for (name, _) in types {
        let output = output(receiver.ssh_as(&[name], &["-o", "BatchMode=yes"], &["who"])).await;
        assert_eq!(stdout(&output), format!("ada {name} hephy None None\n"), "{}", stderr(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_key_behind_ten_unknown_ones_logs_in_quickly() {
    let receiver = receiver().await;
    let names: Vec<String> = (0..10).map(|number| format!("unknown{number}")).collect();
    for name in &names {
        make_key(receiver.home.path(), name, &["-t", "ed25519"]);
    }
    let mut keys: Vec<&str> = names.iter().map(String::as_str).collect();
    keys.push("known");
    let begin = std::time::Instant::now();
    let output = output(receiver.ssh_as(&keys, &["-o", "BatchMode=yes"], &["who"])).await;
    assert_eq!(stdout(&output), "ada known hephy None None\n", "{}", stderr(&output));
    assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_told_their_fingerprints_and_the_command_that_adds_them() {
    let receiver = receiver().await;
    let first = make_key(receiver.home.path(), "first", &["-t", "ed25519"]);
    let second = make_key(receiver.home.path(), "second", &["-t", "ecdsa"]);
    let output = output(receiver.ssh_as(&["first", "second"], &[], &["apps"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    let expected = format!(
        " !     No key that your SSH client offered is known here:\n\
         \x20!       {} (ssh-ed25519)\n\
         \x20!       {} (ecdsa-sha2-nistp256)\n\
         \x20!     Add it: echo '{} {}' | hephy keys add -\n\
         \x20!     Add it: echo '{} {}' | hephy keys add -\n",
        first.fingerprint(),
        second.fingerprint(),
        first.algorithm(),
        first.body(),
        second.algorithm(),
        second.body(),
    );
    assert_eq!(stderr(&output), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_key_is_told_how_to_make_one() {
    let receiver = receiver().await;
    let output = output(receiver.ssh_as(&[], &[], &["apps"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("offered no key"), "{}", stderr(&output));
    assert!(stderr(&output).contains("ssh-keygen -t ed25519"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_rsa_key_is_named_with_its_reason() {
    let receiver = receiver().await;
    let path = receiver.home.path().join("short");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-t", "rsa", "-b", "1024", "-f"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    let output = output(receiver.ssh_as(&["short"], &["-o", "RequiredRSASize=1024"], &["apps"])).await;
    assert!(stderr(&output).contains("this one has 1024"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_by_a_stranger_ends_with_the_reason_in_gits_output() {
    let receiver = receiver().await;
    let key = make_key(receiver.home.path(), "stranger", &["-t", "ed25519"]);
    let directory = receiver.home.path().join("source");
    std::fs::create_dir(&directory).unwrap();
    for arguments in [&["init", "-q", "-b", "main"][..], &["commit", "-q", "--allow-empty", "-m", "one"]] {
        assert!(output(receiver.git(&["stranger"], &directory, arguments)).await.status.success());
    }
    let output =
        output(receiver.git(&["stranger"], &directory, &["push", &receiver.remote("hello"), "main"])).await;
    assert_ne!(output.status.code(), Some(0));
    let text = stderr(&output);
    assert!(text.contains(&key.fingerprint().to_string()), "{text}");
    assert!(text.contains("hephy keys add -"), "{text}");
    assert!(text.contains("fatal: remote error: hephy refused this; the reason is above"), "{text}");
    assert!(!text.contains("Could not read from remote repository"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keyboard_interactive_a_stranger_is_simply_refused() {
    let receiver = receiver().await;
    make_key(receiver.home.path(), "stranger", &["-t", "ed25519"]);
    let output = output(receiver.ssh_as(&["stranger"], &["-o", "BatchMode=yes"], &["apps"])).await;
    assert_eq!(output.status.code(), Some(255));
    assert!(
        stderr(&output).contains("Permission denied (publickey,keyboard-interactive)"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn users_that_cannot_be_read_are_not_mistaken_for_strangers() {
    let home = tempfile::tempdir().unwrap();
    make_key(home.path(), "known", &["-t", "ed25519"]);
    let users = Users { broken: true, ..Users::default() };
    let receiver = serve(home, users, Limits::default()).await;
    let output = output(receiver.ssh(&["who"])).await;
    assert_eq!(output.status.code(), Some(75));
    assert!(stderr(&output).contains("Try again in a moment"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("keys add"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_key_is_noticed_by_the_client() {
    let receiver = receiver().await;
    let other = HostKey::open(&receiver.home.path().join("other")).unwrap();
    let line = format!("[127.0.0.1]:{} {}\n", receiver.address.port(), other.public_key());
    std::fs::write(receiver.home.path().join("known_hosts"), line).unwrap();
    let output = output(receiver.ssh(&["who"])).await;
    assert_eq!(output.status.code(), Some(255));
}
