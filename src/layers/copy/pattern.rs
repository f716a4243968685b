//! Go's `filepath.Match` for one component of a path, which is what wildcards of `COPY` are.

/// Whether a source has a wildcard. A backslash takes the meaning from the character after it.
pub(super) fn has_wildcard(source: &str) -> bool {
    let mut chars = source.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Whether `name` matches `pattern`; `None` if the pattern is malformed.
pub(super) fn matches(pattern: &str, name: &str) -> Option<bool> {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    check(&pattern)?;
    // Where to go back to: after the last `*`, with one character more taken by it.
    let (mut p, mut n, mut back) = (0, 0, None);
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                back = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(_) if n < name.len() => one(&pattern[p..], name[n]),
            None if n == name.len() => return Some(true),
            _ => None,
        };
        match (step, back) {
            (Some(length), _) => (p, n) = (p + length, n + 1),
            (None, Some((after, taken))) if taken < name.len() => {
                back = Some((after, taken + 1));
                (p, n) = (after, taken + 1);
            }
            (None, _) => return Some(false),
        }
    }
}

/// How much of the pattern matches the one character; `None` if it does not.
fn one(pattern: &[char], char: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == char).then_some(2),
        ['[', ..] => {
            let (length, found) = class(pattern, char)?;
            found.then_some(length)
        }
        [literal, ..] => (*literal == char).then_some(1),
        [] => None,
    }
}

/// The length of a `[…]` and whether `char` is in it; `None` if it is malformed.
fn class(pattern: &[char], char: char) -> Option<(usize, bool)> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&'^');
    at += usize::from(negated);
    let (mut found, mut ranges) = (false, 0);
    loop {
        if pattern.get(at) == Some(&']') && ranges > 0 {
            return Some((at + 1, found != negated));
        }
        let low = class_char(pattern, &mut at)?;
        let mut high = low;
        if pattern.get(at) == Some(&'-') {
            at += 1;
            high = class_char(pattern, &mut at)?;
        }
        found |= (low..=high).contains(&char);
        ranges += 1;
    }
}

fn class_char(pattern: &[char], at: &mut usize) -> Option<char> {
    let mut char = *pattern.get(*at)?;
    if char == '-' || char == ']' {
        return None;
    }
    if char == '\\' {
        *at += 1;
        char = *pattern.get(*at)?;
    }
    *at += 1;
    Some(char)
}

/// A pattern is malformed whatever it is compared with.
fn check(pattern: &[char]) -> Option<()> {
    let mut at = 0;
    while let Some(char) = pattern.get(at) {
        at += match char {
            '\\' => {
                pattern.get(at + 1)?;
                2
            }
            '[' => class(&pattern[at..], 'x')?.0,
            _ => 1,
        };
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_gos_do() {
        // From Go's path/filepath/match_test.go.
        for (pattern, name, expected) in [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*b*c*d*e*", "axbxcxdxe", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^c]", "abc", Some(false)),
            ("ab[^e-g]", "abc", Some(true)),
            ("a\\*b", "a*b", Some(true)),
            ("a\\*b", "ab", Some(false)),
            ("a?b", "a☺b", Some(true)),
            ("a[^a]b", "a☺b", Some(true)),
            ("[a-ζ]*", "α", Some(true)),
            ("*[a-ζ]", "A", Some(false)),
            ("[\\]a]", "]", Some(true)),
            ("[\\-x]", "-", Some(true)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[x-]", "x", None),
            ("[a-b-c]", "a", None),
            ("[", "a", None),
            ("[^bc", "a", None),
            ("a[", "ab", None),
            ("a\\", "a", None),
            ("arr[[]0].txt", "arr[0].txt", Some(true)),
            ("*x", "xxx", Some(true)),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn an_escaped_wildcard_is_none() {
        assert!(!has_wildcard("a\\*b") && !has_wildcard("dir/file"));
        assert!(has_wildcard("a\\\\*") && has_wildcard("[a]") && has_wildcard("?"));
    }
}
