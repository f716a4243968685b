//! HTTP by Host header to app processes, and the switch from one release to the next without a lost request.
//!
//! The router knows hosts, routes and backends; it does not know what a backend is (a process in a namespace, a
//! pod): [`Backend::connect`] gives it a byte stream. A [`RouteTable`] says which backends a route has. Whoever
//! runs apps writes the table; [`serve()`] only reads it. Inward it always speaks HTTP/1.1, outward HTTP/1.1 and
//! HTTP/2 with prior knowledge.
//!
//! A request takes its backend and is counted there in one step under the table's lock. So after
//! [`RouteTable::switch`] no new request reaches a backend that left, and [`Retired::drained`] ends exactly when
//! the last one that was there is done: only then may the process be told to stop.

mod backend;
mod body;
mod config;
mod connection;
mod headers;
mod host;
mod instance;
mod pages;
mod proxy;
mod send;
mod serve;
mod table;
mod tunnel;

pub use backend::{Backend, Connection};
pub use config::RouterConfig;
pub use serve::serve;
pub use table::{Retired, RouteTable};
