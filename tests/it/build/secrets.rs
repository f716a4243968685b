//! Secrets and agents: seen by the step that asks for them, and by nothing and nobody else.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::{Built, Place};

const TOKEN: &str = "hunter2-7f3a91c5";

/// Asks the agent to list the keys, to remove them all, to lock itself and to take a key, and prints the kind of each answer.
const ASK: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strcpy(to.sun_path, getenv("SSH_AUTH_SOCK"));
    int agent = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(agent, (struct sockaddr *)&to, sizeof to) != 0) { perror("connect"); return 1; }
    unsigned char kinds[] = {11, 19, 22, 17}, head[5], rest[64];
    for (int i = 0; i < 4; i++) {
        unsigned char ask[] = {0, 0, 0, 1, kinds[i]};
        write(agent, ask, sizeof ask);
        if (recv(agent, head, 5, MSG_WAITALL) != 5) return 2;
        if (head[3] > 1) recv(agent, rest, head[3] - 1, MSG_WAITALL);
        printf("%d: %d\n", kinds[i], head[4]);
    }
}
"#;

/// The files below a directory that hold the token.
fn holding_token(directory: &Path) -> Vec<String> {
    let output = Command::new("grep").args(["-rlaF", TOKEN]).arg(directory).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

fn with_secret(place: &Place, dockerfile: &str, more: &[&str]) -> Built {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), TOKEN).unwrap();
    let secret = format!("id=token,src={}", file.path().display());
    let mut arguments = vec!["--secret", &secret];
    arguments.extend(more);
    place.build_with(dockerfile, &arguments)
}

#[test]
fn a_secret_is_a_file_for_one_step_and_is_left_nowhere() {
    let place = Place::new();
    let dockerfile = "FROM busybox:1\n\
        RUN --mount=type=secret,id=token wc -c < /run/secrets/token; stat -c '%a %u:%g' /run/secrets/token; (echo x > /run/secrets/token) 2>&1; true\n\
        RUN --mount=type=secret,id=token,target=/root/.netrc,mode=0440,uid=1000,gid=1000 stat -c '%a %u:%g' /root/.netrc; touch /made\n\
        RUN cat /run/secrets/token /root/.netrc 2>&1; ls -A /root /run 2>&1; grep -c hunter2 /proc/1/environ /proc/self/environ /proc/self/mountinfo; cat /proc/1/mem /proc/1/maps 2>&1 | head -n 2; true\n";
    let built = with_secret(&place, dockerfile, &[]).ok();
    let lines = built.lines();
    assert_eq!(
        lines[..4],
        [
            &TOKEN.len().to_string(),
            "400 0:0",
            "/bin/sh: can't create /run/secrets/token: Read-only file system",
            "440 1000:1000"
        ]
    );
    assert_eq!(
        lines[4..7],
        [
            "cat: can't open '/run/secrets/token': No such file or directory",
            "cat: can't open '/root/.netrc': No such file or directory",
            "ls: /run: No such file or directory",
        ]
    );
    assert!(
        lines.contains(&"/proc/self/environ:0") && lines.contains(&"/proc/self/mountinfo:0"),
        "{lines:?}"
    );
    assert_eq!(built.layer_paths(0), ["made"]);
    // Not in the store, a layer, the history, an event or the result.
    assert_eq!(holding_token(place.directory.path()), [""; 0]);
}

#[test]
fn a_secret_is_a_variable_where_it_is_asked_to_be() {
    let place = Place::new();
    let dockerfile = "FROM busybox:1\nENV TOKEN=public\n\
        RUN --mount=type=secret,id=token,env=TOKEN echo ${#TOKEN}; ls /run 2>&1; true\n\
        RUN --mount=type=secret,id=token,env=OTHER,target=/t wc -c < /t; echo ${#OTHER} $TOKEN > /made\n\
        RUN echo $TOKEN; env | grep -c hunter2; true\nRUN false\n";
    let built = with_secret(&place, dockerfile, &[]);
    let length = TOKEN.len().to_string();
    assert_eq!(built.lines(), [&length, "ls: /run: No such file or directory", &length, "public", "0"]);
    assert_eq!(holding_token(place.directory.path()), [""; 0]);
}

#[test]
fn a_new_value_of_a_secret_is_no_reason_to_run_a_step_again() {
    let place = Place::new();
    let dockerfile = "FROM busybox:1\nRUN --mount=type=secret,id=token wc -c < /run/secrets/token > /made\n";
    with_secret(&place, dockerfile, &[]).ok();
    let mut command = place.command(dockerfile, &["--no-push", "--secret", "id=token,env=OTHER"]);
    assert!(command.env("OTHER", "a longer one than that").output().unwrap().status.success());
    assert_eq!(place.events().iter().filter(|event| format!("{event:?}").contains("Cached")).count(), 2);
}

#[test]
fn a_secret_that_is_not_given_is_absent_or_an_error_that_says_how() {
    let place = Place::new();
    let built = place.build("FROM busybox:1\nRUN --mount=type=secret,id=token ls /run 2>&1; true\n").ok();
    assert_eq!(built.lines(), ["ls: /run: No such file or directory"]);
    let built = place.build("FROM busybox:1\n\nRUN --mount=type=secret,id=token,required true\n");
    let failure = built.app_failure();
    assert_eq!(failure.at.as_ref().unwrap().line, 3);
    assert!(failure.heading.contains("--secret id=token,src=FILE"), "{failure:?}");
    let large = tempfile::NamedTempFile::new().unwrap();
    fs::write(large.path(), vec![b'x'; 600 * 1024]).unwrap();
    let secret = format!("id=token,src={}", large.path().display());
    let built =
        place.build_with("FROM busybox:1\nRUN --mount=type=secret,id=token false\n", &["--secret", &secret]);
    assert!(built.app_failure().heading.contains("larger than 500 KiB"), "{:?}", built.app_failure());
}

#[test]
fn a_step_signs_with_the_agent_and_can_do_nothing_else_to_it() {
    let place = Place::new();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, seen) = (stream.unwrap(), Arc::clone(&seen));
            std::thread::spawn(move || {
                let mut header = [0; 5];
                while stream.read_exact(&mut header).is_ok() {
                    seen.lock().unwrap().push(header[4]);
                    stream.write_all(&[0, 0, 0, 5, 12, 0, 0, 0, 0]).unwrap();
                }
            });
        }
    });
    let program = place.path("context/ask");
    let source = place.path("ask.c");
    fs::write(&source, ASK).unwrap();
    let compiled = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).output().unwrap();
    assert!(compiled.status.success(), "{compiled:?}");
    let dockerfile = "FROM busybox:1\nRUN --mount=type=ssh,required --mount=source=ask,target=/ask echo $SSH_AUTH_SOCK; stat -c '%F %a %u' $SSH_AUTH_SOCK; /ask\nRUN echo $SSH_AUTH_SOCK; ls /run 2>&1; true\n";
    let given = format!("default={}", socket.display());
    let built = place.build_with(dockerfile, &["--ssh", &given]).ok();
    assert_eq!(
        built.lines(),
        [
            "/run/buildkit/ssh_agent.0",
            "socket 600 0",
            "11: 12",
            "19: 5",
            "22: 5",
            "17: 5",
            "",
            "ls: /run: No such file or directory"
        ]
    );
    assert_eq!(*asked.lock().unwrap(), [11]);
    assert_eq!(built.manifest().layers.len(), 1);
    assert_eq!(place.left_over(), [""; 0]);
    let missing = place.build("FROM busybox:1\nRUN --mount=type=ssh,required true\n");
    assert!(missing.app_failure().heading.contains("--ssh default"), "{:?}", missing.app_failure());
}
