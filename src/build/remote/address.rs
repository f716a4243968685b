//! Which sources of `ADD` are elsewhere, as BuildKit's `dfgitutil` tells them from paths.

use url::Url;

use super::{RemoteError, shown};
use crate::model::Secret;

/// Something elsewhere.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    /// A file.
    Http(Url),
    /// A repository, or a directory of one.
    Git(Box<GitAddress>),
}

/// A place in a git repository.
#[derive(Debug, Clone)]
pub(crate) struct GitAddress {
    pub(crate) remote: GitRemote,
    /// A branch, a tag or a commit; the default branch if absent.
    pub(crate) reference: Option<String>,
    /// A directory in it, relative; empty for all of it.
    pub(crate) subdirectory: String,
    /// The commit, if it is not the one that the reference names.
    pub(crate) commit: Option<String>,
    /// The commit that it has to be, or the beginning of its name.
    pub(crate) checksum: Option<String>,
    /// `keep-git-dir`, if it is said.
    pub(crate) keep_git_dir: Option<bool>,
    /// Whether submodules are fetched too.
    pub(crate) submodules: bool,
}

/// A repository.
#[derive(Debug, Clone)]
pub(crate) enum GitRemote {
    /// By URL; the user and the password of it are kept apart.
    Url { url: Url, user: Option<(String, Secret<String>)> },
    /// `user@host:path`, by SSH.
    Scp { text: String },
}

impl GitRemote {
    /// The remote as git and people may see it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Url { url, .. } => url.to_string(),
            Self::Scp { text } => text.clone(),
        }
    }
}

impl Address {
    /// The address that a source is; `None` if it is a path.
    pub(crate) fn parse(source: &str) -> Result<Option<Self>, RemoteError> {
        let wrong = |reason: String| RemoteError::Address { address: without_secrets(source), reason };
        let Some((scheme, _)) = source.split_once("://") else {
            return Ok(scp(source).map_err(wrong)?.map(|git| Self::Git(Box::new(git))));
        };
        let scheme = scheme.to_ascii_lowercase();
        if !matches!(scheme.as_str(), "http" | "https" | "git" | "ssh") {
            let is_scheme = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
            return if is_scheme {
                Err(wrong(format!("`{scheme}` is none of http, https, git and ssh")))
            } else {
                Ok(None)
            };
        }
        let url = Url::parse(source).map_err(|error| wrong(error.to_string()))?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("it has no host".to_owned()));
        }
        if matches!(scheme.as_str(), "http" | "https") && url.path().strip_suffix(".git").is_none() {
            return Ok(Some(Self::Http(url)));
        }
        GitAddress::of_url(&url).map(|git| Some(Self::Git(Box::new(git)))).map_err(wrong)
    }
}

impl GitAddress {
    /// The address that a URL of a repository with its fragment and query is; an error is a sentence.
    pub(crate) fn of_url(url: &Url) -> Result<Self, String> {
        let mut bare = url.clone();
        let user = (!url.username().is_empty() && matches!(url.scheme(), "http" | "https")).then(|| {
            let password = url.password().map(decoded).unwrap_or_default();
            (decoded(url.username()), Secret::new(password))
        });
        if user.is_some() || url.password().is_some() {
            let _no_password = bare.set_password(None);
        }
        if user.is_some() {
            let _no_user = bare.set_username("");
        }
        bare.set_fragment(None);
        bare.set_query(None);
        let pairs: Vec<(String, String)> =
            url.query_pairs().map(|(key, value)| (key.into_owned(), value.into_owned())).collect();
        Self::new(GitRemote::Url { url: bare, user }, url.fragment().map(decoded).as_deref(), &pairs)
    }

    fn new(remote: GitRemote, fragment: Option<&str>, query: &[(String, String)]) -> Result<Self, String> {
        let (reference, subdirectory) =
            fragment.unwrap_or("").split_once(':').unwrap_or((fragment.unwrap_or(""), ""));
        let mut address = Self {
            remote,
            reference: Some(reference.to_owned()).filter(|text| !text.is_empty()),
            subdirectory: subdirectory.to_owned(),
            commit: None,
            checksum: None,
            keep_git_dir: None,
            submodules: true,
        };
        for (key, value) in query {
            address.option(key, value)?;
        }
        if let Some(reference) = &address.reference {
            check_reference(reference)?;
        }
        address.subdirectory = clean(&address.subdirectory);
        Ok(address)
    }

    /// Says which branch, tag or commit is meant; nothing said is what it was.
    pub(crate) fn set_reference(&mut self, reference: Option<&str>) -> Result<(), String> {
        let Some(reference) = reference.filter(|text| !text.is_empty()) else { return Ok(()) };
        check_reference(reference)?;
        self.reference = Some(reference.to_owned());
        Ok(())
    }

    /// Says which commit of the reference is meant, that may be any before its last.
    pub(crate) fn set_commit(&mut self, commit: Option<&str>) -> Result<(), String> {
        let Some(commit) = commit.filter(|text| !text.is_empty()) else { return Ok(()) };
        if commit.len() < 40 || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("`{}` is not the whole name of a commit", commit.escape_debug()));
        }
        self.commit = Some(commit.to_ascii_lowercase());
        Ok(())
    }

    fn option(&mut self, key: &str, value: &str) -> Result<(), String> {
        let prefixed = |prefix: &str| {
            if value.starts_with(prefix) { value.to_owned() } else { format!("{prefix}{value}") }
        };
        match key {
            "submodules" => self.submodules = boolean(key, value)?,
            "keep-git-dir" => self.keep_git_dir = Some(boolean(key, value)?),
            // The commit is asked for by its name in any case.
            "fetch-by-commit" => {
                boolean(key, value)?;
            }
            _ if value.is_empty() => return Err(format!("its `{key}` has no value")),
            "ref" => set(&mut self.reference, value.to_owned(), key)?,
            "tag" => set(&mut self.reference, prefixed("refs/tags/"), key)?,
            "branch" => set(&mut self.reference, prefixed("refs/heads/"), key)?,
            "subdir" => {
                let mut now = Some(std::mem::take(&mut self.subdirectory)).filter(|text| !text.is_empty());
                set(&mut now, value.to_owned(), key)?;
                self.subdirectory = now.unwrap_or_default();
            }
            "checksum" | "commit" => set(&mut self.checksum, value.to_owned(), key)?,
            "mtime" if matches!(value, "checkout" | "commit") => {}
            _ => return Err(format!("nothing is known of `{key}={value}` in it")),
        }
        Ok(())
    }
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("its `{key}` is neither true nor false")),
    }
}

fn set(what: &mut Option<String>, value: String, key: &str) -> Result<(), String> {
    match what {
        Some(before) if *before != value => Err(format!("its `{key}={value}` contradicts `{before}`")),
        _ => {
            *what = Some(value);
            Ok(())
        }
    }
}

/// A reference that git takes for one, and for nothing else.
pub(super) fn check_reference(reference: &str) -> Result<(), String> {
    let odd = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    if reference.starts_with('-') || reference.contains("..") || reference.contains(odd) {
        return Err(format!("`{}` is not a branch, tag or commit", reference.escape_debug()));
    }
    Ok(())
}

/// `user@host:path?query#fragment`, as `ssh` and `scp` read it.
fn scp(source: &str) -> Result<Option<GitAddress>, String> {
    let (rest, fragment) = source.split_once('#').map_or((source, None), |(rest, text)| (rest, Some(text)));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let Some((user, place)) = rest.split_once('@') else { return Ok(None) };
    let Some((host, path)) = place.split_once(':') else { return Ok(None) };
    let is_name = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    if !is_name(user, "-_") || !is_name(host, "-.") || path.is_empty() {
        return Ok(None);
    }
    if user.starts_with('-') || host.starts_with('-') || path.starts_with('-') {
        return Err("a part of it begins with `-`".to_owned());
    }
    let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    GitAddress::new(GitRemote::Scp { text: rest.to_owned() }, fragment, &pairs).map(Some)
}

/// The name of a file at a URL, if it has one that a file can have.
pub(crate) fn http_name(url: &Url) -> Option<String> {
    let path = decoded(url.path());
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let is_name = !name.is_empty() && name != "." && name != ".." && !name.contains('\0');
    is_name.then(|| name.to_owned())
}

/// An address as written, without what may be secret in it, also if it does not parse.
fn without_secrets(source: &str) -> String {
    Url::parse(source).map_or_else(
        |_| match (source.split_once("://"), source.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, place))) => format!("{scheme}://{place}"),
            _ => source.to_owned(),
        },
        |url| shown(&url),
    )
}

/// A relative path without `.` and `..`.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(source: &str) -> GitAddress {
        match Address::parse(source).unwrap() {
            Some(Address::Git(git)) => *git,
            other => panic!("{source}: {other:?}"),
        }
    }

    fn name(source: &str) -> Option<String> {
        match Address::parse(source).unwrap() {
            Some(Address::Http(url)) => http_name(&url),
            other => panic!("{source}: {other:?}"),
        }
    }

    #[test]
    fn paths_are_no_addresses() {
        for source in ["a", "./a.git", "github.com/o/r.git", "a:b", "a@b", "a/b@c:d", "://x", "@h:p"] {
            assert!(Address::parse(source).unwrap().is_none(), "{source}");
        }
    }

    #[test]
    fn a_repository_is_known_by_its_scheme_its_ending_or_its_form() {
        for source in ["https://h/r.git", "http://h/r.git", "git://h/r", "ssh://git@h/r", "git@h:o/r"] {
            git(source);
        }
        for source in ["https://h/r", "https://h/r.git/x", "https://h/?x=.git"] {
            assert!(matches!(Address::parse(source).unwrap(), Some(Address::Http(_))), "{source}");
        }
    }

    #[test]
    fn fragment_and_query_say_which_part_of_a_repository() {
        let one = git("https://h/r.git#v1:sub/../dir/");
        assert_eq!((one.reference.as_deref(), one.subdirectory.as_str()), (Some("v1"), "dir"));
        assert_eq!(one.remote.text(), "https://h/r.git");
        let two = git("https://h/r.git?tag=v1&subdir=d&commit=abc&keep-git-dir&submodules=0");
        assert_eq!(two.reference.as_deref(), Some("refs/tags/v1"));
        assert_eq!((two.subdirectory.as_str(), two.checksum.as_deref()), ("d", Some("abc")));
        assert_eq!((two.keep_git_dir, two.submodules), (Some(true), false));
        let three = git("git@h:o/r.git?branch=b#");
        assert_eq!(
            (three.remote.text().as_str(), three.reference.as_deref()),
            ("git@h:o/r.git", Some("refs/heads/b"))
        );
        for wrong in [
            "https://h/r.git?x=1",
            "https://h/r.git?ref=a#b",
            "https://h/r.git?keep-git-dir=2",
            "https://h/r.git?tag=",
        ] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_in_an_address_is_an_option_of_git() {
        for hostile in [
            "https://h/r.git#--upload-pack=x",
            "git@-oProxyCommand=x:r",
            "git@h:-x",
            "https://h/r.git#a b",
            "https://h/r.git#a:..%00",
            "file:///etc/r.git",
            "ext://x/r.git",
        ] {
            let parsed = Address::parse(hostile);
            let is_harmless = parsed.as_ref().is_ok_and(|found| {
                found.as_ref().is_none_or(
                    |found| matches!(found, Address::Git(git) if git.reference.as_deref() == Some("a")),
                )
            });
            assert!(parsed.is_err() || is_harmless, "{hostile}: {parsed:?}");
        }
    }

    #[test]
    fn user_and_password_are_kept_apart_and_out_of_texts() {
        let one = git("https://me:s%2F3cret@h/r.git");
        assert_eq!(one.remote.text(), "https://h/r.git");
        let GitRemote::Url { user: Some((user, password)), .. } = &one.remote else { panic!("{one:?}") };
        assert_eq!((user.as_str(), password.reveal().as_str()), ("me", "s/3cret"));
        for wrong in
            ["https://me:s3cret@h:99999/x", "ftp://me:s3cret@h/x", "https://me:s3cret@h/r.git?token=s3cret"]
        {
            let error = Address::parse(wrong).unwrap_err().to_string();
            assert!(!error.contains("s3cret@") && !error.contains("me:"), "{error}");
        }
    }

    #[test]
    fn a_file_is_called_as_the_last_part_of_its_path() {
        assert_eq!(name("https://h/a/b.txt?x=/y#z").as_deref(), Some("b.txt"));
        assert_eq!(name("https://h/a/b/").as_deref(), Some("b"));
        assert_eq!(name("https://h/a%20b").as_deref(), Some("a b"));
        assert_eq!(name("https://h/a%2Fb").as_deref(), Some("b"), "a name has no slash");
        for none in [
            "https://h",
            "https://h/",
            "https://h/x%2F..",
            "https://h/..",
            "https://h/x%2F%2E",
            "https://h/a%00",
        ] {
            assert_eq!(name(none), None, "{none}");
        }
    }
}
