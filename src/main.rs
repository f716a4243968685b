//! The `hephy` binary: the hidden subcommands of its own children, then the command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// git push deis main, and your code runs
#[derive(Parser)]
#[command(name = "hephy", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build an image from a Dockerfile
    Build(Box<hephy::cli::build::BuildArguments>),
}

fn main() -> ExitCode {
    // Before anything else: a sandbox's processes have one thread and never see a command line.
    if let Some(code) = own_child() {
        return code;
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    match Arguments::parse().verb {
        Verb::Build(arguments) => hephy::cli::build::run(&arguments),
    }
}

fn own_child() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    if command == hephy::sandbox::WORKER_COMMAND {
        let body = arguments.next();
        return Some(match body.as_ref().and_then(|body| body.to_str()) {
            Some("build") => hephy::build::worker::main(),
            Some(hephy::sandbox::steps::BODY) => hephy::sandbox::steps::main(),
            Some(hephy::sandbox::app::BODY) => hephy::sandbox::app::inner_main(),
            _ => ExitCode::from(2),
        });
    }
    if command == hephy::sandbox::INIT_COMMAND {
        return Some(hephy::sandbox::app::init_main(arguments.next().map(Into::into)));
    }
    None
}
