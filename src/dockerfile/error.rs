//! What can be wrong with a Dockerfile, and where.

use std::fmt;

/// A place in a file: line and column, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Where an instruction stands: its first character, and its last line with continuations and heredocs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first character of the instruction.
    pub start: Position,
    /// The last line of the instruction.
    pub end_line: usize,
}

/// An error at a place in a Dockerfile, shown `Dockerfile:9:5: what is wrong`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{position}: {problem}")]
pub struct ParseError {
    /// The file as its caller named it.
    pub file: String,
    /// Where in the file.
    pub position: Position,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong at one place of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file is over its limit.
    #[error("the file is over the limit of {max_bytes} bytes")]
    FileTooLong {
        /// The limit.
        max_bytes: usize,
    },
    /// A line is over its limit.
    #[error("the line is over the limit of {max_bytes} bytes")]
    LineTooLong {
        /// The limit.
        max_bytes: usize,
    },
    /// A NUL byte: this is no text.
    #[error("the line holds a NUL byte: this is not a text file")]
    Nul,
    /// Bytes that are not UTF-8.
    #[error("the line is not UTF-8")]
    NotUtf8,
    /// No instruction in the file.
    #[error("the file holds no instruction")]
    Empty,
    /// A parser directive twice.
    #[error("the parser directive `{0}` is given twice")]
    DuplicateDirective(&'static str),
    /// An escape directive with another value than the two.
    #[error("the escape directive is `\\` or a backtick, not `{0}`")]
    Escape(String),
    /// A heredoc whose terminator never comes.
    #[error("the heredoc `{0}` never ends: a line with `{0}` alone is missing")]
    UnterminatedHeredoc(String),
    /// An instruction that no Dockerfile knows.
    #[error("unknown instruction `{name}`{}", did_you_mean(nearest.as_deref()))]
    UnknownInstruction {
        /// As written.
        name: String,
        /// The most similar one.
        nearest: Option<String>,
    },
    /// A flag that this instruction does not know.
    #[error("{instruction} has no flag `--{name}`{}", did_you_mean(nearest.as_deref()))]
    UnknownFlag {
        /// The instruction.
        instruction: &'static str,
        /// The flag's name.
        name: String,
        /// The most similar one, with its dashes.
        nearest: Option<String>,
    },
    /// A flag twice.
    #[error("the flag `--{0}` is given twice")]
    DuplicateFlag(String),
    /// A flag without its value.
    #[error("the flag `--{0}` needs a value: `--{0}=…`")]
    FlagWithoutValue(String),
    /// A flag whose value is not one of those allowed.
    #[error("`{value}` is not a value of `--{flag}`: {allowed}")]
    FlagValue {
        /// The flag's name.
        flag: &'static str,
        /// The value given.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// Wrong number of arguments.
    #[error("{instruction} needs {needs}")]
    Arguments {
        /// The instruction.
        instruction: &'static str,
        /// How many and which.
        needs: &'static str,
    },
    /// A word that should be `name=value`.
    #[error("{instruction}: `{word}` is not of the form name=value")]
    NotNameValue {
        /// The instruction.
        instruction: &'static str,
        /// The word.
        word: String,
    },
    /// `=value`.
    #[error("{0} has a name that is blank")]
    BlankName(&'static str),
    /// A JSON array with something that is not a string.
    #[error("{0}: a JSON array may hold strings only")]
    JsonNotStrings(&'static str),
    /// `SHELL` in another form than a JSON array.
    #[error("SHELL needs a JSON array, as in SHELL [\"/bin/bash\", \"-c\"]")]
    ShellNotJson,
    /// A stage name that may not be.
    #[error("stage name `{0}` is not valid: a letter, then letters, digits, `-`, `_` and `.`")]
    StageName(String),
    /// An instruction other than ARG before the first FROM.
    #[error("{0} before the first FROM: only ARG may stand there")]
    BeforeFrom(&'static str),
    /// ARGs and no FROM.
    #[error("the file has no FROM")]
    NoFrom,
    /// `ONBUILD ONBUILD`, `ONBUILD FROM`, `ONBUILD MAINTAINER`.
    #[error("{0} may not be an ONBUILD trigger")]
    OnbuildTrigger(&'static str),
    /// `COPY a <<EOF`.
    #[error("{0} cannot have a heredoc as its destination")]
    HeredocDestination(&'static str),
    /// A heredoc that becomes a file, with a delimiter that is no file name.
    #[error("the heredoc `{0}` becomes a file of that name: use a name without `/`")]
    HeredocName(String),
    /// A type of health check other than `CMD` and `NONE`.
    #[error("HEALTHCHECK is `CMD …` or `NONE`, not `{0}`")]
    HealthcheckKind(String),
    /// A duration that is none.
    #[error("`--{flag}={value}`: a duration is as in `30s` or `1m30s`, and at least 1ms")]
    Duration {
        /// The flag's name.
        flag: &'static str,
        /// The value given.
        value: String,
    },
    /// A mount that is not right.
    #[error("--mount: {0}")]
    Mount(String),
    /// A device that is not right.
    #[error("--device: {0}")]
    Device(String),
    /// A variable in a place that has none.
    #[error("{place} takes no variables: name a stage with `FROM {value} AS name` and use the name")]
    VariableInFrom {
        /// `COPY --from`.
        place: &'static str,
        /// The value with a `$`.
        value: String,
    },
    /// A substitution that fails.
    #[error(transparent)]
    Expansion(#[from] super::ExpandError),
    /// A port that is none.
    #[error(transparent)]
    Port(#[from] super::PortError),
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}
