//! `.dockerignore`: what of the context is not there.
//!
//! The rules are moby's, with its corners: the last pattern that matches decides, a parent's match counts for what is
//! in it, `!` brings back, and a leading `**` followed by plain text matches any path that ends with it.

use std::path::Path;

use super::lexer::{MAX_FILE_BYTES, MAX_LINE_BYTES};

/// Why an ignore file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {reason}")]
pub struct IgnoreError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// The patterns of an ignore file. The default ignores nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IgnoreFile {
    patterns: Vec<Pattern>,
}

/// The names of the ignore files of a Dockerfile, from the context's root; the first that exists counts, alone.
#[must_use]
pub fn ignore_file_names(dockerfile: &str) -> [String; 2] {
    [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()]
}

impl IgnoreFile {
    /// Reads an ignore file.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, IgnoreError> {
        let fail = |line, reason| IgnoreError { file: file.to_owned(), line, reason };
        if bytes.len() > MAX_FILE_BYTES {
            return Err(fail(1, format!("the file is over the limit of {MAX_FILE_BYTES} bytes")));
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut patterns = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.len() > MAX_LINE_BYTES {
                return Err(fail(index + 1, format!("the line is over the limit of {MAX_LINE_BYTES} bytes")));
            }
            let line =
                std::str::from_utf8(line).map_err(|_| fail(index + 1, "the line is not UTF-8".to_owned()))?;
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            patterns.extend(Pattern::parse(line.trim()).map_err(|reason| fail(index + 1, reason))?);
        }
        Ok(Self { patterns })
    }

    /// The patterns of a flag, `--exclude` or a source of `--parents`: read as lines are, but that none is a comment.
    ///
    /// # Errors
    /// What is wrong with the first one that is wrong.
    pub fn of_patterns<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let texts = patterns.into_iter().map(str::trim).filter(|text| !text.is_empty());
        let parsed = texts.map(Pattern::parse).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { patterns: parsed.into_iter().flatten().collect() })
    }

    /// Whether a path is not in the context. The path is from the context's root, without `./`.
    #[must_use]
    pub fn is_ignored(&self, path: &Path) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let path = path.to_string_lossy();
        let mut ignored = false;
        for pattern in &self.patterns {
            // A pattern that would change nothing is not tried.
            if pattern.brings_back == ignored && pattern.matches_or_above(&path) {
                ignored = !pattern.brings_back;
            }
        }
        ignored
    }

    /// Whether something in an ignored directory may still be in the context, so that a walk must look.
    #[must_use]
    pub fn may_reinclude_below(&self, directory: &Path) -> bool {
        let directory = format!("{}/", directory.to_string_lossy());
        self.patterns.iter().any(|pattern| pattern.brings_back && pattern.may_match_below(&directory))
    }

    /// Whether something in a directory may match a pattern that does not begin with `!`.
    #[must_use]
    pub fn may_match_below(&self, directory: &Path) -> bool {
        let directory = format!("{}/", directory.to_string_lossy());
        self.patterns.iter().any(|pattern| !pattern.brings_back && pattern.may_match_below(&directory))
    }

    /// Whether anything is brought back with `!`.
    #[must_use]
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.brings_back)
    }

    /// Whether nothing is ignored at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    brings_back: bool,
    /// The text that it begins with. Nearly every path is told by it alone.
    prefix: String,
    /// What follows.
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Is(char),
    /// `?`: any character but `/`.
    One,
    /// `[a-z]`, `[^a-z]`: never `/`.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    /// `*`: any text without `/`.
    InComponent,
    /// `**` at the end, or before plain text at the start: any text.
    Anything,
    /// `**/` before something: nothing, or the next token.
    MaybeDirectories,
    /// Any text that ends with `/`.
    Directories,
}

impl Pattern {
    /// A trimmed line as a pattern; none if it is the context's root, which cannot be ignored.
    fn parse(line: &str) -> Result<Option<Self>, String> {
        let (brings_back, text) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
        if text.is_empty() {
            return Err("`!` without a pattern".to_owned());
        }
        let text = clean(text);
        if text.is_empty() {
            return Ok(None);
        }
        let mut tokens = tokens(&text)?;
        let plain = tokens.iter().take_while(|token| matches!(token, Token::Is(_))).count();
        let prefix = tokens.drain(..plain).filter_map(Token::plain).collect();
        Ok(Some(Self { brings_back, prefix, tokens }))
    }

    /// Whether the path or a directory above it matches.
    fn matches_or_above(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(self.prefix.as_str()) else { return false };
        if self.tokens.is_empty() {
            return rest.is_empty() || rest.starts_with('/');
        }
        let mut ends_here = false;
        self.read(rest, |states, next| {
            ends_here = states.last() == Some(&true) && next.is_none_or(|next| next == '/');
            !ends_here
        });
        ends_here
    }

    /// Whether a path that begins with this directory (with its `/`) may match: the pattern is not at its end yet.
    fn may_match_below(&self, directory: &str) -> bool {
        let Some(rest) = directory.strip_prefix(self.prefix.as_str()) else {
            return self.prefix.starts_with(directory);
        };
        let mut goes_on = false;
        self.read(rest, |states, _| {
            goes_on = states.iter().take(self.tokens.len()).any(|reached| *reached);
            true
        });
        goes_on
    }

    /// Reads text after the prefix, as long as the pattern can still match and `look` wants to. Before each character and at
    /// the end `look` is told which places of the pattern are reached, the last being its end, and what comes next.
    fn read(&self, text: &str, mut look: impl FnMut(&[bool], Option<char>) -> bool) {
        let mut states = vec![false; self.tokens.len() + 1];
        let mut after = states.clone();
        if let Some(first) = states.first_mut() {
            *first = true;
        }
        self.skip_empty(&mut states);
        let mut characters = text.chars();
        loop {
            let next = characters.next();
            if !look(&states, next) || !states.contains(&true) {
                return;
            }
            let Some(character) = next else { return };
            after.fill(false);
            for (index, token) in self.tokens.iter().enumerate() {
                if states.get(index) == Some(&true) {
                    let (stays, advances) = token.read(character);
                    reach(&mut after, index, stays);
                    reach(&mut after, index + 1, advances);
                }
            }
            self.skip_empty(&mut after);
            std::mem::swap(&mut states, &mut after);
        }
    }

    /// Goes on over the tokens that may match nothing.
    fn skip_empty(&self, states: &mut [bool]) {
        for (index, token) in self.tokens.iter().enumerate() {
            if states.get(index) == Some(&true) {
                let maybe_directories = matches!(token, Token::MaybeDirectories);
                let empty = matches!(token, Token::InComponent | Token::Anything) || maybe_directories;
                reach(states, index + 1, empty);
                reach(states, index + 2, maybe_directories);
            }
        }
    }
}

fn reach(states: &mut [bool], index: usize, reached: bool) {
    if let Some(state) = states.get_mut(index).filter(|_| reached) {
        *state = true;
    }
}

impl Token {
    fn plain(self) -> Option<char> {
        match self {
            Self::Is(character) => Some(character),
            _ => None,
        }
    }

    /// Whether this token goes on after the character, and whether the next one begins after it.
    fn read(&self, character: char) -> (bool, bool) {
        match self {
            Self::Is(wanted) => (false, character == *wanted),
            Self::One => (false, character != '/'),
            Self::Class { negated, ranges } => {
                let inside = ranges.iter().any(|(first, last)| (*first..=*last).contains(&character));
                (false, character != '/' && inside != *negated)
            }
            Self::InComponent => (character != '/', false),
            Self::Anything => (true, false),
            Self::MaybeDirectories => (false, false),
            Self::Directories => (true, character == '/'),
        }
    }
}

/// The path without `.`, `//`, a leading and a trailing `/`, and with `..` resolved.
fn clean(text: &str) -> String {
    let mut components: Vec<&str> = Vec::new();
    for component in text.split('/') {
        match component {
            "" | "." => {}
            ".." if components.last().is_some_and(|last| *last != "..") => {
                components.pop();
            }
            ".." if text.starts_with('/') => {}
            _ => components.push(component),
        }
    }
    components.join("/")
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let plain_after_stars =
        text.strip_prefix("**").is_some_and(|rest| !rest.contains(['*', '?', '[', ']', '\\']));
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(character) = chars.next() {
        match character {
            '*' if chars.next_if_eq(&'*').is_some() => {
                let slash = chars.next_if_eq(&'/').is_some();
                if chars.peek().is_none() || (tokens.is_empty() && plain_after_stars && !slash) {
                    tokens.push(Token::Anything);
                } else {
                    tokens.extend([Token::MaybeDirectories, Token::Directories]);
                }
            }
            '*' => tokens.push(Token::InComponent),
            '?' => tokens.push(Token::One),
            '[' => tokens.push(class(&mut chars).ok_or_else(|| format!("`[` without its `]` in `{text}`"))?),
            '\\' => {
                let escaped = chars.next().ok_or_else(|| format!("`{text}` ends with `\\`"))?;
                tokens.push(Token::Is(escaped));
            }
            _ => tokens.push(Token::Is(character)),
        }
    }
    Ok(tokens)
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let mut bound = || match chars.next()? {
            '\\' => chars.next().map(|escaped| (escaped, true)),
            other => Some((other, false)),
        };
        let (first, escaped) = bound()?;
        if first == ']' && !escaped {
            return if ranges.is_empty() { None } else { Some(Token::Class { negated, ranges }) };
        }
        if first == '-' && !escaped {
            return None;
        }
        let last = if chars.next_if_eq(&'-').is_some() {
            match chars.next()? {
                ']' => return None,
                '\\' => chars.next()?,
                other => other,
            }
        } else {
            first
        };
        ranges.push((first, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignore(text: &str) -> IgnoreFile {
        IgnoreFile::parse(text.as_bytes(), ".dockerignore").unwrap()
    }

    fn ignored(text: &str, path: &str) -> bool {
        ignore(text).is_ignored(Path::new(path))
    }

    #[test]
    fn a_pattern_matches_from_the_root_and_what_is_below() {
        assert!(ignored("a", "a") && ignored("a", "a/b/c") && ignored("/a", "a") && ignored("./a/", "a"));
        assert!(!ignored("a", "b/a") && !ignored("a", "ab"));
    }

    #[test]
    fn one_star_and_question_mark_stay_in_their_component() {
        assert!(ignored("*.log", "x.log") && !ignored("*.log", "d/x.log"));
        assert!(ignored("*/x.log", "d/x.log") && !ignored("*/x.log", "d/e/x.log"));
        assert!(ignored("a?", "ab") && !ignored("a?c", "a/c"));
    }

    #[test]
    fn two_stars_cross_components() {
        for path in ["x.log", "d/x.log", "d/e/x.log"] {
            assert!(ignored("**/*.log", path), "{path}");
        }
        assert!(ignored("a/**/z", "a/z") && ignored("a/**/z", "a/b/c/z") && !ignored("a/**/z", "a/bz"));
        assert!(ignored("a/**", "a/b/c") && !ignored("a/**", "a"));
        assert!(ignored("**", "a/b"));
    }

    #[test]
    fn leading_stars_before_plain_text_match_any_end() {
        assert!(ignored("**foo", "xfoo") && ignored("**/foo", "a/foo") && !ignored("**/foo", "xfoo"));
        assert!(!ignored("**foo*", "xfoox") && ignored("**foo*", "a/foox"));
    }

    #[test]
    fn the_last_match_wins_and_brings_back() {
        assert!(!ignored("*\n!a", "a") && ignored("*\n!a", "b") && ignored("!a\n*", "a"));
        assert!(!ignored("*\n!a", "a/b") && ignored("*\n!a\na/b", "a/b/c"));
        assert!(!ignored("*.md\n! README.md", "README.md"));
    }

    #[test]
    fn an_ignored_directory_is_walked_only_where_something_may_come_back() {
        let walks = |text: &str, path: &str| ignore(text).may_reinclude_below(Path::new(path));
        assert!(walks("*\n!a/b/c", "a") && walks("*\n!a/b/c", "a/b") && !walks("*\n!a/b/c", "a/b/c"));
        assert!(!walks("*\n!a/b", "b") && !walks("a", "a"));
        assert!(walks("*\n!**/x", "any/where") && walks("*\n!*/x", "any") && !walks("*\n!*/x", "any/where"));
        assert!(walks("*\n!a/**", "a/b/c"));
    }

    #[test]
    fn classes_and_escapes_are_understood() {
        assert!(ignored("[a-c]x", "bx") && !ignored("[a-c]x", "dx") && ignored("[^a-c]x", "dx"));
        assert!(ignored("\\*x", "*x") && !ignored("\\*x", "ax"));
        for text in ["[a", "[]", "a\\", "!"] {
            assert!(IgnoreFile::parse(text.as_bytes(), "f").is_err(), "{text}");
        }
    }

    #[test]
    fn text_that_a_pattern_begins_with_is_compared_as_it_would_be_read() {
        let pieces = ["a", "b/", "/", "*", "**", "?", "[a]", ""];
        let paths = ["", "a", "b", "aa", "a/b", "b/a", "b/aa", "a/a/b", "b/b/b", "ab/a", "b/a/a/b"];
        let texts = pieces.iter().flat_map(|first| {
            let ends =
                pieces.iter().flat_map(|second| pieces.iter().map(move |third| format!("{second}{third}")));
            ends.map(|end| format!("{first}{end}")).collect::<Vec<_>>()
        });
        for text in texts {
            let Ok(Some(pattern)) = Pattern::parse(&text) else { continue };
            let mut tokens: Vec<Token> = pattern.prefix.chars().map(Token::Is).collect();
            tokens.extend(pattern.tokens.iter().cloned());
            let read = Pattern { brings_back: false, prefix: String::new(), tokens };
            for path in paths {
                let directory = format!("{path}/");
                assert_eq!(pattern.matches_or_above(path), read.matches_or_above(path), "{text} {path}");
                assert_eq!(
                    pattern.may_match_below(&directory),
                    read.may_match_below(&directory),
                    "{text} {path}"
                );
            }
        }
    }

    #[test]
    fn comments_blanks_and_a_byte_order_mark_are_dropped() {
        let file = ignore("\u{feff}# a\n\n  b  \r\n#c\n .\n");
        assert!(file.is_ignored(Path::new("b")) && !file.is_ignored(Path::new("a")));
        assert_eq!(file.patterns.len(), 1);
    }

    #[test]
    fn errors_name_file_and_line() {
        let error = IgnoreFile::parse(b"a\nb[\n", ".dockerignore").unwrap_err();
        assert_eq!(error.to_string(), ".dockerignore:2: `[` without its `]` in `b[`");
    }

    #[test]
    fn the_file_beside_the_dockerfile_comes_first() {
        assert_eq!(ignore_file_names("d/Dockerfile"), ["d/Dockerfile.dockerignore", ".dockerignore"]);
    }
}
