//! Where builds happen: implementations of [`crate::build::Driver`].

pub mod local;
