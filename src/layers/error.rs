//! The error that every file operation here ends in: what was done, to which path, and the system's reason.

use std::io;
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`", path.display())]
pub struct FileError {
    /// What was being done: `open`, `create directory`.
    pub action: &'static str,
    /// The path, relative to the root it was looked up in where there is one.
    pub path: PathBuf,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Whether the reason is that the path does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Adds the action and the path to a result of the system.
pub(super) trait AtPath<T> {
    /// Names what was done to what.
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> AtPath<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, FileError> {
        self.map_err(|error| {
            let path = path.as_ref();
            let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
            FileError { action, path: path.to_owned(), source: error.into() }
        })
    }
}
