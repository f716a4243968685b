//! Where released versions run. The seam is [`crate::rollout::Runtime`]; what implements it is here.

pub mod processes;
