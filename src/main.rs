//! The `hephy` binary: the hidden subcommands of its own children, then the command line.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: a sandbox's processes have one thread and never see a command line.
    if let Some(code) = own_child() {
        return code;
    }
    telemetry();
    // Fails only if there is one already, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let arguments: Vec<OsString> = std::env::args_os().collect();
    hephy::cli::run(&arguments)
}

fn own_child() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    if command == hephy::sandbox::WORKER_COMMAND {
        let body = arguments.next();
        return Some(match body.as_ref().and_then(|body| body.to_str()) {
            Some(hephy::sandbox::steps::BODY) => hephy::sandbox::steps::main(),
            Some(hephy::sandbox::ladder::PROBE) => {
                hephy::sandbox::ladder::probe_main(arguments.next().as_ref().and_then(|here| here.to_str()))
            }
            Some("build") => hephy::build::worker::main(),
            Some(hephy::sandbox::app::BODY) => hephy::sandbox::app::inner_main(),
            _ => ExitCode::from(2),
        });
    }
    if command == hephy::sandbox::INIT_COMMAND {
        return Some(hephy::sandbox::app::init_main(arguments.next().map(Into::into)));
    }
    None
}

/// The operator's log goes to standard error: warnings and errors, or what `HEPHY_LOG` says; with
/// `HEPHY_LOG_FORMAT=json` an object for each line.
fn telemetry() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HEPHY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    // A file has no colours, whoever reads it (https://no-color.org).
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = !no_color && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false);
    match std::env::var("HEPHY_LOG_FORMAT").unwrap_or_default().as_str() {
        "json" => log.with_ansi(false).json().flatten_event(true).init(),
        "" | "text" => log.init(),
        other => {
            log.init();
            tracing::warn!(format = other, "HEPHY_LOG_FORMAT is neither `json` nor `text`: it is text");
        }
    }
}
