//! The `hephy` binary: the hidden subcommands of its own children, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: a sandbox's processes have one thread and never see a command line.
    if let Some(code) = own_child() {
        return code;
    }
    ExitCode::SUCCESS
}

fn own_child() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    if command == hephy::sandbox::WORKER_COMMAND {
        let body = arguments.next();
        return Some(match body.as_ref().and_then(|body| body.to_str()) {
            Some(hephy::sandbox::steps::BODY) => hephy::sandbox::steps::main(),
            _ => ExitCode::from(2),
        });
    }
    None
}
