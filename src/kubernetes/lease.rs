//! Leases: which replica does a thing, and when another may take it up
//! (<https://kubernetes.io/docs/concepts/architecture/leases/>).
//!
//! A lease is over when nobody has seen it renewed for as long as it lasts, by the clock of who looks: clocks of two
//! machines are never compared. It is taken by a write on the version that was looked at, so of two who take it one
//! does. A lease is no fence for what is done under it: who writes elsewhere writes on a version that was read, and
//! stops when the lease is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, ListParams, PostParams, Preconditions};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Caller, MANAGER, Refusal, managed_by};

/// How long a lease lasts without being renewed. An API server that is away for a while costs nobody a lease, and one that
/// is given up is free at once.
const DURATION: Duration = Duration::from_secs(30);

/// The leases of one namespace, for one process. Clones share what they have seen.
#[derive(Debug, Clone)]
pub struct Leases {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    caller: Caller,
    namespace: String,
    owner: String,
    duration: Duration,
    /// When a version of a lease was first seen here.
    seen: Mutex<HashMap<String, (String, Instant)>>,
}

/// Why a lease could be neither taken nor looked at.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Our account may not.
    #[error(
        "hephy's account may not {verb} leases.coordination.k8s.io in namespace `{namespace}`: add the verb to its Role ({message})"
    )]
    Forbidden {
        /// What.
        verb: &'static str,
        /// Where.
        namespace: String,
        /// What the API server said.
        message: String,
    },
    /// The API server says something else.
    #[error("cannot {doing} the lease `{name}`")]
    Refused {
        /// `read`, `take`.
        doing: &'static str,
        /// Which.
        name: String,
        /// Why.
        source: Refusal,
    },
}

/// A lease that this process has, and renews until this is dropped.
///
/// Dropped without [`Held::release`], it is free for others once it is over.
#[derive(Debug)]
pub struct Held {
    leases: Leases,
    name: String,
    holder: String,
    version: Arc<Mutex<String>>,
    lost: CancellationToken,
    renewing: AbortOnDropHandle<()>,
}

/// A lease as it was read.
struct Read {
    holder: String,
    version: String,
}

impl Leases {
    /// The leases in `namespace`, taken in the name of `owner`: the pod's.
    #[must_use]
    pub fn new(client: Client, namespace: &str, owner: &str) -> Self {
        Self::lasting(client, namespace, owner, DURATION)
    }

    /// The same, of leases that last so long.
    #[must_use]
    pub fn lasting(client: Client, namespace: &str, owner: &str, duration: Duration) -> Self {
        // An answer that comes after the lease is over is none.
        let caller = Caller::new(client).patient_for(duration / 3);
        let (namespace, owner) = (namespace.to_owned(), owner.to_owned());
        Self { shared: Arc::new(Shared { caller, namespace, owner, duration, seen: Mutex::default() }) }
    }

    /// How long a lease lasts without being renewed.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.shared.duration
    }

    /// Takes the lease, if nobody has it or who had it no longer renews it; `None` where somebody has it.
    ///
    /// That somebody no longer renews is only known after it was looked at for as long as a lease lasts: ask again.
    pub async fn hold(&self, name: &str) -> Result<Option<Held>, LeaseError> {
        // Another for each time, so that a restarted pod is not taken for the one before.
        let holder = format!("{}_{:016x}", self.shared.owner, rand::random::<u64>());
        let read = self.read(name).await?;
        let begun = Instant::now();
        let taken = match &read {
            None => self.write(name, &holder, None).await,
            Some(read) if self.is_over(name, read) => self.write(name, &holder, Some(&read.version)).await,
            Some(_) => return Ok(None),
        };
        let version = match taken {
            Ok(version) => version,
            // Somebody was faster, or this was, and the answer was lost.
            Err(Refusal::Exists | Refusal::Conflict | Refusal::Missing | Refusal::MissingAfterRetry) => {
                match self.read(name).await?.filter(|read| read.holder == holder) {
                    Some(read) => read.version,
                    None => return Ok(None),
                }
            }
            Err(refusal) => return Err(self.error("take", "update", name, refusal)),
        };
        Ok(Some(self.renewed(name, holder, (version, begun))))
    }

    /// The same, of one that there is: what is not there is not made.
    pub async fn hold_left(&self, name: &str) -> Result<Option<Held>, LeaseError> {
        if self.read(name).await?.is_none() { Ok(None) } else { self.hold(name).await }
    }

    /// The names of the leases here that begin with `prefix`, whoever has them.
    pub async fn names(&self, prefix: &str) -> Result<Vec<String>, LeaseError> {
        const PAGE: u32 = 500;
        let ours: Vec<String> = managed_by(&[]).iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut params = ListParams::default().labels(&ours.join(",")).limit(PAGE);
        let mut names = Vec::new();
        loop {
            let request = self.request().list(&params);
            let page = self.shared.caller.call("leases", request).await;
            let page = page.map_err(|refusal| self.error("list", "list", prefix, refusal))?;
            let items = page.pointer("/items").and_then(Value::as_array).into_iter().flatten();
            names.extend(
                items
                    .filter_map(|lease| text(lease, "/metadata/name"))
                    .filter(|name| name.starts_with(prefix)),
            );
            match text(&page, "/metadata/continue").filter(|next| !next.is_empty()) {
                Some(next) => params = params.continue_token(&next),
                None => return Ok(names),
            }
        }
    }

    fn renewed(&self, name: &str, holder: String, (version, begun): (String, Instant)) -> Held {
        let lost = CancellationToken::new();
        let version = Arc::new(Mutex::new(version));
        let renewal = Renewal {
            leases: self.clone(),
            name: name.to_owned(),
            holder: holder.clone(),
            version: Arc::clone(&version),
        };
        let renewing = AbortOnDropHandle::new(tokio::spawn(renewal.run(begun, lost.clone())));
        Held { leases: self.clone(), name: name.to_owned(), holder, version, lost, renewing }
    }

    /// Notes what was read, and says whether the same was read for long enough.
    fn is_over(&self, name: &str, read: &Read) -> bool {
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (version, since) = seen.entry(name.to_owned()).or_insert_with(|| (read.version.clone(), now));
        if *version != read.version {
            version.clone_from(&read.version);
            *since = now;
        }
        read.holder.is_empty() || since.elapsed() >= self.shared.duration
    }

    fn request(&self) -> Request {
        Request::new(format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.shared.namespace))
    }

    async fn read(&self, name: &str) -> Result<Option<Read>, LeaseError> {
        let request = self.request().get(name, &GetParams::default());
        match self.shared.caller.call("leases", request).await {
            Ok(lease) => Ok(Some(Read {
                holder: text(&lease, "/spec/holderIdentity").unwrap_or_default(),
                version: text(&lease, "/metadata/resourceVersion").unwrap_or_default(),
            })),
            Err(Refusal::Missing | Refusal::MissingAfterRetry) => {
                self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
                Ok(None)
            }
            Err(refusal) => Err(self.error("read", "get", name, refusal)),
        }
    }

    /// Writes who has it; on the version that was read, or anew.
    async fn write(&self, name: &str, holder: &str, read: Option<&str>) -> Result<String, Refusal> {
        let now = jiff::Timestamp::now();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name, "resourceVersion": read, "labels": managed_by(&[]) },
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self.shared.duration.as_secs().max(1),
                "renewTime": format!("{now:.6}"),
            },
        });
        let body = lease.to_string().into_bytes();
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let request = match read {
            None => self.request().create(&parameters, body),
            Some(_) => self.request().replace(name, &parameters, body),
        };
        let written = self.shared.caller.call("leases", request).await?;
        Ok(text(&written, "/metadata/resourceVersion").unwrap_or_default())
    }

    async fn delete(&self, name: &str, version: String) -> Result<(), Refusal> {
        let preconditions = Some(Preconditions { resource_version: Some(version), uid: None });
        let params = DeleteParams { preconditions, ..DeleteParams::background() };
        self.shared.caller.call("leases", self.request().delete(name, &params)).await.map(drop)
    }

    fn error(&self, doing: &'static str, verb: &'static str, name: &str, refusal: Refusal) -> LeaseError {
        match refusal {
            Refusal::Forbidden(message) => {
                LeaseError::Forbidden { verb, namespace: self.shared.namespace.clone(), message }
            }
            source => LeaseError::Refused { doing, name: name.to_owned(), source },
        }
    }
}

fn text(object: &Value, pointer: &str) -> Option<String> {
    Some(object.pointer(pointer)?.as_str()?.to_owned())
}

/// What is renewed.
struct Renewal {
    leases: Leases,
    name: String,
    holder: String,
    version: Arc<Mutex<String>>,
}

impl Renewal {
    /// Renews until it cannot be done in time; then the lease is lost, before anybody else can have it.
    async fn run(self, mut renewed: Instant, lost: CancellationToken) {
        let duration = self.leases.shared.duration;
        let _lost = lost.drop_guard();
        loop {
            tokio::time::sleep_until(renewed + duration / 3).await;
            // Others may have it `duration` after the last write that they can have seen.
            match tokio::time::timeout_at(renewed + duration * 2 / 3, self.once()).await {
                Ok(Some(begun)) => renewed = begun,
                Ok(None) => return,
                Err(_) => {
                    tracing::warn!(lease = self.name, "a lease could not be renewed in time");
                    return;
                }
            }
        }
    }

    /// Renews it, and says when that was begun; nothing where it is somebody else's.
    async fn once(&self) -> Option<Instant> {
        loop {
            let begun = Instant::now();
            let read = self.version.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match self.leases.write(&self.name, &self.holder, Some(&read)).await {
                Ok(next) => {
                    self.set(next);
                    return Some(begun);
                }
                // An answer that was lost, or somebody else's. What was written when is not known: it is written again.
                Err(Refusal::Conflict) => match self.leases.read(&self.name).await {
                    Ok(Some(read)) if read.holder == self.holder => self.set(read.version),
                    Ok(_) => return None,
                    Err(_) => {}
                },
                Err(Refusal::Missing | Refusal::MissingAfterRetry) => return None,
                Err(_) => {}
            }
            tokio::time::sleep(self.leases.shared.duration / 10).await;
        }
    }

    fn set(&self, version: String) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }
}

impl Held {
    /// Is cancelled when the lease could not be renewed: whatever is done under it must end.
    #[must_use]
    pub const fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Gives the lease up, so that others need not wait for its end.
    pub async fn release(self) {
        let Self { leases, name, holder, version, renewing, .. } = self;
        renewing.abort();
        drop(renewing.await);
        let known = version.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut deleted = leases.delete(&name, known).await;
        // A renewal that was cut short may have been done.
        if let Err(Refusal::Conflict) = deleted
            && let Ok(Some(read)) = leases.read(&name).await
            && read.holder == holder
        {
            deleted = leases.delete(&name, read.version).await;
        }
        if let Err(refusal) = deleted {
            tracing::debug!(lease = name, %refusal, "a lease was not given up, and ends by itself");
        }
    }
}
