//! How an instruction's rest becomes arguments: JSON arrays, words at spaces, words with quotes.

use super::lexer::Escape;

/// What a rest that may be a JSON array is.
pub(super) enum Json {
    Strings(Vec<String>),
    /// An array with something else in it, which is an error and not the shell form.
    NotStrings,
}

/// The rest as a JSON array, if it is one. Anything else, also single quotes, is the shell form.
pub(super) fn json_strings(rest: &str) -> Option<Json> {
    if !rest.trim_start().starts_with('[') {
        return None;
    }
    let values: Vec<serde_json::Value> = serde_json::from_str(rest).ok()?;
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    });
    Some(strings.collect::<Option<Vec<_>>>().map_or(Json::NotStrings, Json::Strings))
}

/// The words between spaces; quotes mean nothing.
pub(super) fn at_spaces(rest: &str) -> Vec<String> {
    rest.split(['\t', '\x0b', '\x0c', '\r', ' ']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The words between unquoted spaces, with their quotes and escapes, and where each begins.
pub(super) fn with_quotes(rest: &str, escape: Escape) -> Vec<(usize, String)> {
    let escape = escape.character();
    let mut words = Vec::new();
    let mut word = String::new();
    let mut start = 0;
    let mut quote = None;
    let mut chars = rest.char_indices();
    while let Some((offset, character)) = chars.next() {
        if quote.is_none() && character.is_whitespace() {
            if !word.is_empty() {
                words.push((start, std::mem::take(&mut word)));
            }
            continue;
        }
        if word.is_empty() {
            start = offset;
        }
        match quote {
            None if matches!(character, '\'' | '"') => quote = Some(character),
            Some(open) if character == open => quote = None,
            _ => {}
        }
        if character == escape && quote != Some('\'') {
            if let Some((_, escaped)) = chars.next() {
                word.push(character);
                word.push(escaped);
            }
            continue;
        }
        word.push(character);
    }
    if !word.is_empty() {
        words.push((start, word));
    }
    words
}

/// The fields of a comma-separated list: `"a ""b"", c",d`. None if a quote never closes or stands inside a field.
pub(super) fn comma_separated(text: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut field = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        loop {
            match chars.next() {
                None if quoted => return None,
                None => {
                    fields.push(field);
                    return Some(fields);
                }
                Some('"') if quoted => {
                    if chars.next_if_eq(&'"').is_some() {
                        field.push('"');
                        continue;
                    }
                    match chars.next() {
                        None => {
                            fields.push(field);
                            return Some(fields);
                        }
                        Some(',') => break,
                        Some(_) => return None,
                    }
                }
                Some('"') => return None,
                Some(',') if !quoted => break,
                Some(character) => field.push(character),
            }
        }
        fields.push(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_double_quoted_arrays_are_json() {
        assert!(
            matches!(json_strings(" [\"a\", \"b\"]"), Some(Json::Strings(strings)) if strings == ["a", "b"])
        );
        assert!(matches!(json_strings("[]"), Some(Json::Strings(strings)) if strings.is_empty()));
        assert!(matches!(json_strings("[1]"), Some(Json::NotStrings)));
        for text in ["['a']", "[\"a\"", "[\"a\"] b", "a [\"b\"]", "[ -d x ]"] {
            assert!(json_strings(text).is_none(), "{text}");
        }
    }

    #[test]
    fn quoted_words_keep_their_quotes_and_spaces() {
        let words =
            |text| with_quotes(text, Escape::Backslash).into_iter().map(|(_, word)| word).collect::<Vec<_>>();
        assert_eq!(
            words("a=b c='d e' f=\"g \\\" h\" i=j\\ k"),
            ["a=b", "c='d e'", "f=\"g \\\" h\"", "i=j\\ k"]
        );
        assert_eq!(words("a='\\' b"), ["a='\\'", "b"]);
        assert_eq!(words("a\\"), ["a"]);
    }

    #[test]
    fn comma_separated_fields_may_be_quoted() {
        assert_eq!(comma_separated("a=b,\"c=d,\"\"e\"\"\",f").unwrap(), ["a=b", "c=d,\"e\"", "f"]);
        assert_eq!(comma_separated("").unwrap(), [""]);
        for text in ["\"a", "a\"b", "\"a\"b"] {
            assert!(comma_separated(text).is_none(), "{text}");
        }
    }
}
