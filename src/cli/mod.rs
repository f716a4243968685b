//! The command line: the same verbs on a laptop and over SSH. The only module that prints.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::server::HostPort;
use crate::model::AppName;

mod base;
pub mod build;
mod cache;
mod forward;
mod keys;
mod pull_check;
mod remote;
mod render;
mod router;
mod serve;
mod up;
pub mod verbs;

use remote::{Destination, Remote, RemoteError};
use verbs::Verb;

/// git push deis main, and your code runs
#[derive(Debug, Parser)]
#[command(name = "hephy", version, arg_required_else_help = true, infer_subcommands = false)]
struct CommandLine {
    /// The server, where no git remote names it
    #[arg(long, global = true, env = "HEPHY_SERVER", value_name = "HOST:PORT")]
    server: Option<HostPort>,
    /// The git remote that names server and app
    #[arg(long, global = true, default_value = "deis", value_name = "NAME")]
    remote: String,
    #[command(subcommand)]
    command: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Receive, build, publish, release and run on this machine
    Up(Box<up::UpArguments>),
    /// Send requests to the apps of a cluster by their Host header
    Router(Box<router::RouterArguments>),
    /// Receive, build, publish and release on a cluster; its Helm chart runs this
    Serve(Box<serve::ServeArguments>),
    /// Lead an address of this machine's loopback elsewhere; the Helm chart runs this on nodes
    #[command(hide = true)]
    Forward(forward::ForwardArguments),
    /// Wait until the nodes of a cluster have pulled from its registry; the Helm chart's last step
    #[command(hide = true)]
    PullCheck(pull_check::PullCheckArguments),
    /// Build an image from a Dockerfile
    Build(Box<build::BuildArguments>),
    /// Make a base image from Debian's packages
    Base(Box<base::BaseArguments>),
    /// What builds keep on this machine, so that they need not do it again
    Cache(Box<cache::CacheArguments>),
    #[command(flatten)]
    Verb(Verb),
}

/// Runs the command line `arguments`, program name first.
#[must_use]
pub fn run(arguments: &[OsString]) -> ExitCode {
    let arguments = &build_words(arguments)[..];
    let parsed = match CommandLine::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help goes to standard output, errors to standard error; a closed one is nobody's loss.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match parsed.command {
        Subject::Up(arguments) => up::run(*arguments),
        Subject::Router(arguments) => router::run(*arguments),
        Subject::Serve(arguments) => serve::run(*arguments),
        Subject::Forward(arguments) => forward::run(&arguments),
        Subject::PullCheck(arguments) => pull_check::run(&arguments),
        Subject::Build(arguments) => build::run(&arguments),
        Subject::Base(arguments) => base::run(&arguments),
        Subject::Cache(arguments) => cache::run(&arguments),
        Subject::Verb(verb) => match send(parsed.server, &parsed.remote, &verb, arguments) {
            Ok(code) => code,
            Err(error) => {
                problem(&chain(&error));
                ExitCode::from(2)
            }
        },
    }
}

/// The command line of `hephy build`, whatever name it was called by and however its flags are spelt.
fn build_words(arguments: &[OsString]) -> Vec<OsString> {
    let Some((program, words)) = arguments.split_first() else { return Vec::new() };
    let words = match words {
        words if build::kaniko::is_name(program) && words.first().is_none_or(|word| word != "build") => words,
        [first, words @ ..] if first == "build" => words,
        _ => return arguments.to_vec(),
    };
    let normal = build::kaniko::normalized(words);
    [program.clone(), "build".into()].into_iter().chain(normal).collect()
}

/// Sends a verb to the server.
fn send(
    server: Option<HostPort>,
    remote: &str,
    verb: &Verb,
    arguments: &[OsString],
) -> Result<ExitCode, RemoteError> {
    if let Verb::Keys(keys) = verb
        && let Some(added) = keys::on_cluster(keys)
    {
        return Ok(match added {
            Ok(()) => ExitCode::SUCCESS,
            Err(text) => {
                problem(&text);
                ExitCode::FAILURE
            }
        });
    }
    let remote = Remote::of_repository(remote)?;
    let app = remote.as_ref().and_then(|remote| remote.app.clone());
    let destination = Destination::choose(server, remote, default_data().as_deref())?;
    if let Verb::Keys(keys) = verb
        && let Some(local) = keys::local(keys)
    {
        let (words, input) = match local {
            Ok(found) => found,
            Err(text) => {
                problem(&text);
                return Ok(ExitCode::from(2));
            }
        };
        return destination.run_with_input(&words, &input);
    }
    let words = words(arguments, verb, app.as_ref());
    Err(destination.exec(&words))
}

/// The words as typed, without what is for this program alone, and with the app of the git remote.
fn words(arguments: &[OsString], verb: &Verb, app: Option<&AppName>) -> Vec<String> {
    let mut words = Vec::new();
    let mut typed = arguments.iter().skip(1).map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = typed.next() {
        if word == "--server" || word == "--remote" {
            typed.next();
        } else if !word.starts_with("--server=") && !word.starts_with("--remote=") {
            words.push(word);
        }
    }
    if let (Some(app), true) = (app, verb.takes_app_from_remote()) {
        words.extend(["-a".to_owned(), app.to_string()]);
    }
    words
}

/// Where `hephy up` keeps everything, unless told otherwise.
fn default_data() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HEPHY_DATA")
        .or_else(|| variable("XDG_DATA_HOME").map(|home| home.join("hephy")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/share/hephy")))
}

/// The texts of an error and of what caused it, once each.
fn chain(error: &dyn std::error::Error) -> String {
    let texts = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    texts.collect::<Vec<_>>().join(": ")
}

/// Shows what went wrong, in Heroku's grammar.
#[expect(clippy::print_stderr, reason = "the command line prints")]
fn problem(text: &str) {
    for line in text.lines() {
        eprintln!(" !     {line}");
    }
}

/// Whether what runs for a long time logs in JSON: then all that it says is there.
fn logs_json() -> bool {
    std::env::var_os("HEPHY_LOG_FORMAT").is_some_and(|format| format == "json")
}

/// Shows what a server ended of, where its operator looks.
fn operators_problem(text: &str) {
    if logs_json() {
        tracing::error!(error = text, "hephy ended");
    } else {
        problem(text);
    }
}

/// Shows a line.
#[expect(clippy::print_stdout, reason = "the command line prints")]
fn line(text: &str) {
    use std::io::Write as _;
    println!("{text}");
    // Whoever reads it may be waiting for it; a closed pipe is nobody's loss.
    drop(std::io::stdout().flush());
}
