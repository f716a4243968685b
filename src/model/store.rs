//! The seam that keeps objects: JSON documents under a kind and a name, changed by compare-and-swap.
//!
//! A store need not know what the documents say. That keeps it at six methods, which the data directory and
//! Kubernetes both have, and the typed functions over it ([`load`], [`create`], [`modify`], …) are written once.

use std::fmt;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`super::App`].
    App,
    /// [`super::Build`].
    Build,
    /// [`super::Release`].
    Release,
    /// [`super::User`].
    User,
    /// [`super::Config`]: secret.
    Config,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::App, Self::Build, Self::Release, Self::User, Self::Config];

    /// The plural that names the kind in paths: `apps`.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::App => "apps",
            Self::Build => "builds",
            Self::Release => "releases",
            Self::User => "users",
            Self::Config => "configs",
        }
    }
}

/// The name of an object: made of names and numbers that are valid in a path and in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// The name of an object that stands alone.
    pub fn of(name: &impl fmt::Display) -> Self {
        Self(name.to_string())
    }

    /// The name of an object that belongs to another: `hello--v4`.
    pub fn joined(owner: &impl fmt::Display, part: &impl fmt::Display) -> Self {
        Self(format!("{owner}--{part}"))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a store calls one state of an object: any change makes another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(pub String);

/// A document as a store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its state's version.
    pub version: Version,
    /// The JSON; from a store that keeps values rather than text, the same value.
    pub json: Vec<u8>,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is one already.
    #[error("{} `{name}` exists already", kind.plural())]
    Exists {
        /// The kind.
        kind: Kind,
        /// The name.
        name: ObjectName,
    },
    /// There is none.
    #[error("{} `{name}` does not exist", kind.plural())]
    Missing {
        /// The kind.
        kind: Kind,
        /// The name.
        name: ObjectName,
    },
    /// Somebody else changed it since it was read.
    #[error("{} `{name}` was changed by somebody else", kind.plural())]
    Conflict {
        /// The kind.
        kind: Kind,
        /// The name.
        name: ObjectName,
    },
    /// The document is not what its kind says.
    #[error("{} `{name}` cannot be read", kind.plural())]
    Malformed {
        /// The kind.
        kind: Kind,
        /// The name.
        name: ObjectName,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The document was written by a newer program.
    #[error("{} `{name}` has format {format}, which needs a newer hephy (this one knows up to {known})", kind.plural())]
    Newer {
        /// The kind.
        kind: Kind,
        /// The name.
        name: ObjectName,
        /// Its format.
        format: u64,
        /// The newest that this program knows.
        known: u32,
    },
    /// The document is of another object than its name says.
    #[error("{} `{name}` says of itself that it is `{inside}`", kind.plural())]
    Misnamed {
        /// The kind.
        kind: Kind,
        /// The name it was found under.
        name: ObjectName,
        /// The name it has inside.
        inside: ObjectName,
    },
    /// The document is larger than the store takes.
    #[error("{} `{name}` has {bytes} bytes, which is more than the store takes", kind.plural())]
    TooLarge {
        /// The kind.
        kind: Kind,
        /// The name.
        name: ObjectName,
        /// Its size, in bytes.
        bytes: usize,
    },
    /// The store's own rules do not allow the document: it was made for another version of the program.
    #[error(
        "the store does not take {} `{name}` ({message}): its definitions are not those of this hephy, upgrade the chart",
        kind.plural()
    )]
    Refused {
        /// The kind.
        kind: Kind,
        /// The name.
        name: ObjectName,
        /// What it said.
        message: String,
    },
    /// The server's own account may not do it.
    #[error(
        "hephy's account may not {verb} {resource} in namespace `{namespace}`: add the verb to its Role ({message})"
    )]
    Forbidden {
        /// What was tried: `update`.
        verb: &'static str,
        /// Of what: `apps.hephy.dev`.
        resource: String,
        /// Where.
        namespace: String,
        /// What the store said.
        message: String,
    },
    /// The store does not know the kind.
    #[error(
        "the cluster knows no {resource} ({message}): install hephy's custom resource definitions, which the chart has"
    )]
    Unknown {
        /// What: `apps.hephy.dev`.
        resource: String,
        /// What the store said.
        message: String,
    },
    /// The store did not answer, or not usefully, for as long as it was asked.
    #[error("cannot {doing} {} `{name}`: the store does not answer", kind.plural())]
    Unavailable {
        /// `read`, `write`, `list`, `remove`.
        doing: &'static str,
        /// The kind.
        kind: Kind,
        /// The name, or what was listed.
        name: String,
        /// What went wrong last.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The place that keeps it failed.
    #[error("cannot {doing} {} `{name}`", kind.plural())]
    Io {
        /// `read`, `write`, `list`.
        doing: &'static str,
        /// The kind.
        kind: Kind,
        /// The name, or what was listed.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Keeps documents.
///
/// # Guarantees
/// A write is whole or not at all, also over a crash, and is there once the method returns. `replace` and
/// `delete` succeed only on the version that was read.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The document, if there is one.
    async fn get(&self, kind: Kind, name: &ObjectName) -> Result<Option<Document>, StoreError>;

    /// The documents whose name begins with `prefix`, by name.
    async fn list(&self, kind: Kind, prefix: &str) -> Result<Vec<(ObjectName, Document)>, StoreError>;

    /// Writes a document that is not there yet ([`StoreError::Exists`]).
    async fn create(&self, kind: Kind, name: &ObjectName, json: Vec<u8>) -> Result<Version, StoreError>;

    /// Writes a document in place of the one that was read ([`StoreError::Conflict`], [`StoreError::Missing`]).
    async fn replace(
        &self,
        kind: Kind,
        name: &ObjectName,
        read: &Version,
        json: Vec<u8>,
    ) -> Result<Version, StoreError>;

    /// Removes the document that was read ([`StoreError::Conflict`], [`StoreError::Missing`]).
    async fn delete(&self, kind: Kind, name: &ObjectName, read: &Version) -> Result<(), StoreError>;

    /// Returns once the document is another than `read` (or gone), at once if it is already. Cancel safe.
    async fn changed(&self, kind: Kind, name: &ObjectName, read: &Version) -> Result<(), StoreError>;
}

/// What a store keeps.
pub trait Object: Serialize + DeserializeOwned + Send {
    /// Its kind.
    const KIND: Kind;

    /// Its name.
    fn name(&self) -> ObjectName;
}

/// An object with the version that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The object.
    pub object: T,
    /// The version it was read at.
    pub version: Version,
}

fn decode<T: Object>(name: &ObjectName, document: Document) -> Result<Versioned<T>, StoreError> {
    let malformed = |source| StoreError::Malformed { kind: T::KIND, name: name.clone(), source };
    // The format first: what is newer may read well and mean something else.
    let Header { format } = serde_json::from_slice(&document.json).map_err(malformed)?;
    if format > u64::from(super::FORMAT) {
        return Err(StoreError::Newer { kind: T::KIND, name: name.clone(), format, known: super::FORMAT });
    }
    let object: T = serde_json::from_slice(&document.json).map_err(malformed)?;
    let inside = object.name();
    if inside != *name {
        return Err(StoreError::Misnamed { kind: T::KIND, name: name.clone(), inside });
    }
    Ok(Versioned { object, version: document.version })
}

/// What every document has, of whatever format.
#[derive(serde::Deserialize)]
struct Header {
    format: u64,
}

fn encode<T: Object>(object: &T) -> Result<Vec<u8>, StoreError> {
    let malformed = |source| StoreError::Malformed { kind: T::KIND, name: object.name(), source };
    let mut json = serde_json::to_vec_pretty(object).map_err(malformed)?;
    json.push(b'\n');
    Ok(json)
}

/// Reads an object, if there is one.
pub async fn load<T: Object>(
    store: &dyn Store,
    name: &ObjectName,
) -> Result<Option<Versioned<T>>, StoreError> {
    store.get(T::KIND, name).await?.map(|document| decode(name, document)).transpose()
}

/// Reads an object that must be there.
pub async fn require<T: Object>(store: &dyn Store, name: &ObjectName) -> Result<Versioned<T>, StoreError> {
    load(store, name).await?.ok_or_else(|| StoreError::Missing { kind: T::KIND, name: name.clone() })
}

/// Reads all objects whose name begins with `prefix`, by name.
pub async fn list<T: Object>(store: &dyn Store, prefix: &str) -> Result<Vec<T>, StoreError> {
    let documents = store.list(T::KIND, prefix).await?;
    documents.into_iter().map(|(name, document)| Ok(decode(&name, document)?.object)).collect()
}

/// Reads all objects whose name begins with `prefix`, by name, each for itself: one that is malformed hides no other.
pub async fn list_each<T: Object>(
    store: &dyn Store,
    prefix: &str,
) -> Result<Vec<Result<T, StoreError>>, StoreError> {
    let documents = store.list(T::KIND, prefix).await?;
    Ok(documents.into_iter().map(|(name, document)| Ok(decode(&name, document)?.object)).collect())
}

/// Writes a new object.
pub async fn create<T: Object>(store: &dyn Store, object: T) -> Result<Versioned<T>, StoreError> {
    let version = store.create(T::KIND, &object.name(), encode(&object)?).await?;
    Ok(Versioned { object, version })
}

/// Writes an object that was read and changed; fails if somebody else changed it since.
pub async fn replace<T: Object>(
    store: &dyn Store,
    changed: Versioned<T>,
) -> Result<Versioned<T>, StoreError> {
    let json = encode(&changed.object)?;
    let version = store.replace(T::KIND, &changed.object.name(), &changed.version, json).await?;
    Ok(Versioned { object: changed.object, version })
}

/// Removes an object that was read.
pub async fn delete<T: Object>(store: &dyn Store, object: &Versioned<T>) -> Result<(), StoreError> {
    store.delete(T::KIND, &object.object.name(), &object.version).await
}

/// Changes an object, again on what somebody else wrote meanwhile; `change` decides on each reading, and an error of
/// its own ends it. Nothing is written when `change` leaves the object as it is.
///
/// # Errors
/// `change`'s own; or the store's, through `From`.
pub async fn modify<T, R, E>(
    store: &dyn Store,
    name: &ObjectName,
    mut change: impl FnMut(&mut T) -> Result<R, E> + Send,
) -> Result<(Versioned<T>, R), E>
where
    T: Object + Clone + PartialEq,
    E: From<StoreError>,
{
    loop {
        let read: Versioned<T> = require(store, name).await?;
        let mut next = read.clone();
        let result = change(&mut next.object)?;
        if next == read {
            return Ok((read, result));
        }
        match replace(store, next).await {
            Ok(written) => return Ok((written, result)),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
