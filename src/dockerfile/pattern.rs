//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*` is any text, `?` one character, `\` takes their meaning.

use super::expansion::{ExpandError, MAX_EXPANDED_BYTES};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum One {
    Is(char),
    Any,
}

/// A pattern as the pieces between its stars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    pieces: Vec<Vec<One>>,
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, ExpandError> {
        let mut pieces = Vec::new();
        let mut piece = Vec::new();
        let mut chars = text.chars();
        while let Some(character) = chars.next() {
            match character {
                '*' => pieces.push(std::mem::take(&mut piece)),
                '?' => piece.push(One::Any),
                '\\' => match chars.next() {
                    Some(escaped @ ('*' | '?' | '\\' | '}' | '/')) => piece.push(One::Is(escaped)),
                    other => {
                        return Err(ExpandError::PatternEscape(other.map(String::from).unwrap_or_default()));
                    }
                },
                _ => piece.push(One::Is(character)),
            }
        }
        pieces.push(piece);
        Ok(Self { pieces })
    }

    /// The value without the shortest or longest text at its start that matches.
    pub(super) fn trim_start(&self, value: &str, longest: bool) -> String {
        let value: Vec<char> = value.chars().collect();
        let end = self.end_of_match(&value, 0, longest).unwrap_or(0);
        value.iter().skip(end).collect()
    }

    /// The value without the shortest or longest text at its end that matches.
    pub(super) fn trim_end(&self, value: &str, longest: bool) -> String {
        let value: Vec<char> = value.chars().rev().collect();
        let reversed = |piece: &Vec<One>| piece.iter().rev().copied().collect();
        let pattern = Self { pieces: self.pieces.iter().rev().map(reversed).collect() };
        let end = pattern.end_of_match(&value, 0, longest).unwrap_or(0);
        value.iter().skip(end).rev().collect()
    }

    /// The value with the first or all longest matches replaced; none if it grows over the limit.
    pub(super) fn replace(&self, value: &str, replacement: &str, all: bool) -> Option<String> {
        let value: Vec<char> = value.chars().collect();
        let mut result = String::new();
        let mut at = 0;
        let mut previous_end = None;
        while at <= value.len() {
            let end = self.end_of_match(&value, at, true).filter(|end| *end > at || previous_end != Some(at));
            if let Some(end) = end {
                result.push_str(replacement);
                previous_end = Some(end);
                if !all {
                    result.extend(value.iter().skip(end));
                    return Some(result);
                }
                if end > at {
                    at = end;
                    continue;
                }
            }
            result.extend(value.get(at));
            at += 1;
            if result.len() > MAX_EXPANDED_BYTES {
                return None;
            }
        }
        Some(result)
    }

    /// Where the shortest or longest match that begins at `start` ends.
    fn end_of_match(&self, value: &[char], start: usize, longest: bool) -> Option<usize> {
        let (first, rest) = self.pieces.split_first()?;
        if !matches_at(first, value, start) {
            return None;
        }
        let mut at = start + first.len();
        let Some((last, middle)) = rest.split_last() else { return Some(at) };
        for piece in middle {
            at = (at..=value.len()).find(|at| matches_at(piece, value, *at))? + piece.len();
        }
        let found = if longest {
            (at..=value.len()).rev().find(|at| matches_at(last, value, *at))
        } else {
            (at..=value.len()).find(|at| matches_at(last, value, *at))
        };
        found.map(|at| at + last.len())
    }
}

fn matches_at(piece: &[One], value: &[char], at: usize) -> bool {
    value.get(at..at + piece.len()).is_some_and(|part| {
        part.iter().zip(piece).all(|(character, one)| match one {
            One::Is(wanted) => character == wanted,
            One::Any => true,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match_lazily_and_greedily() {
        let pattern = Pattern::parse("a*b*c").unwrap();
        assert_eq!(pattern.trim_start("a b c b c x", false), " b c x");
        assert_eq!(pattern.trim_start("a b c b c x", true), " x");
        assert_eq!(Pattern::parse("b*c").unwrap().trim_end("a b c b c", false), "a b c ");
        assert_eq!(Pattern::parse("b*c").unwrap().trim_end("a b c b c", true), "a ");
    }

    #[test]
    fn escapes_take_the_meaning_of_wildcards() {
        assert_eq!(Pattern::parse("\\*").unwrap().replace("a*b", "x", true).as_deref(), Some("axb"));
        assert!(Pattern::parse("\\a").is_err());
        assert!(Pattern::parse("a\\").is_err());
    }

    #[test]
    fn an_empty_pattern_matches_between_characters() {
        assert_eq!(Pattern::parse("").unwrap().replace("ab", "-", true).as_deref(), Some("-a-b-"));
        assert_eq!(Pattern::parse("*").unwrap().replace("ab", "-", true).as_deref(), Some("-"));
    }
}
