//! Dockerfiles: bytes → lines → statements → typed instructions → stages, and the words and variables in them.
//!
//! This is the language of `BuildKit`'s Dockerfile 1.26, all of it, whatever the engine can do so far: the engine
//! refuses by line what it cannot. Pure and synchronous; no file is read here. What a Dockerfile cannot mean is an
//! error with file, line and column, never a warning: a builder that skips what it does not know makes another image
//! than the one that was asked for.

mod check;
mod error;
mod expansion;
mod flags;
mod heredoc;
mod ignore;
mod instruction;
mod lexer;
mod mount;
mod pattern;
mod ports;
mod scope;
#[cfg(test)]
mod semantics;
mod stages;
mod statement;
mod typed;
mod words;

pub use check::{CheckInput, CheckOptions, CheckOptionsError, Finding, Findings, Rule, check};
pub use error::{ParseError, Position, Problem, Span};
pub use expansion::{ExpandError, Expander, MAX_EXPANDED_BYTES};
pub use ignore::{IgnoreError, IgnoreFile, ignore_file_names};
pub use instruction::{
    Add, ArgDeclaration, CommandLine, Copy, Healthcheck, HealthcheckCommand, InlineFile, Instruction,
    KeyValue, Located, Network, Onbuild, Run, RunCommand, Security, Sources,
};
pub use lexer::{Escape, MAX_FILE_BYTES, MAX_LINE_BYTES};
pub use mount::{Device, Mount, MountKind, MountSpec, Sharing};
pub use ports::{PortError, exposed_ports};
pub use scope::{GlobalScope, PROXY_ARGS, PlatformArgs, StageScope};
pub use stages::{Dockerfile, Stage, parse, parse_trigger};
