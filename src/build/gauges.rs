//! How many builds a driver has under way and how many wait for it, in Prometheus' terms.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::oci::Platform;

/// What a driver has to do now, by the platform of the machines that do it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct QueueGauges {
    /// Builds that wait for a place.
    pub waiting: Family<ByMachine, Gauge>,
    /// Builds that have one.
    pub running: Family<ByMachine, Gauge>,
}

/// The platform of a machine that builds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByMachine {
    platform: String,
}

/// A build that is counted until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Counted(Gauge);

impl QueueGauges {
    /// Counts a build that waits.
    pub fn waits(&self, machine: &Platform) -> Counted {
        Counted::of(&self.waiting, machine)
    }

    /// Counts a build that is under way.
    pub fn runs(&self, machine: &Platform) -> Counted {
        Counted::of(&self.running, machine)
    }
}

impl Counted {
    fn of(family: &Family<ByMachine, Gauge>, machine: &Platform) -> Self {
        let gauge = family.get_or_create(&ByMachine { platform: machine.to_string() }).clone();
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
