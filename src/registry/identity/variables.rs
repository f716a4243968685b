//! The variables of the environment, and the files that they name.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::IdentityError;
use crate::model::Secret;

/// The largest file with an identity.
const MAX_BYTES: u64 = 256 * 1024;

/// Where variables are looked up.
#[derive(Clone)]
pub(crate) struct Variables(Arc<Lookup>);

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Variables {
    /// This process's.
    pub(crate) fn from_environment() -> Self {
        Self(Arc::new(|name| std::env::var(name).ok()))
    }

    #[cfg(test)]
    pub(crate) fn of(given: &[(&str, &str)]) -> Self {
        let given: std::collections::BTreeMap<String, String> =
            given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self(Arc::new(move |name| given.get(name).cloned()))
    }

    /// One that is set and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// One that may be secret.
    pub(crate) fn secret(&self, name: &str) -> Option<Secret<String>> {
        self.get(name).map(Secret::new)
    }

    /// Whether one says yes.
    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// A file below the home.
    pub(crate) fn in_home(&self, path: &str) -> Option<PathBuf> {
        self.get("HOME").map(|home| Path::new(&home).join(path))
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Variables").finish_non_exhaustive()
    }
}

/// The text of a file; what is in it may be secret.
pub(super) fn read(path: &Path, named_by: &'static str) -> Result<Secret<String>, IdentityError> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Secret::new(text)),
        Err(source) => Err(IdentityError::Read { path: path.display().to_string(), named_by, source }),
    }
}

/// The same of a file that need not be there.
pub(super) fn read_if_there(
    path: &Path,
    named_by: &'static str,
) -> Result<Option<Secret<String>>, IdentityError> {
    match read(path, named_by) {
        Ok(text) => Ok(Some(text)),
        Err(IdentityError::Read { source, .. })
            if matches!(
                source.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::NotADirectory
                    | std::io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
