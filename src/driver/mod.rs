//! Where builds happen: implementations of [`crate::build::Driver`].

mod arguments;
pub mod kubernetes;
pub mod local;
