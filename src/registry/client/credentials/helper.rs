//! Credential helpers: `docker-credential-X get`, the registry on standard input, JSON on standard output
//! (docker/docker-credential-helpers).

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::Credential;
use super::file::named;
use crate::model::Secret;

/// How long a helper may think; some ask a cloud.
const LIMIT: Duration = Duration::from_secs(30);
/// How long an answer is believed: helpers do not say when what they give ends.
const KEPT: Duration = Duration::from_mins(3);
/// The longest answer.
const MAX_ANSWER_BYTES: u64 = 1024 * 1024;
/// The most that is read of what a helper says besides.
const MAX_ERROR_BYTES: u64 = 16 * 1024;
/// The most that an error repeats of it.
const SHOWN_CHARACTERS: usize = 300;
/// Words of this length and of letters and digits are not for people.
const TOKEN_CHARACTERS: usize = 20;

/// Runs helpers, and keeps what they answered.
#[derive(Debug)]
pub(super) struct Helpers {
    path: Option<OsString>,
    limit: Duration,
    /// Held while a helper runs: nobody asks twice at once.
    answers: Mutex<HashMap<Question, (Instant, Option<Credential>)>>,
}

/// The name of a helper, and of a server.
type Question = (String, String);

/// What a helper gave.
#[derive(Debug)]
pub(super) enum Asked {
    Credential(Credential),
    /// It knows nothing of this registry.
    Nothing,
    /// There is no such program.
    Missing,
    /// It failed, and says this.
    Failed(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: Secret<String>,
}

/// What a helper has said when it ended.
struct Said {
    status: ExitStatus,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Default for Helpers {
    fn default() -> Self {
        Self::new(std::env::var_os("PATH"))
    }
}

impl Helpers {
    /// Helpers from the directories of `path`.
    pub(super) fn new(path: Option<OsString>) -> Self {
        Self { path, limit: LIMIT, answers: Mutex::default() }
    }

    /// Asks the helper `name` for what it has for `server`.
    pub(super) async fn ask(&self, name: &str, server: &str) -> Asked {
        let key = (name.to_owned(), server.to_owned());
        let mut answers = self.answers.lock().await;
        if let Some((at, answer)) = answers.get(&key)
            && at.elapsed() < KEPT
        {
            return answer.clone().map_or(Asked::Nothing, Asked::Credential);
        }
        let Some(program) = self.find(&format!("docker-credential-{name}")) else { return Asked::Missing };
        match self.run(&program, server).await {
            Ok(answer) => {
                answers.insert(key, (Instant::now(), answer.clone()));
                answer.map_or(Asked::Nothing, Asked::Credential)
            }
            Err(problem) => Asked::Failed(problem),
        }
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        let path = self.path.as_ref()?;
        let absolute = std::env::split_paths(path).filter(|directory| directory.is_absolute());
        absolute.map(|directory| directory.join(program)).find(|program| program.is_file())
    }

    async fn run(&self, program: &Path, server: &str) -> Result<Option<Credential>, String> {
        // It has our environment: the home, the cloud's variables and the agent's socket are what it works with.
        let mut command = Command::new(program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .kill_on_drop(true)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("it cannot be started: {error}"))?;
        let said = match tokio::time::timeout(self.limit, talk(&mut child, server)).await {
            Ok(said) => said.map_err(|error| format!("its answer cannot be read: {error}"))?,
            Err(_) => {
                let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
                if let Some(group) = group
                    && let Err(error) =
                        rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
                {
                    tracing::debug!(error = %error, "a credential helper was not ended");
                }
                return Err(format!("it has not answered for {}", humantime::format_duration(self.limit)));
            }
        };
        answer(&said)
    }
}

async fn talk(child: &mut Child, server: &str) -> std::io::Result<Said> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its input shows in its answer.
            drop(stdin.write_all(server.as_bytes()).await);
        }
    };
    let output = read(stdout, MAX_ANSWER_BYTES);
    let errors = read(stderr, MAX_ERROR_BYTES);
    let ((), output, errors, status) = tokio::join!(write, output, errors, child.wait());
    Ok(Said { status: status?, output: output?, errors: errors? })
}

async fn read(from: Option<impl AsyncRead + Unpin>, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(max_bytes).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn answer(said: &Said) -> Result<Option<Credential>, String> {
    let parsed = serde_json::from_slice::<Answer>(&said.output).ok();
    let output = String::from_utf8_lossy(&said.output);
    if said.status.success() {
        let answer = parsed.ok_or("its answer is not what a credential helper answers")?;
        return Ok(named(answer.username, answer.secret));
    }
    // Helpers say why on either; docker's own library says it on standard output.
    let errors = String::from_utf8_lossy(&said.errors);
    let nothing = ["credentials not found", "no credentials server url", "no credentials username"];
    let either = format!("{output}{errors}").to_lowercase();
    if nothing.iter().any(|text| either.contains(text)) {
        return Ok(None);
    }
    let secret = parsed.as_ref().map(|answer| answer.secret.reveal().as_str());
    let words = if errors.trim().is_empty() && parsed.is_none() { output } else { errors };
    let words = shown(&words, secret);
    let status =
        said.status.code().map_or_else(|| said.status.to_string(), |code| format!("exit status {code}"));
    Err(if words.is_empty() { status } else { format!("{words} ({status})") })
}

/// What a helper said, on one line and without what may be a secret.
pub(in crate::registry) fn shown(text: &str, secret: Option<&str>) -> String {
    let text = match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => text.replace(secret, "[redacted]"),
        None => text.to_owned(),
    };
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let words: Vec<&str> = words.map(|word| if is_secret(word) { "[redacted]" } else { word }).collect();
    words.join(" ").chars().take(SHOWN_CHARACTERS).collect()
}

/// Whether a word may be a token or hold one: a long run of letters and digits, or a URL with more than a path.
fn is_secret(word: &str) -> bool {
    if word.contains("://") && word.contains(['?', '@', '#']) {
        return true;
    }
    let runs = word.split(|c: char| !(c.is_ascii_alphanumeric() || c == '+' || c == '='));
    runs.into_iter().any(|run| {
        run.len() >= TOKEN_CHARACTERS
            && run.bytes().any(|b| b.is_ascii_digit())
            && run.bytes().any(|b| b.is_ascii_alphabetic())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Helpers of one program, `docker-credential-x`, with this script; it may count in the directory.
    fn helpers(script: &str) -> (tempfile::TempDir, Helpers) {
        let directory = tempfile::tempdir().unwrap();
        let (text, program) = (directory.path().join("text"), directory.path().join("docker-credential-x"));
        fs::write(&text, format!("#!/bin/sh\ncd {}\n{script}\n", directory.path().display())).unwrap();
        // By a process of its own: a file that we have written may be open in what another thread has just forked.
        let installed =
            std::process::Command::new("install").args(["-m", "755"]).args([&text, &program]).status();
        assert!(installed.unwrap().success());
        let helpers = Helpers::new(Some(directory.path().into()));
        (directory, helpers)
    }

    async fn failure(script: &str) -> String {
        match helpers(script).1.ask("x", "a.test").await {
            Asked::Failed(problem) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_helper_is_asked_once_with_the_registry_on_its_input() {
        let script = r#"echo "$1 $(cat)" >> asked; echo '{"ServerURL":"a","Username":"ada","Secret":"s"}'"#;
        let (directory, helpers) = helpers(script);
        for _ in 0..3 {
            let Asked::Credential(credential) = helpers.ask("x", "a.test").await else { panic!() };
            let password = Secret::new("s".to_owned());
            assert_eq!(credential, Credential::Basic { username: "ada".to_owned(), password });
        }
        assert_eq!(fs::read_to_string(directory.path().join("asked")).unwrap(), "get a.test\n");
    }

    #[tokio::test]
    async fn the_user_token_means_an_identity_token() {
        let (_directory, helpers) = helpers(r#"echo '{"Username":"<token>","Secret":"s"}'"#);
        let Asked::Credential(credential) = helpers.ask("x", "a.test").await else { panic!() };
        assert_eq!(credential, Credential::IdentityToken(Secret::new("s".to_owned())));
    }

    #[tokio::test]
    async fn a_registry_that_the_helper_does_not_know_is_met_anonymously() {
        for script in [
            "echo credentials not found in native keychain; exit 1",
            r#"echo '{"Username":"","Secret":""}'"#,
            "echo 'no credentials server URL'; exit 1",
        ] {
            let (_directory, helpers) = helpers(script);
            assert!(matches!(helpers.ask("x", "a.test").await, Asked::Nothing), "{script}");
        }
        assert!(matches!(helpers("").1.ask("y", "a.test").await, Asked::Missing));
    }

    #[tokio::test]
    async fn a_failure_says_why_and_repeats_no_secret() {
        let said = failure("echo 'no session: run `x login`' >&2; exit 3").await;
        assert_eq!(said, "no session: run `x login` (exit status 3)");
        assert_eq!(failure("echo 'login expired'; exit 1").await, "login expired (exit status 1)");
        let leaks = [
            r#"echo '{"Username":"a","Secret":"hunter2"}'; echo tried hunter2 >&2; exit 1"#,
            r#"echo '{"Username":"a","Secret":"hunter2"}'; exit 1"#,
            "echo 'token eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.hunter2 refused' >&2; exit 1",
            "echo 'GET https://u:hunter2@a.test/' >&2; exit 1",
            "echo 'hunter2 is not JSON'",
        ];
        for script in leaks {
            let said = failure(script).await;
            assert!(!said.contains("hunter2") && !said.contains("eyJ"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_does_not_answer_is_ended_with_its_children() {
        let (directory, mut helpers) = helpers("sleep 1000 & echo $! > child; wait");
        helpers.limit = Duration::from_millis(500);
        let Asked::Failed(problem) = helpers.ask("x", "a.test").await else { panic!() };
        assert_eq!(problem, "it has not answered for 500ms");
        let child = fs::read_to_string(directory.path().join("child")).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        let is_gone = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        while !is_gone() {
            tokio::task::yield_now().await;
        }
    }
}
