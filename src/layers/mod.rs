//! Layers as files: trees that overlay can use, the difference that a step made, the tar and the blob of it, and
//! the store that keeps them.
//!
//! Nothing here knows of namespaces, images or steps. Every function works on directory fds and runs the same as
//! the mapped root of a user namespace, as root, or as an ordinary user; it sees owners as the process does, but for those
//! that its namespace does not have.

mod compress;
mod copy;
mod diff;
mod entries;
mod error;
mod gzip;
mod known;
mod lowers;
mod node;
mod owners;
mod place;
mod plain;
mod root;
mod sniff;
mod store;
mod strip;
mod tar;
mod unpack;
mod walk;

#[cfg(test)]
mod testing;

pub use compress::{Compressed, Compression, CompressionError, LayerWriter, compress_layer};
pub use copy::{
    Copied, CopyError, CopyOptions, Exclude, Excluded, Include, Included, ModeChange, ModeError, NewFile,
    SourceHash, add_file, copy, hash_sources, pivot, write_file,
};
pub use diff::{Change, ChangeKind, DiffError, DiffInput, Differences, diff, differences};
pub use entries::{ArchiveError, Limits};
pub use error::FileError;
pub use known::KnownContents;
pub use node::Owner;
pub use owners::TooManyOwners;
pub use place::{Owners, match_root};
pub use plain::{LaidFiles, Look, PlainRoot};
pub use root::{Root, RootError};
pub use sniff::{Decompressed, Format, Verified, sniff};
pub use store::{
    BlobWriter, CacheDirectory, CacheSharing, LayerLock, LayerStore, Lease, PrunePolicy, Pruned, Staged,
    StoreError, Stored, TreeInfo,
};
pub use strip::strip;
pub use tar::{TarError, TarStats, normalize_times, write_tar};
pub use unpack::{UnpackError, UnpackOptions, Unpacked, unpack_files, unpack_layer};
