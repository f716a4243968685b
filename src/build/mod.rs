//! The build engine: a Dockerfile and a context become an image for one platform.
//!
//! Two processes meet here. The *engine* ([`build`]) has the network, the credentials, the cache and the compressor. Its
//! *worker* ([`worker::main`]), in a user namespace, has the trees and runs the commands. A push knows neither: it
//! knows [`Driver`].
//!
//! In reading order: `plan` (which stages), `state` (what an image is after each instruction), `key` (what a step can see),
//! `engine`, `parallel` and `steps` (stages at once, their steps one after the other), `capture` (changes become layers), `image` (the result).

mod adds;
mod afterwards;
mod base;
mod capture;
mod check;
mod context;
mod contexts;
mod copies;
mod copying;
mod driver;
mod engine;
mod error;
mod event;
mod explain;
mod finish;
mod gauges;
mod image;
mod key;
mod mounts;
mod layout;
mod mirror;
mod named;
mod parallel;
mod plain;
mod plan;
mod preflight;
mod process;
mod protocol;
mod remote;
mod prune;
mod remote_cache;
mod report;
mod resolving;
mod result;
mod source;
mod state;
mod steps;
mod ticket;
mod trees;
mod user;
mod warm;
pub mod worker;

pub use afterwards::Afterwards;
pub use check::{CheckReport, check};
pub use contexts::{
    ContextPlace, ContextRequest, FetchedContext, GitContext, GitContextOptions, fetch_context,
};
pub use driver::{
    BuildFailure, BuildLimits, BuildRequest, Builders, BuiltLayer, CacheUse, Compression, Driver,
    LayerOrigin, Location, NetworkMode, StepFailure, chain,
};
pub use engine::{BuildOptions, EventSink, build, layers_directory};
pub use event::{
    BuildEvent, MAX_LINE_BYTES, NumberedEvent, StepState, another_attempt, begins_attempt, elapsed,
};
pub use gauges::{ByMachine, Counted, QueueGauges};
pub use image::{ImageFormat, compression, with_default_tag};
pub use mirror::{Mirror, MirrorError, Mirrors, Namespace};
pub use mounts::{Entitlement, MountOptions, SecretSource, certificates};
pub use named::NamedContext;
pub use preflight::{FoundBase, Look, Preflight, RecentBases};
pub use process::open_layer_store;
pub use prune::prune;
pub use remote_cache::CacheRepository;
pub use report::{Report, ReportError, find_report, push_report};
pub use result::{BuildResult, Outcome};
pub use source::{PushedSource, SourceOptions, push_source};
pub use ticket::{
    Exchanged, NO_RECEIVER_STATUS, RENEWAL_HEADER, RENEWAL_PATH, Renewal, TicketError, VALID_HEADER,
    exchange_ticket, keep_ticket,
};
pub use trees::{LocalImage, local_image};
pub use user::ImageUser;
pub use warm::{WarmOptions, Warmed, warm};

/// In a build's directory: locked while its engine lives, and holds its process id.
pub const LOCK_FILE: &str = "lock";
/// In a build's directory: its events, a JSON line each.
pub const EVENTS_FILE: &str = "events.jsonl";
/// In a build's directory: its [`BuildResult`].
pub const RESULT_FILE: &str = "result.json";
