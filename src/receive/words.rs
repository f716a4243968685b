//! Splits a command line into words as a POSIX shell quotes them, and does nothing else that a shell does.

/// Why a command line cannot be split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// A quote without its partner.
    #[error("a quote ({0}) is opened and not closed")]
    Unclosed(char),
    /// A `\` with nothing after it.
    #[error("the command ends in `\\`")]
    Escape,
}

/// Splits at blanks outside quotes. `'…'` is literal; in `"…"` a `\` escapes `"`, `\`, `$`, `` ` `` and a line's end.
pub(super) fn split(line: &str) -> Result<Vec<String>, WordsError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => single_quoted(&mut chars, word.get_or_insert_default())?,
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => return Err(WordsError::Escape),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn single_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), WordsError> {
    for c in chars {
        if c == '\'' {
            return Ok(());
        }
        word.push(c);
    }
    Err(WordsError::Unclosed('\''))
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), WordsError> {
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(()),
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(escaped @ ('"' | '\\' | '$' | '`')) => word.push(escaped),
                Some(plain) => word.extend(['\\', plain]),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err(WordsError::Unclosed('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_a_shell_makes_of_them() {
        for (line, words) in [
            ("", &[][..]),
            ("  \t ", &[]),
            ("apps", &["apps"]),
            ("builds log  7 -a hello", &["builds", "log", "7", "-a", "hello"]),
            (
                r#"config set A='b c' D="e \"f\" \x $G" ''"#,
                &["config", "set", "A=b c", r#"D=e "f" \x $G"#, ""],
            ),
            (r"a\ b \'c 'd'\''e'", &["a b", "'c", "d'e"]),
            (
                "a\\\nb; rm -rf / | $(x) `y` > z *",
                &["ab;", "rm", "-rf", "/", "|", "$(x)", "`y`", ">", "z", "*"],
            ),
        ] {
            assert_eq!(split(line).unwrap(), words, "{line}");
        }
    }

    #[test]
    fn unfinished_quotes_are_errors() {
        assert_eq!(split("a 'b"), Err(WordsError::Unclosed('\'')));
        assert_eq!(split("a \"b\\"), Err(WordsError::Unclosed('"')));
        assert_eq!(split("a\\"), Err(WordsError::Escape));
    }
}
