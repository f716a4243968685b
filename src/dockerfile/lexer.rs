//! Bytes to logical lines: limits, directives, comments, continuations.
//!
//! A logical line remembers where each of its pieces came from, so that an error in the fourth continuation line
//! names that line and not the first.

use super::error::{ParseError, Position, Problem};

/// The longest Dockerfile read.
pub const MAX_FILE_BYTES: usize = 4 << 20;
/// The longest line read.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// The character that continues a line and escapes the next character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Escape {
    /// `\`, unless a directive says otherwise.
    #[default]
    Backslash,
    /// A backtick, for paths with backslashes.
    Backtick,
}

impl Escape {
    /// The character itself.
    #[must_use]
    pub fn character(self) -> char {
        match self {
            Self::Backslash => '\\',
            Self::Backtick => '`',
        }
    }
}

/// What the parser directives at the top of the file say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Directives {
    pub(super) syntax: Option<String>,
    pub(super) escape: Option<Escape>,
    pub(super) check: Option<String>,
}

/// Lines joined at their continuations, without comments between, and the place of each piece.
#[derive(Debug, Clone, Default)]
pub(super) struct LogicalLine {
    pub(super) text: String,
    pieces: Vec<Piece>,
    pub(super) first_line: usize,
    pub(super) last_line: usize,
    /// Lines of blank between the pieces, which a later Dockerfile version will refuse.
    pub(super) empty_continuations: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: usize,
    start: Position,
}

impl LogicalLine {
    /// Where the character at a byte offset of the joined text stands in the file.
    pub(super) fn position(&self, offset: usize) -> Position {
        let piece = self.pieces.iter().rev().find(|piece| piece.offset <= offset);
        let Some(piece) = piece else { return Position { line: self.first_line, column: 1 } };
        let characters = self.text.get(piece.offset..offset).map_or(0, |text| text.chars().count());
        Position { line: piece.start.line, column: piece.start.column + characters }
    }

    /// The part of this line from an offset on, as the trigger of an ONBUILD is.
    pub(super) fn starting_at(&self, offset: usize) -> Self {
        let start = self.position(offset);
        let mut pieces = vec![Piece { offset: 0, start }];
        let later = self.pieces.iter().filter(|piece| piece.offset > offset);
        pieces.extend(later.map(|piece| Piece { offset: piece.offset - offset, start: piece.start }));
        Self {
            text: self.text.get(offset..).unwrap_or_default().to_owned(),
            pieces,
            first_line: start.line,
            last_line: self.last_line,
            ..Self::default()
        }
    }

    fn push(&mut self, text: &str, line: usize, column: usize) {
        self.pieces.push(Piece { offset: self.text.len(), start: Position { line, column } });
        self.text.push_str(text);
        self.last_line = line;
    }
}

/// Reads logical lines, and raw lines for the bodies of heredocs.
pub(super) struct Lexer<'a> {
    lines: std::iter::Enumerate<std::str::SplitInclusive<'a, char>>,
    line: usize,
    escape: Escape,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str, escape: Escape) -> Self {
        Self { lines: text.split_inclusive('\n').enumerate(), line: 0, escape }
    }

    /// The next line with its line ending, as the body of a heredoc has it.
    pub(super) fn raw_line(&mut self) -> Option<&'a str> {
        let (index, line) = self.lines.next()?;
        self.line = index + 1;
        Some(line)
    }

    /// The number of the line read last.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// The next line with its continuations; none at the end of the file.
    pub(super) fn logical_line(&mut self) -> Option<LogicalLine> {
        loop {
            let line = trim_line_ending(self.raw_line()?);
            let text = line.trim_start();
            if text.starts_with('#') {
                continue;
            }
            let (text_kept, continues) = self.strip_continuation(text);
            if text_kept.is_empty() && !continues {
                continue;
            }
            let mut logical = LogicalLine { first_line: self.line, ..LogicalLine::default() };
            let column = 1 + line.chars().count() - text.chars().count();
            logical.push(text_kept, self.line, column);
            if continues {
                self.continuation(&mut logical);
            }
            return Some(logical);
        }
    }

    fn continuation(&mut self, logical: &mut LogicalLine) {
        while let Some(line) = self.raw_line() {
            let line = trim_line_ending(line);
            if line.trim_start().starts_with('#') {
                continue;
            }
            if line.trim().is_empty() {
                logical.empty_continuations.push(self.line);
                continue;
            }
            let (text, continues) = self.strip_continuation(line);
            logical.push(text, self.line, 1);
            if !continues {
                break;
            }
        }
    }

    /// The line without the escape character that ends it, and whether it had one. Doubled it is no continuation.
    fn strip_continuation<'b>(&self, line: &'b str) -> (&'b str, bool) {
        let escape = self.escape.character();
        match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
            Some(before) if !before.ends_with(escape) => (before, true),
            _ => (line, false),
        }
    }
}

pub(super) fn trim_line_ending(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// The bytes as text, within the limits, without a byte order mark; the error names the line.
pub(super) fn decode<'a>(bytes: &'a [u8], file: &str) -> Result<&'a str, ParseError> {
    let fail = |line, column, problem| {
        let position = Position { line, column };
        Err(ParseError { file: file.to_owned(), position, problem })
    };
    if bytes.len() > MAX_FILE_BYTES {
        return fail(1, 1, Problem::FileTooLong { max_bytes: MAX_FILE_BYTES });
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.len() > MAX_LINE_BYTES {
            return fail(index + 1, 1, Problem::LineTooLong { max_bytes: MAX_LINE_BYTES });
        }
        match std::str::from_utf8(line) {
            Ok(text) => {
                if let Some(offset) = text.find('\0') {
                    return fail(index + 1, 1 + text[..offset].chars().count(), Problem::Nul);
                }
            }
            Err(error) => {
                let before = line.get(..error.valid_up_to()).unwrap_or_default();
                let column = 1 + String::from_utf8_lossy(before).chars().count();
                let problem = if before.contains(&0) { Problem::Nul } else { Problem::NotUtf8 };
                return fail(index + 1, column, problem);
            }
        }
    }
    std::str::from_utf8(bytes).or_else(|_| fail(1, 1, Problem::NotUtf8))
}

/// The directives at the top: only before any other comment, blank line or instruction, and each once.
pub(super) fn directives(text: &str, file: &str) -> Result<Directives, ParseError> {
    let mut found = Directives::default();
    let shebang = text.starts_with("#!");
    for (index, line) in text.lines().enumerate().skip(usize::from(shebang)) {
        let line = line.trim_start();
        let Some((name, value)) = line.strip_prefix('#').and_then(|rest| rest.split_once('=')) else { break };
        let name = name.trim().to_ascii_lowercase();
        let value = value.trim();
        if value.is_empty() {
            break;
        }
        let position = Position { line: index + 1, column: 1 };
        let fail = |problem| Err(ParseError { file: file.to_owned(), position, problem });
        match name.as_str() {
            "syntax" if found.syntax.is_some() => return fail(Problem::DuplicateDirective("syntax")),
            "escape" if found.escape.is_some() => return fail(Problem::DuplicateDirective("escape")),
            "check" if found.check.is_some() => return fail(Problem::DuplicateDirective("check")),
            "syntax" => found.syntax = Some(value.to_owned()),
            "check" => found.check = Some(value.to_owned()),
            "escape" => match value {
                "\\" => found.escape = Some(Escape::Backslash),
                "`" => found.escape = Some(Escape::Backtick),
                _ => return fail(Problem::Escape(value.to_owned())),
            },
            _ => break,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let mut lexer = Lexer::new(text, Escape::Backslash);
        std::iter::from_fn(|| lexer.logical_line()).map(|line| line.text).collect()
    }

    #[test]
    fn continuations_join_lines_and_keep_their_leading_space() {
        assert_eq!(lines("RUN a \\\n  b \\ \t\n\tc\n"), ["RUN a   b \tc"]);
    }

    #[test]
    fn a_doubled_escape_at_the_end_of_a_line_does_not_continue() {
        assert_eq!(lines("RUN a \\\\\nRUN b"), ["RUN a \\\\", "RUN b"]);
    }

    #[test]
    fn comments_inside_continuations_are_dropped() {
        assert_eq!(lines("RUN a \\\n # no\n#no \\\n b"), ["RUN a  b"]);
    }

    #[test]
    fn empty_continuation_lines_are_dropped_and_remembered() {
        let mut lexer = Lexer::new("RUN a \\\n\n \n b\n", Escape::Backslash);
        let line = lexer.logical_line().unwrap();
        assert_eq!((line.text.as_str(), line.empty_continuations), ("RUN a  b", vec![2, 3]));
    }

    #[test]
    fn carriage_returns_end_lines() {
        assert_eq!(lines("FROM a\r\nRUN b \\\r\n c\r\n"), ["FROM a", "RUN b  c"]);
    }

    #[test]
    fn the_position_of_a_piece_is_its_line_and_column_in_the_file() {
        let mut lexer = Lexer::new("\n  RUN é \\\n# c\n  --x", Escape::Backslash);
        let line = lexer.logical_line().unwrap();
        assert_eq!(line.position(0), Position { line: 2, column: 3 });
        assert_eq!(line.position(4), Position { line: 2, column: 7 });
        assert_eq!(line.position(line.text.find("--x").unwrap()), Position { line: 4, column: 3 });
    }

    #[test]
    fn the_escape_directive_changes_the_continuation_character() {
        let directives = directives("# escape=`\nRUN a `\nb", "Dockerfile").unwrap();
        assert_eq!(directives.escape, Some(Escape::Backtick));
        let mut lexer = Lexer::new("RUN C:\\ `\nb", Escape::Backtick);
        assert_eq!(lexer.logical_line().unwrap().text, "RUN C:\\ b");
    }

    #[test]
    fn directives_end_at_the_first_other_comment_blank_or_instruction() {
        for text in ["# hello\n# escape=`", "\n# escape=`", "FROM a\n# escape=`", "# unknown=1\n# escape=`"] {
            assert_eq!(directives(text, "D").unwrap(), Directives::default(), "{text:?}");
        }
        let all = directives("# syntax=docker/dockerfile:1\n#CHECK = skip=all \n# escape=\\\n", "D").unwrap();
        assert_eq!(all.syntax.as_deref(), Some("docker/dockerfile:1"));
        assert_eq!(all.check.as_deref(), Some("skip=all"));
        assert_eq!(all.escape, Some(Escape::Backslash));
    }

    #[test]
    fn a_directive_twice_and_a_wrong_escape_are_errors_with_their_line() {
        let error = directives("# escape=`\n# escape=`", "D").unwrap_err();
        assert_eq!(error.to_string(), "D:2:1: the parser directive `escape` is given twice");
        let error = directives("# escape=x", "D").unwrap_err();
        assert_eq!(error.problem, Problem::Escape("x".to_owned()));
    }

    #[test]
    fn binary_and_oversized_input_is_refused_with_its_line() {
        let error = decode(b"FROM a\nRUN \xff\xfe", "D").unwrap_err();
        assert_eq!(error.to_string(), "D:2:5: the line is not UTF-8");
        let error = decode(b"FROM a\nRUN \0", "D").unwrap_err();
        assert_eq!((error.position.line, error.problem), (2, Problem::Nul));
        let long = [b"FROM a\n".as_slice(), &vec![b'x'; MAX_LINE_BYTES + 1]].concat();
        let error = decode(&long, "D").unwrap_err();
        assert_eq!(
            (error.position.line, error.problem),
            (2, Problem::LineTooLong { max_bytes: MAX_LINE_BYTES })
        );
        assert!(matches!(
            decode(&vec![b'\n'; MAX_FILE_BYTES + 1], "D").unwrap_err().problem,
            Problem::FileTooLong { .. }
        ));
    }

    #[test]
    fn a_byte_order_mark_is_dropped() {
        assert_eq!(decode(b"\xef\xbb\xbfFROM a", "D").unwrap(), "FROM a");
    }
}
