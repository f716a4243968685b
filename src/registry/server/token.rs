//! Tokens of our registry: what a user, a build or the server itself may do, signed, and gone when it ends.
//!
//! A token is its own record: the server keeps nothing of it but the key. So it holds across restarts, another
//! process with the data directory can issue one, and none can be taken back before it ends: issue short ones.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::ServerError;
use crate::model::{AppName, Secret, UserName};
use crate::oci::{NameError, RepositoryName};

const KEY_FILE: &str = "token.key";
const KEY_BYTES: usize = 32;
/// Says what a leaked text is, and keeps the signature from meaning anything elsewhere.
const PREFIX: &str = "hephy-registry-1.";
/// The longest token that is looked at.
const MAX_BYTES: usize = 16 * 1024;

/// Something that may be done in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Reading.
    Pull,
    /// Writing.
    Push,
    /// Removing manifests and tags.
    Delete,
}

/// Which repositories.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RepositoryPattern {
    /// `hello`: this one.
    Exactly(RepositoryName),
    /// `mirror/*`: those below it, at any depth, and not itself.
    Below(RepositoryName),
    /// `*`: all.
    Everything,
}

/// What may be done where, written `hello/*:pull,push`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope {
    /// Where.
    pub pattern: RepositoryPattern,
    /// What.
    pub actions: BTreeSet<Action>,
}

/// Why a text is not a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// The repository is not valid.
    #[error(transparent)]
    Repository(#[from] NameError),
    /// No actions, or unknown ones.
    #[error(
        "scope `{0}` is not `repository:actions`, with actions of `pull`, `push` and `delete`, as in `hello/*:pull,push`"
    )]
    Form(String),
}

/// Issues and checks tokens.
#[derive(Clone)]
pub struct TokenIssuer {
    key: Secret<[u8; KEY_BYTES]>,
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Claims {
    /// Whose it is.
    pub(super) user: String,
    pub(super) scopes: Vec<Scope>,
    /// When it ends, in seconds since 1970.
    pub(super) ends: u64,
}

impl TokenIssuer {
    /// The issuer of the registry in `directory`, whose key is made on first use.
    pub fn open(directory: &Path) -> Result<Self, ServerError> {
        let path = directory.join(KEY_FILE);
        let error = |source| ServerError::Key { path: path.clone(), source };
        fs::create_dir_all(directory).map_err(error)?;
        match read_key(&path) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                make_key(directory, &path).map_err(error)?;
                read_key(&path)
            }
            other => other,
        }
        .map(|key| Self { key: Secret::new(key) })
        .map_err(error)
    }

    /// A token for `user`, which works as `Bearer` and as the password of a `Basic` login with any user name.
    #[must_use]
    pub fn issue(&self, user: &str, scopes: &[Scope], ttl: Duration) -> Secret<String> {
        let ends = now_seconds().saturating_add(ttl.as_secs());
        self.sign(&Claims { user: user.to_owned(), scopes: scopes.to_vec(), ends })
    }

    /// The token of a build: its app's repository and cache, and nobody else's to write.
    #[must_use]
    pub fn for_build(&self, app: &AppName, ttl: Duration) -> Secret<String> {
        let app = repository_of(app);
        let mut scopes = vec![Scope::push(RepositoryPattern::Exactly(app.clone()))];
        scopes.extend(app.join("cache").map(|cache| Scope::push(RepositoryPattern::Exactly(cache))));
        scopes.extend("mirror".parse().map(|mirror| Scope::pull(RepositoryPattern::Below(mirror))));
        self.issue(&format!("build of {app}"), &scopes, ttl)
    }

    /// The token that a user asks for: the repositories of these apps, whole.
    #[must_use]
    pub fn for_user(&self, user: &UserName, apps: &[AppName], ttl: Duration) -> Secret<String> {
        let scopes: Vec<Scope> = apps
            .iter()
            .map(repository_of)
            .flat_map(|app| [RepositoryPattern::Exactly(app.clone()), RepositoryPattern::Below(app)])
            .map(Scope::all)
            .collect();
        self.issue(user.as_str(), &scopes, ttl)
    }

    /// The token of the server itself: everything.
    #[must_use]
    pub fn for_server(&self, ttl: Duration) -> Secret<String> {
        self.issue("server", &[Scope::all(RepositoryPattern::Everything)], ttl)
    }

    /// The token for filling the mirror of base images.
    #[must_use]
    pub fn for_mirror(&self, ttl: Duration) -> Secret<String> {
        let scopes: Vec<Scope> = "mirror"
            .parse()
            .map(|mirror| Scope::push(RepositoryPattern::Below(mirror)))
            .into_iter()
            .collect();
        self.issue("mirror", &scopes, ttl)
    }

    pub(super) fn sign(&self, claims: &Claims) -> Secret<String> {
        let json = serde_json::to_vec(claims).unwrap_or_default();
        let payload = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json));
        let signature = URL_SAFE_NO_PAD.encode(self.mac(&payload).finalize().into_bytes());
        Secret::new(format!("{payload}.{signature}"))
    }

    /// What a token says, if it is ours and has not ended.
    pub(super) fn verify(&self, token: &str) -> Option<Claims> {
        if token.len() > MAX_BYTES {
            return None;
        }
        let (payload, signature) = token.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        self.mac(payload).verify_slice(&signature).ok()?;
        let json = URL_SAFE_NO_PAD.decode(payload.strip_prefix(PREFIX)?).ok()?;
        let claims: Claims = serde_json::from_slice(&json).ok()?;
        (claims.ends > now_seconds()).then_some(claims)
    }

    fn mac(&self, payload: &str) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mac = Hmac::<Sha256>::new_from_slice(self.key.reveal()).expect("any key will do");
        mac.chain_update(payload.as_bytes())
    }
}

impl fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenIssuer")
    }
}

impl Claims {
    pub(super) fn allow(&self, repository: &RepositoryName, action: Action) -> bool {
        self.scopes.iter().any(|scope| scope.actions.contains(&action) && scope.pattern.matches(repository))
    }
}

impl Scope {
    /// Reading.
    #[must_use]
    pub fn pull(pattern: RepositoryPattern) -> Self {
        Self { pattern, actions: [Action::Pull].into() }
    }

    /// Reading and writing.
    #[must_use]
    pub fn push(pattern: RepositoryPattern) -> Self {
        Self { pattern, actions: [Action::Pull, Action::Push].into() }
    }

    /// Reading, writing and removing.
    #[must_use]
    pub fn all(pattern: RepositoryPattern) -> Self {
        Self { pattern, actions: [Action::Pull, Action::Push, Action::Delete].into() }
    }
}

impl RepositoryPattern {
    fn matches(&self, repository: &RepositoryName) -> bool {
        match self {
            Self::Exactly(name) => name == repository,
            Self::Below(name) => {
                repository.as_str().strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/'))
            }
            Self::Everything => true,
        }
    }
}

impl Action {
    const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == text)
    }
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(name) => name.fmt(f),
            Self::Below(name) => write!(f, "{name}/*"),
            Self::Everything => f.write_str("*"),
        }
    }
}

impl FromStr for RepositoryPattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_suffix("/*") {
            _ if text == "*" => Ok(Self::Everything),
            Some(name) => name.parse().map(Self::Below),
            None => text.parse().map(Self::Exactly),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actions: Vec<_> = self.actions.iter().map(|action| action.as_str()).collect();
        write!(f, "{}:{}", self.pattern, actions.join(","))
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || ScopeError::Form(text.to_owned());
        let (pattern, actions) = text.rsplit_once(':').ok_or_else(form)?;
        let actions =
            actions.split(',').map(Action::parse).collect::<Option<BTreeSet<_>>>().ok_or_else(form)?;
        Ok(Self { pattern: pattern.parse()?, actions })
    }
}

impl TryFrom<String> for Scope {
    type Error = ScopeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

fn repository_of(app: &AppName) -> RepositoryName {
    #[expect(clippy::expect_used, reason = "the grammar of app names is part of that of repository names")]
    app.as_str().parse().expect("an app name is a repository name")
}

pub(super) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn read_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let mut file = fs::File::open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        return Err(io::Error::other(
            "others can read it: run `chmod 600` on it, and remove it if they may have",
        ));
    }
    let mut key = [0; KEY_BYTES];
    file.read_exact(&mut key)?;
    Ok(key)
}

/// Of two processes that make the key at once, both end up with that of the first.
fn make_key(directory: &Path, path: &Path) -> io::Result<()> {
    let aside = directory.join(format!("{KEY_FILE}.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(&rand::random::<[u8; KEY_BYTES]>())?;
    file.sync_all()?;
    let linked = fs::hard_link(&aside, path);
    fs::remove_file(&aside)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn issuer() -> (tempfile::TempDir, TokenIssuer) {
        let directory = tempfile::tempdir().unwrap();
        let issuer = TokenIssuer::open(directory.path()).unwrap();
        (directory, issuer)
    }

    fn may(claims: &Claims, repository: &str, action: Action) -> bool {
        claims.allow(&repository.parse().unwrap(), action)
    }

    #[test]
    fn a_build_writes_its_own_repositories_and_no_other() {
        let (_directory, issuer) = issuer();
        let token = issuer.for_build(&"hello".parse().unwrap(), HOUR);
        let claims = issuer.verify(token.reveal()).unwrap();
        for own in ["hello", "hello/cache"] {
            assert!(may(&claims, own, Action::Push) && may(&claims, own, Action::Pull), "{own}");
            assert!(!may(&claims, own, Action::Delete), "{own}");
        }
        for other in ["hello2", "hello/other", "other", "other/cache", "mirror/library/debian", "mirror"] {
            assert!(!may(&claims, other, Action::Push), "{other}");
        }
        assert!(may(&claims, "mirror/library/debian", Action::Pull));
        assert!(!may(&claims, "other/cache", Action::Pull));
    }

    #[test]
    fn a_token_that_was_changed_ended_or_is_anothers_is_worth_nothing() {
        let (_directory, issuer) = issuer();
        let scopes = ["hello:pull".parse().unwrap()];
        let token = issuer.issue("ada", &scopes, HOUR).reveal().clone();
        assert_eq!(issuer.verify(&token).unwrap().user, "ada");
        assert_eq!(issuer.verify(issuer.issue("ada", &scopes, Duration::ZERO).reveal()), None);
        let (_other_directory, other) = self::issuer();
        assert_eq!(other.verify(&token), None);
        for at in [0, PREFIX.len() + 3, token.len() - 1] {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(issuer.verify(std::str::from_utf8(&changed).unwrap()), None, "byte {at}");
        }
        for text in ["", ".", "hephy-registry-1..", &"a".repeat(1_000_000)] {
            assert_eq!(issuer.verify(text), None);
        }
    }

    #[test]
    fn the_key_is_private_and_stays() {
        let (directory, issuer) = issuer();
        let path = directory.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let again = TokenIssuer::open(directory.path()).unwrap();
        assert!(again.verify(issuer.for_server(HOUR).reveal()).is_some());
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(TokenIssuer::open(directory.path()), Err(ServerError::Key { .. })));
    }

    #[test]
    fn scopes_read_back_and_nonsense_is_refused() {
        for text in ["hello:pull,push", "mirror/*:pull", "*:pull,push,delete"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for text in ["", "hello", "hello:", "hello:write", "../x:pull", "a*:pull", "/*:pull"] {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }
}
