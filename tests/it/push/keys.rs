//! Who may push.

use crate::machine::Machine;

#[test]
fn an_unknown_key_is_told_its_fingerprint_and_the_command_that_adds_it() {
    let machine = Machine::start();
    let mut app = machine.web("guest", "one");
    app.key = machine.key("guest_key");
    let public = machine.path().join("home/.ssh/guest_key.pub");
    let fingerprint =
        std::process::Command::new("ssh-keygen").arg("-lf").arg(public).output().unwrap().stdout;
    let fingerprint = String::from_utf8(fingerprint).unwrap().split(' ').nth(1).unwrap().to_owned();
    app.push().failed_with(&[&fingerprint, &format!("hephy keys add {fingerprint} --user NAME")]);
    machine.verb_as("guest_key", "apps").failed_with(&[&fingerprint]);
    machine.verb(&format!("keys add {fingerprint} --user guest")).succeeded();
    app.push().succeeded();
    machine.verb("apps").succeeded().says(&["guest"]);
}

#[test]
fn a_known_key_without_access_is_told_whom_to_ask_and_access_is_an_exact_match() {
    let machine = Machine::start();
    let app = machine.web("hello", "one");
    app.push().succeeded();
    let key = machine.key("bob_key");
    let public = std::fs::read_to_string(machine.path().join("home/.ssh/bob_key.pub")).unwrap();
    machine.verb(&format!("keys add - --user bob <<'E'\n{public}E")).succeeded();
    machine.hephy(&["keys", "add", "home/.ssh/bob_key.pub", "--user", "eve"]).failed_with(&["bob"]);
    machine
        .hephy(&["keys", "add", "home/.ssh/bob_key.pub", "--user", "bob"])
        .succeeded()
        .says(&["bob has this key already"]);
    let mut bobs = machine.web("hell", "bob's");
    bobs.key.clone_from(&key);
    bobs.push().succeeded();
    bobs.git(&["push", &machine.remote("hello"), "main"])
        .failed_with(&["you have no access", "access add bob -a hello"]);
    bobs.git(&["ls-remote", &machine.remote("hello")]).failed_with(&["you have no access"]);
    machine.verb_as(&key, "apps").succeeded().says(&["hell"]);
    let another = machine.key("another_key");
    let public = std::fs::read_to_string(machine.path().join(format!("home/.ssh/{another}.pub"))).unwrap();
    machine
        .verb_as(&key, &format!("keys add - --user bob --admin <<'E'\n{public}E"))
        .failed_with(&["only an admin makes admins"]);
    machine.verb_as(&key, &format!("keys add - --user ada <<'E'\n{public}E")).failed_with(&["only an admin"]);
    machine.verb_as(&key, &format!("keys add - <<'E'\n{public}E")).succeeded().says(&["another_key"]);
    machine.verb_as(&key, "keys remove admin@test").failed_with(&["there is no key"]);
    machine.verb_as(&key, "config list -a hello").failed_with(&["there is no app `hello`"]);
    machine.verb("access add bob -a hello").succeeded();
    bobs.git(&["ls-remote", &machine.remote("hello")]).succeeded();
    machine.verb_as(&key, "apps destroy -a hello --confirm hello").failed_with(&["who owns hello"]);
    machine.verb("apps").succeeded().says(&["hello"]);
}

#[test]
fn malformed_keys_are_refused_with_the_reason() {
    let machine = Machine::start();
    let public = std::fs::read_to_string(machine.path().join("home/.ssh/id_ed25519.pub")).unwrap();
    for (name, text, reason) in [
        (
            "private",
            std::fs::read_to_string(machine.path().join("home/.ssh/id_ed25519")).unwrap(),
            "private key",
        ),
        ("options", format!("command=\"x\" {public}"), "options"),
        ("two", format!("{public}{public}"), "2 keys"),
        ("junk", "ssh-ed25519 AAAA".to_owned(), "damaged"),
    ] {
        std::fs::write(machine.path().join(name), text).unwrap();
        machine.hephy(&["keys", "add", name, "--user", "eve"]).failed_with(&[reason]);
    }
    machine.hephy(&["keys", "add", "home/.ssh/id_ed25519.pub", "--user", "eve"]).failed_with(&[]);
    machine.verb("keys list").succeeded().says(&["(admin)", "ssh-ed25519"]);
}

#[test]
fn names_that_no_app_can_have_are_refused() {
    let machine = Machine::start();
    let app = machine.web("named", "one");
    for name in ["a/b", "../../etc", "UPPER", "a--b", "mirror"] {
        let url = format!("ssh://hephy@{}/{name}.git", machine.address("ssh"));
        let refused = app.git(&["push", &url, "main"]);
        assert!(!refused.ok, "{name}: {refused:?}");
    }
    machine.verb("apps").succeeded().says(&["No apps yet"]);
}
