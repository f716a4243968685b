//! Heredocs: `<<EOF`, `<<-EOF`, `<<"EOF"`, `3<<EOF`.

use super::expansion::raw_words;

/// A heredoc as announced on an instruction's line, and its body once it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heredoc {
    /// The delimiter without quotes: also the name of the file that it makes.
    pub(super) name: String,
    /// Variables in the body are replaced: the delimiter is not quoted.
    pub(super) expand: bool,
    /// `<<-`: leading tabs of each line are dropped.
    pub(super) chomp: bool,
    /// The lines between, with their endings.
    pub(super) body: String,
}

impl Heredoc {
    /// The heredoc that a word announces, if it does: nothing but digits, `<<`, `-` and one word.
    pub(super) fn parse(word: &str) -> Option<Self> {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
        let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
        let rest = rest.trim_start();
        if rest.is_empty() || rest.contains('<') {
            return None;
        }
        let name = one_word(raw_words(rest, false, false)?)?;
        let as_written = one_word(raw_words(rest, true, false)?)?;
        let count = |text: &str| text.matches(['\'', '"']).count();
        Some(Self { expand: count(&name) == count(&as_written), name, chomp, body: String::new() })
    }

    /// All heredocs that a line announces, in order. A line that is no shell words announces none.
    pub(super) fn all(line: &str) -> Vec<Self> {
        let words = raw_words(line, true, true).unwrap_or_default();
        words.iter().filter_map(|word| Self::parse(word)).collect()
    }

    /// Whether a line of the file ends this heredoc.
    pub(super) fn ends_at(&self, line: &str) -> bool {
        let line = if self.chomp { line.trim_start_matches('\t') } else { line };
        line == self.name
    }

    /// The body as the file's reader sees it: without leading tabs for `<<-`.
    pub(super) fn content(&self) -> String {
        if !self.chomp {
            return self.body.clone();
        }
        self.body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

fn one_word(mut words: Vec<String>) -> Option<String> {
    if words.len() == 1 { words.pop() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(word: &str) -> Option<(String, bool, bool)> {
        Heredoc::parse(word).map(|heredoc| (heredoc.name, heredoc.expand, heredoc.chomp))
    }

    #[test]
    fn an_unquoted_delimiter_expands_and_a_quoted_one_does_not() {
        assert_eq!(parse("<<EOF"), Some(("EOF".to_owned(), true, false)));
        assert_eq!(parse("<<-EOF"), Some(("EOF".to_owned(), true, true)));
        assert_eq!(parse("<<'EOF'"), Some(("EOF".to_owned(), false, false)));
        assert_eq!(parse("<<-\"E F\""), Some(("E F".to_owned(), false, true)));
        assert_eq!(parse("3<<EOF"), Some(("EOF".to_owned(), true, false)));
        assert_eq!(parse("<< EOF"), Some(("EOF".to_owned(), true, false)));
    }

    #[test]
    fn here_strings_and_bare_arrows_are_no_heredocs() {
        for word in ["<<<x", "<<", "<x", "a<<EOF", "<<a b", "x"] {
            assert_eq!(parse(word), None, "{word}");
        }
    }

    #[test]
    fn a_quoted_or_escaped_arrow_announces_nothing() {
        let names =
            |line: &str| Heredoc::all(line).into_iter().map(|heredoc| heredoc.name).collect::<Vec<_>>();
        assert_eq!(names("RUN cat <<A /b 3<<-'B C' > x"), ["A", "B C"]);
        assert_eq!(names("RUN echo '<<A' \"<<B\" \\<<C"), [""; 0]);
        assert_eq!(names("RUN cat << A"), ["A"]);
    }
}
