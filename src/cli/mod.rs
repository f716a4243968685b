//! The command line: the only module that prints.

pub mod build;
