//! Git: repositories on disk, and both sides of its protocol that a server speaks.
//!
//! Knows no users, no SSH and no builds. Refs are values that the caller owns: what a client sees, and what a
//! push changes, is decided outside; the repository on disk holds objects, and refs only to keep those alive.
//! Objects of a push lie in a quarantine until the caller takes them over.
//!
//! A repository may be here in part: of packs that are elsewhere their indexes are here, and objects are brought before
//! they are read ([`Distant`]).
//!
//! `git` does what must survive hostile packs (`index-pack`) or stream (`upload-pack`, `repack`), as a child with
//! an environment and configuration of ours; libgit2 reads single objects.

mod child;
mod commit;
mod distant;
mod error;
mod objects;
mod packs;
mod pkt_line;
mod quarantine;
mod receive_pack;
mod repository;
mod upload_pack;

use std::collections::BTreeMap;

pub use commit::{Commit, Entry, EntryKind, Exported, Survey};
pub use distant::{AskPart, AskWhole, Brought, Distant, DistantPack, FetchError, PackSource, PartFetched};
pub use error::{GitError, ReceiveError, UploadError};
pub use packs::Pack;
pub use quarantine::{Arrivals, Quarantine};
pub use receive_pack::{Command, Limits, Received, ReceivedPush, Reporter, Verdict, receive_pack, refuse};
pub use repository::{CROWDED_PACKS, Repository};
pub use upload_pack::{Shown, upload_pack};

use crate::model::{CommitId, RefName};

/// What a client sees: names, and the commits or tags they name.
pub type Refs = BTreeMap<RefName, CommitId>;
