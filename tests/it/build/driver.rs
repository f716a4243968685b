//! The local driver passes the suite that every driver passes.
use hephy::driver::local::LocalDriver;

use super::Place;
use crate::driver_conformance::{Bench, suite};

struct Local {
    place: Place,
}

impl Bench for Local {
    type Driver = LocalDriver;

    fn driver(&self) -> LocalDriver {
        LocalDriver::new(crate::ordinary_user::executable(), self.place.path("data"))
    }

    fn place(&self) -> &Place {
        &self.place
    }
}

suite!(Local { place: Place::new() });
