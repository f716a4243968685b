//! How many connections there may be, in all and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections.
#[derive(Debug)]
pub(super) struct Admission {
    total: usize,
    per_address: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Admission {
    pub(super) fn new(total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { total, per_address, counts: Mutex::default() })
    }

    /// A place for one more connection, if there is one.
    pub(super) fn admit(self: &Arc<Self>, remote: SocketAddr) -> Option<Place> {
        let address = neighbourhood(remote.ip());
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let here = counts.by_address.get(&address).copied().unwrap_or(0);
        if counts.total >= self.total || here >= self.per_address {
            return None;
        }
        counts.total += 1;
        counts.by_address.insert(address, here + 1);
        Some(Place { admission: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        match counts.by_address.get_mut(&self.address) {
            Some(here) if *here > 1 => *here -= 1,
            _ => drop(counts.by_address.remove(&self.address)),
        }
    }
}

/// Whoever has one IPv6 address has the /64 around it.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_in_all_and_by_neighbourhood_and_come_back() {
        let admission = Admission::new(3, 2);
        let remote = |text: &str| text.parse::<SocketAddr>().unwrap();
        let first = admission.admit(remote("[2001:db8::1]:1")).unwrap();
        let _second = admission.admit(remote("[2001:db8::2:3]:1")).unwrap();
        assert!(admission.admit(remote("[2001:db8::3]:1")).is_none());
        let _third = admission.admit(remote("10.0.0.1:1")).unwrap();
        assert!(admission.admit(remote("10.0.0.2:1")).is_none());
        drop(first);
        let _fourth = admission.admit(remote("[::ffff:10.0.0.1]:1")).unwrap();
        assert!(admission.admit(remote("10.0.0.1:1")).is_none());
    }
}
