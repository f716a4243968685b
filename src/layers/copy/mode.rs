//! `--chmod`: octal, or symbolic as `chmod` takes it.

use std::str::FromStr;

/// A change of a file's mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Octal(u32),
    Symbolic(Vec<Clause>),
}

/// One `who op permissions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clause {
    /// Of the bits of all three classes and of the special ones.
    who: u32,
    op: char,
    /// As if for all classes.
    bits: u32,
    /// `X`: execution for directories, and for files that someone may execute.
    execute_if: bool,
    /// Takes the permissions that this class has: the shift of its bits.
    copy_from: Option<u32>,
}

/// Not a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mode `{0}` is neither octal (`0755`) nor symbolic (`u+x,go-w`)")]
pub struct ModeError(String);

impl ModeChange {
    /// The mode after the change of `mode`.
    #[must_use]
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match &self.0 {
            Kind::Octal(mode) => *mode,
            Kind::Symbolic(clauses) => {
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_directory))
            }
        }
    }

    /// The mode itself, if it does not depend on another.
    #[must_use]
    pub fn octal(&self) -> Option<u32> {
        match self.0 {
            Kind::Octal(mode) => Some(mode),
            Kind::Symbolic(_) => None,
        }
    }
}

impl Clause {
    fn apply(self, mode: u32, is_directory: bool) -> u32 {
        let mut bits = self.bits;
        if let Some(shift) = self.copy_from {
            bits = (mode >> shift & 7) * 0o111;
        }
        if self.execute_if && (is_directory || mode & 0o111 != 0) {
            bits |= 0o111;
        }
        let bits = bits & self.who;
        match self.op {
            '+' => mode | bits,
            '-' => mode & !bits,
            // The special bits of a directory stay, as with GNU chmod, unless they are named.
            _ if is_directory => mode & !(self.who & 0o777) | bits,
            _ => mode & !self.who | bits,
        }
    }
}

impl FromStr for ModeChange {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ModeError(text.to_owned());
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            return mode.map(|mode| Self(Kind::Octal(mode))).ok_or_else(error);
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            clauses.extend(parse_clauses(part).ok_or_else(error)?);
        }
        Ok(Self(Kind::Symbolic(clauses)))
    }
}

/// `u`, `g`, `o`: the bits they mean, and the shift of their permissions.
fn class(char: char) -> Option<(u32, u32)> {
    match char {
        'u' => Some((0o4700, 6)),
        'g' => Some((0o2070, 3)),
        'o' => Some((0o1007, 0)),
        _ => None,
    }
}

/// One part between commas: `who` and one or more operations.
fn parse_clauses(part: &str) -> Option<Vec<Clause>> {
    let operations = part.find(['+', '-', '='])?;
    let (who_text, mut rest) = part.split_at(operations);
    let mut who = 0;
    for char in who_text.chars() {
        who |= if char == 'a' { 0o7777 } else { class(char)?.0 };
    }
    if who_text.is_empty() {
        who = 0o7777;
    }
    let mut clauses = Vec::new();
    while let Some(op) = rest.chars().next() {
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |end| end + 1);
        let mut clause = Clause { who, op, bits: 0, execute_if: false, copy_from: None };
        let permissions = &rest[1..end];
        for char in permissions.chars() {
            match char {
                'r' => clause.bits |= 0o444,
                'w' => clause.bits |= 0o222,
                'x' => clause.bits |= 0o111,
                'X' => clause.execute_if = true,
                's' => clause.bits |= 0o6000,
                't' => clause.bits |= 0o1000,
                _ if permissions.len() == 1 => clause.copy_from = Some(class(char)?.1),
                _ => return None,
            }
        }
        // `+t` for everyone is `t` without a class.
        if clause.bits & 0o1000 != 0 {
            clause.who |= 0o1000;
        }
        clauses.push(clause);
        rest = &rest[end..];
    }
    Some(clauses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chmod(text: &str, mode: u32, is_directory: bool) -> u32 {
        text.parse::<ModeChange>().unwrap().apply(mode, is_directory)
    }

    #[test]
    fn octal_modes_replace_and_symbolic_ones_change() {
        for (text, before, directory, after) in [
            ("755", 0o644, false, 0o755),
            ("4755", 0o644, false, 0o4755),
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("a-w,u+w", 0o666, false, 0o644),
            ("go=", 0o777, false, 0o700),
            ("g=u", 0o740, false, 0o770),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u+s", 0o755, false, 0o4755),
            ("+t", 0o777, true, 0o1777),
            ("u=rw-w+x", 0o000, false, 0o500),
            ("g=rx", 0o2770, true, 0o2750),
        ] {
            assert_eq!(chmod(text, before, directory), after, "{text} on {before:o}");
        }
    }

    #[test]
    fn what_is_not_a_mode_is_refused() {
        for text in ["", "8", "77777", "x", "u+q", "u", "z+x", "u+x,", "u=gr", "0o755", "-1"] {
            assert!(text.parse::<ModeChange>().is_err(), "{text}");
        }
    }
}
