//! Where released versions run. The seam is [`crate::rollout::Runtime`]; what implements it is here.

mod environment;
pub mod kubernetes;
pub mod processes;
mod task;
