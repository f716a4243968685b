//! Who works on an app: one server at a time.
//!
//! The App says which build or change has it, and the lease says which server does the work: it is taken before the
//! claim is written, and given up after the app is free. So whoever gets the lease of an app that is claimed knows that
//! its server is gone, and need compare no clocks.

use super::Stages;
use crate::kubernetes::{Held, LeaseError};
use crate::model::AppName;

/// The right to work on an app. Dropped without [`Hold::release`], other servers wait until its lease is over.
#[derive(Debug)]
pub struct Hold {
    lease: Option<Held>,
}

impl Stages {
    /// The right to work on an app; `None` while another has it. Where there is one server, it always has it.
    pub async fn hold(&self, app: &AppName) -> Result<Option<Hold>, LeaseError> {
        self.hold_as(format!("app-{app}")).await
    }

    /// The right to consolidate what is kept of an app's pushes, beside whatever is done on it; `None` while another has it.
    pub async fn hold_packs(&self, app: &AppName) -> Result<Option<Hold>, LeaseError> {
        self.hold_as(format!("packs-{app}")).await
    }

    async fn hold_as(&self, name: String) -> Result<Option<Hold>, LeaseError> {
        match &self.leases {
            None => Ok(Some(Hold { lease: None })),
            Some(leases) => {
                let lease = leases.hold(&name).await?;
                Ok(lease.map(|lease| Hold { lease: Some(lease) }))
            }
        }
    }
}

impl Hold {
    /// Returns once another server may have the right. Cancel safe.
    pub async fn lost(&self) {
        match &self.lease {
            Some(lease) => lease.lost().cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Gives it up.
    pub async fn release(self) {
        if let Some(lease) = self.lease {
            lease.release().await;
        }
    }
}
