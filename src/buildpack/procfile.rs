//! `Procfile`: process types and their commands, one a line.
//!
//! ```text
//! web: ./server --port $PORT
//! worker: ./worker
//! ```

use std::collections::BTreeMap;

use crate::model::ProcessType;

/// The file's name, at the root of the source.
pub const FILE: &str = "Procfile";
/// The largest `Procfile` that is read.
pub const MAX_BYTES: u64 = 64 << 10;

/// Why a `Procfile` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{FILE}:{line}: {problem}")]
pub struct ProcfileError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: String,
}

/// The process types of a `Procfile` with their commands, which a shell is to run. Blank lines and lines that
/// begin with `#` say nothing.
pub fn parse(bytes: &[u8]) -> Result<BTreeMap<ProcessType, String>, ProcfileError> {
    let mut types = BTreeMap::new();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let fail = |problem: String| ProcfileError { line: index + 1, problem };
        let line = std::str::from_utf8(line).map_err(|_| fail("the line is not UTF-8".to_owned()))?.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, command) = line
            .split_once(':')
            .ok_or_else(|| fail("a line is `type: command`, as in `web: ./server`".to_owned()))?;
        let process_type: ProcessType = name.trim().parse().map_err(|error| fail(format!("{error}")))?;
        let command = command.trim();
        if command.is_empty() || command.contains('\0') {
            return Err(fail(format!("`{process_type}` has no command, or one with a NUL")));
        }
        if types.insert(process_type.clone(), command.to_owned()).is_some() {
            return Err(fail(format!("`{process_type}` is there twice")));
        }
    }
    if types.is_empty() {
        let problem =
            "it names no process type: add a line such as `web: ./server`, or remove the file".to_owned();
        return Err(ProcfileError { line: 1, problem });
    }
    Ok(types)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn types_and_commands_are_read() {
        let types = parse(b"\xef\xbb\xbf# all\r\nweb:  ./server -p $PORT: \r\n\nworker:./w\n").unwrap();
        assert_eq!(types[&ProcessType::web()], "./server -p $PORT:");
        assert_eq!(types[&"worker".parse().unwrap()], "./w");
        assert_eq!(types.len(), 2);
    }

    #[test]
    fn what_is_no_type_with_a_command_is_an_error_with_its_line() {
        assert_eq!(error("web ./server"), "Procfile:1: a line is `type: command`, as in `web: ./server`");
        assert!(error("web: a\nWeb_2: b").starts_with("Procfile:2: process type `Web_2` is not valid"));
        assert_eq!(error("web: a\nweb: b"), "Procfile:2: `web` is there twice");
        assert!(error("web:").contains("has no command"));
        assert!(error("# nothing").contains("it names no process type"));
        assert_eq!(parse(b"\n\xff: x").unwrap_err().line, 2);
    }
}
