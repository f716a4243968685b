//! Clients that mean no good, or break.
