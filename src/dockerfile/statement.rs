//! Logical lines to statements: keyword, flags, the rest, heredocs. What they mean is not known here.

use super::error::{ParseError, Position, Problem, Span};
use super::heredoc::Heredoc;
use super::lexer::{Escape, Lexer, LogicalLine, trim_line_ending};
use super::words::json_strings;

/// One instruction, untyped.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    /// As written.
    pub(super) keyword: String,
    pub(super) flags: Vec<Flag>,
    /// What follows the flags, trimmed.
    pub(super) rest: String,
    /// Where the rest begins in the line.
    pub(super) rest_offset: usize,
    pub(super) heredocs: Vec<Heredoc>,
    pub(super) line: LogicalLine,
    pub(super) escape: Escape,
}

/// `--name` or `--name=value`, unquoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flag {
    pub(super) text: String,
    pub(super) offset: usize,
}

impl Statement {
    pub(super) fn span(&self) -> Span {
        Span { start: self.line.position(0), end_line: self.line.last_line }
    }

    /// The keyword in upper case, as messages have it.
    pub(super) fn name(&self) -> String {
        self.keyword.to_ascii_uppercase()
    }

    /// The statement after ONBUILD.
    pub(super) fn trigger(&self) -> Self {
        let mut trigger = Self::parse(self.line.starting_at(self.rest_offset), self.escape);
        trigger.heredocs.clone_from(&self.heredocs);
        trigger
    }

    /// One logical line as a statement, without the bodies of heredocs.
    pub(super) fn parse(line: LogicalLine, escape: Escape) -> Self {
        let text = line.text.as_str();
        let start = text.len() - text.trim_start().len();
        let keyword: String =
            text[start..].chars().take_while(|c| !matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')).collect();
        let after = start + keyword.len();
        let (flags, rest_offset) = split_flags(text, after, escape);
        let rest = text.get(rest_offset..).unwrap_or_default();
        let rest_offset = rest_offset + rest.len() - rest.trim_start().len();
        let rest = rest.trim().to_owned();
        Self { keyword, flags, rest, rest_offset, heredocs: Vec::new(), line, escape }
    }

    fn may_have_heredocs(&self) -> bool {
        match self.name().as_str() {
            "ONBUILD" => {
                let trigger = Self::parse(self.line.starting_at(self.rest_offset), self.escape);
                trigger.name() != "ONBUILD" && trigger.may_have_heredocs()
            }
            "ADD" | "COPY" | "RUN" => json_strings(&self.rest).is_none(),
            _ => false,
        }
    }
}

/// All statements of a file.
pub(super) fn statements(text: &str, escape: Escape, file: &str) -> Result<Vec<Statement>, ParseError> {
    let mut lexer = Lexer::new(text, escape);
    let mut statements = Vec::new();
    while let Some(line) = lexer.logical_line() {
        let mut statement = Statement::parse(line, escape);
        if statement.line.text.contains("<<") && statement.may_have_heredocs() {
            for mut heredoc in Heredoc::all(&statement.line.text) {
                read_body(&mut heredoc, &mut lexer).map_err(|problem| ParseError {
                    file: file.to_owned(),
                    position: statement.line.position(0),
                    problem,
                })?;
                statement.heredocs.push(heredoc);
            }
            statement.line.last_line = lexer.line();
        }
        statements.push(statement);
    }
    if statements.is_empty() {
        let position = Position { line: 1, column: 1 };
        return Err(ParseError { file: file.to_owned(), position, problem: Problem::Empty });
    }
    Ok(statements)
}

fn read_body(heredoc: &mut Heredoc, lexer: &mut Lexer<'_>) -> Result<(), Problem> {
    while let Some(line) = lexer.raw_line() {
        if heredoc.ends_at(trim_line_ending(line)) {
            return Ok(());
        }
        heredoc.body.push_str(line);
    }
    Err(Problem::UnterminatedHeredoc(heredoc.name.clone()))
}

/// The `--flags` from an offset on, quotes and escapes removed, and where they end. A lone `--` ends them.
fn split_flags(text: &str, mut at: usize, escape: Escape) -> (Vec<Flag>, usize) {
    let mut flags = Vec::new();
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let trimmed = rest.trim_start();
        let start = at + rest.len() - trimmed.len();
        if !trimmed.starts_with("--") {
            return (flags, start);
        }
        let (word, length) = flag_word(trimmed, escape.character());
        at = start + length;
        if word == "--" {
            return (flags, at);
        }
        flags.push(Flag { text: word, offset: start });
    }
}

/// The first word, unquoted, and its length in the text.
fn flag_word(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((offset, character)) = chars.next() {
        match quote {
            None if character.is_whitespace() => return (word, offset),
            None if matches!(character, '\'' | '"') => quote = Some(character),
            Some(open) if character == open => quote = None,
            _ if character == escape => word.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => word.push(character),
        }
    }
    (word, text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Statement> {
        statements(text, Escape::Backslash, "Dockerfile").unwrap()
    }

    #[test]
    fn a_statement_is_its_keyword_flags_and_rest() {
        let statement = &parse("  copy --from=a  --chown='b c' \\\n --x=\\\"d\\\" -- --e /f \n")[0];
        assert_eq!(statement.keyword, "copy");
        let flags: Vec<_> = statement.flags.iter().map(|flag| flag.text.as_str()).collect();
        assert_eq!(flags, ["--from=a", "--chown=b c", "--x=\"d\""]);
        assert_eq!(statement.rest, "--e /f");
        assert_eq!(statement.line.position(statement.flags[2].offset), Position { line: 2, column: 2 });
        assert_eq!(statement.line.position(statement.rest_offset), Position { line: 2, column: 15 });
    }

    #[test]
    fn heredocs_are_read_only_after_add_copy_and_run() {
        let all = parse("RUN <<A cat <<-B\na\nA\n\tb\n\tB\nCMD <<C\nFROM x");
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].heredocs[0].body, "a\n");
        assert_eq!(
            (all[0].heredocs[1].body.as_str(), all[0].heredocs[1].content()),
            ("\tb\n", "b\n".to_owned())
        );
        assert_eq!(all[0].span().end_line, 5);
        assert_eq!(all[1].rest, "<<C");
    }

    #[test]
    fn a_heredoc_keeps_comments_blank_lines_and_continuations() {
        let all = parse("COPY <<EOF /x\n# c\n\n a \\\nEOF\nUSER a");
        assert_eq!(all[0].heredocs[0].body, "# c\n\n a \\\n");
        assert_eq!(all[1].keyword, "USER");
    }

    #[test]
    fn the_exec_form_has_no_heredoc() {
        assert_eq!(parse("RUN [\"cat\", \"<<EOF\"]\nUSER a").len(), 2);
    }

    #[test]
    fn onbuild_passes_heredocs_to_its_trigger() {
        let all = parse("ONBUILD RUN <<EOF\nx\nEOF\nONBUILD USER <<EOF");
        assert_eq!(all[0].trigger().heredocs[0].body, "x\n");
        assert_eq!(all[1].trigger().rest, "<<EOF");
    }

    #[test]
    fn an_unterminated_heredoc_names_the_line_that_opens_it() {
        let error = statements("FROM a\nRUN <<EOF\nx\n EOF\n", Escape::Backslash, "D").unwrap_err();
        assert_eq!(
            error.to_string(),
            "D:2:1: the heredoc `EOF` never ends: a line with `EOF` alone is missing"
        );
    }

    #[test]
    fn a_file_of_comments_has_no_instruction() {
        let error = statements("# a\n\n", Escape::Backslash, "D").unwrap_err();
        assert_eq!(error.problem, Problem::Empty);
    }
}
