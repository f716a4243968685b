//! The scanner of an expansion: one pass over the characters, which calls itself for what is in quotes and braces.

use std::iter::Peekable;
use std::str::Chars;

use super::{ExpandError, MAX_DEPTH, MAX_EXPANDED_BYTES};
use crate::dockerfile::pattern::Pattern;

/// How a text is read.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "four independent switches of one scanner")]
pub(super) struct Rules {
    pub(super) keep_quotes: bool,
    pub(super) keep_escapes: bool,
    pub(super) keep_unset: bool,
    pub(super) ignore_quotes: bool,
}

/// The whole text, and the same as words.
#[derive(Default)]
pub(super) struct Words {
    pub(super) whole: String,
    pub(super) parts: Vec<String>,
    word: String,
}

impl Words {
    /// From the text or a variable: spaces part words.
    fn splitting(&mut self, text: &str) {
        self.whole.push_str(text);
        for character in text.chars() {
            if character.is_whitespace() {
                self.end_word();
            } else {
                self.word.push(character);
            }
        }
    }

    /// Quoted or escaped: spaces belong to the word.
    fn raw(&mut self, text: &str) {
        self.whole.push_str(text);
        self.word.push_str(text);
    }

    fn end_word(&mut self) {
        if !self.word.is_empty() {
            self.parts.push(std::mem::take(&mut self.word));
        }
    }
}

pub(super) struct Scanner<'t, 'l> {
    pub(super) chars: Peekable<Chars<'t>>,
    pub(super) escape: char,
    pub(super) rules: Rules,
    pub(super) lookup: &'l dyn Fn(&str) -> Option<String>,
    pub(super) depth: usize,
}

impl Scanner<'_, '_> {
    /// Reads until an unquoted `stop`, which is consumed, or the end of the text.
    pub(super) fn until(&mut self, stop: Option<char>, keep_escapes: bool) -> Result<Words, ExpandError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ExpandError::TooDeep);
        }
        let mut words = Words::default();
        let mut closed = stop.is_none();
        while let Some(character) = self.chars.next() {
            if Some(character) == stop {
                closed = true;
                break;
            }
            self.one(character, keep_escapes, &mut words)?;
            if words.whole.len() > MAX_EXPANDED_BYTES {
                return Err(ExpandError::TooLong);
            }
        }
        if let (false, Some(stop)) = (closed, stop) {
            return Err(ExpandError::Unclosed(stop));
        }
        words.end_word();
        self.depth -= 1;
        Ok(words)
    }

    fn one(&mut self, character: char, keep_escapes: bool, words: &mut Words) -> Result<(), ExpandError> {
        match character {
            '$' => {
                let value = self.dollar()?;
                words.splitting(&value);
            }
            '<' => words.raw(&self.possible_heredoc()),
            '\'' if !self.rules.ignore_quotes => words.raw(&self.single_quoted()?),
            '"' if !self.rules.ignore_quotes => words.raw(&self.double_quoted(keep_escapes)?),
            _ if character == self.escape => {
                if keep_escapes {
                    words.raw(character.encode_utf8(&mut [0; 4]));
                }
                if let Some(escaped) = self.chars.next() {
                    words.raw(escaped.encode_utf8(&mut [0; 4]));
                }
            }
            _ => words.splitting(character.encode_utf8(&mut [0; 4])),
        }
        Ok(())
    }

    /// `<<` with the spaces after it, which do not part it from its delimiter.
    fn possible_heredoc(&mut self) -> String {
        let mut text = "<".to_owned();
        if self.chars.next_if_eq(&'<').is_some() {
            text.push('<');
            while let Some(space) = self.chars.next_if(|c| matches!(c, ' ' | '\t' | '\r')) {
                text.push(space);
            }
        }
        text
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        let quote = if self.rules.keep_quotes { "'" } else { "" };
        let mut text = quote.to_owned();
        loop {
            match self.chars.next() {
                None => return Err(ExpandError::UnclosedQuote("single")),
                Some('\'') => break,
                Some(character) => text.push(character),
            }
        }
        text.push_str(quote);
        Ok(text)
    }

    fn double_quoted(&mut self, keep_escapes: bool) -> Result<String, ExpandError> {
        let quote = if self.rules.keep_quotes { "\"" } else { "" };
        let mut text = quote.to_owned();
        loop {
            if text.len() > MAX_EXPANDED_BYTES {
                return Err(ExpandError::TooLong);
            }
            match self.chars.next() {
                None => return Err(ExpandError::UnclosedQuote("double")),
                Some('"') => break,
                Some('$') => text.push_str(&self.dollar()?),
                Some(character) if character == self.escape => {
                    let escape = self.escape;
                    if keep_escapes {
                        text.push(character);
                    }
                    if self.chars.peek().is_none() {
                        continue;
                    }
                    let special = self.chars.next_if(|c| matches!(c, '"' | '$') || *c == escape);
                    text.push(special.unwrap_or(character));
                }
                Some(character) => text.push(character),
            }
        }
        text.push_str(quote);
        Ok(text)
    }

    /// What stands for `$name`, `${name}` or `${name<modifier>…}`; the `$` is consumed.
    fn dollar(&mut self) -> Result<String, ExpandError> {
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match (self.lookup)(&name) {
                Some(value) => value,
                None if self.rules.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        match self.chars.peek() {
            None => return Err(ExpandError::Unclosed('}')),
            Some('{' | '}' | ':') => return Err(ExpandError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.chars.next() {
            None => Err(ExpandError::Unclosed('}')),
            Some('}') => Ok(match (self.lookup)(&name) {
                Some(value) => value,
                None if self.rules.keep_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            Some(':') => match self.chars.next() {
                Some(modifier @ ('+' | '-' | '?')) => self.conditional(&name, modifier, true),
                other => Err(ExpandError::Modifier(format!(":{}", other.unwrap_or('}')))),
            },
            Some(modifier @ ('+' | '-' | '?')) => self.conditional(&name, modifier, false),
            Some(side @ ('#' | '%')) => self.trim(&name, side),
            Some('/') => self.replace(&name),
            Some(other) => Err(ExpandError::Modifier(other.to_string())),
        }
    }

    fn conditional(
        &mut self,
        name: &str,
        modifier: char,
        empty_is_unset: bool,
    ) -> Result<String, ExpandError> {
        let word = self.until(Some('}'), false)?.whole;
        let value = (self.lookup)(name);
        if value.is_none() && self.rules.keep_unset {
            let colon = if empty_is_unset { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let was_set = value.is_some();
        let value = value.filter(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            '-' => Ok(value.unwrap_or(word)),
            '+' => Ok(value.map(|_| word).unwrap_or_default()),
            _ => value.ok_or_else(|| {
                let default = if was_set { "may not be empty" } else { "is not set" };
                let message = if word.is_empty() { default.to_owned() } else { word };
                ExpandError::Required { name: name.to_owned(), message }
            }),
        }
    }

    fn trim(&mut self, name: &str, side: char) -> Result<String, ExpandError> {
        let word = self.until(Some('}'), true)?.whole;
        let Some(value) = (self.lookup)(name) else {
            let kept = format!("${{{name}{side}{word}}}");
            return Ok(if self.rules.keep_unset { kept } else { String::new() });
        };
        let longest = word.starts_with(side);
        let pattern = Pattern::parse(word.strip_prefix(side).unwrap_or(&word))?;
        Ok(if side == '#' { pattern.trim_start(&value, longest) } else { pattern.trim_end(&value, longest) })
    }

    fn replace(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let pattern = self.until(Some('/'), true)?.whole;
        let replacement = self.until(Some('}'), true)?.whole;
        let Some(value) = (self.lookup)(name) else {
            let kept = format!("${{{name}/{pattern}/{replacement}}}");
            return Ok(if self.rules.keep_unset { kept } else { String::new() });
        };
        let replaced = Pattern::parse(&pattern)?.replace(&value, &replacement, all);
        replaced.ok_or(ExpandError::TooLong)
    }

    /// Letters, digits and `_`; digits alone if it begins with one; or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        if let Some(special) = self.chars.next_if(|c| "@*#?-$!".contains(*c)) {
            name.push(special);
            return name;
        }
        let digits = self.chars.peek().is_some_and(char::is_ascii_digit);
        let belongs = |c: &char| if digits { c.is_ascii_digit() } else { c.is_alphanumeric() || *c == '_' };
        while let Some(character) = self.chars.next_if(belongs) {
            name.push(character);
        }
        name
    }
}
