//! `hephy forward`

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;

use super::{chain, operators_problem};
use crate::config::server::HostPort;

/// `forward`.
#[derive(Debug, Args)]
pub(super) struct ForwardArguments {
    /// Where connections are taken: an address of the loopback
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where they lead
    #[arg(long, value_name = "HOST:PORT")]
    to: HostPort,
}

pub(super) fn run(arguments: &ForwardArguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime
            .block_on(crate::serve::forward::forward(arguments.listen, &arguments.to))
            .map_err(|error| chain(&error)),
        Err(error) => Err(format!("cannot start: {error}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            operators_problem(&text);
            ExitCode::FAILURE
        }
    }
}
