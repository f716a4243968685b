//! What a client asks for: a git service of a repository, or a verb.

use crate::model::AppName;

use super::words::{self, WordsError};

/// The longest command line that is looked at.
const MAX_COMMAND_BYTES: usize = 64 * 1024;

/// What a session is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `git push`.
    ReceivePack(AppName),
    /// `git fetch` and `git clone`.
    UploadPack(AppName),
    /// The words of one of the CLI's verbs; never empty.
    Verb(Vec<String>),
    /// No command: `ssh host`.
    Greeting,
}

/// Why a command is none of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not UTF-8, with control characters, or too long.
    #[error("the command is not text of at most {MAX_COMMAND_BYTES} bytes")]
    Text,
    /// Quotes that do not match.
    #[error("the command cannot be split into words: {0}")]
    Words(#[from] WordsError),
    /// A git service with no repository, or with more words than one.
    #[error("`{0}` takes the name of one repository")]
    Arguments(String),
    /// A git service that there is no use for.
    #[error("`{0}` is not served here; `git clone` the repository and use it there")]
    Service(String),
    /// The path is not the name of an app.
    #[error(
        "there is no repository `{0}`: a repository's path is an app's name and `.git`, such as `hello.git`; a name is 1 to 30 of a-z, 0-9 and single `-` between them, beginning with a letter"
    )]
    Path(String),
}

impl Command {
    /// Reads the command line of an `exec` request.
    pub(super) fn parse(line: &[u8]) -> Result<Self, CommandError> {
        let text = std::str::from_utf8(line).map_err(|_| CommandError::Text)?;
        if text.len() > MAX_COMMAND_BYTES
            || text.contains(|c: char| c.is_control() && !c.is_ascii_whitespace())
        {
            return Err(CommandError::Text);
        }
        let mut words = words::split(text)?;
        // `git receive-pack` is another way to ask for `git-receive-pack`.
        if let [git, service, ..] = &mut words[..]
            && git == "git"
        {
            *service = format!("git-{service}");
            words.remove(0);
        }
        let Some(first) = words.first() else { return Ok(Self::Greeting) };
        match first.as_str() {
            "git-receive-pack" => repository(&words).map(Self::ReceivePack),
            "git-upload-pack" => repository(&words).map(Self::UploadPack),
            service if service.starts_with("git-") => Err(CommandError::Service(shown(service))),
            _ => Ok(Self::Verb(words)),
        }
    }
}

fn repository(words: &[String]) -> Result<AppName, CommandError> {
    match words {
        [_, path] => app_of_path(path),
        _ => Err(CommandError::Arguments(words.first().map(|word| shown(word)).unwrap_or_default())),
    }
}

/// The app whose repository a path names: `hello`, `/hello`, `hello.git` and `~/hello.git`, and nothing else.
pub fn app_of_path(path: &str) -> Result<AppName, CommandError> {
    let name = path.strip_prefix("~/").or_else(|| path.strip_prefix('/')).unwrap_or(path);
    let name = name.strip_suffix('/').unwrap_or(name);
    let name = name.strip_suffix(".git").unwrap_or(name);
    name.parse().map_err(|_| CommandError::Path(shown(path)))
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_spellings_of_a_repository_name_the_same_app() {
        let hello: AppName = "hello".parse().unwrap();
        for path in ["hello", "/hello", "hello.git", "/hello.git", "~/hello.git", "/hello.git/"] {
            assert_eq!(app_of_path(path).as_ref(), Ok(&hello), "{path}");
        }
        for path in [
            "",
            "/",
            ".git",
            "..",
            "../hello",
            "a/b",
            "/a/b.git",
            "~ada/hello",
            "Hello",
            "hello.git.git",
            "//hello",
            "hello--x",
            "hel lo",
        ] {
            assert!(matches!(app_of_path(path), Err(CommandError::Path(_))), "{path}");
        }
    }

    #[test]
    fn commands_are_git_services_or_verbs() {
        let hello: AppName = "hello".parse().unwrap();
        let parse = |line: &str| Command::parse(line.as_bytes());
        assert_eq!(parse("git-receive-pack '/hello.git'"), Ok(Command::ReceivePack(hello.clone())));
        assert_eq!(parse("git receive-pack 'hello.git'"), Ok(Command::ReceivePack(hello.clone())));
        assert_eq!(parse("git-upload-pack 'hello'"), Ok(Command::UploadPack(hello)));
        assert_eq!(parse("  "), Ok(Command::Greeting));
        assert_eq!(parse("builds log 7"), Ok(Command::Verb(vec!["builds".into(), "log".into(), "7".into()])));
        assert_eq!(
            parse("git-upload-archive 'hello'"),
            Err(CommandError::Service("git-upload-archive".into()))
        );
        assert_eq!(parse("git-receive-pack"), Err(CommandError::Arguments("git-receive-pack".into())));
        assert_eq!(parse("git-receive-pack a b"), Err(CommandError::Arguments("git-receive-pack".into())));
        assert_eq!(parse("git-receive-pack 'a/b'"), Err(CommandError::Path("a/b".into())));
        assert_eq!(parse("git-receive-pack 'a"), Err(CommandError::Words(WordsError::Unclosed('\''))));
        assert_eq!(parse("apps\u{1b}[31m"), Err(CommandError::Text));
        assert_eq!(Command::parse(b"apps \xff"), Err(CommandError::Text));
        assert_eq!(parse(&"a ".repeat(MAX_COMMAND_BYTES)), Err(CommandError::Text));
    }
}
