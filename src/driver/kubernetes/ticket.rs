//! What a pod has instead of credentials: something that a server takes once for them.

use rand::RngExt as _;

use crate::model::Secret;
use crate::oci::Digest;

/// The annotation with the sum of a Job's ticket.
pub const TICKET_SUM: &str = "hephy.dev/ticket-sum";
/// The annotation that says when the ticket was used.
pub const TICKET_USED: &str = "hephy.dev/ticket-used";
/// The annotation with the sum of what renews credentials that end before a build may.
pub const TICKET_RENEWAL: &str = "hephy.dev/ticket-renewal";

/// What an engine shows for what is its Job's, and the sum that tells it.
pub struct Ticket {
    /// `job.secret`.
    pub text: Secret<String>,
    /// Of the secret.
    pub sum: Digest,
}

impl Ticket {
    /// A new one.
    #[must_use]
    pub fn new(job: &str) -> Self {
        let secret: [u8; 32] = rand::rng().random();
        let secret = hex::encode(secret);
        Self { sum: Digest::of(&secret), text: Secret::new(format!("{job}.{secret}")) }
    }
}
