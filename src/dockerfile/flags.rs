//! The `--flags` of an instruction: which it knows, which take a value, which may repeat.

use std::time::Duration;

use super::error::{Position, Problem};
use super::statement::Statement;
use crate::model::nearest;

/// The flags of one statement, taken one by one by the instruction that knows them.
pub(super) struct Flags<'a> {
    instruction: &'static str,
    given: Vec<(&'a str, Option<&'a str>, Position)>,
    known: Vec<&'static str>,
}

/// A problem where it is.
pub(super) type At<T> = Result<T, (Position, Problem)>;

impl<'a> Flags<'a> {
    pub(super) fn new(statement: &'a Statement, instruction: &'static str) -> Self {
        let split = statement.flags.iter().map(|flag| {
            let text = flag.text.trim_start_matches("--");
            let position = statement.line.position(flag.offset);
            match text.split_once('=') {
                Some((name, value)) => (name, Some(value), position),
                None => (text, None, position),
            }
        });
        Self { instruction, given: split.collect(), known: Vec::new() }
    }

    /// All values of a flag that may repeat.
    pub(super) fn values(&mut self, name: &'static str) -> At<Vec<(Position, String)>> {
        self.known.push(name);
        let mut values = Vec::new();
        let mut missing = None;
        self.given.retain(|(given, value, position)| {
            if *given != name {
                return true;
            }
            match value {
                Some(value) => values.push((*position, (*value).to_owned())),
                None => missing = missing.or(Some(*position)),
            }
            false
        });
        match missing {
            Some(position) => Err((position, Problem::FlagWithoutValue(name.to_owned()))),
            None => Ok(values),
        }
    }

    /// The value of a flag that may be given once.
    pub(super) fn value(&mut self, name: &'static str) -> At<Option<(Position, String)>> {
        let mut values = self.values(name)?;
        if let Some((position, _)) = values.get(1) {
            return Err((*position, Problem::DuplicateFlag(name.to_owned())));
        }
        Ok(values.pop())
    }

    /// The text of a flag that may be given once.
    pub(super) fn text(&mut self, name: &'static str) -> At<Option<String>> {
        Ok(self.value(name)?.map(|(_, value)| value))
    }

    /// A flag that is on by its name alone, or `=true`, `=false`.
    pub(super) fn switch(&mut self, name: &'static str) -> At<Option<bool>> {
        self.known.push(name);
        let mut found = None;
        let mut problem = None;
        self.given.retain(|(given, value, position)| {
            if *given != name {
                return true;
            }
            if found.is_some() {
                problem = problem.take().or(Some((*position, Problem::DuplicateFlag(name.to_owned()))));
            }
            match value.map(str::to_ascii_lowercase).as_deref() {
                None | Some("true") => found = Some(true),
                Some("false") => found = Some(false),
                Some(value) => {
                    let allowed = "it is `true` or `false`".to_owned();
                    let wrong = Problem::FlagValue { flag: name, value: value.to_owned(), allowed };
                    problem = problem.take().or(Some((*position, wrong)));
                }
            }
            false
        });
        problem.map_or(Ok(found), Err)
    }

    /// A duration of at least a millisecond; `0s` is as if it were not given.
    pub(super) fn duration(&mut self, name: &'static str) -> At<Option<Duration>> {
        let Some((position, value)) = self.value(name)? else { return Ok(None) };
        match go_duration(&value) {
            Some(Duration::ZERO) => Ok(None),
            Some(duration) if duration >= Duration::from_millis(1) => Ok(Some(duration)),
            _ => Err((position, Problem::Duration { flag: name, value })),
        }
    }

    /// Fails on the first flag that nobody took.
    pub(super) fn end(self) -> At<()> {
        let Some((name, _, position)) = self.given.first() else { return Ok(()) };
        let similar = nearest(name, self.known.iter().copied()).map(|name| format!("--{name}"));
        let name = (*name).to_owned();
        Err((*position, Problem::UnknownFlag { instruction: self.instruction, name, nearest: similar }))
    }
}

/// Go's spelling of durations: `1h2m3.5s`, `300ms`, `0`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest.get(..number)?.parse().ok()?;
        rest = rest.get(number..)?;
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match rest.get(..unit)? {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += value * seconds;
        rest = rest.get(unit..)?;
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spelled_as_in_go() {
        for (text, milliseconds) in
            [("30s", 30_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("5ms", 5), ("0", 0)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "30", "s", "1x", "-1s", "1..s", "1s1"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}
