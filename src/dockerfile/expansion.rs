//! Shell-like words: quotes, escapes and `$variables`, with the lookup given by the caller.
//!
//! This is what a Dockerfile does before an instruction sees its text. It is not a shell: `$(…)` and globs mean
//! nothing here, and RUN is never expanded (its shell does that).

mod scanner;

use scanner::{Rules, Scanner};

use super::lexer::Escape;

/// The longest text that an expansion may grow to: `ENV A=$A$A`, forty times, is a terabyte.
pub const MAX_EXPANDED_BYTES: usize = 1 << 20;
const MAX_DEPTH: usize = 64;

/// Why a text cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A quote that never closes.
    #[error("a {0} quote never closes")]
    UnclosedQuote(&'static str),
    /// `${` without its end.
    #[error("`${{` without its `{0}`")]
    Unclosed(char),
    /// `${}`, `${:…`, `${{`.
    #[error("bad substitution: a name is expected after `${{`")]
    BadSubstitution,
    /// `${name^…}` and others that Dockerfiles do not have.
    #[error("unsupported modifier `{0}` in a substitution")]
    Modifier(String),
    /// A pattern with an escape that is none.
    #[error("invalid escape `\\{0}` in the pattern of a substitution")]
    PatternEscape(String),
    /// `${name:?message}` of a variable that is not set.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message, or a default.
        message: String,
    },
    /// Substitutions in substitutions, too deep.
    #[error("substitutions are nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// The result is too long.
    #[error("the expanded text is over the limit of {MAX_EXPANDED_BYTES} bytes")]
    TooLong,
    /// A RUN mount whose expanded fields are not right.
    #[error("--mount: {0}")]
    Mount(String),
    /// Expanded to nothing where something is needed.
    #[error("`{0}` expands to nothing")]
    Empty(String),
}

/// Expands words with variables from a lookup.
///
/// One instruction sees one snapshot: the lookup must not change while an instruction is expanded.
#[derive(Clone, Copy)]
pub struct Expander<'a> {
    escape: Escape,
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl std::fmt::Debug for Expander<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expander").field("escape", &self.escape).finish_non_exhaustive()
    }
}

impl<'a> Expander<'a> {
    /// An expander of a file with this escape character.
    #[must_use]
    pub fn new(escape: Escape, lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { escape, lookup }
    }

    /// The text as one word: variables replaced, quotes and escapes removed, spaces kept.
    pub fn word(&self, text: &str) -> Result<String, ExpandError> {
        Ok(self.scan(text, Rules::default())?.0)
    }

    /// The text as words split at unquoted spaces, after the variables are replaced.
    pub fn words(&self, text: &str) -> Result<Vec<String>, ExpandError> {
        Ok(self.scan(text, Rules::default())?.1)
    }

    /// The body of a heredoc: variables replaced, quotes kept; the escape character is always `\`.
    pub fn heredoc(&self, body: &str) -> Result<String, ExpandError> {
        let body_expander = Self { escape: Escape::Backslash, lookup: self.lookup };
        let rules = Rules { ignore_quotes: true, ..Rules::default() };
        Ok(body_expander.scan(body, rules)?.0)
    }

    fn scan(&self, text: &str, rules: Rules) -> Result<(String, Vec<String>), ExpandError> {
        let escape = self.escape.character();
        let mut scanner =
            Scanner { chars: text.chars().peekable(), escape, rules, lookup: self.lookup, depth: 0 };
        let words = scanner.until(None, rules.keep_escapes)?;
        Ok((words.whole, words.parts))
    }
}

/// The words of a line as a shell would see them, quotes and escapes and unset variables kept.
pub(super) fn raw_words(text: &str, keep_quotes: bool, keep_escapes: bool) -> Option<Vec<String>> {
    let none = |_: &str| None;
    let expander = Expander::new(Escape::Backslash, &none);
    let rules = Rules { keep_quotes, keep_escapes, keep_unset: true, ignore_quotes: false };
    expander.scan(text, rules).ok().map(|(_, words)| words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        let value = match name {
            "PWD" => "/home",
            "SHELL" => "bash",
            "EMPTY" => "",
            "SPACED" => "a  b",
            "FILE" => "foo.tar.gz",
            "한" => "korean",
            "PATHS" => "/a/b/c",
            _ => return None,
        };
        Some(value.to_owned())
    }

    fn word(text: &str) -> Result<String, ExpandError> {
        Expander::new(Escape::Backslash, &lookup).word(text)
    }

    fn assert_words(table: &[(&str, &str)]) {
        for (text, expected) in table {
            assert_eq!(word(text).as_deref(), Ok(*expected), "{text}");
        }
    }

    #[test]
    fn variables_are_replaced_and_unset_ones_are_empty() {
        assert_words(&[
            ("$PWD", "/home"),
            ("${PWD}x", "/homex"),
            ("a$UNSET.b", "a.b"),
            ("$", "$"),
            ("$(x)", "$(x)"),
            ("a$", "a$"),
            ("$한", "korean"),
            ("$1a", "a"),
        ]);
    }

    #[test]
    fn escaped_dollars_and_single_quotes_suppress_variables() {
        assert_words(&[
            ("\\$PWD", "$PWD"),
            ("'$PWD'", "$PWD"),
            ("\"$PWD\"", "/home"),
            ("\"\\$PWD\"", "$PWD"),
        ]);
    }

    #[test]
    fn quotes_and_escapes_are_removed_and_spaces_kept() {
        assert_words(&[
            ("he'll'o", "hello"),
            ("'a\\b'", "a\\b"),
            ("\"a\\b\"", "a\\b"),
            ("\"a\\\"b\"", "a\"b"),
            ("a\\ b", "a b"),
            (" a  b ", " a  b "),
            ("a\\", "a"),
            ("\"'\"", "'"),
        ]);
    }

    #[test]
    fn a_default_stands_for_unset_and_with_a_colon_for_empty_too() {
        assert_words(&[
            ("${UNSET:-w}", "w"),
            ("${UNSET-w}", "w"),
            ("${EMPTY:-w}", "w"),
            ("${EMPTY-w}", ""),
            ("${SHELL:-w}", "bash"),
            ("${UNSET:-${PWD}/x}", "/home/x"),
            ("${UNSET:-a b}", "a b"),
            ("${UNSET:-\\}}", "}"),
        ]);
    }

    #[test]
    fn an_alternative_stands_for_set_and_with_a_colon_not_for_empty() {
        assert_words(&[
            ("${UNSET:+w}", ""),
            ("${UNSET+w}", ""),
            ("${EMPTY:+w}", ""),
            ("${EMPTY+w}", "w"),
            ("${SHELL:+w}", "w"),
        ]);
    }

    #[test]
    fn a_required_variable_fails_with_its_message() {
        assert_eq!(word("${SHELL:?m}").as_deref(), Ok("bash"));
        assert_eq!(word("${EMPTY?m}").as_deref(), Ok(""));
        assert_eq!(word("${EMPTY:?set it}").unwrap_err().to_string(), "EMPTY: set it");
        assert_eq!(word("${UNSET?}").unwrap_err().to_string(), "UNSET: is not set");
        assert_eq!(word("${EMPTY:?}").unwrap_err().to_string(), "EMPTY: may not be empty");
    }

    #[test]
    fn prefixes_are_trimmed_shortest_and_longest() {
        assert_words(&[
            ("${FILE#*.}", "tar.gz"),
            ("${FILE##*.}", "gz"),
            ("${FILE#foo}", ".tar.gz"),
            ("${FILE#nothing}", "foo.tar.gz"),
            ("${FILE#???}", ".tar.gz"),
            ("${PATHS##*/}", "c"),
            ("${UNSET#a}", ""),
            ("${FILE##*}", ""),
        ]);
    }

    #[test]
    fn suffixes_are_trimmed_shortest_and_longest() {
        assert_words(&[
            ("${FILE%.*}", "foo.tar"),
            ("${FILE%%.*}", "foo"),
            ("${PATHS%/*}", "/a/b"),
            ("${FILE%.gz}", "foo.tar"),
            ("${FILE%%*}", ""),
        ]);
    }

    #[test]
    fn patterns_replace_the_first_and_all() {
        assert_words(&[
            ("${PATHS/\\//-}", "-a/b/c"),
            ("${PATHS//\\//-}", "-a-b-c"),
            ("${FILE/./_}", "foo_tar.gz"),
            ("${FILE//./_}", "foo_tar_gz"),
            ("${FILE//o/}", "f.tar.gz"),
            ("${FILE/.*/}", "foo"),
            ("${FILE/o?/X}", "fX.tar.gz"),
            ("${FILE/$SHELL/x}", "foo.tar.gz"),
        ]);
    }

    #[test]
    fn words_are_split_after_expansion_and_not_in_quotes() {
        let expander = Expander::new(Escape::Backslash, &lookup);
        assert_eq!(
            expander.words("$SPACED 'c d' \"$SPACED\" e\\ f").unwrap(),
            ["a", "b", "c d", "a  b", "e f"]
        );
        assert_eq!(expander.words("pre${UNSET:-b}").unwrap(), ["preb"]);
        assert_eq!(expander.words("  ").unwrap(), [""; 0]);
    }

    #[test]
    fn the_backtick_escapes_where_the_directive_says_so() {
        let expander = Expander::new(Escape::Backtick, &lookup);
        assert_eq!(expander.word("C:\\`$PWD\\$SHELL").unwrap(), "C:\\$PWD\\bash");
        assert_eq!(expander.heredoc("\\$PWD `$PWD").unwrap(), "$PWD `/home");
    }

    #[test]
    fn a_heredoc_body_keeps_its_quotes() {
        let expander = Expander::new(Escape::Backslash, &lookup);
        assert_eq!(expander.heredoc("'$PWD' \"x\" it's\n").unwrap(), "'/home' \"x\" it's\n");
    }

    #[test]
    fn bad_substitutions_are_errors() {
        for text in [
            "${",
            "${}",
            "${:x}",
            "${{x}",
            "${x",
            "${x:-",
            "${x^}",
            "${x:/}",
            "${x/a}",
            "${x ",
            "'",
            "\"",
            "${FILE#\\x}",
        ] {
            assert!(word(text).is_err(), "{text}");
        }
    }

    #[test]
    fn expansion_is_bounded_in_depth_and_size() {
        assert_eq!(word(&"${x:-".repeat(100_000)), Err(ExpandError::TooDeep));
        let long = |_: &str| Some("x".repeat(MAX_EXPANDED_BYTES));
        assert_eq!(Expander::new(Escape::Backslash, &long).word("$a$a"), Err(ExpandError::TooLong));
        assert_eq!(Expander::new(Escape::Backslash, &long).word("\"$a$a\""), Err(ExpandError::TooLong));
        assert_eq!(Expander::new(Escape::Backslash, &long).word("${a//x/xx}"), Err(ExpandError::TooLong));
    }
}
