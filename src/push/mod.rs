//! The one function that names every stage of a push.
pub mod log;
